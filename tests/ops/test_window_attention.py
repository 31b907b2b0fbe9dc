# SPDX-License-Identifier: Apache-2.0
"""Window attention: a twin written with loops, and back ends that agree."""

from __future__ import annotations

import inspect

import pytest
import torch

from muntin.errors import ConfigError, ShapeError
from muntin.ops.positions import SIZE_RULES
from muntin.ops.window_attention import BACKENDS, _ExplicitAttention, window_attention
from muntin.ops.windows import cut_windows, join_windows, lay_out, shift_mask

HEADS, DIM = 2, 6
# The fused one needs other shapes and a GPU: tests/ops/triton.
ANYWHERE = [name for name in BACKENDS if name != "fused"]
SIZES = [(8, 8), (7, 10), (3, 5), (1, 1), (2, 9)]


def make(size, rule, shifted, dtype=torch.float32):
    layout = lay_out(size, (4, 4), shifted, SIZE_RULES[rule], built_size=(8, 8))
    generator = torch.Generator().manual_seed(size[0] * 100 + size[1])

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    tokens = layout.num_tokens
    qkv, bias, fill = draw(2, *size, 3 * DIM), draw(HEADS, tokens, tokens), draw(3 * DIM)
    return layout, qkv, bias, fill


def slow(qkv, bias, layout, scale, fill):
    """Window by window, head by head, query by query."""
    windows = cut_windows(qkv, layout, fill)
    mask = shift_mask(layout, dtype=qkv.dtype)
    batch, num_windows, tokens, _ = windows.shape
    width = DIM // HEADS
    images = []
    for image in range(batch):
        outs = []
        for window in range(num_windows):
            heads = []
            for head in range(HEADS):
                q, k, v = (
                    windows[image, window, :, part * DIM + head * width :][:, :width]
                    for part in range(3)
                )
                rows = []
                for query in range(tokens):
                    scores = (k @ q[query]) * scale + bias[head, query]
                    if mask is not None:
                        scores = scores + mask[window, query]
                    rows.append(scores.softmax(0) @ v)
                heads.append(torch.stack(rows))
            outs.append(torch.cat(heads, dim=1))
        images.append(torch.stack(outs))
    return join_windows(torch.stack(images), layout)


def run_with_gradients(function, inputs):
    out = function(*inputs)
    mixture = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype)
    return [out, *torch.autograd.grad((out * mixture).sum(), inputs, materialize_grads=True)]


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("rule", ["muntin", "timm", "torchvision"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("backend", ANYWHERE)
def test_back_end_equals_its_slow_twin(backend, size, rule, shifted):
    layout, *inputs = make(size, rule, shifted, torch.float64)

    def fast(qkv, bias, fill):
        return window_attention(qkv, bias, layout, scale=0.7, fill=fill, backend=backend)

    def twin(qkv, bias, fill):
        return slow(qkv, bias, layout, 0.7, fill)

    ours, theirs = run_with_gradients(fast, inputs), run_with_gradients(twin, inputs)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ANYWHERE)
def test_one_head_without_shift(backend):
    """All windows then have the same bias, which must not be written to."""
    layout = lay_out((8, 8), (4, 4), False, SIZE_RULES["muntin"])
    inputs = [
        torch.randn(2, 8, 8, 24, requires_grad=True),
        torch.randn(1, 16, 16, requires_grad=True),
    ]
    results = [
        run_with_gradients(
            lambda qkv, bias, name=name: window_attention(
                qkv, bias, layout, scale=0.7, backend=name
            ),
            inputs,
        )
        for name in (backend, "reference")
    ]
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("rule", SIZE_RULES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_back_ends_agree(size, rule, shifted, dtype, tolerance):
    layout, *inputs = make(size, rule, shifted, dtype)
    results = [
        run_with_gradients(
            lambda qkv, bias, fill, name=name: window_attention(
                qkv, bias, layout, scale=0.7, fill=fill, backend=name
            ),
            inputs,
        )
        for name in ("reference", "sdpa", "auto")
    ]
    for result in results[1:]:
        for ours, reference in zip(result, results[0], strict=True):
            assert ours.dtype is dtype
            scale = reference.abs().max().float() + 1e-3
            assert (ours.float() - reference.float()).abs().max() <= tolerance * scale


@pytest.mark.parametrize("backend", ["auto", *ANYWHERE])
def test_result_is_the_same_without_gradients_and_for_each_image_alone(backend):
    layout, qkv, bias, fill = make((7, 10), "muntin", True)
    whole = window_attention(qkv, bias, layout, scale=0.5, fill=fill, backend=backend).detach()
    with torch.no_grad():
        for image in range(2):
            part = qkv[image : image + 1]
            alone = window_attention(part, bias, layout, scale=0.5, fill=fill, backend=backend)
            torch.testing.assert_close(alone[0], whole[image], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", ["muntin", "torchvision", "timm"])
@pytest.mark.parametrize("size", [(4, 4), (9, 6), (8, 13)])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_what_needs_no_gradient_equals_the_definition(batch, size, rule):
    """One window that is the map, windows with padding, maps in another order of memory."""
    for shifted in (False, True):
        layout = lay_out(size, (4, 4), shifted, SIZE_RULES[rule])
        qkv = torch.randn(batch, size[1], size[0], 3 * DIM).transpose(1, 2)
        bias, fill = torch.randn(HEADS, layout.num_tokens, layout.num_tokens), torch.randn(3 * DIM)
        results = [
            window_attention(qkv, bias, layout, scale=0.5, fill=fill, backend=name)
            for name in ("lean", "reference")
        ]
        assert results[0].shape == (batch, *size, DIM)
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_weights_of_masked_pairs_are_zero_or_as_large_as_they_must_be():
    """Of subnormal numbers products are slow; a pair that wins in spite of the mask still wins."""
    for factor in (1.0, 8.0):
        layout, *inputs = make((7, 10), "muntin", True)
        qkv, bias, _ = (factor * one.detach() for one in inputs)
        qkv.requires_grad_()
        lean, *_, weights = _ExplicitAttention.apply(qkv, bias, None, layout, 1.0)
        subnormal = ((weights > 0) & (weights < torch.finfo(weights.dtype).tiny)).any()
        assert factor > 1 or not subnormal
        reference = window_attention(qkv, bias, layout, scale=1.0, backend="reference")
        torch.testing.assert_close(lean, reference, rtol=1e-4, atol=1e-4)
    masked = shift_mask(layout)[:, None] < 0
    assert (weights * masked).max() > 0.5


@pytest.mark.parametrize("backend", ANYWHERE)
def test_dropout_drops_weights_and_keeps_the_mean(backend):
    layout, qkv, bias, fill = make((8, 8), "muntin", False)
    with torch.no_grad():
        plain = window_attention(qkv, bias, layout, scale=0.5, fill=fill, backend=backend)
        torch.manual_seed(0)
        drawn = torch.stack(
            [
                window_attention(
                    qkv, bias, layout, scale=0.5, fill=fill, dropout=0.3, backend=backend
                )
                for _ in range(400)
            ]
        )
    assert not torch.equal(drawn[0], drawn[1])
    assert (drawn.mean(0) - plain).abs().mean() < 0.05


def test_without_fill_padded_tokens_are_zero():
    layout, qkv, bias, _ = make((3, 5), "torchvision", False)
    zeros = torch.zeros(3 * DIM)
    left = window_attention(qkv, bias, layout, scale=0.5)
    assert torch.equal(left, window_attention(qkv, bias, layout, scale=0.5, fill=zeros))


@pytest.mark.parametrize("backend", ANYWHERE)
def test_a_temperature_makes_it_cosine_attention(backend):
    layout, *inputs = make((7, 10), "timm", True, torch.float64)
    temperature = torch.rand(HEADS, 1, 1, dtype=torch.float64).add(1).requires_grad_()

    def fast(qkv, bias, fill, temperature):
        return window_attention(
            qkv, bias, layout, scale=1.0, fill=fill, temperature=temperature, backend=backend
        )

    def twin(qkv, bias, fill, temperature):
        def bring_to_length(x):
            q, k, v = x.unflatten(-1, (3, HEADS, DIM // HEADS)).unbind(-3)
            q = q / q.norm(dim=-1, keepdim=True) * temperature[:, 0]
            k = k / k.norm(dim=-1, keepdim=True)
            return torch.stack([q, k, v], -3).flatten(-3)

        return slow(bring_to_length(qkv), bias, layout, 1.0, bring_to_length(fill))

    inputs = [*inputs, temperature]
    ours, theirs = run_with_gradients(fast, inputs), run_with_gradients(twin, inputs)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


def test_wrong_arguments_are_refused():
    layout, qkv, bias, _ = make((8, 8), "muntin", False)
    unchecked = inspect.unwrap(window_attention)  # the checks of the tests would be faster
    with pytest.raises(ConfigError, match="'spda'"):
        unchecked(qkv, bias, layout, scale=1.0, backend="spda")
    with pytest.raises(ShapeError, match=r"qkv .*\(2, 7, 8, 18\)"):
        window_attention(qkv[:, 1:], bias, layout, scale=1.0)
    with pytest.raises(ShapeError, match="heads=2"):
        window_attention(qkv[..., 1:], bias, layout, scale=1.0)
