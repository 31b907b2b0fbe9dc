# SPDX-License-Identifier: Apache-2.0
"""A crash of an engine is met in another process, and is an error of one line."""

import os
import sys

import numpy as np
import pytest
import torch
from torch import nn

from muntin.data.transforms import Preprocessing
from muntin.engines.engine_network import make_graph
from muntin.engines.graphs import Graph
from muntin.engines.isolation import try_file
from muntin.engines.onnx_engine import write_onnx
from muntin.engines.openvino_engine import (
    compile_openvino,
    quantise_int8,
    to_openvino,
    try_openvino,
    write_openvino,
)
from muntin.errors import RunError
from muntin.samples import Classes
from muntin.tasks.task_table import find_task
from muntin.zoo import create_model

PYTHON = (sys.executable, "-c")


def linear():
    module = nn.Linear(16, 3).eval().requires_grad_(False)
    return Graph(module=module, example=(torch.randn(2, 16),), inputs=("x",), outputs=("y",))


@pytest.mark.parametrize(("suffix", "engine"), [(".xml", "OpenVINO"), (".onnx", "ONNX Runtime")])
@pytest.mark.parametrize(
    ("program", "end"),
    [("import os; os.abort()", "SIGABRT"), ("raise SystemExit(7)", "7")],
)
def test_a_crash_names_engine_and_signal(tmp_path, suffix, engine, program, end):
    if os.name == "nt" and end.startswith("SIG"):
        pytest.skip("no signals")
    with pytest.raises(RunError, match=f"{engine}.*{end}.*onnx, openvino, torch"):
        try_file(tmp_path / f"a{suffix}", command=(*PYTHON, program))


@pytest.mark.parametrize(("suffix", "write"), [(".xml", write_openvino), (".onnx", write_onnx)])
def test_good_and_broken_files_do_not_crash(tmp_path, suffix, write):
    good, broken = tmp_path / f"good{suffix}", tmp_path / f"broken{suffix}"
    write(linear(), good, "", "fp32")
    broken.write_bytes(b"broken")
    try_file(good)
    try_file(broken)  # its exception is that of who opens it
    try_file(tmp_path / "a.pt2", command=(*PYTHON, "raise SystemExit(7)"))  # opened by PyTorch


@pytest.mark.parametrize(
    ("model", "size"),
    [
        # 6 x 10 tokens: both sides of the windows are padded.
        pytest.param({"window_size": 4}, (24, 40), marks=pytest.mark.slow),
        # 5 x 9: so are they here, and merging is padded too.
        ({"window_size": 4, "depths": (1, 2)}, (20, 36)),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_int8_of_padded_windows_runs_and_is_near(model, size):
    torch.manual_seed(0)
    small = {"depths": (2, 1), "num_heads": (1, 2), "embed_dim": 16, "out_indices": (0, 1)} | model
    network = create_model("swin_nano", num_classes=3, img_size=size, **small).eval()
    pre = Preprocessing(img_size=size, mean=(0.5,) * 3, std=(0.25,) * 3)
    classes = Classes(names=("a", "b", "c"))
    graph = make_graph(network, find_task("classify"), classes, pre, size, finished=False)
    found = to_openvino(graph, any_batch=True)
    assert sum(op.get_type_name() == "Pad" for op in found.get_ops()) > 0
    rows = np.random.default_rng(0).integers(0, 256, (4, 1, 3, *size), np.uint8)
    quantised = quantise_int8(found.clone(), [{graph.inputs[0]: row} for row in rows])
    for op in quantised.get_ops():
        if op.get_type_name() == "Pad":
            assert op.input_value(0).get_node().get_type_name() != "FakeQuantize"
    try_openvino(quantised, "fp32")
    images = np.concatenate([*rows])
    want = compile_openvino(found, "fp32")([images])[0]
    got = compile_openvino(quantised, "fp32")([images])[0]
    assert np.abs(got - want).max() < 0.3 * np.abs(want).max()
