# SPDX-License-Identifier: Apache-2.0
"""Convolutions of necks and heads of dense tasks: with norm and activation, and 2x upsampling."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muntin.shapes import Float

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


def init_before_relu(module: nn.Module) -> None:
    """Draw the weights of all convolutions below `module` for the ReLU after them; no biases."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class ConvNorm(nn.Module):
    """Convolution with "same" padding (kernel odd), optional norm, optional ReLU.

    With a norm the convolution has no bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        norm: NormName = "none",
        activation: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, padding=kernel // 2, bias=norm == "none"
        )
        self.norm = build_norm(norm, out_channels)
        self.activation = nn.ReLU(inplace=True) if activation else nn.Identity()
        # A convolution alone saves its input only.
        self.recomputable = ("forward",) if activation and norm != "none" else ()

    def forward(self, maps: Float[Tensor, "B C_in H W"]) -> Float[Tensor, "B C_out H W"]:
        """Apply all three."""
        return self.activation(self.norm(self.conv(maps)))


class StridedConv(nn.Conv2d):
    """Convolution with a stride and padding, which is right in bf16 too.

    Source:
        Where a map is no wider or higher than the padding, columns of the kernel see zeros only,
        and PyTorch on a CPU leaves their gradients in bf16 unwritten: any number, NaN included
        (tests/nn/test_bf16_gradients.py). Such maps have few cells: fp32 costs nothing there.
    """

    def forward(self, maps: Float[Tensor, "B C_in H W"]) -> Float[Tensor, "B C_out h w"]:
        """Convolve."""
        device = maps.device.type
        reach = max(int(side) for side in self.padding)
        if device != "cpu" or min(maps.shape[2:]) > reach or not torch.is_grad_enabled():
            return super().forward(maps)
        with torch.autocast(device, enabled=False):
            return super().forward(maps.to(self.weight.dtype))


class Upsample(nn.ConvTranspose2d):
    """Transposed convolution of kernel 2 and stride 2, computed as a matrix product.

    Output cells do not overlap, so a 1 x 1 convolution with four times the channels and a
    rearrangement are equivalent, and faster on CPUs.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 2, stride=2)

    def forward(  # type: ignore[override]
        self, maps: Float[Tensor, "B C_in H W"]
    ) -> Float[Tensor, "B C_out 2*H 2*W"]:
        """Upsample."""
        weight = self.weight.permute(1, 2, 3, 0).reshape(
            -1, self.in_channels, 1, 1
        )  # 4*C_out, C_in
        bias = None if self.bias is None else self.bias.repeat_interleave(4)
        values = F.conv2d(maps, weight, bias)
        # Not pixel_shuffle: its backward fails on an empty batch (a step without any object).
        batch, _, high, wide = values.shape
        cells = values.view(batch, self.out_channels, 2, 2, high, wide).permute(0, 1, 4, 2, 5, 3)
        return cells.reshape(batch, self.out_channels, 2 * high, 2 * wide)
