# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""How the kernels of window attention are launched: checked shapes, counts, constants, sums.

`geometry` is H, W, then height and width of the window, of the shift and of the padding, and 1 if
the padding comes before the roll.

Letters: B images, H and W sides of the map, h heads, d width of a head, N tokens of a window.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from muntin.errors import ShapeError
from muntin.ops.triton.window_backward import attend_whole_backward
from muntin.ops.triton.window_forward import attend_tiled, attend_whole
from muntin.ops.triton.window_launches import TILED, Launch, count_slots, find_launch, find_tile
from muntin.ops.triton.window_tiled_backward import (
    attend_tiled_backward_bias,
    attend_tiled_backward_keys,
    attend_tiled_backward_queries,
)

__all__ = ["attend", "attend_backward"]


def attend(
    qkv: Tensor,
    bias: Tensor,
    fill: Tensor | None,
    temperature: Tensor | None,
    geometry: Sequence[int],
    scale: float,
) -> Tensor:
    """Launch the forward pass.

    Args:
        qkv: B, H, W, 3hd.
        bias: h, N, N.
        fill: 3hd, or None for zeros.
        temperature: h, 1, 1, or None for a scaled product instead of a cosine.
        geometry: As in the text above.
        scale: Queries are multiplied by it.

    Returns:
        B, H, W, hd.

    Raises:
        ShapeError: Bias, fill, temperature or padding are not what qkv and window need.
    """
    # Kernels address with plain strides of contiguous tensors.
    qkv, bias = qkv.contiguous(), bias.contiguous()
    call = _Call(qkv, bias, fill, temperature, geometry, scale)
    out = qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)
    if not call.windows:
        return out
    # Triton launches on the current device, which need not be that of qkv.
    with torch.cuda.device_of(qkv):
        # Above 64 tokens the N x N scores do not fit into registers.
        if call.tile == TILED:
            launch = call.find("attend_tiled")
            grid = (call.windows * call.heads * _divide(call.num_tokens, launch.queries),)
            attend_tiled[grid](*call.inputs, out, *call.numbers, **call.constants, **_tiles(launch))
        else:
            launch = call.find("attend_whole")
            slots = call.count_slots(launch)
            attend_whole[slots * call.heads,](
                *call.inputs,
                out,
                call.windows,
                slots,
                *call.numbers,
                **call.constants,
                **_block(launch, call.tile),
            )
    return out


def attend_backward(
    grad: Tensor,
    qkv: Tensor,
    bias: Tensor,
    fill: Tensor | None,
    temperature: Tensor | None,
    geometry: Sequence[int],
    scale: float,
    learns_bias: bool,
    learns_fill: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the backward pass.

    Args:
        grad: Gradient of the output: B, H, W, hd.
        qkv: As in `attend`, as all that follow.
        bias: The bias.
        fill: The padding.
        temperature: The temperature.
        geometry: The geometry.
        scale: The scale.
        learns_bias: Whether the gradient of the bias is wanted.
        learns_fill: Whether that of the padding is wanted.

    Returns:
        The gradients of qkv, bias, fill and temperature; without numbers where not wanted.
    """
    qkv, bias = qkv.contiguous(), bias.contiguous()
    grad = grad.to(qkv.dtype).contiguous()
    call = _Call(qkv, bias, fill, temperature, geometry, scale)
    grad_qkv = torch.empty_like(qkv)
    run = _run_tiled if call.tile == TILED else _run_whole
    with torch.cuda.device_of(qkv):
        pairs, padding, cosines = run(
            call, grad, grad_qkv, learns_bias, learns_fill and call.filled
        )
    # Slots are summed in a fixed order: gradients are the same bits in every run.
    grad_bias = pairs.sum(0).to(bias.dtype) if learns_bias else bias.new_empty(0)
    grad_fill = bias.new_empty(0)
    if fill is not None and learns_fill:
        # Nobody reads what padded queries attend to: theirs is 0.
        rows = torch.cat([padding.new_zeros(1, padding.shape[2]), padding.sum(0)])
        grad_fill = rows.flatten().to(fill.dtype)
    grad_temperature = bias.new_empty(0)
    if temperature is not None:
        grad_temperature = cosines.sum(0).view_as(temperature).to(temperature.dtype)
    return grad_qkv, grad_bias, grad_fill, grad_temperature


class _Call:
    """What every launch of one call needs: checked shapes, counts, pointers and constants."""

    def __init__(
        self,
        qkv: Tensor,
        bias: Tensor,
        fill: Tensor | None,
        temperature: Tensor | None,
        geometry: Sequence[int],
        scale: float,
    ) -> None:
        height, width, window_h, window_w, shift_h, shift_w, *pad, pad_first = geometry
        self.qkv = qkv
        self.heads = bias.shape[0]
        self.head_dim = qkv.shape[3] // (3 * self.heads)
        self.num_tokens = window_h * window_w
        self.windows = qkv.shape[0] * _divide(height, window_h) * _divide(width, window_w)
        self.tile = find_tile(self.num_tokens)
        # The kernels derive the number of windows from the map alone.
        if pad != [-height % window_h, -width % window_w]:
            message = (
                f"padding must fill the last windows of {window_h} x {window_w} tokens of a map of "
                f"{height} x {width} and no more, got {pad}. Lay out the windows with lay_out."
            )
            raise ShapeError(message)
        self.filled = fill is not None and any(pad)
        self._check(bias, fill, temperature)
        # A kernel that reads no fill, or no temperature, still gets a pointer.
        nothing = bias
        self.inputs = (
            qkv,
            bias,
            fill.contiguous() if fill is not None and any(pad) else nothing,
            nothing if temperature is None else temperature.contiguous(),
        )
        self.numbers = (height, width, shift_h, shift_w, scale)
        self.constants: dict[str, Any] = {
            "HEADS": self.heads,
            "HEAD_DIM": self.head_dim,
            "WINDOW_H": window_h,
            "WINDOW_W": window_w,
            "SHIFTED": bool(shift_h or shift_w),
            "PAD_FIRST": bool(pad_first),
            "FILLED": self.filled,
            "COSINE": temperature is not None,
            "PRECISION": _choose_precision(qkv.dtype),
        }

    def find(self, kernel: str) -> Launch:
        wide = self.qkv.dtype == torch.float32
        return find_launch(kernel, self.tile, self.head_dim, wide=wide)

    def count_slots(self, launch: Launch, tiles: int = 1) -> int:
        """Programs that share the windows, for each head and tile of pairs."""
        if not self.windows:
            return 0
        programs = launch.programs * _count_multiprocessors(self.qkv.device)
        return count_slots(self.windows, programs // (self.heads * tiles))

    def sums(self, *sides: int) -> Tensor:
        return self.qkv.new_empty(sides, dtype=torch.float32)

    def _check(self, bias: Tensor, fill: Tensor | None, temperature: Tensor | None) -> None:
        heads, tokens, channels = self.heads, self.num_tokens, self.qkv.shape[3]
        for name, tensor, wanted in (
            ("bias", bias, (heads, tokens, tokens)),
            ("fill", fill, (channels,)),
            ("temperature", temperature, (heads, 1, 1)),
        ):
            if tensor is not None and tuple(tensor.shape) != wanted:
                message = (
                    f"{name} must be {wanted} for {heads} heads, windows of {tokens} tokens and "
                    f"{channels} channels of queries, keys and values, got {tuple(tensor.shape)}. "
                    f"Make it for the layout at hand."
                )
                raise ShapeError(message)


def _run_whole(
    call: _Call, grad: Tensor, grad_qkv: Tensor, learns_bias: bool, learns_fill: bool
) -> tuple[Tensor, Tensor, Tensor]:
    launch = call.find("attend_whole_backward")
    slots, heads, tokens = call.count_slots(launch), call.heads, call.num_tokens
    sums = (
        call.sums(slots if learns_bias else 0, heads, tokens, tokens),
        call.sums(slots if learns_fill else 0, 2, heads * call.head_dim),
        call.sums(slots, heads),
    )
    if not slots:
        return sums
    attend_whole_backward[slots * heads,](
        grad,
        *call.inputs,
        grad_qkv,
        *sums,
        call.windows,
        slots,
        *call.numbers,
        LEARNS_BIAS=learns_bias,
        LEARNS_FILL=learns_fill,
        **call.constants,
        **_block(launch, call.tile),
    )
    return sums


def _run_tiled(
    call: _Call, grad: Tensor, grad_qkv: Tensor, learns_bias: bool, learns_fill: bool
) -> tuple[Tensor, Tensor, Tensor]:
    heads, tokens, windows = call.heads, call.num_tokens, call.windows
    # Softmax statistics of every row, shared by the three kernels.
    peaks, means = call.sums(windows, heads, tokens), call.sums(windows, heads, tokens)

    launch = call.find("attend_tiled_backward_queries")
    tiles = _divide(tokens, launch.queries)
    # One sum per window, head and tile; reduced below.
    cosines = call.sums(windows, heads, tiles)
    if not windows:
        return (
            call.sums(0, heads, tokens, tokens),
            call.sums(0, 2, heads * call.head_dim),
            cosines.sum(2),
        )
    attend_tiled_backward_queries[windows * heads * tiles,](
        grad,
        *call.inputs,
        grad_qkv,
        peaks,
        means,
        cosines,
        *call.numbers,
        **call.constants,
        **_tiles(launch),
    )

    launch = call.find("attend_tiled_backward_keys")
    tiles = _divide(tokens, launch.keys)
    # Only tiles with padding write something other than 0.
    padding = call.sums(windows * tiles if learns_fill else 0, 2, heads * call.head_dim)
    attend_tiled_backward_keys[windows * heads * tiles,](
        grad,
        *call.inputs,
        grad_qkv,
        peaks,
        means,
        padding,
        *call.numbers,
        LEARNS_FILL=learns_fill,
        **call.constants,
        **_tiles(launch),
    )

    launch = call.find("attend_tiled_backward_bias")
    tiles = _divide(tokens, launch.queries) * _divide(tokens, launch.keys)
    # Windows are split over slots, to fill the GPU when heads and tiles are few.
    slots = call.count_slots(launch, tiles)
    pairs = call.sums(slots if learns_bias else 0, heads, tokens, tokens)
    if learns_bias:
        attend_tiled_backward_bias[slots * heads * tiles,](
            grad,
            *call.inputs,
            peaks,
            means,
            pairs,
            windows,
            slots,
            *call.numbers,
            **call.constants,
            **_tiles(launch),
        )
    return pairs, padding, cosines.sum(2)


def _block(launch: Launch, tile: int) -> dict[str, int]:
    return {"BLOCK": tile, "STAGES": launch.stages, "num_warps": launch.num_warps}


def _tiles(launch: Launch) -> dict[str, int]:
    sizes = {"QUERIES": launch.queries, "KEYS": launch.keys}
    return {**sizes, "STAGES": launch.stages, "num_warps": launch.num_warps}


def _divide(whole: int, part: int) -> int:
    """Divide and round up."""
    return -(-whole // part)


def _choose_precision(dtype: torch.dtype) -> str:
    """How products of float32 are made: in three parts on the tensor cores if TF32 is allowed."""
    # tf32x3 recovers float32 accuracy from three TF32 products.
    loose = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32x3" if dtype == torch.float32 and loose else "ieee"


@functools.cache
def _count_multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
