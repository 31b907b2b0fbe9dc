# SPDX-License-Identifier: Apache-2.0
"""Draw which parts of images are hidden.

Letters: B images, N cells of a grid in row-major order, h and w sides of a grid of 2 x 2 blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from muntin.shapes import Bool, Int


class Mask(NamedTuple):
    """What of each image is seen.

    `quarter`, if there is one, says which of the 2 x 2 units of each block is processed at all,
    counted row by row; `keep` is False for every other one.
    """

    keep: Bool[Tensor, "B N"]
    quarter: Int[Tensor, "B h w"] | None = None

    def to(self, device: torch.device) -> Mask:
        """Move to a device."""
        quarter = None if self.quarter is None else self.quarter.to(device)
        return Mask(self.keep.to(device), quarter)


def draw_masks(
    count: int, num_cells: int, mask_ratio: float, generator: torch.Generator
) -> Bool[Tensor, "B N"]:
    """Draw which cells each image keeps: equally many, at least one, and not all."""
    num_kept = min(max(round(num_cells * (1 - mask_ratio)), 1), num_cells - 1)
    order = torch.rand(count, num_cells, generator=generator).argsort(dim=1)
    return torch.zeros(count, num_cells, dtype=torch.bool).scatter_(1, order[:, :num_kept], True)
