# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Fused layers on a GPU: shapes of published models, long tensors, recorded networks."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import muntin
from muntin.errors import RunError
from muntin.heads.network import Network
from muntin.inference.cuda_graphs import GraphRunner
from muntin.inference.fused_modules import Pixels
from muntin.inference.fused_network import FusedFromPixels, build_fused
from muntin.ops.fused_layers import apply_linear, apply_mlp, embed_patches, merge_tokens

pytestmark = pytest.mark.gpu

EPS = 1e-5
HALVES = [torch.bfloat16, torch.float16]
PIXELS = Pixels(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    """Give memory back, since some tests take most of it."""
    yield
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def spread(*shape: int, dtype: torch.dtype, std: float = 1.0) -> Tensor:
    return (torch.randn(shape, device="cuda") * std).to(dtype)


def weights(n: int, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    weight = spread(n, k, dtype=dtype, std=k**-0.5)
    return weight, weight.double().sum(1).float()


def vector(length: int) -> Tensor:
    return torch.randn(length, device="cuda")


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def agree(said: Tensor, plain: Tensor, wanted: Tensor) -> None:
    error, other = ((one.double() - wanted).abs() for one in (said, plain))
    scale = wanted.abs().max()
    assert error.max() <= 1.5 * other.max() + 1e-5 * scale
    assert error.square().mean().sqrt() <= 1.1 * other.square().mean().sqrt() + 1e-6 * scale


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("rows", [1, 49, 197, 3136, 20_000])
@pytest.mark.parametrize("c", [96, 128, 192, 384, 768, 1536])
def test_layers_of_a_block(c, rows, dtype):
    x, residual = spread(rows, c, dtype=dtype), spread(rows, c, dtype=dtype)
    weight, sums = weights(3 * c, c, dtype)
    said, plain = (
        apply_linear(x, weight, sums=sums, eps=EPS, backend=backend)
        for backend in ("fused", "plain")
    )
    agree(said, plain, norm(x.double()) @ weight.double().T)
    (weight, _), bias, gamma, beta = weights(c, c, dtype), vector(c), vector(c), vector(c)
    for behind in (False, True):
        both = {"gamma": gamma, "beta": beta} if behind else {}
        said, plain = (
            apply_linear(x, weight, bias, eps=EPS, residual=residual, backend=backend, **both)
            for backend in ("fused", "plain")
        )
        wanted = x.double() @ weight.double().T + bias.double()
        if behind:
            wanted = norm(wanted) * gamma.double() + beta.double()
        agree(said, plain, wanted + residual.double())


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("rows", [1, 300, 20_000])
@pytest.mark.parametrize("c", [64, 96, 128, 192, 384])
def test_mlp(c, rows, behind, dtype):
    x, gamma, beta = spread(rows, c, dtype=dtype), vector(c), vector(c)
    (weight1, sums), bias1 = weights(4 * c, c, dtype), vector(4 * c)
    (weight2, _), bias2 = weights(c, 4 * c, dtype), vector(c)
    both = {"gamma": gamma, "beta": beta} if behind else {"sums": sums}
    said, plain = (
        apply_mlp(x, weight1, bias1, weight2, bias2, eps=EPS, backend=backend, **both)
        for backend in ("fused", "plain")
    )
    y = x.double() if behind else norm(x.double())
    y = F.gelu(y @ weight1.double().T + bias1.double()) @ weight2.double().T + bias2.double()
    agree(said, plain, x.double() + (norm(y) * gamma.double() + beta.double() if behind else y))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("size", [(56, 56), (25, 37)])
@pytest.mark.parametrize("c", [96, 128, 192, 384, 768])
def test_merging(c, size, dtype):
    x, (weight, sums) = spread(4, *size, c, dtype=dtype), weights(2 * c, 4 * c, dtype)
    said, plain = (
        merge_tokens(x, weight, sums=sums, eps=EPS, backend=backend)
        for backend in ("fused", "plain")
    )
    agree(said, plain, merge_tokens(x.double(), weight.double(), sums=sums, eps=EPS))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("size", [(224, 224), (221, 190)])
@pytest.mark.parametrize(("patch", "n"), [(4, 96), (4, 192), (2, 48), (16, 384)])
def test_patches(patch, n, size, last, dtype):
    images = torch.randint(0, 256, (4, 3, *size), dtype=torch.uint8, device="cuda")
    if last:
        images = images.contiguous(memory_format=torch.channels_last)
    weight, bias = weights(n, 3 * patch * patch, dtype)[0] * 0.02, vector(n)
    grid = (-(-size[0] // patch), -(-size[1] // patch))
    fill = torch.tensor([124.0, 117.0, 104.0], device="cuda")
    both = {"gamma": vector(n), "beta": vector(n)} if n <= 192 else {}
    said, plain = (
        embed_patches(
            images, weight, bias, fill, patch=patch, grid=grid, eps=EPS, backend=backend, **both
        )
        for backend in ("fused", "plain")
    )
    wide = {name: value.double() for name, value in both.items()}
    wanted = embed_patches(
        images, weight.double(), bias.double(), fill, patch=patch, grid=grid, eps=EPS,
        backend="plain", **wide,
    )  # fmt: skip
    agree(said, plain, wanted)


def test_more_than_two_to_the_31_elements():
    rows = 2**31 // 288 + 1000
    if torch.cuda.mem_get_info()[0] < 3 * rows * 288 * 2:
        pytest.skip("needs a GPU with more memory")
    (weight, sums), x = weights(288, 96, torch.bfloat16), spread(rows, 96, dtype=torch.bfloat16)
    said = apply_linear(x, weight, sums=sums, eps=EPS, backend="fused")
    for part in (slice(0, 300), slice(rows - 300, rows)):
        wanted = norm(x[part].double()) @ weight.double().T
        assert (said[part].double() - wanted).abs().max() <= 2e-2 * wanted.abs().max()
    back, residual = weights(288, 288, torch.bfloat16)[0], said
    last = apply_linear(said, back, residual=residual, backend="fused")[-300:]
    wanted = said[-300:].double() @ back.double().T + said[-300:].double()
    assert (last.double() - wanted).abs().max() <= 2e-2 * wanted.abs().max()


def make(name: str, **changed: object) -> Network:
    torch.manual_seed(0)
    model = muntin.create_model(name, num_classes=10, **changed).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.3 if parameter.ndim < 2 else 0.01))
    return model.cuda()


NETWORKS = [
    ("swin_tiny_patch4_window7_224", (224, 224)),
    ("swin_tiny_patch4_window7_224", (250, 190)),
    ("swinv2_tiny_window8_256", (256, 256)),
    ("swin_base_patch4_window12_384", (384, 384)),
    ("vit_small_patch16_224", (224, 224)),
]


@pytest.mark.parametrize(("name", "size"), NETWORKS)
@torch.no_grad()
def test_networks(name, size):
    model, images = make(name), torch.randn(4, 3, *size, device="cuda")
    wanted = model.double()(images.double())
    plain = model.bfloat16()(images.bfloat16())
    model = make(name)
    fused = build_fused(model, size).cuda()
    error, other = ((one - wanted).square().mean().sqrt() for one in (fused(images), plain))
    assert error <= 1.5 * other
    run = GraphRunner(fused, torch.device("cuda"), buckets=(1, 4))
    for count in (1, 3, 4, 6, 0):
        shown = images.repeat(2, 1, 1, 1)[:count]
        torch.testing.assert_close(run(shown), fused(shown), rtol=1e-2, atol=1e-2)
    assert run.num_graphs == 2


@torch.no_grad()
def test_recorded_twice_the_same_bits():
    model = FusedFromPixels(make("swin_tiny_patch4_window7_224"), PIXELS, (224, 224)).cuda()
    run = GraphRunner(model, torch.device("cuda"), buckets=(8,))
    pixels = torch.randint(0, 256, (8, 3, 224, 224), dtype=torch.uint8)
    first = run(pixels)
    run(torch.randint(0, 256, (5, 3, 224, 224), dtype=torch.uint8))
    assert torch.equal(first, run(pixels.cuda()))
    with torch.cuda.stream(torch.cuda.Stream()):
        assert torch.equal(first.cpu(), run(pixels).cpu())


def test_too_little_memory():
    weight = torch.zeros(1, 1, device="cuda")
    run = GraphRunner(lambda x: (x @ weight).expand(-1, 2**40).clone(), torch.device("cuda"))
    with pytest.raises(RunError, match=r"\b4\b"):
        run(torch.zeros(3, 1))
    small = GraphRunner(lambda x: x @ weight, torch.device("cuda"))
    assert small(torch.zeros(3, 1)).shape == (3, 1)


@torch.no_grad()
def test_compiled_whole():
    """Needs MUNTIN_NO_HOOK=1: executed annotations cannot be compiled."""
    import os

    if not os.environ.get("MUNTIN_NO_HOOK"):
        pytest.skip("run it with MUNTIN_NO_HOOK=1")
    fused = build_fused(make("swin_tiny_patch4_window7_224"), (224, 224)).cuda()
    images = torch.randn(2, 3, 224, 224, device="cuda")
    compiled = torch.compile(fused, fullgraph=True)
    torch.testing.assert_close(compiled(images), fused(images), rtol=2e-2, atol=2e-2)
