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
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from muntin.benching.attention import Attention, AttentionProblem, Started
from muntin.ops.positions import SIZE_RULES, SizeRuleName
from muntin.ops.windows import cut_windows, lay_out

Built = tuple[Callable[[Tensor], Tensor], nn.Parameter]
Builder = Callable[[AttentionProblem, Tensor], Built]
"""From qkv of the windows (B*nW, N, 3C) to the function of the map (B, H, W, C) and its table."""


class _Precomputed(torch.autograd.Function):
    """A projection without cost, in the forward and the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, precomputed: Tensor) -> Tensor:  # noqa: ANN401 (autograd's own)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return precomputed.view_as(precomputed)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # noqa: ANN401 (autograd's own)
        return torch.empty(ctx.shape, dtype=ctx.dtype, device=grads[0].device), grads[0]


class PrecomputedLinear(nn.Module):
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


def _start(
    problem: AttentionProblem, dtype: torch.dtype, rule: SizeRuleName, build: Builder
) -> Started | None:
    """Start a peer's attention; None unless it partitions the map as muntin does, unpadded."""
    layout, window = problem.layout, (problem.window, problem.window)
    theirs = lay_out(layout.size, window, any(layout.shift), SIZE_RULES[rule])
    if (theirs.window, theirs.shift) != (layout.window, layout.shift):
        return None
    if (layout.pad, theirs.pad) != ((0, 0), (0, 0)):
        return None
    windows = cut_windows(problem.qkv, layout).flatten(0, 1)  # B*nW, N, 3C
    precomputed = windows.to(dtype, copy=True).requires_grad_()
    # A norm outputs float32 under autocast.
    x = torch.randn_like(problem.grad).requires_grad_()
    run, table = build(problem, precomputed)
    with torch.no_grad():
        table.copy_(problem.table)
    return lambda: run(x), [precomputed, table, x]


def _build_timm(problem: AttentionProblem, precomputed: Tensor, *, fused: bool) -> Built:
    from timm.models.swin_transformer import SwinTransformerBlock

    block = SwinTransformerBlock(
        problem.grad.shape[3],
        problem.layout.size,
        num_heads=problem.num_heads,
        window_size=problem.window,
        shift_size=problem.layout.shift[0],
    )
    block.to(precomputed.device).eval()
    block.attn.add_module("qkv", PrecomputedLinear(precomputed))
    block.attn.add_module("proj", nn.Identity())
    block.attn.fused_attn = fused
    return block._attn, block.attn.relative_position_bias_table


def _build_torchvision(problem: AttentionProblem, precomputed: Tensor) -> Built:
    from torchvision.models.swin_transformer import ShiftedWindowAttention

    side, shift = problem.window, problem.layout.shift[0]
    dim = problem.grad.shape[3]
    attn = ShiftedWindowAttention(dim, [side, side], [shift, shift], problem.num_heads)
    attn.to(precomputed.device).eval()
    attn.qkv = _ProxyLinear(lambda x: _Precomputed.apply(x, precomputed))
    attn.proj = _ProxyLinear(lambda x: x)
    return attn, attn.relative_position_bias_table


# torchvision keeps the full window on smaller maps and pads them.
ATTENTIONS: dict[str, Attention] = {
    "timm": partial(_start, rule="timm", build=partial(_build_timm, fused=False)),
    "timm fused": partial(_start, rule="timm", build=partial(_build_timm, fused=True)),
    "torchvision": partial(_start, rule="torchvision", build=_build_torchvision),
}
"""The peers' implementations by name."""
