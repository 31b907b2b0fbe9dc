# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""2x upsampling with a transposed convolution of kernel 2 and stride 2."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from muntin.shapes import Float

__all__ = ["Upsample"]


class Upsample(nn.ConvTranspose2d):
    """Transposed convolution of kernel 2 and stride 2, computed as a matrix product.

    Output cells do not overlap, so a 1 x 1 convolution with four times the channels and a
    rearrangement are equivalent, and faster on CPUs.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
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
