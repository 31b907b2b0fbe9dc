# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Convolution with norm and activation, for necks and heads of dense tasks."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from muntin.shapes import Float

__all__ = ["ChannelNorm", "ConvNorm", "NormName", "build_norm"]

NormName = Literal["none", "batch", "group", "layer"]


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each cell of a map."""

    def forward(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Normalise."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MapNorm(nn.BatchNorm2d):
    """Batch norm that uses running statistics if a channel has a single value.

    A single image pooled to one cell has no variance.
    """

    def learns_from(self, maps: Float[Tensor, "B C_in H W"]) -> bool:
        """Whether it uses batch statistics, which require several values per channel."""
        count = maps.shape[0] * maps.shape[2] * maps.shape[3]
        return self.training and torch.is_grad_enabled() and count > 1

    def forward(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Normalise."""
        if not self.training or maps.numel() > maps.shape[1]:
            return super().forward(maps)
        return F.batch_norm(
            maps, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


def build_norm(name: NormName, channels: int) -> nn.Module:
    """Build a norm for maps; group norm has 32 groups, or fewer if the channels require it.

    A group has at least two channels: a single one has no variance on a map of one cell.
    """
    if name == "batch":
        return MapNorm(channels)
    if name == "group":
        # Wu and He 2018 (arXiv 1803.08494): 32 groups.
        groups = next((n for n in (32, 16, 8, 4, 2) if channels % n == 0 and channels > n), 1)
        return nn.GroupNorm(groups, channels)
    return ChannelNorm(channels, eps=1e-6) if name == "layer" else nn.Identity()


class ConvNorm(nn.Module):
    """Convolution with "same" padding, optional norm, optional ReLU.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        kernel: Kernel size, odd.
        norm: Norm after the convolution, which then has no bias.
        activation: Whether to apply ReLU.
        recompute: Whether training with "batch" and ReLU stores the input only and recomputes the
            convolution in the backward pass; for large maps.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        norm: NormName = "none",
        activation: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.recompute = recompute and activation and norm == "batch"
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, padding=kernel // 2, bias=norm == "none"
        )
        self.norm = build_norm(norm, out_channels)
        self.activation = nn.ReLU(inplace=True) if activation else nn.Identity()

    def forward(self, maps: Float[Tensor, "B C_in H W"]) -> Float[Tensor, "B C_out H W"]:
        """Apply all three."""
        norm = self.norm
        if self.recompute and isinstance(norm, MapNorm) and norm.learns_from(maps):
            # nn.BatchNorm2d counts batches itself; the function below does not.
            cast(Tensor, norm.num_batches_tracked).add_(1)
            out: Tensor = _ConvBatchRelu.apply(
                maps, self.conv.weight, norm.weight, norm.bias, norm, self.conv.padding
            )
            return out
        return self.activation(self.norm(self.conv(maps)))


class _ConvBatchRelu(torch.autograd.Function):
    """Stores the input; autograd would store the outputs of convolution and ReLU."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (autograd's own)
        maps: Tensor,
        weight: Tensor,
        scale: Tensor,
        shift: Tensor,
        norm: MapNorm,
        padding: tuple[int, int],
    ) -> Tensor:
        # `spread` is 1 / sqrt(var + eps), as the backward pass takes it.
        out, mean, spread = torch.native_batch_norm(
            F.conv2d(maps, weight, padding=padding), scale, shift, norm.running_mean,
            norm.running_var, True, norm.momentum or 0.0, norm.eps,
        )  # fmt: skip
        ctx.save_for_backward(maps, weight, scale, shift, mean, spread)
        ctx.eps, ctx.padding = norm.eps, padding
        return out.relu_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        maps, weight, scale, shift, mean, spread = ctx.saved_tensors
        # Under autocast, the forward convolution ran in the dtype of the gradient.
        maps_there, weight_there = maps.to(gradient.dtype), weight.to(gradient.dtype)
        before = F.conv2d(maps_there, weight_there, padding=ctx.padding)
        factor = (scale * spread)[:, None, None]
        # Gradient mask of the ReLU, from the recomputed normalised values.
        is_on = before * factor + (shift - mean * scale * spread)[:, None, None] > 0
        inner, for_scale, for_shift = torch.ops.aten.native_batch_norm_backward(
            gradient * is_on, before, scale, None, None, mean, spread, True, ctx.eps,
            [True, True, True],
        )  # fmt: skip
        del before, is_on
        for_maps, for_weight, _ = torch.ops.aten.convolution_backward(
            inner, maps_there, weight_there, None, [1, 1], ctx.padding, [1, 1], False, [0, 0], 1,
            [ctx.needs_input_grad[0], True, False],
        )  # fmt: skip
        if for_maps is not None:
            for_maps = for_maps.to(maps.dtype)
        return for_maps, for_weight.to(weight.dtype), for_scale, for_shift, None, None
