# SPDX-License-Identifier: Apache-2.0
"""The back end "fused" as a user meets it: chosen, forced, forbidden, traced, exported, trained."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

pytest.importorskip("triton")

from muntin.errors import ConfigError, MuntinError, ShapeError
from muntin.models.swin import Swin, SwinConfig
from muntin.models.swin_v2 import SwinV2, SwinV2Config
from muntin.ops.triton.window_calls import register
from muntin.ops.triton.window_support import find_obstacle as look
from muntin.ops.triton.window_support import is_forbidden
from muntin.ops.window_attention import find_obstacle, window_attention
from tests.ops.triton.window_problems import DEVICE, make

ROOT = Path(__file__).resolve().parents[3]


def call(problem, backend="fused", **others):
    return window_attention(
        problem.qkv,
        problem.bias,
        problem.layout,
        scale=problem.scale,
        fill=problem.fill,
        temperature=problem.temperature,
        backend=backend,
        **others,
    )


def run_python(code, *, timeout=240, **environment):
    """Run code in a process without the checks of the tests, which cannot be compiled."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    chosen = {"PYTHONPATH": paths, "MUNTIN_NO_HOOK": "1", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **chosen},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


TINY = {
    "depths": (2,),
    "num_heads": (2,),
    "out_indices": (0,),
    "embed_dim": 32,
    "window_size": 4,
    "drop_path_rate": 0.0,
}
V2 = {"bias_hidden": 8, "size_rule": "torchvision", "pretrained_windows": (0,)}
MODELS = {"v1": (Swin, SwinConfig, {"size_rule": "timm"}), "v2": (SwinV2, SwinV2Config, V2)}


def build(name, attention):
    family, config, more = MODELS[name]
    torch.manual_seed(0)
    model = family(config(**TINY, **more, attention=attention, img_size=(48, 48)))
    torch.manual_seed(1)
    for parameter in model.parameters():  # far from the start, where biases are zeros
        nn.init.normal_(parameter, std=0.3)
    return model.to(DEVICE)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_the_same_with_it(name):
    images = torch.randn(1, 3, 20, 24).to(DEVICE)  # padded and shifted
    answers = []
    for attention in ("reference", "fused"):
        model = build(name, attention)
        (out,) = model(images)
        mixture = torch.linspace(-1, 1, out.numel(), device=DEVICE).view(out.shape)
        (out * mixture).sum().backward()
        answers.append([out.detach(), *(part.grad for part in model.parameters())])
    for left, right in zip(*answers, strict=True):
        assert left is not None
        scale = right.abs().max() + 1e-6
        assert (left - right).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float64}, "torch.float64"),
        ({"head_dim": 24}, "24"),
        ({"num_tokens": 625}, "625"),
        ({"dropout": 0.1}, "0.1"),
        ({"device": ("mps", None)}, "mps"),
        ({}, ""),
    ],
)
def test_what_stands_in_the_way_is_said(change, reason):
    traits = {
        "device": (DEVICE.type, 0 if DEVICE.type == "cuda" else None),
        "dtype": torch.float32,
        "head_dim": 32,
        "num_tokens": 49,
        "dropout": 0.0,
    }
    said = look(**{**traits, **change})
    assert reason in said if reason else not said


def test_forced_and_impossible_is_an_error_that_says_why():
    problem = make((8, 8), 4).to(torch.float64)
    with pytest.raises(ConfigError, match=r'torch\.float64.*"fused".*"auto"'):
        call(problem)
    with pytest.raises(ConfigError, match=r"dropout|dropped"):
        call(problem.to(torch.float32), dropout=0.5)


def test_shapes_that_the_kernels_cannot_read_are_refused():
    problem = make((7, 8), 4, rule="timm", cosine=True).to(torch.float32)
    register()
    geometry = [7, 8, 4, 4, 0, 0, 1, 0, 0]
    attend = torch.ops.muntin.window_attention
    good = {"qkv": problem.qkv, "bias": problem.bias, "fill": problem.fill}
    good["temperature"] = problem.temperature
    attend(*good.values(), geometry, 1.0)
    for name in ("bias", "fill", "temperature"):
        wrong = {**good, name: good[name][..., :-1]}
        with pytest.raises(ShapeError, match=name):
            attend(*wrong.values(), geometry, 1.0)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="auto takes it on a GPU")
def test_on_a_cpu_auto_leaves_it_alone():
    problem = make((8, 8), 4).to(torch.float32)
    assert not find_obstacle(problem.qkv, problem.bias, problem.layout)
    problem.qkv.requires_grad_()
    out = call(problem, "auto")
    assert "muntin" not in out.grad_fn.name()


@pytest.mark.slow
def test_one_variable_forbids_it():
    code = """
import torch
from muntin.ops.window_attention import find_obstacle
from tests.ops.triton.window_problems import make
problem = make((4, 4), 4).to(torch.float32)
print(find_obstacle(problem.qkv, problem.bias, problem.layout))
"""
    done = run_python(code, MUNTIN_FUSED="0")
    assert done.returncode == 0, done.stderr
    assert "MUNTIN_FUSED" in done.stdout


@pytest.mark.parametrize(("text", "forbidden"), [("0", True), ("1", False), ("", False)])
def test_what_the_variable_may_be(monkeypatch, text, forbidden):
    monkeypatch.setenv("MUNTIN_FUSED", text)
    assert is_forbidden() is forbidden


@pytest.mark.parametrize("text", ["2", "yes"])
def test_what_the_variable_may_not_be(monkeypatch, text):
    monkeypatch.setenv("MUNTIN_FUSED", text)
    with pytest.raises(ConfigError, match=rf"MUNTIN_FUSED.*'{text}'"):
        is_forbidden()


def test_muntin_needs_no_triton():
    code = """
import sys
import torch
import muntin.models.swin_v2
assert "triton" not in sys.modules
sys.modules["triton"] = None  # importing it fails from here on, and looking for it finds nothing
from muntin.errors import ConfigError
from muntin.ops.window_attention import window_attention
from muntin.ops.positions import SIZE_RULES
from muntin.ops.windows import lay_out
layout = lay_out((4, 4), (4, 4), False, SIZE_RULES["muntin"])
qkv, bias = torch.randn(1, 4, 4, 48), torch.randn(1, 16, 16)
window_attention(qkv, bias, layout, scale=1.0)
try:
    window_attention(qkv, bias, layout, scale=1.0, backend="fused")
except ConfigError as error:
    print(error)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert "Triton" in done.stdout


def test_it_is_an_operator_that_pytorch_can_check():
    problem = make((2, 3), 2, shifted=True, rule="timm", heads=1, cosine=True).to(torch.float32)
    layout = problem.layout
    geometry = [*layout.size, *layout.window, *layout.shift, *layout.pad, int(layout.pad_first)]
    register()
    inputs = [
        tensor.clone().requires_grad_()
        for tensor in (problem.qkv, problem.bias, problem.fill, problem.temperature)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the checker's own tracing
        torch.library.opcheck(
            torch.ops.muntin.window_attention.default, (*inputs, geometry, problem.scale)
        )
        torch.library.opcheck(
            torch.ops.muntin.window_attention_backward.default,
            (problem.grad, *(one.detach() for one in inputs), geometry, 1.0, True, True),
        )


COMPILED = """
import sys
import torch
from tests.ops.triton.test_window_back_end import DEVICE, build
torch.set_num_threads(1)
images = torch.randn(1, 3, 16, 20).to(DEVICE)
model = build(sys.argv[1] if len(sys.argv) > 1 else NAME, "fused")
graphs = []
def keep(graph, inputs):
    graphs.append(graph)
    return graph
def train(run):
    model.zero_grad()
    (out,) = run(images)
    out.square().sum().backward()
    return [out.detach(), *(one.grad.clone() for one in model.parameters())]
plain = train(model)
for backend in BACKENDS:
    torch.compiler.reset()
    found = train(torch.compile(model, backend=backend, fullgraph=True))
    for left, right in zip(found, plain, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)
torch.compiler.reset()
with torch.no_grad():
    (left,), (right,) = torch.compile(model, backend=keep, fullgraph=True)(images), model(images)
torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)
names = [str(node.target) for graph in graphs for node in graph.graph.nodes]
print(len(graphs), sum("muntin.window_attention" in name for name in names))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v1", "v2"])
def test_compiled_models_hold_it_in_one_graph(name):
    backends = ("aot_eager",) if DEVICE.type == "cpu" else ("aot_eager", "inductor")
    # A compiler warns about itself.
    code = "import warnings; warnings.simplefilter('ignore')\n" + COMPILED
    code = code.replace("BACKENDS", repr(backends)).replace("NAME", repr(name))
    done = run_python(code)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["1", "2"]  # one graph, a call a block


@pytest.mark.slow
def test_other_batches_are_not_compiled_again():
    code = """
import warnings; warnings.simplefilter("ignore")
import torch
from tests.ops.triton.test_window_back_end import DEVICE, build
model = build("v1", "fused")
counted = []
def count(graph, inputs):
    counted.append(graph)
    return graph
run = torch.compile(model, backend=count, fullgraph=True, dynamic=None)
with torch.no_grad():
    for batch in (2, 3, 4, 5):
        images = torch.randn(batch, 3, 16, 16, device=DEVICE)
        torch.testing.assert_close(run(images)[0], model(images)[0], rtol=1e-4, atol=1e-4)
print(len(counted))
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) <= 2  # one for the first batch, one for any


@pytest.mark.parametrize("attention", ["fused", pytest.param("auto", marks=pytest.mark.slow)])
def test_exported_graphs_hold_the_formula(attention):
    model = build("v2", attention).eval()
    images = torch.randn(1, 3, 28, 36).to(DEVICE)
    program = torch.export.export(model, (images,))
    assert "muntin" not in str(program.graph)
    torch.testing.assert_close(program.module()(images), model(images), rtol=1e-4, atol=1e-4)


def test_under_autocast_learned_parts_stay_wide():
    problem = make((5, 6), 4, shifted=True, rule="timm", cosine=True).to(torch.bfloat16)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        found = problem.run("fused")
    plain = problem.run("fused")
    for part, value in found.items():
        assert torch.equal(value, plain[part]), part
    assert found["out"].dtype is torch.bfloat16
    assert found["bias"].dtype is found["fill"].dtype is torch.float32


def test_checkpoints_give_the_same_bits():
    problem = make((5, 6), 4, shifted=True, rule="timm").to(torch.float32)
    answers = []
    for wrap in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=False)):
        qkv = problem.qkv.clone().requires_grad_()
        out = wrap(lambda x: call(replace(problem, qkv=x)), qkv)
        answers.append(torch.autograd.grad(out, qkv, problem.grad)[0])
    assert torch.equal(*answers)


def test_frozen_parts_get_no_gradient():
    problem = make((5, 6), 4, shifted=True, rule="timm").to(torch.float32)
    whole = problem.run("fused")
    qkv = problem.qkv.clone().requires_grad_()
    call(replace(problem, qkv=qkv)).backward(problem.grad)
    assert problem.bias.grad is None
    assert problem.fill.grad is None
    assert torch.equal(qkv.grad, whole["qkv"])
    bias = problem.bias.clone().requires_grad_()
    call(replace(problem, bias=bias)).backward(problem.grad)
    assert torch.equal(bias.grad, whole["bias"])


def test_only_what_it_read_is_kept():
    problem = make((5, 6), 4, shifted=True, rule="timm").to(torch.float32)
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    qkv = problem.qkv.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call(replace(problem, qkv=qkv))
    pointers = {one.data_ptr() for one in (qkv, problem.bias, problem.fill)}
    assert {one.data_ptr() for one in kept} <= pointers


@pytest.mark.parametrize("cosine", [False, True])
def test_a_second_derivative_is_that_of_the_reference(cosine):
    problem = make((4, 4), 4).to(torch.float32)
    if not cosine:
        problem = replace(problem, temperature=None)
    second = []
    for backend in ("fused", "reference"):
        inputs = [
            one.detach().clone().requires_grad_()
            for one in (problem.qkv, problem.bias, problem.fill)
        ]
        qkv, bias, fill = inputs
        out = call(replace(problem, qkv=qkv, bias=bias, fill=fill), backend)
        slopes = torch.autograd.grad(out.sin().sum(), inputs, create_graph=True, allow_unused=True)
        total = sum(slope.square().sum() for slope in slopes if slope is not None)
        second += [torch.autograd.grad(total, (qkv, bias))]
    for ours, theirs in zip(*second, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_the_operator_alone_has_one_derivative():
    register()
    problem = make((4, 4), 4).to(torch.float32)
    qkv, layout = problem.qkv.clone().requires_grad_(), problem.layout
    geometry = [*layout.size, *layout.window, *layout.shift, *layout.pad, int(layout.pad_first)]
    tensors = (qkv, problem.bias, problem.fill, problem.temperature)
    out = torch.ops.muntin.window_attention(*tensors, geometry, problem.scale)
    (slope,) = torch.autograd.grad(out.square().sum(), qkv, create_graph=True)
    with pytest.raises(MuntinError, match='attention="reference"'):
        slope.square().sum().backward()
