# SPDX-License-Identifier: Apache-2.0
"""Exported files that were changed to do harm are refused, and nothing that they hold is run."""

from __future__ import annotations

import json
import os
import pickle  # noqa: TID251 (written, never read)
import sys
import zipfile
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import muntin
from muntin.configs import to_dict
from muntin.engines.engine_network import make_graph
from muntin.engines.engine_table import FORMATS
from muntin.engines.graphs import Graph
from muntin.engines.isolation import try_file
from muntin.engines.torch_engine import write_torch
from muntin.engines.torch_program import TorchProgram, read_program
from muntin.errors import RunError
from muntin.runs import Run
from tests.exporting.runs import write_run

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
CONSTANTS, INPUTS = "data/constants/model_constants_config.json", "data/sample_inputs/model.pt"
IMAGE = np.zeros((64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Give the file of a small classifier in a format; nobody changes it."""
    run = write_run(tmp_path_factory.mktemp("run") / "run", "classify")
    folder = tmp_path_factory.mktemp("files")
    classes, pre = run.classes, run.preprocessing
    graph = make_graph(run.load_network(), run.task, classes, pre, (64, 64))
    parts = {"classes": to_dict(classes), "preprocessing": to_dict(pre)}
    rest = {"canvas": [64, 64], "precision": "fp32", "stride": 0, "threshold": None}
    note = json.dumps({"config": run.config.to_dict(), **parts, **rest})

    @cache
    def write(form):
        path = folder / f"file{FORMATS[form].suffix}"
        FORMATS[form].write(graph, path, note, "fp32")
        return path

    return write


@pytest.fixture
def evil(tmp_path):
    """Give the bytes of a pickle that makes a file, and that file."""

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "canary"),)

    return pickle.dumps(Evil()), tmp_path / "canary"


def repack(source, target, changes):
    """Copy an archive; `changes` maps names to bytes, None, or a function on the parsed JSON."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            part, data = name.partition("/")[2], old.read(name)
            change = changes.get(part, data)
            if callable(change):
                content = json.loads(data)
                change = json.dumps(change(content) or content).encode()
            if change is not None:
                new.writestr(name, change)
        for part in changes.keys() - {name.partition("/")[2] for name in old.namelist()}:
            new.writestr(f"archive/{part}", changes[part])
    return target


def predict(path):
    return muntin.load(path)(IMAGE)[0]


def put_node(target, *inputs, output=None):
    """Insert an operator as the first one of the graph."""

    def change(model):
        arguments = [{"name": "", "arg": each, "kind": 1} for each in inputs]
        node = {"target": target, "inputs": arguments, "outputs": output or [], "metadata": {}}
        model["graph_module"]["graph"]["nodes"].insert(0, node)

    return change


def put_towers(model):
    """Insert products of sizes, each the square of the one before."""
    for n in reversed(range(70)):
        last = {"as_int": 3} if n == 0 else {"as_sym_int": {"as_name": f"tower{n - 1}"}}
        put_node("_operator.mul", last, last, output=[{"as_sym_int": {"as_name": f"tower{n}"}}])(
            model
        )


def put_sizes(text):
    def change(model):
        values = model["graph_module"]["graph"]["tensor_values"]
        values["images"]["sizes"][0] = {"as_expr": {"expr_str": text}}

    return change


def put_entry(**values):
    return lambda config: next(iter(config["config"].values())).update(values)


def put_meta(**values):
    return lambda config: next(iter(config["config"].values()))["tensor_meta"].update(values)


def put_mutation(model):
    spec = {"buffer_mutation": {"arg": {"name": "a"}, "buffer_name": "b"}}
    model["graph_module"]["signature"]["output_specs"].append(spec)


NUMBER, TEXT = {"as_int": 10**10}, {"as_string": "/etc/passwd"}
OUT = [{"as_tensor": {"name": "made"}}]
SIZES = [{"as_int": 10**6}]
CHANGED = {
    "pickled weight": (
        {WEIGHTS: put_entry(use_pickle=True), "data/weights/weight_0": "evil"}, "pickled",
    ),
    "legacy weights": ({WEIGHTS: None, "data/weights/model.pt": "evil"}, "model_weights_config"),
    "legacy constants": ({CONSTANTS: None, "data/constants/model.pt": "evil"}, "model_constants"),
    "code as a size": ({MODEL: put_sizes("__import__('os').mkdir('canary')")}, "__import__"),
    "command": ({MODEL: put_node("torch.os.mkdir", TEXT)}, "torch.os.mkdir"),
    "file": ({MODEL: put_node("torch.ops.aten.from_file.default", TEXT, output=OUT)}, "from_file"),
    "attribute": ({MODEL: put_node("torch.ops.aten.add.__init__", TEXT)}, "add.__init__"),
    "free scale": ({MODEL: put_node("torch.ops.aten.upsample_bilinear2d.default")}, "upsample"),
    "object": ({MODEL: put_node("torch.ops.aten.abs.default", {"as_custom_obj": {}})}, "custom"),
    "unknown value": (
        {MODEL: put_node("torch.ops.aten.abs.default", {"as_tensor": {"name": "x"}}, output=OUT)},
        "KeyError: 'x'",
    ),
    "40 GB": (
        {MODEL: put_node("torch.ops.aten.ones.default", {"as_ints": [10**10]}, output=OUT)},
        "MUNTIN_MAX_MEMORY",
    ),
    "growing size": ({MODEL: put_towers}, "in place of a size"),
    "mutation": ({MODEL: put_mutation}, "changes its weights"),
    "deep": ({MODEL: b"[" * 100_000}, "deep"),
    "empty": ({MODEL: b"{}"}, "schema_version"),
    "newer": ({MODEL: lambda model: model["schema_version"].update(major=9)}, "schema 9"),
    "no model": ({MODEL: None}, "models/model.json"),
    "version": ({"archive_version": b"999"}, "version"),
    "NaN": ({"data/weights/weight_0": b"\xff" * 10**4}, "NaN"),
    "shape": ({WEIGHTS: put_meta(sizes=SIZES, strides=SIZES)}, "shape"),
    "negative": ({WEIGHTS: put_meta(storage_offset={"as_int": -1})}, "shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_a_changed_program_is_refused_and_not_run(exported, evil, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    changes, reason = CHANGED[name]
    changes = {part: evil[0] if value == "evil" else value for part, value in changes.items()}
    path = repack(exported("torch"), tmp_path / "file.pt2", changes)
    with pytest.raises(RunError, match=rf"(?s)file\.pt2.*{reason}"):
        predict(path)
    assert not evil[1].exists()


def test_sample_inputs_are_never_opened_and_parts_are_there_once(exported, evil, tmp_path):
    path = repack(exported("torch"), tmp_path / "file.pt2", {INPUTS: evil[0]})
    assert predict(path).to_dict() == predict(exported("torch")).to_dict()
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(f"archive/{MODEL}", "{}")
    with pytest.raises(RunError, match="two parts"):
        predict(path)
    assert not evil[1].exists()


def test_the_limit_of_memory_is_named_and_can_be_raised(exported, monkeypatch):
    monkeypatch.setenv("MUNTIN_MAX_MEMORY", "100k")
    with pytest.raises(RunError, match="MUNTIN_MAX_MEMORY=8G"):
        predict(exported("torch"))
    monkeypatch.setenv("MUNTIN_MAX_MEMORY", "1M")  # of one image
    muntin.load(exported("torch"))([IMAGE] * 32)


class Uncast(nn.Module):
    """Has a region without autocast, views, sizes of the batch, and integers."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("order", torch.tensor([2, 0, 1]), persistent=False)

    def forward(self, x):
        x = self.linear(x.float() / 255).reshape(2 * x.shape[0], -1).softmax(-1)
        with torch.autocast("cpu", enabled=False):
            x = x.exp().relu_()
        best = x.topk(2, dim=1)
        return best.values.repeat(1, 2).index_select(1, self.order), torch.where(x > 1.2)[1].sum()


def test_answers_are_those_of_pytorch(tmp_path):
    torch.manual_seed(0)
    example = (torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8),)
    graph = Graph(module=Uncast().eval(), example=example, inputs=("x",), outputs=("y", "z"))
    write_torch(graph, tmp_path / "a.pt2", "note", "fp32")
    program, note = read_program(tmp_path / "a.pt2")
    assert note == "note"
    truth = torch.export.load(tmp_path / "a.pt2").module()
    for count in (1, 5):
        x = torch.randint(0, 256, (count, 4, 4), dtype=torch.uint8)
        assert all(map(torch.equal, program(x), truth(x)))
    with pytest.raises(ValueError, match=r"uint8.*4, 4.*5"):
        program(torch.zeros(1, 4, 5, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("region", "ratio"),
    [((7, 0, 0, 1, 1), 2), ((-1, 0, 0, 1, 1), 2), ((0, 0, 0, 1e9, 1), 2), ((0, 0, 0, 1, 1), 10**9),
     ((float("nan"), 0, 0, 1, 1), 2)],
)  # fmt: skip
def test_regions_lie_in_the_images(region, ratio):
    """RoIAlign itself reads wherever the first number of a region says."""
    numbers = [
        {"as_float": 1.0},
        {"as_int": 2},
        {"as_int": 2},
        {"as_int": ratio},
        {"as_bool": True},
    ]
    names = [{"as_tensor": {"name": name}} for name in ("maps", "rois")]
    shapes = ((1, 1, 4, 4), (1, 5))
    metas = [{"dtype": 7, "sizes": [{"as_int": n} for n in shape]} for shape in shapes]
    arguments = [{"name": "", "arg": each, "kind": 1} for each in (*names, *numbers)]
    target = "torch.ops.torchvision.roi_align.default"
    node = {"target": target, "inputs": arguments, "outputs": OUT}
    values = dict(zip(("maps", "rois"), metas, strict=True))
    graph = {"inputs": names, "outputs": OUT, "nodes": [node], "tensor_values": values}
    program = TorchProgram(graph, {})
    with pytest.raises(ValueError, match="region"):
        program(torch.zeros(1, 1, 4, 4), torch.tensor([region], dtype=torch.float32))


NOTES = {
    "canvas": [[10**9, 10**9], [-5, -5], "abc", [64], [96, 96], [64.0, 64.0]],
    "stride": ["abc", -4, 10**6],
    "precision": ["fp4", None],
    "threshold": [[2.0, "a"], [float("nan"), "a"], 5, ["a", "b"]],
    "classes": [{"names": ["a"]}, {"names": list("abcd")}, [], {"names": "abc"}],
    "config": [{}, None, 5],
    "preprocessing": [{"img_size": [10**5, 10**5], "mean": [0.5] * 3, "std": [0.5] * 3}, 5],
    "other": [1],
}


@pytest.mark.parametrize("key", NOTES)
def test_a_note_that_does_not_belong_to_the_graph_is_refused(exported, tmp_path, key):
    for value in NOTES[key]:
        changes = {"extra/muntin.json": lambda note, value=value: note.update({key: value})}
        path = repack(exported("torch"), tmp_path / "file.pt2", changes)
        with pytest.raises(RunError, match=r"file\.pt2"):
            predict(path)


def make_external(model, folder):
    import onnx

    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def make_loop(model, folder):
    from onnx import helper

    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["z"], body=body))


def make_bomb(model, folder):
    """Ask for 40 GB, where the answer depends on them."""
    from onnx import helper, numpy_helper

    graph, name = model.graph, model.graph.output[0].name
    graph.initializer.append(numpy_helper.from_array(np.array([10**10]), "size"))
    graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "one"))
    for node in graph.node:
        node.output[:] = ["before" if each == name else each for each in node.output]
    graph.node.append(helper.make_node("Expand", ["one", "size"], ["many"]))
    graph.node.append(helper.make_node("ReduceSum", ["many"], ["sum"], keepdims=0))
    graph.node.append(helper.make_node("Add", ["before", "sum"], [name]))


ONNX = {
    "external": (make_external, "weights in another file"),
    "loop": (make_loop, "loop"),
    "domain": (lambda model, folder: setattr(model.graph.node[0], "domain", "evil"), "evil"),
    "NaN": (lambda model, folder: setattr(
        model.graph.initializer[0], "raw_data",
        b"\xff" * len(model.graph.initializer[0].raw_data)), "NaN"),
    "functions": (lambda model, folder: model.functions.add(name="f"), "functions"),
    "memory": (make_bomb, "MUNTIN_MAX_MEMORY"),
}  # fmt: skip


@pytest.mark.parametrize("name", ONNX)
def test_a_changed_onnx_file_is_refused(exported, tmp_path, name):
    import onnx

    change, reason = ONNX[name]
    model = onnx.load(exported("onnx"))
    change(model, tmp_path)
    (tmp_path / "file.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(RunError, match=rf"file\.onnx.*{reason}"):
        predict(tmp_path / "file.onnx")


@pytest.mark.parametrize("data", [b"", b"\x3a", b"\x3a\xff", b"\xff" * 20, b"\0\0\0\0ORTM"])
def test_what_is_no_onnx_is_refused(tmp_path, data):
    (tmp_path / "file.onnx").write_bytes(data)
    with pytest.raises(RunError, match=r"file\.onnx"):
        predict(tmp_path / "file.onnx")


XML = {
    "entity": (b"<net ", b'<!DOCTYPE net [<!ENTITY a "b">]><net ', "entities"),
    "loop": (b'type="MatMul"', b'type="Loop"', "Loop"),
    "outside": (b'offset="0"', b'offset="99999999999"', "file.bin"),
    "negative": (b'offset="0"', b'offset="-8"', "file.bin"),
    "word": (b'offset="0"', b'offset="a"', "'a'"),
    "no layers": (b"<layers>", b"<others>", "file.xml"),
    "operator": (b'type="MatMul"', b'type="Klingon"', "Klingon"),
}


@pytest.mark.parametrize("name", [*XML, "NaN"])
def test_a_changed_openvino_file_is_refused(exported, tmp_path, name):
    old, new, reason = XML.get(name, (b"", b"", "NaN"))
    source = exported("openvino")
    weights = source.with_suffix(".bin").read_bytes()
    (tmp_path / "file.bin").write_bytes(b"\xff" * len(weights) if name == "NaN" else weights)
    text = source.read_bytes()
    assert old in text
    (tmp_path / "file.xml").write_bytes(text.replace(old, new, 1))
    with pytest.raises(RunError, match=reason):
        predict(tmp_path / "file.xml")


@pytest.mark.parametrize(
    ("program", "limit"),
    [("raise SystemExit(71)", "GiB of memory"), ("import time; time.sleep(30)", "0.1 seconds")],
)
def test_what_takes_too_much_is_named(tmp_path, program, limit):
    command = (sys.executable, "-c", program)
    with pytest.raises(RunError, match=f"a.onnx.*{limit}.*MUNTIN_MAX_MEMORY"):
        try_file(
            tmp_path / "a.onnx",
            strange=True,
            command=command,
            seconds=0.1 if "sleep" in program else 60,
        )


@pytest.mark.parametrize("form", ["onnx", "openvino", "torch"])
def test_pipes_and_folders_are_no_files(exported, tmp_path, form):
    path = tmp_path / exported(form).name
    if hasattr(os, "mkfifo"):
        os.mkfifo(path)
        with pytest.raises(RunError, match=path.name):
            Run.open(path)
