# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Fused layers against the same written out in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from muntin.errors import ConfigError
from muntin.ops import fused_layers
from muntin.ops.fused_layers import apply_linear, apply_mlp, embed_patches, merge_tokens

pytest.importorskip("triton")

EPS = 1e-5
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    """The GPU where there is one; Triton's interpreter on the CPU elsewhere."""
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        yield


def spread(*shape: int, dtype: torch.dtype, mean: float = 0.5, std: float = 1.0) -> Tensor:
    return (torch.randn(shape) * std + mean).to(dtype)


def vector(length: int) -> Tensor:
    return torch.randn(length)


def weights(n: int, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weights, and their sums over the inputs."""
    weight = spread(n, k, dtype=dtype, mean=0.02, std=k**-0.5)
    return weight, weight.double().sum(1).float()


def norm(x: Tensor) -> Tensor:
    gap = x - x.mean(-1, keepdim=True)
    return gap / (gap.square().mean(-1, keepdim=True) + EPS).sqrt()


def agree(said: Tensor, plain: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    """At least as near as plain operations in the same type, with some room for luck."""
    assert said.dtype == dtype
    assert said.shape == wanted.shape
    error, other = ((one.double() - wanted).abs() for one in (said, plain))
    room = {torch.float32: 2e-6, torch.bfloat16: 2e-3, torch.float16: 3e-4}[dtype]
    scale = wanted.abs().max().clamp(min=1)
    assert error.max() <= 1.5 * other.max() + room * scale
    assert error.square().mean().sqrt() <= 1.5 * other.square().mean().sqrt() + room / 8 * scale


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "k", "n"), [((3, 23), 48, 40), ((1,), 16, 8), ((70,), 96, 104), ((65,), 32, 24)]
)
def test_norm_and_linear(rows, k, n, dtype):
    x, (weight, sums), bias = spread(*rows, k, dtype=dtype), weights(n, k, dtype), vector(n)
    wanted = norm(x.double()) @ weight.double().T + bias.double()
    for gelu in (False, True):
        said, plain = (
            apply_linear(x, weight, bias, sums=sums, eps=EPS, gelu=gelu, backend=backend)
            for backend in ("fused", "plain")
        )
        agree(said, plain, F.gelu(wanted) if gelu else wanted, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_factor", [False, True])
def test_linear_and_residual(dtype, with_factor):
    x, residual = spread(3, 5, 7, 32, dtype=dtype), spread(3, 5, 7, 24, dtype=dtype)
    weight, bias = weights(24, 32, dtype)[0], vector(24)
    factor = torch.tensor([0.0, 1.25, 1.25]) if with_factor else None
    wanted = x.double() @ weight.double().T + bias.double()
    if factor is not None:
        wanted = wanted * factor.double().view(3, 1, 1, 1)
    wanted = wanted + residual.double()
    said, plain = (
        apply_linear(x, weight, bias, factor=factor, residual=residual, backend=backend)
        for backend in ("fused", "plain")
    )
    agree(said, plain, wanted, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [24, 96, 272])  # one tile, one with a gap, too wide for one
def test_norm_behind(n, dtype):
    x, residual = spread(37, 32, dtype=dtype), spread(37, n, dtype=dtype)
    weight, bias, gamma, beta = weights(n, 32, dtype)[0], vector(n), vector(n), vector(n)
    wanted = norm(x.double() @ weight.double().T + bias.double())
    wanted = wanted * gamma.double() + beta.double() + residual.double()
    said, plain = (
        apply_linear(
            x, weight, bias, gamma=gamma, beta=beta, eps=EPS, residual=residual, backend=backend
        )
        for backend in ("fused", "plain")
    )
    agree(said, plain, wanted, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("c", [16, 48])
@pytest.mark.parametrize("behind", [False, True])
def test_mlp(c, behind, dtype):
    check_mlp(c, behind, dtype)


def check_mlp(c, behind, dtype, **options):
    x = spread(2, 35, c, dtype=dtype)
    (weight1, sums), bias1 = weights(4 * c, c, dtype), vector(4 * c)
    weight2, bias2 = weights(c, 4 * c, dtype)[0], vector(c)
    gamma, beta = (vector(c), vector(c)) if behind else (None, None)
    y = x.double() if behind else norm(x.double())
    y = F.gelu(y @ weight1.double().T + bias1.double()) @ weight2.double().T + bias2.double()
    if gamma is not None and beta is not None:
        y = norm(y) * gamma.double() + beta.double()
    said, plain = (
        apply_mlp(
            x, weight1, bias1, weight2, bias2, sums=None if behind else sums,
            gamma=gamma, beta=beta, eps=EPS, backend=backend, **options,
        )
        for backend in ("fused", "plain")
    )  # fmt: skip
    agree(said, plain, x.double() + y, dtype)


@pytest.mark.parametrize(
    ("c", "behind", "widest"),
    [(48, False, 16), (48, True, 16), (80, False, 192)],  # 80 is neither 2**n nor 3 * 2**n
)
def test_a_wide_mlp_takes_two_kernels(c, behind, widest):
    check_mlp(c, behind, torch.float32, widest=widest)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(6, 4), (5, 7), (1, 3)])
@pytest.mark.parametrize("behind", [False, True])
def test_merging(size, behind, dtype):
    c, n = 16, 32
    x, (weight, sums) = spread(2, *size, c, dtype=dtype), weights(n, 4 * c, dtype)
    gamma, beta = (vector(n), vector(n)) if behind else (None, None)
    high, wide = (-(-side // 2) for side in size)
    rows = torch.zeros(2, high, wide, 4 * c, dtype=torch.float64)
    for y in range(size[0]):
        for z in range(size[1]):
            part = (y % 2) + 2 * (z % 2)
            rows[:, y // 2, z // 2, part * c : (part + 1) * c] = x[:, y, z].double()
    wanted = (rows if behind else norm(rows)) @ weight.double().T
    if gamma is not None and beta is not None:
        wanted = norm(wanted) * gamma.double() + beta.double()
    said, plain = (
        merge_tokens(
            x, weight, sums=None if behind else sums, gamma=gamma, beta=beta, eps=EPS,
            backend=backend,
        )
        for backend in ("fused", "plain")
    )  # fmt: skip
    agree(said, plain, wanted, dtype)


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("size", "grid"), [((12, 20), (3, 5)), ((11, 18), (3, 5)), ((11, 18), (2, 4))]
)
@pytest.mark.parametrize("normed", [False, True])
def test_patches_of_pixels(size, grid, last, normed, dtype):
    n, patch = 24, 4
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    if last:
        images = images.contiguous(memory_format=torch.channels_last)
    weight, bias = weights(n, 48, dtype)[0] * 0.02, vector(n)
    fill = torch.tensor([124.0, 117.0, 104.0])  # exact in every type
    whole = fill.double().view(1, 3, 1, 1).repeat(2, 1, grid[0] * patch, grid[1] * patch)
    high, wide = min(size[0], grid[0] * patch), min(size[1], grid[1] * patch)
    whole[:, :, :high, :wide] = images[:, :, :high, :wide].double()
    wanted = torch.empty(2, *grid, n, dtype=torch.float64)
    for y in range(grid[0]):
        for z in range(grid[1]):
            cut = whole[:, :, y * patch : (y + 1) * patch, z * patch : (z + 1) * patch]
            wanted[:, y, z] = cut.flatten(1) @ weight.double().T + bias.double()
    gamma, beta = (vector(n), vector(n)) if normed else (None, None)
    if gamma is not None and beta is not None:
        wanted = norm(wanted) * gamma.double() + beta.double()
    said, plain = (
        embed_patches(
            images, weight, bias, fill, patch=patch, grid=grid, gamma=gamma, beta=beta, eps=EPS,
            backend=backend,
        )
        for backend in ("fused", "plain")
    )  # fmt: skip
    agree(said, plain, wanted, dtype)


@pytest.mark.parametrize("mean", [30.0, -300.0])
def test_the_mean_of_a_row_may_be_far_from_zero(mean):
    """The norm is taken out behind the product, so that the mean must cancel exactly enough."""
    x, (weight, sums) = (
        spread(9, 64, dtype=torch.bfloat16, mean=mean),
        weights(32, 64, torch.bfloat16),
    )
    x[3] = mean  # no deviation at all
    said, plain = (
        apply_linear(x, weight, sums=sums, eps=EPS, backend=backend)
        for backend in ("fused", "plain")
    )
    agree(said, plain, norm(x.double()) @ weight.double().T, torch.bfloat16)
    assert said[3].abs().max() <= 0.05


def test_nothing_in_nothing_out():
    weight, sums = weights(32, 16, torch.float32)
    assert apply_linear(
        torch.empty(0, 16), weight, sums=sums, backend="fused"
    ).shape == (0, 32)  # fmt: skip
    square = torch.zeros(16, 64)
    said = apply_mlp(
        torch.empty(0, 5, 16), square.T.contiguous(), torch.zeros(64), square, torch.zeros(16),
        sums=torch.zeros(64), backend="fused",
    )  # fmt: skip
    assert said.shape == (0, 5, 16)
    wide = torch.zeros(8, 64)
    assert merge_tokens(torch.empty(0, 3, 3, 16), wide, backend="fused").shape == (0, 2, 2, 8)
    pixels = torch.empty(0, 3, 8, 8, dtype=torch.uint8)
    said = embed_patches(
        pixels, torch.zeros(8, 48), None, torch.zeros(3), patch=4, grid=(2, 2), backend="fused"
    )
    assert said.shape == (0, 2, 2, 8)


def test_rows_that_lie_apart():
    whole = spread(10, 3, 32, dtype=torch.float32)
    weight, sums = weights(8, 32, torch.float32)
    said = apply_linear(whole[:, 1], weight, sums=sums, eps=EPS, backend="fused")
    wanted = norm(whole[:, 1].double()) @ weight.double().T
    torch.testing.assert_close(said.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"x": torch.zeros(2, 24), "weight": torch.zeros(8, 24)}, "\\b24\\b"),
        ({"x": torch.zeros(2, 16).double(), "weight": torch.zeros(8, 16).double()}, "float64"),
        ({"x": torch.zeros(2, 16).half(), "weight": torch.zeros(8, 16)}, "float16"),
        ({"x": torch.zeros(2, 16, device="meta")}, "meta"),
        ({"weight": torch.zeros(8, 16, requires_grad=True)}, "gradient"),
        (
            {"factor": torch.ones(2), "gamma": torch.ones(8), "beta": torch.ones(8)},
            "factor",
        ),
    ],
)
def test_it_says_why_not(changed, match):
    asked = {"x": torch.zeros(2, 16), "weight": torch.zeros(8, 16), **changed}
    with pytest.raises(ConfigError, match=match):
        apply_linear(**asked, backend="fused")
    apply_linear(**{**asked, **_same_type(asked)}, backend="auto")


def _same_type(asked):
    """Plain operations want one type as well."""
    return {"x": asked["x"].to(asked["weight"].dtype)}


def test_a_norm_behind_many_channels_of_a_patch():
    pixels = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    asked = {"patch": 4, "grid": (1, 1), "gamma": torch.ones(264), "beta": torch.ones(264)}
    with pytest.raises(ConfigError, match=r"\b264\b.*\b256\b"):
        embed_patches(pixels, torch.zeros(264, 48), None, torch.zeros(3), **asked, backend="fused")


def test_on_the_processor_auto_is_plain():
    weight = torch.zeros(8, 16, device="cpu").bfloat16()
    assert not fused_layers._takes_kernel("auto", "", weight)


def test_operators_are_sound():
    from muntin.ops.triton import fused_operators

    x, (weight, sums), bias = (
        spread(5, 16, dtype=torch.float32),
        weights(8, 16, torch.float32),
        vector(8),
    )
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        fused_operators.linear, (x, weight, bias, sums, None, None, None, None, EPS, True),
        test_utils=checks,
    )  # fmt: skip
    wide, shown = torch.zeros(8, 64), spread(1, 3, 5, 16, dtype=torch.float32)
    torch.library.opcheck(
        fused_operators.merge, (shown, wide, None, None, None, None, EPS), test_utils=checks
    )
    square = torch.zeros(64, 16)
    torch.library.opcheck(
        fused_operators.mlp,
        (x, square, vector(64), square.T.contiguous(), vector(16), vector(64), None, None, EPS),
        test_utils=checks,
    )
    pixels = torch.zeros(1, 3, 8, 12, dtype=torch.uint8)
    torch.library.opcheck(
        fused_operators.embed,
        (pixels, torch.zeros(8, 48), None, torch.zeros(3), None, None, 4, 2, 3, EPS),
        test_utils=checks,
    )
