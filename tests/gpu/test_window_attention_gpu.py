# SPDX-License-Identifier: Apache-2.0
"""Fused window attention where only a GPU can show it: real sizes, graphs, compiled training.

`tests/ops/triton` runs on the GPU too, where there is one.
"""

from __future__ import annotations

import gc

import pytest
import torch

from muntin.models.swin import Swin, SwinConfig
from muntin.ops.positions import SIZE_RULES
from muntin.ops.window_attention import find_obstacle, window_attention
from muntin.ops.windows import lay_out

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda")

# (side of the map, channels, heads, window): the stages of Swin-T, and larger windows.
STAGES = [(56, 96, 3, 7), (28, 192, 6, 7), (14, 384, 12, 7), (7, 768, 24, 7), (48, 128, 4, 12)]


def draw(*shape, dtype=torch.bfloat16, spread=1.0):
    return (torch.randn(*shape, device=DEVICE) * spread).to(dtype)


def attend(qkv, bias, fill, layout, backend="fused"):
    width = qkv.shape[3] // (3 * bias.shape[0])
    return window_attention(qkv, bias, layout, scale=width**-0.5, fill=fill, backend=backend)


def solve(backend, qkv, bias, fill, grad, layout):
    inputs = [one.detach().requires_grad_() for one in (qkv, bias, fill)]
    out = attend(*inputs, layout, backend)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad, materialize_grads=True)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_real_stages_are_as_exact_as_the_formula(stage, shifted, dtype):
    side, dim, heads, window = stage
    size = (side, side + 3)  # padded across
    layout = lay_out(size, (window, window), shifted, SIZE_RULES["timm"], built_size=(side, side))
    qkv, grad = draw(4, *size, 3 * dim, dtype=dtype), draw(4, *size, dim, dtype=dtype)
    bias = draw(heads, layout.num_tokens, layout.num_tokens, dtype=torch.float32)
    fill = draw(3 * dim, dtype=torch.float32)
    truth = solve("reference", qkv.double(), bias.double(), fill.double(), grad.double(), layout)
    ours = solve("fused", qkv, bias, fill, grad, layout)
    plain = solve("reference", qkv, bias, fill, grad, layout)
    exact = 1e-5 if dtype == torch.float32 else 2e-3
    for right, left, usual in zip(truth, ours, plain, strict=True):
        most = right.abs().max().clamp(min=1e-30)
        error, allowed = ((one - right).abs().max() / most for one in (left, usual))
        assert error <= max(1.5 * allowed, exact)


def test_auto_takes_it_in_half_precision():
    layout = lay_out((14, 14), (7, 7), True, SIZE_RULES["muntin"])
    qkv, bias = draw(2, 14, 14, 288), draw(3, 49, 49, dtype=torch.float32)
    assert find_obstacle(qkv, bias, layout) == ""
    auto, fused = (attend(qkv, bias, None, layout, name) for name in ("auto", "fused"))
    assert torch.equal(auto, fused)


def test_real_batches_repeat_to_the_bit():
    layout = lay_out((56, 56), (7, 7), True, SIZE_RULES["muntin"])
    qkv, grad = draw(64, 56, 56, 288), draw(64, 56, 56, 96)
    bias, fill = draw(3, 49, 49, dtype=torch.float32), draw(288, dtype=torch.float32)
    first = solve("fused", qkv, bias, fill, grad, layout)
    for _ in range(3):
        for left, right in zip(first, solve("fused", qkv, bias, fill, grad, layout), strict=True):
            assert torch.equal(left, right)


@pytest.mark.parametrize("window", [7, 14])
def test_past_65535_windows_and_two_to_the_31_elements(window):
    batch, dim, heads = 2400, 96, 3
    layout = lay_out((56, 56), (window, window), True, SIZE_RULES["muntin"])
    assert batch * layout.num_windows > 65535 or window > 7
    qkv = torch.empty(batch, 56, 56, 3 * dim, device=DEVICE, dtype=torch.bfloat16)
    assert qkv.numel() > 2**31
    for part in qkv.split(100):
        part.normal_()
    tokens = layout.num_tokens
    bias, fill = draw(heads, tokens, tokens, dtype=torch.float32), draw(3 * dim)
    qkv.requires_grad_()
    out = attend(qkv, bias, fill, layout)
    grad = torch.zeros_like(out)
    grad[-1] = draw(56, 56, dim)
    (slope,) = torch.autograd.grad(out, qkv, grad)
    alone = qkv.detach()[-1:].requires_grad_()
    one = attend(alone, bias, fill, layout)
    assert torch.equal(out[-1:], one)
    assert torch.equal(slope[-1:], torch.autograd.grad(one, alone, grad[-1:])[0])
    assert not slope[:-1].any()
    del out, grad, slope, qkv
    gc.collect()
    torch.cuda.empty_cache()


def test_it_can_be_captured_in_a_graph():
    layout = lay_out((28, 28), (7, 7), True, SIZE_RULES["muntin"])
    qkv, bias = draw(8, 28, 28, 576), draw(6, 49, 49, dtype=torch.float32)
    with torch.no_grad():
        attend(qkv, bias, None, layout)  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = attend(qkv, bias, None, layout)
        qkv.copy_(draw(8, 28, 28, 576))
        graph.replay()
        assert torch.equal(out, attend(qkv, bias, None, layout))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_trains_under_autocast(dtype):
    answers = []
    for attention, enabled in (("reference", False), ("reference", True), ("fused", True)):
        torch.manual_seed(0)
        config = SwinConfig(
            embed_dim=96,
            depths=(2, 2),
            num_heads=(3, 6),
            out_indices=(0, 1),
            drop_path_rate=0.0,
            attention=attention,
        )
        model = Swin(config).to(DEVICE)
        images = torch.randn(4, 3, 224, 200, device=DEVICE)
        with torch.autocast("cuda", dtype, enabled=enabled):
            loss = sum(one.float().square().mean() for one in model(images))
        loss.backward()
        answers.append([loss.detach(), *(one.grad for one in model.parameters())])
    for right, usual, left in zip(*answers, strict=True):
        assert left.dtype == torch.float32
        most = right.abs().max()
        error, allowed = ((one - right).abs().max() for one in (left, usual))
        assert error <= 2 * allowed + 2e-3 * most


def test_memory_kept_for_the_way_back_is_nothing_but_its_inputs():
    layout = lay_out((56, 56), (7, 7), True, SIZE_RULES["muntin"])
    qkv = draw(32, 56, 56, 288).requires_grad_()
    bias = draw(3, 49, 49, dtype=torch.float32).requires_grad_()
    attend(qkv, bias, None, layout)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    out = attend(qkv, bias, None, layout)
    kept = torch.cuda.memory_allocated() - before
    assert kept <= out.numel() * out.element_size() + 2**20
