# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Layers around attention on a GPU: checked against float64, and timed against plain operations.

Letters: B images, H and W sides of the map in tokens, C channels.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from gpu_kernels import copy_rate, time_calls
from torch import Tensor

from muntin.ops.fused_layers import apply_linear, apply_mlp, embed_patches, merge_tokens

Layer = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Work:
    """A layer of Swin-T at one of its maps.

    Attributes:
        name: Of the layer.
        stage: Counted from 1.
        call: From tensors and a back end to tokens.
        tensors: What it reads; weights are of the type of the tokens.
        num_bytes: Fewest that must be read and written.
    """

    name: str
    stage: int
    call: Layer
    tensors: tuple[Tensor, ...]
    num_bytes: int


def time_neighbours(options: argparse.Namespace) -> dict[str, Any]:
    """Every kernel of the inference graph at the four stages of Swin-T."""
    copy = copy_rate(options)
    rows = []
    for work in _works(options):
        row: dict[str, Any] = {"layer": work.name, "stage": work.stage, "num_bytes": work.num_bytes}
        rows.append(row)
        try:
            row |= _measure(work, options)
            row["share_of_copy"] = work.num_bytes / row["fused_ms"] / 1e6 / copy
        except Exception as error:  # one kernel that fails must not hide the others
            row["failed"] = f"{type(error).__name__}: {error}"[:500]
    lines = [_line(row) for row in rows]
    return {"copy_gb_s": copy, "rows": rows, "lines": lines}


def _measure(work: Work, options: argparse.Namespace) -> dict[str, Any]:
    exact = [one.double() if one.is_floating_point() else one for one in work.tensors]
    truth = work.call(*exact, backend="plain")
    scale = truth.abs().max()
    found: dict[str, Any] = {}
    for backend in ("plain", "fused"):
        run = functools.partial(work.call, *work.tensors, backend=backend)
        found[f"{backend}_error"] = ((run().double() - truth).abs().max() / scale).item()
        calls = 2 if options.tiny else 20
        found[f"{backend}_ms"] = 1000 * time_calls(run, options.device, calls=calls)
    return found


def _line(row: dict[str, Any]) -> str:
    name = f"stage {row['stage']} {row['layer']}"
    if "failed" in row:
        return f"{name}: FAILED {row['failed'][:120]}"
    right = row["fused_error"] <= max(1.5 * row["plain_error"], 1e-6)
    return (
        f"{name}: {row['fused_ms']:.4f} ms, plain {row['plain_ms'] / row['fused_ms']:.2f}x, "
        f"{row['share_of_copy']:.0%} of copy, error {row['fused_error']:.1e} "
        f"({'right' if right else 'WRONG'}: plain {row['plain_error']:.1e})"
    )


@torch.no_grad()
def _works(options: argparse.Namespace) -> Iterator[Work]:
    batch, side, dim = (1, 8, 32) if options.tiny else (128, 56, 96)
    dtype = torch.float32 if options.tiny else torch.bfloat16
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(*shape, generator=generator) * scale
        return values.to(options.device, dtype)

    for stage in range(1, 2 if options.tiny else 5):
        tokens = batch * side * side
        x = draw(batch, side, side, dim)
        weights = [draw(n, k, scale=k**-0.5) for n, k in
                   ((3 * dim, dim), (dim, dim), (4 * dim, dim), (dim, 4 * dim))]  # fmt: skip
        biases = [draw(len(weight)) for weight in weights]
        item = x.element_size()
        yield Work(
            name="norm + qkv", stage=stage, call=_norm_linear, tensors=(x, weights[0], biases[0]),
            num_bytes=item * tokens * 4 * dim,
        )  # fmt: skip
        yield Work(
            name="proj + residual", stage=stage, call=_linear_residual,
            tensors=(x, weights[1], biases[1], draw(*x.shape)), num_bytes=item * tokens * 3 * dim,
        )  # fmt: skip
        yield Work(
            name="norm + MLP + residual", stage=stage, call=_norm_mlp,
            tensors=(x, weights[2], biases[2], weights[3], biases[3]),
            num_bytes=item * tokens * 2 * dim,
        )  # fmt: skip
        if stage < 4:
            merging = draw(2 * dim, 4 * dim, scale=(4 * dim) ** -0.5)
            yield Work(
                name="merge", stage=stage, call=_merge, tensors=(x, merging),
                num_bytes=item * tokens * 3 * dim // 2,
            )  # fmt: skip
        side, dim = side // 2, dim * 2
    pixels = 32 if options.tiny else 224
    images = torch.randint(0, 256, (batch, 3, pixels, pixels), generator=generator).byte()
    width = 32 if options.tiny else 96
    yield Work(
        name="patches from uint8", stage=1, call=_embed,
        tensors=(images.to(options.device), draw(width, 48, scale=0.02), draw(width),
                 draw(width), draw(width)),
        num_bytes=images.numel() + 2 * batch * (pixels // 4) ** 2 * width,
    )  # fmt: skip


def _norm_linear(x: Tensor, weight: Tensor, bias: Tensor, *, backend: Any) -> Tensor:  # noqa: ANN401
    return apply_linear(x, weight, bias, sums=_sum(weight), backend=backend)


def _linear_residual(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor,
    *,
    backend: Any,  # noqa: ANN401
) -> Tensor:
    return apply_linear(x, weight, bias, residual=residual, backend=backend)


def _norm_mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    backend: Any,  # noqa: ANN401
) -> Tensor:
    return apply_mlp(x, weight1, bias1, weight2, bias2, sums=_sum(weight1), backend=backend)


def _merge(x: Tensor, weight: Tensor, *, backend: Any) -> Tensor:  # noqa: ANN401
    return merge_tokens(x, weight, sums=_sum(weight), backend=backend)


def _embed(
    images: Tensor,
    weight: Tensor,
    bias: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    backend: Any,  # noqa: ANN401
) -> Tensor:
    side = images.shape[2] // 4
    fill = torch.zeros(3, device=images.device)
    return embed_patches(
        images, weight, bias, fill, patch=4, grid=(side, side), gamma=gamma, beta=beta,
        backend=backend,
    )  # fmt: skip


def _sum(weight: Tensor) -> Tensor:
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return weight.to(wide).sum(1)
