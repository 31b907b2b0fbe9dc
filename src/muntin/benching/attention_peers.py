# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Window attention of other libraries, in their own code, without its projections.

Their blocks roll and partition the map of C channels and only then project it to 3C. Therefore
their qkv projection is replaced by one that returns a precomputed tensor, free of cost in both
directions; their output projection is replaced by the identity.

Letters: B images, H and W sides of the map in tokens, C channels, N tokens of a window, nW windows
of an image, h heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from muntin.ops.size_rules import SIZE_RULES, SizeRuleName
from muntin.ops.windows import WindowLayout, cut_windows, join_windows, lay_out
from muntin.shapes import Float

__all__ = ["ATTENTIONS", "AttentionPass", "AttentionProblem"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AttentionProblem:
    """Inputs of the attention of one block.

    Attributes:
        layout: Positions of the windows.
        window: Configured side of the window, in tokens.
        num_heads: Number of attention heads.
        qkv: Output of the qkv projection.
        table: Relative position bias table.
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
        """C."""
        return self.grad.shape[3]

    @property
    def scale(self) -> float:
        """Scale of the queries, 1 / sqrt(head dim)."""
        return (self.dim // self.num_heads) ** -0.5


@runtime_checkable
class AttentionPass(Protocol):
    """One implementation of window attention."""

    def start(self, dtype: torch.dtype) -> tuple[Callable[[], Tensor], list[Tensor]]:
        """Make the forward function and list the tensors whose gradients are measured.

        Args:
            dtype: Type of qkv; the table is float32, or float64 if qkv is.

        Returns:
            The forward function, to (B, H, W, C); then qkv, the table, and possibly more.
        """

    def to_map(self, gradient: Tensor) -> Float[Tensor, "B H W C3"]:
        """Rearrange the gradient of qkv from the order of windows to that of the map."""


class _Precomputed(torch.autograd.Function):
    """A projection without cost, in the forward and the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, precomputed: Tensor) -> Tensor:  # noqa: ANN401 (autograd's own)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return precomputed.view_as(precomputed)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # noqa: ANN401 (autograd's own)
        return torch.empty(ctx.shape, dtype=ctx.dtype, device=grads[0].device), grads[0]


class _PrecomputedLinear(nn.Module):
    """Replaces a peer's qkv projection."""

    def __init__(self, precomputed: Tensor) -> None:
        super().__init__()
        self.precomputed = precomputed

    def forward(self, x: Tensor) -> Tensor:
        """Return the precomputed tensor, connected to `x` for autograd."""
        out: Tensor = _Precomputed.apply(x, self.precomputed)
        return out


class _ProxyWeight(Tensor):
    """A weight for which ``F.linear`` calls `project` instead of multiplying."""

    project: Callable[[Tensor], Tensor]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Intercept ``F.linear`` only."""
        if func is torch.nn.functional.linear:
            return args[1].project(args[0])
        return super().__torch_function__(func, types, args, kwargs or {})


class _ProxyLinear(nn.Module):
    """Has a weight and a bias, as torchvision reads them from its linear layers."""

    def __init__(self, project: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = torch.empty(0).as_subclass(_ProxyWeight)
        self.weight.project = project
        self.bias = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _PeerAttention:
    """A peer's attention.

    Attributes:
        problem: Its inputs.
        build: From qkv of the windows (B*nW, N, 3C) to the function of the map (B, H, W, C) and
            its bias table.
    """

    problem: AttentionProblem
    build: Callable[[AttentionProblem, Tensor], tuple[Callable[[Tensor], Tensor], nn.Parameter]]

    def start(self, dtype: torch.dtype) -> tuple[Callable[[], Tensor], list[Tensor]]:
        """As in `AttentionPass`."""
        problem = self.problem
        windows = cut_windows(problem.qkv, problem.layout).flatten(0, 1)  # B*nW, N, 3C
        precomputed = windows.to(dtype, copy=True).requires_grad_()
        # A norm outputs float32 under autocast.
        x = torch.randn_like(problem.grad).requires_grad_()
        run, table = self.build(problem, precomputed)
        with torch.no_grad():
            table.copy_(problem.table)
        return lambda: run(x), [precomputed, table, x]

    def to_map(self, gradient: Tensor) -> Tensor:
        """As in `AttentionPass`."""
        layout = self.problem.layout
        return join_windows(gradient.unflatten(0, (-1, layout.num_windows)), layout)


def _has_same_layout(problem: AttentionProblem, rule: SizeRuleName) -> bool:
    """Whether a library partitions the map as muntin does, without padding."""
    layout = problem.layout
    window = (problem.window, problem.window)
    theirs = lay_out(layout.size, window, any(layout.shift), SIZE_RULES[rule])
    same = (theirs.window, theirs.shift) == (layout.window, layout.shift)
    return same and layout.pad == theirs.pad == (0, 0)


def _timm_passes(problem: AttentionProblem) -> dict[str, AttentionPass]:
    if not _has_same_layout(problem, "timm"):
        return {}

    def build(
        problem: AttentionProblem, precomputed: Tensor, fused: bool
    ) -> tuple[Callable[[Tensor], Tensor], nn.Parameter]:
        from timm.models.swin_transformer import SwinTransformerBlock

        block = SwinTransformerBlock(
            problem.dim,
            problem.layout.size,
            num_heads=problem.num_heads,
            window_size=problem.window,
            shift_size=problem.layout.shift[0],
        )
        block.to(precomputed.device).eval()
        block.attn.add_module("qkv", _PrecomputedLinear(precomputed))
        block.attn.add_module("proj", nn.Identity())
        block.attn.fused_attn = fused
        return block._attn, block.attn.relative_position_bias_table

    return {
        "timm": _PeerAttention(
            problem=problem, build=lambda p, precomputed: build(p, precomputed, False)
        ),
        "timm fused": _PeerAttention(
            problem=problem, build=lambda p, precomputed: build(p, precomputed, True)
        ),
    }


def _torchvision_passes(problem: AttentionProblem) -> dict[str, AttentionPass]:
    # torchvision keeps the full window on smaller maps and pads them.
    if not _has_same_layout(problem, "torchvision"):
        return {}

    def build(
        problem: AttentionProblem, precomputed: Tensor
    ) -> tuple[Callable[[Tensor], Tensor], nn.Parameter]:
        from torchvision.models.swin_transformer import ShiftedWindowAttention

        side, shift = problem.window, problem.layout.shift[0]
        attn = ShiftedWindowAttention(problem.dim, [side, side], [shift, shift], problem.num_heads)
        attn.to(precomputed.device).eval()
        attn.qkv = _ProxyLinear(lambda x: _Precomputed.apply(x, precomputed))
        attn.proj = _ProxyLinear(lambda x: x)
        return attn, attn.relative_position_bias_table

    return {"torchvision": _PeerAttention(problem=problem, build=build)}


ATTENTIONS: dict[str, Callable[[AttentionProblem], dict[str, AttentionPass]]] = {
    "timm": _timm_passes,
    "torchvision": _torchvision_passes,
}
"""From a problem to a peer's implementations; empty if it partitions the map differently."""
