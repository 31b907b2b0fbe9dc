# SPDX-License-Identifier: Apache-2.0
"""How the kernels of window attention are launched, and their operator with its gradient.

`torch.ops.muntin.window_attention` is there once `register` has run; its arguments are those of
`WindowCall`.

Letters: B images, H and W sides of the map, h heads, d width of a head, N tokens of a window.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from muntin.errors import MuntinError, ShapeError
from muntin.ops.triton.window_backward import (
    attend_tiled_backward_bias,
    attend_tiled_backward_keys,
    attend_tiled_backward_queries,
    attend_whole_backward,
)
from muntin.ops.triton.window_forward import attend_tiled, attend_whole
from muntin.ops.triton.window_launches import (
    LAUNCHES,
    TILED,
    Launch,
    LaunchTable,
    WindowSpec,
    count_slots,
    find_launch,
    find_tile,
)


class WindowCall:
    """One call of window attention: its inputs, checked, and what its launches have in common.

    qkv is (B, H, W, 3hd), bias (h, N, N), fill (3hd) or None for zeros, temperature (h, 1, 1) or
    None for a scaled product instead of a cosine; `geometry` is H, W, then height and width of the
    window, of the shift and of the padding, and 1 if the padding comes before the roll.
    """

    def __init__(
        self,
        qkv: Tensor,
        bias: Tensor,
        fill: Tensor | None,
        temperature: Tensor | None,
        geometry: Sequence[int],
        scale: float,
        launches: LaunchTable = LAUNCHES,
    ) -> None:
        height, width, window_h, window_w, shift_h, shift_w, *pad, pad_first = geometry
        # Kernels address with plain strides of contiguous tensors.
        self.qkv, self.bias = qkv.contiguous(), bias.contiguous()
        self.fill, self.temperature, self.launches = fill, temperature, launches
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
        self.spec = WindowSpec(
            heads=bias.shape[0],
            head_dim=qkv.shape[3] // (3 * bias.shape[0]),
            window_h=window_h,
            window_w=window_w,
            shift_h=shift_h,
            shift_w=shift_w,
            pad_first=bool(pad_first),
            filled=fill is not None and any(pad),
            cosine=temperature is not None,
            precision=_choose_precision(qkv.dtype),
        )
        self._check()
        # A kernel that reads no fill, or no temperature, still gets a pointer.
        self.inputs = (
            self.qkv,
            self.bias,
            fill.contiguous() if fill is not None and any(pad) else self.bias,
            self.bias if temperature is None else temperature.contiguous(),
        )
        self.numbers = (height, width, scale)

    def attend(self) -> Tensor:
        """Launch the forward pass; gives B, H, W, hd."""
        out = self.qkv.new_empty(*self.qkv.shape[:3], self.qkv.shape[3] // 3)
        # Above 64 tokens the N x N scores do not fit into registers.
        if self.tile == TILED:
            launch = self._find(attend_tiled)
            tiles = _divide(self.num_tokens, launch.queries)
            self._run(attend_tiled, launch, self.windows * tiles, (*self.inputs, out))
        else:
            launch = self._find(attend_whole)
            slots = self._count_slots(launch)
            self._run(attend_whole, launch, slots, (*self.inputs, out, self.windows, slots))
        return out

    def attend_backward(
        self, grad: Tensor, learns_bias: bool, learns_fill: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Launch the backward pass for the gradient of the output: B, H, W, hd.

        Gives the gradients of qkv, bias, fill and temperature; without numbers where not wanted.
        """
        bias, fill, temperature = self.bias, self.fill, self.temperature
        self.spec = replace(
            self.spec, learns_bias=learns_bias, learns_fill=learns_fill and self.spec.filled
        )
        grad_qkv = torch.empty_like(self.qkv)
        run = self._run_tiled if self.tile == TILED else self._run_whole
        pairs, padding, cosines = run(grad.to(self.qkv.dtype).contiguous(), grad_qkv)
        # Slots are summed in a fixed order: gradients are the same bits in every run.
        grad_bias = pairs.sum(0).to(bias.dtype) if learns_bias else bias.new_empty(0)
        grad_fill = bias.new_empty(0)
        if fill is not None and learns_fill:
            # Outputs of padded queries are never read; theirs is 0.
            rows = torch.cat([padding.new_zeros(1, padding.shape[2]), padding.sum(0)])
            grad_fill = rows.flatten().to(fill.dtype)
        grad_temperature = bias.new_empty(0)
        if temperature is not None:
            grad_temperature = cosines.sum(0).view_as(temperature).to(temperature.dtype)
        return grad_qkv, grad_bias, grad_fill, grad_temperature

    def _run_whole(self, grad: Tensor, grad_qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        spec, tokens = self.spec, self.num_tokens
        launch = self._find(attend_whole_backward)
        slots = self._count_slots(launch)
        sums = (
            self._sums(slots * spec.learns_bias, spec.heads, tokens, tokens),
            self._sums(slots * spec.learns_fill, 2, spec.heads * spec.head_dim),
            self._sums(slots, spec.heads),
        )
        tensors = (grad, *self.inputs, grad_qkv, *sums, self.windows, slots)
        self._run(attend_whole_backward, launch, slots, tensors)
        return sums

    def _run_tiled(self, grad: Tensor, grad_qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        spec, tokens, windows = self.spec, self.num_tokens, self.windows
        # Softmax statistics of every row, shared by the three kernels.
        peaks, means = (self._sums(windows, spec.heads, tokens) for _ in range(2))
        read: tuple[Tensor | int, ...] = (grad, *self.inputs)

        launch = self._find(attend_tiled_backward_queries)
        tiles = _divide(tokens, launch.queries)
        # One sum per window, head and tile; reduced below.
        cosines = self._sums(windows, spec.heads, tiles)
        written = (*read, grad_qkv, peaks, means)
        self._run(attend_tiled_backward_queries, launch, windows * tiles, (*written, cosines))

        launch = self._find(attend_tiled_backward_keys)
        tiles = _divide(tokens, launch.keys)
        # Only tiles with padding write something other than 0.
        padding = self._sums(windows * tiles * spec.learns_fill, 2, spec.heads * spec.head_dim)
        self._run(attend_tiled_backward_keys, launch, windows * tiles, (*written, padding))

        launch = self._find(attend_tiled_backward_bias)
        tiles = _divide(tokens, launch.queries) * _divide(tokens, launch.keys)
        # Windows are split over slots, to fill the GPU when heads and tiles are few.
        slots = self._count_slots(launch, tiles) * spec.learns_bias
        pairs = self._sums(slots, spec.heads, tokens, tokens)
        tensors = (*read, peaks, means, pairs, windows, slots)
        self._run(attend_tiled_backward_bias, launch, slots * tiles, tensors)
        return pairs, padding, cosines.sum(2)

    def _find(self, kernel: Any) -> Launch:
        wide = self.qkv.dtype == torch.float32
        name, head_dim = kernel.fn.__name__, self.spec.head_dim
        return find_launch(name, self.tile, head_dim, wide=wide, launches=self.launches)

    def _run(
        self, kernel: Any, launch: Launch, programs: int, arguments: tuple[Tensor | int, ...]
    ) -> None:
        """Launch so many programs for each head; no windows, no launch."""
        if not programs:
            return
        spec = replace(
            self.spec,
            block=self.tile,
            queries=launch.queries,
            keys=launch.keys,
            stages=launch.stages,
        )
        # Triton launches on the current device, which need not be that of qkv.
        with torch.cuda.device_of(self.qkv):
            kernel[programs * spec.heads,](
                *arguments, *self.numbers, SPEC=spec, num_warps=launch.num_warps
            )

    def _count_slots(self, launch: Launch, tiles: int = 1) -> int:
        """Programs that share the windows, for each head and tile of pairs."""
        if not self.windows:
            return 0
        programs = launch.programs * _count_multiprocessors(self.qkv.device)
        return count_slots(self.windows, programs // (self.spec.heads * tiles))

    def _sums(self, *sides: int) -> Tensor:
        return self.qkv.new_empty(sides, dtype=torch.float32)

    def _check(self) -> None:
        heads, tokens, channels = self.spec.heads, self.num_tokens, self.qkv.shape[3]
        for name, tensor, wanted in (
            ("bias", self.bias, (heads, tokens, tokens)),
            ("fill", self.fill, (channels,)),
            ("temperature", self.temperature, (heads, 1, 1)),
        ):
            if tensor is not None and tuple(tensor.shape) != wanted:
                message = (
                    f"{name} must be {wanted} for {heads} heads, windows of {tokens} tokens and "
                    f"{channels} channels of queries, keys and values, got {tuple(tensor.shape)}. "
                    f"Make it for the layout at hand."
                )
                raise ShapeError(message)


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


# SymInt geometry: one compiled graph serves maps of any size.
_ARGUMENTS = (
    "Tensor qkv, Tensor bias, Tensor? fill, Tensor? temperature, SymInt[] geometry, float scale"
)


@functools.cache
def register() -> None:
    """Make `torch.ops.muntin.window_attention` known to PyTorch, with its gradient."""
    forward, backward = "muntin::window_attention", "muntin::window_attention_backward"
    tags = (torch.Tag.pt2_compliant_tag,)
    torch.library.define(forward, f"({_ARGUMENTS}) -> Tensor", tags=tags)
    torch.library.define(
        backward,
        f"(Tensor grad, {_ARGUMENTS}, bool learns_bias, bool learns_fill) "
        "-> (Tensor, Tensor, Tensor, Tensor)",
        tags=tags,
    )
    for name, launch, fake in (
        (forward, _attend, _fake_attend),
        (backward, _attend_backward, _fake_attend_backward),
    ):
        # On a CPU, Triton's interpreter runs the kernels.
        torch.library.impl(name, ("cuda", "cpu"), launch)
        torch.library.register_fake(name, fake)
    torch.library.register_autograd(forward, _lead_back, setup_context=_keep)
    torch.library.register_autograd(backward, _refuse_second)


def _attend(*arguments: Any) -> Tensor:
    return WindowCall(*arguments).attend()


def _attend_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *inputs, learns_bias, learns_fill = arguments
    return WindowCall(*inputs).attend_backward(grad, learns_bias, learns_fill)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.geometry, ctx.scale = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)  # no gradient comes where another formula gives it


def _lead_back(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    _, learns_bias, learns_fill, learns_temperature, *_ = ctx.needs_input_grad
    grads = torch.ops.muntin.window_attention_backward(
        grad, *ctx.saved_tensors, ctx.geometry, ctx.scale, learns_bias, learns_fill
    )
    # The operator returns empty tensors where nothing is wanted; autograd expects None.
    wanted = (True, learns_bias, learns_fill, learns_temperature)
    kept = [one if learns else None for one, learns in zip(grads, wanted, strict=True)]
    return (*kept, None, None)


def _refuse_second(ctx: Any, *grads: Tensor) -> None:
    message = (
        "fused window attention has a first derivative only, and a second one was asked for. "
        'Take attention="reference" in the config of the model.'
    )
    raise MuntinError(message)


def _fake_attend(qkv: Tensor, *others: Any) -> Tensor:
    return qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)


def _fake_attend_backward(
    grad: Tensor, qkv: Tensor, bias: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    fill, temperature, _, _, learns_bias, learns_fill = others
    return (
        qkv.new_empty(qkv.shape),
        bias.new_empty(bias.shape if learns_bias else 0),
        bias.new_empty(0) if fill is None or not learns_fill else fill.new_empty(fill.shape),
        bias.new_empty(0) if temperature is None else temperature.new_empty(temperature.shape),
    )
