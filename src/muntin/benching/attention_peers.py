# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The window attention of other libraries, in their own code, without its projections.

Their blocks roll and cut the map of C channels, and only then project it to 3C. So their input
projection is replaced by one that gives at once what was computed beforehand, and whose gradient
costs nothing either; their output projection gives what it gets.

Letters: B images, H and W sides of the map in tokens, C channels, N tokens of a window, nW windows
of an image, h heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from muntin.ops.windows import (
    SIZE_RULES,
    SizeRuleName,
    WindowLayout,
    cut_windows,
    join_windows,
    lay_out,
)
from muntin.shapes import Float

__all__ = ["ATTENTIONS", "Pass", "Problem"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Problem:
    """What the attention of one block has to do.

    Attributes:
        layout: Where the windows lie.
        window: Side of the window that the block was given, in tokens.
        num_heads: Attention heads.
        qkv: What the projection gave.
        table: Relative position biases.
        grad: Gradient of the output.
    """

    layout: WindowLayout
    window: int
    num_heads: int
    qkv: Float[Tensor, "B H W C3"]
    table: Float[Tensor, "positions h"]
    grad: Float[Tensor, "B H W C"]

    @property
    def dim(self) -> int:
        """Channels."""
        return self.grad.shape[3]

    @property
    def scale(self) -> float:
        """Factor on the queries."""
        return (self.dim // self.num_heads) ** -0.5


@runtime_checkable
class Pass(Protocol):
    """One implementation."""

    def start(self, dtype: torch.dtype) -> tuple[Callable[[], Tensor], list[Tensor]]:
        """Give a forward, and what gradients are wanted of.

        Args:
            dtype: Of queries, keys and values; the table is float32 unless it is float64.

        Returns:
            The forward, to B, H, W, C; then queries, keys and values, the table, and more.
        """

    def to_map(self, gradient: Tensor) -> Float[Tensor, "B H W C3"]:
        """Bring the gradient of queries, keys and values to the order of the map."""


class _Free(torch.autograd.Function):
    """A projection that costs nothing, on the backward pass neither."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, given: Tensor) -> Tensor:  # noqa: ANN401 (autograd's own)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return given.view_as(given)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # noqa: ANN401 (autograd's own)
        return torch.empty(ctx.shape, dtype=ctx.dtype, device=grads[0].device), grads[0]


class _FreeLinear(nn.Module):
    """Stands where a peer projects to queries, keys and values."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.given = given

    def forward(self, x: Tensor) -> Tensor:
        """Give what was computed beforehand."""
        out: Tensor = _Free.apply(x, self.given)
        return out


class _FreeWeight(Tensor):
    """A weight with which ``F.linear`` calls a function instead of multiplying."""

    project: Callable[[Tensor], Tensor]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Intercept the product alone."""
        if func is torch.nn.functional.linear:
            return args[1].project(args[0])
        return super().__torch_function__(func, types, args, kwargs or {})


class _WeightHolder(nn.Module):
    """Has a weight and a bias, as a linear layer has."""

    def __init__(self, project: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = torch.empty(0).as_subclass(_FreeWeight)
        self.weight.project = project
        self.bias = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rival:
    """A peer's attention.

    Attributes:
        problem: What to do.
        build: From queries, keys and values of the windows (B*nW, N, 3C) to the function from the
            map B, H, W, C, and its bias table.
    """

    problem: Problem
    build: Callable[[Problem, Tensor], tuple[Callable[[Tensor], Tensor], nn.Parameter]]

    def start(self, dtype: torch.dtype) -> tuple[Callable[[], Tensor], list[Tensor]]:
        """As in `Pass`."""
        problem = self.problem
        windows = cut_windows(problem.qkv, problem.layout).flatten(0, 1)  # B*nW, N, 3C
        given = windows.to(dtype, copy=True).requires_grad_()
        # What a norm gives: float32 under autocast.
        x = torch.randn_like(problem.grad).requires_grad_()
        run, table = self.build(problem, given)
        with torch.no_grad():
            table.copy_(problem.table)
        return lambda: run(x), [given, table, x]

    def to_map(self, gradient: Tensor) -> Tensor:
        """As in `Pass`."""
        layout = self.problem.layout
        return join_windows(gradient.unflatten(0, (-1, layout.num_windows)), layout)


def _agrees(problem: Problem, rule: SizeRuleName) -> bool:
    """Whether a system cuts the map as we do, without padding."""
    layout = problem.layout
    window = (problem.window, problem.window)
    theirs = lay_out(layout.size, window, any(layout.shift), SIZE_RULES[rule])
    same = (theirs.window, theirs.shift) == (layout.window, layout.shift)
    return same and layout.pad == theirs.pad == (0, 0)


def _timm_passes(problem: Problem) -> dict[str, Pass]:
    if not _agrees(problem, "timm"):
        return {}

    def build(
        problem: Problem, given: Tensor, fused: bool
    ) -> tuple[Callable[[Tensor], Tensor], nn.Parameter]:
        from timm.models.swin_transformer import SwinTransformerBlock

        block = SwinTransformerBlock(
            problem.dim,
            problem.layout.size,
            num_heads=problem.num_heads,
            window_size=problem.window,
            shift_size=problem.layout.shift[0],
        )
        block.to(given.device).eval()
        block.attn.add_module("qkv", _FreeLinear(given))
        block.attn.add_module("proj", nn.Identity())
        block.attn.fused_attn = fused
        return block._attn, block.attn.relative_position_bias_table

    return {
        "timm": _Rival(problem=problem, build=lambda p, given: build(p, given, False)),
        "timm fused": _Rival(problem=problem, build=lambda p, given: build(p, given, True)),
    }


def _torchvision_passes(problem: Problem) -> dict[str, Pass]:
    # It keeps the full window on smaller maps, and says so by padding.
    if not _agrees(problem, "torchvision"):
        return {}

    def build(problem: Problem, given: Tensor) -> tuple[Callable[[Tensor], Tensor], nn.Parameter]:
        from torchvision.models.swin_transformer import ShiftedWindowAttention

        side, shift = problem.window, problem.layout.shift[0]
        attn = ShiftedWindowAttention(problem.dim, [side, side], [shift, shift], problem.num_heads)
        attn.to(given.device).eval()
        attn.qkv = _WeightHolder(lambda x: _Free.apply(x, given))
        attn.proj = _WeightHolder(lambda x: x)
        return attn, attn.relative_position_bias_table

    return {"torchvision": _Rival(problem=problem, build=build)}


ATTENTIONS: dict[str, Callable[[Problem], dict[str, Pass]]] = {
    "timm": _timm_passes,
    "torchvision": _torchvision_passes,
}
"""From a problem to the ways of a peer; none where it cuts the map otherwise."""
