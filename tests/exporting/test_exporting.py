# SPDX-License-Identifier: Apache-2.0
"""Files say what the run says, or are not written."""

from __future__ import annotations

import shutil
import sys
from functools import cache

import numpy as np
import pytest
import torch

import muntin
from muntin.errors import ConfigError, DataError, MissingExtra, RunError, WeightError
from muntin.exporting.verification import Row, difference_of_instances, require_agreement
from muntin.heads.detector import FixedDetector, Instances, SelectConfig
from muntin.heads.keypoint_rcnn import KEYPOINT_DETECTORS, KeypointRCNN
from muntin.run_files import WEIGHTS
from muntin.runs import Run
from muntin.weights.weight_files import write_weights
from tests.detectors import tiny_detector
from tests.exporting.runs import write_run
from tests.small import write_images

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

CASES = [
    ("classify", "onnx"),
    ("classify", "torch"),
    ("semantic", "openvino"),
    pytest.param("classify", "openvino", marks=pytest.mark.slow),
    pytest.param("pose", "onnx", marks=pytest.mark.slow),
    pytest.param("fcos_small", "torch", marks=pytest.mark.slow),
    pytest.param("fcos_small", "openvino", marks=pytest.mark.slow),
    pytest.param("fcos_small", "onnx", marks=pytest.mark.slow),
    pytest.param("semantic", "onnx", marks=pytest.mark.slow),
    pytest.param("pose", "openvino", marks=pytest.mark.slow),
    pytest.param("mask_rcnn_small", "onnx", marks=pytest.mark.slow),
    pytest.param("mask_rcnn_small", "openvino", marks=pytest.mark.slow),
    pytest.param("dense_small", "torch", marks=pytest.mark.slow),
    pytest.param("dense_small", "onnx", marks=pytest.mark.slow),
    pytest.param("dense_small masks", "onnx", marks=pytest.mark.slow),
    pytest.param("dense_small masks", "openvino", marks=pytest.mark.slow),
]


def images(count: int = 3) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (70 + 9 * n, 80, 3), dtype=np.uint8) for n in range(count)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "trees", each=4)


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """Give the run of a kind; nobody changes it."""
    return cache(lambda kind: write_run(tmp_path_factory.mktemp("runs") / "run", kind))


@pytest.fixture(scope="module")
def exported(tmp_path_factory, run_of, data):
    """Give the file of a run, written once; the only thing in its folder. ONNX saw real images."""

    @cache
    def call(kind, form):
        shown = {"data": data} if (kind, form) == ("classify", "onnx") else {}
        out = tmp_path_factory.mktemp("files") / "file"
        return muntin.export(run_of(kind).path, out, format=form, finished=True, **shown)

    return call


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_a_file_says_what_the_run_says(run_of, exported, kind, form):
    run, done = run_of(kind), exported(kind, form)
    assert {row.batch for row in done.rows} == {1, 3, 8}
    assert len({row.size for row in done.rows}) == 2
    real = {"real"} if (kind, form) == ("classify", "onnx") else set()
    assert {row.examples for row in done.rows} == {"random", "drawn", *real}
    made = {path.name for path in done.path.parent.iterdir() if path.is_file()}
    assert made == {done.path.name, *(["file.bin"] if form == "openvino" else [])}
    loaded = muntin.load(done.path)
    assert loaded.classes == run.classes
    shown = images()
    if kind == "semantic":  # windows of the file's size
        shown = [one[:64, :64] for one in shown]
    if "cnn" in kind or "_small" in kind:  # a file pads to a square, a run to multiples of 32
        shown = [np.ascontiguousarray(np.resize(one, (128, 128, 3))) for one in shown]
    for said, truth in zip(loaded(shown), muntin.load(run.path, device="cpu")(shown), strict=True):
        _compare(said.to_dict(), truth.to_dict())


def _compare(said, truth):
    if isinstance(truth, dict):
        assert said.keys() == truth.keys()
        for key in truth:
            if key == "boxes":
                _compare_boxes(said[key], truth[key])
            elif key != "semantic":
                _compare(said[key], truth[key])
    elif isinstance(truth, list):
        assert len(said) == len(truth)
        for one, other in zip(said, truth, strict=True):
            _compare(one, other)
    elif isinstance(truth, float):
        assert said == pytest.approx(truth, abs=2e-3)
    else:
        assert said == truth


def _compare_boxes(said, truth):
    """Fresh weights give many equal scores, whose order is anybody's; the last may be cut off."""
    assert abs(len(said) - len(truth)) <= 2
    assert len(truth) > 5
    for row in truth[: len(truth) // 2]:
        assert any(
            one["id"] == row["id"]
            and one["score"] == pytest.approx(row["score"], abs=1e-4)
            and one["xyxy"] == pytest.approx(row["xyxy"], abs=0.1)
            for one in said
        )


def test_pixels_of_a_map_are_the_same(run_of, exported):
    run, done = run_of("semantic"), exported("semantic", "openvino")
    image = images(1)[0][:64, :64]
    said, truth = muntin.load(done.path)(image)[0], muntin.load(run.path, device="cpu")(image)[0]
    assert (said.labels != truth.labels).mean() < 1e-2


@pytest.mark.parametrize("size", [(4, 300), (300, 10), (64, 65)])
def test_images_of_other_shapes_are_seen_in_windows(exported, size):
    done = exported("semantic", "openvino")
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    result = muntin.load(done.path)(image)[0]
    assert result.labels.shape == size
    assert "64x64" in done.note


def test_files_are_scored_like_runs(run_of, exported, data):
    run, done = run_of("classify"), exported("classify", "onnx")
    figures = muntin.evaluate(done.path, data, device="cpu")
    truth = muntin.evaluate(run.path, data, device="cpu", pictures=False)
    assert figures["top1"] == truth["top1"]
    assert figures["loss"] == pytest.approx(truth["loss"], abs=1e-5)
    assert (done.path.with_suffix("") / "pictures" / "eval").is_dir()


def test_a_file_runs_in_its_own_engine(exported):
    with pytest.raises(ConfigError, match="engine"):
        muntin.load(exported("classify", "torch").path, engine="openvino")


@pytest.mark.slow
def test_files_of_dense_detectors_suppress_nothing(exported):
    import onnx
    import openvino

    for kind, form in (("dense_small", "onnx"), ("dense_small masks", "onnx")):
        nodes = onnx.load(exported(kind, form).path).graph.node
        assert "NonMaxSuppression" not in {node.op_type for node in nodes}
    model = openvino.Core().read_model(exported("dense_small masks", "openvino").path)
    assert not [one for one in model.get_ops() if "Suppression" in one.get_type_name()]
    # The count can fail: other detectors have such nodes.
    nodes = onnx.load(exported("fcos_small", "onnx").path).graph.node
    assert "NonMaxSuppression" in {node.op_type for node in nodes}


def test_finished_outputs_have_names(exported):
    import onnxruntime

    done = exported("classify", "onnx")
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    assert [place.name for place in session.get_outputs()] == ["logits", "probabilities"]
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 64, 64), dtype=np.uint8)
    logits, shares = session.run(None, {"images": pixels})
    np.testing.assert_allclose(shares, torch.tensor(logits).softmax(1).numpy(), atol=1e-6)


@pytest.mark.slow
def test_a_model_of_the_zoo(tmp_path, monkeypatch):
    """With the weights that are to be had; random ones are said."""
    name, said = "swin_nano_patch2_window4_32", []
    done = muntin.export(name, tmp_path / "m", format="torch", say=said.append)
    assert "fresh" in said[0]
    assert Run.open(done.path).classes.names[0] == "class 0"
    model = muntin.create_model(name)
    write_weights(tmp_path / f"{name}.safetensors", model.state_dict(), {"dialect": "muntin"})
    monkeypatch.setenv("MUNTIN_WEIGHTS", str(tmp_path))
    done = muntin.export(name, tmp_path / "n", format="torch", say=said.append)
    assert Run.open(done.path).classes.names[0].startswith("tench")
    assert f"{name}.safetensors" in said[-3]


def test_nothing_is_left_where_answers_differ(exported, tmp_path):
    other = exported("classify", "torch").path
    run = write_run(tmp_path / "run", "classify")
    state = run.load_network().state_dict()
    state["head.fc.bias"] += 1.0
    write_weights(run.path / WEIGHTS, state, {"dialect": "muntin"})

    def swap(line):
        """Put the file of another network where this one is being written."""
        for unfinished in tmp_path.glob(".muntin-*/file.pt2"):
            shutil.copy(other, unfinished)

    with pytest.raises(RunError, match=r"torch.*difference"):
        muntin.export(run, tmp_path / "file", format="torch", say=swap)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("difference", [2e-4, float("nan")])
def test_the_worst_comparison_is_named(difference):
    rows = [
        Row(size=(32, 64), batch=3, examples="real", difference=apart, limit=1e-4)
        for apart in (9e-5, difference)
    ]
    require_agreement(rows[:1], "a file")
    with pytest.raises(RunError, match=rf"a file.*{difference:.2g}.*32x64"):
        require_agreement(rows, "a file")


@pytest.mark.parametrize(
    ("count", "swapped", "passes"), [(100, 2, True), (100, 3, False), (20, 1, False)]
)
def test_suppression_may_keep_another_of_two_boxes(count, swapped, passes):
    """Rounding decides between boxes that tie, but not about many of them."""
    corners = torch.rand(count, 2, generator=torch.Generator().manual_seed(0)) * 50
    boxes = torch.cat([corners, corners + 20], 1)
    scores, masks = torch.linspace(0.9, 0.3, count), torch.rand(count, 1, 4, 4)
    truth = Instances(boxes, scores, torch.zeros(count, dtype=torch.long), masks)
    moved, select = boxes.clone(), SelectConfig()
    moved[5 : 5 + swapped] += 7  # scores far from the cut-off of the list
    assert difference_of_instances([truth], [truth], 128, 1e-3, select) == 0
    found = difference_of_instances([truth], [truth._replace(boxes=moved)], 128, 1e-3, select)
    assert (found <= 1e-3) == passes
    other = masks.clone()
    other[9, 0, 1, 1] += 0.2
    assert difference_of_instances(
        [truth], [truth._replace(masks=other)], 128, 1e-3, select
    ) == pytest.approx(0.2, rel=1e-3)
    broken = truth._replace(scores=scores.clone().fill_(float("nan")))
    assert np.isnan(difference_of_instances([truth], [broken], 128, 1e-3, select))


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        ([0.9], [], False),
        ([0.9, 0.8], [0.9], False),
        ([0.9, 0.0504], [0.9], True),  # beside the threshold of 0.05
        ([0.9, 0.8, 0.8], [0.9, 0.8, 0.7995], True),
        ([0.9, 0.8, 0.7, 0.6], [0.9, 0.8, 0.7], True),  # of a list that ends at three
    ],
)
def test_what_only_one_of_the_two_finds(one, other, agree):
    def make(scores):
        boxes = torch.arange(len(scores) * 4.0).view(-1, 4) * 10
        return Instances(boxes, torch.tensor(scores), torch.zeros(len(scores), dtype=torch.long))

    for pair in ((one, other), (other, one)):
        truth, said = ([make(scores)] for scores in pair)
        found = difference_of_instances(truth, said, 128, 1e-3, SelectConfig(max_detections=3))
        assert (found <= 1e-3) == agree, pair


def test_a_weight_that_is_no_number(tmp_path):
    run = write_run(tmp_path / "run", "classify")
    state = run.load_network().state_dict()
    state["head.fc.bias"][1] = float("nan")
    write_weights(run.path / WEIGHTS, state, {"dialect": "muntin"})
    with pytest.raises(WeightError, match=r"head\.fc\.bias"):
        muntin.export(run.path, tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_is_refused(run_of, tmp_path, monkeypatch):
    run = run_of("classify")
    with pytest.raises(ConfigError, match=r"'onx'.*'onnx'"):
        muntin.export(run, tmp_path / "a", format="onx")
    with pytest.raises(ConfigError, match=r"\.onnx.*a\.xml"):
        muntin.export(run, tmp_path / "a.xml")
    with pytest.raises(ConfigError, match=r"onnx.*bf16"):
        muntin.export(run, tmp_path / "a", precision="bf16")
    with pytest.raises(ConfigError, match=r"int8.*--data"):
        muntin.export(run, tmp_path / "a", precision="int8")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        muntin.export(run, tmp_path / "a", precision="int8", data=tmp_path / "empty")
    (tmp_path / "there.onnx").write_text("mine")
    with pytest.raises(RunError, match=r"there\.onnx"):
        muntin.export(run, tmp_path / "there.onnx")
    assert (tmp_path / "there.onnx").read_text() == "mine"
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtra, match=r"onnxscript.*muntin\[export\]"):
        muntin.export(run, tmp_path / "a")
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "there.onnx"}


def test_what_is_not_there(run_of, tmp_path):
    with pytest.raises(RunError, match="runs/nowhere"):
        muntin.export("runs/nowhere", tmp_path / "a.onnx")
    with pytest.raises(RunError, match="OUT"):
        muntin.export(run_of("classify").path, tmp_path)
    (tmp_path / "a.xml").write_text("<net/>")
    with pytest.raises(RunError, match=r"a\.xml.*\.bin"):
        muntin.load(tmp_path / "a.xml")


@pytest.mark.parametrize("name", ["a.onnx", "a.xml", "a.pt2"])
def test_files_of_others(tmp_path, name):
    (tmp_path / name).write_text("no model")
    (tmp_path / "a.bin").write_text("no weights")
    with pytest.raises(RunError, match="muntin export"):
        Run.open(tmp_path / name)


def test_an_onnx_file_without_a_note(tmp_path):
    class Twice(torch.nn.Module):
        def forward(self, x):
            return 2 * x

    torch.onnx.export(
        Twice().eval(), (torch.ones(2, 3),), tmp_path / "a.onnx", dynamo=True, verbose=False
    )
    with pytest.raises(RunError, match=r"a\.onnx"):
        Run.open(tmp_path / "a.onnx")


@pytest.mark.parametrize("form", ["openvino", pytest.param("onnx", marks=pytest.mark.slow)])
def test_eight_bits(run_of, data, tmp_path, form):
    done = muntin.export(
        run_of("classify"),
        tmp_path / "file",
        format=form,
        precision="int8",
        data=data,
        max_loss=100.0,
    )
    assert done.quantised is not None
    assert done.quantised.layers > 8
    assert done.quantised.kept == 0
    assert all(0 < row.difference < 0.2 for row in done.rows if row.examples == "real")
    assert len(muntin.load(done.path)(images(2))) == 2


def test_keypoint_rcnn_is_refused():
    network = tiny_detector("fcos_small", 1, task="detect")
    head = KeypointRCNN(network.backbone, 1, 3, KEYPOINT_DETECTORS["keypoint_rcnn_small"])
    network.head = head.eval()
    fixed = FixedDetector(network, network.head)
    with pytest.raises(ConfigError, match="keypoint_rcnn"):
        fixed(torch.zeros(2, 3, 64, 64))
