# SPDX-License-Identifier: Apache-2.0
"""Draw which parts of images are hidden.

Letters: B images, N cells of a grid in row-major order, h and w sides of a grid of 2 x 2 blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from muntin.collectives import draw_rows
from muntin.errors import ShapeError
from muntin.shapes import Bool, Int, Size


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
    values = draw_rows(lambda n: torch.rand(n, num_cells, generator=generator), count)
    order = values.argsort(dim=1)
    return torch.zeros(count, num_cells, dtype=torch.bool).scatter_(1, order[:, :num_kept], True)


def draw_units(
    count: int, grid: Size, step: int, mask_ratio: float, generator: torch.Generator
) -> Mask:
    """Hide whole units of `step` x `step` cells of a grid; those at its end may be cut."""
    rows, columns = (-(-side // step) for side in grid)
    units = draw_masks(count, rows * columns, mask_ratio, generator)
    return Mask(spread_cells(units, step, grid).flatten(1))


def draw_quarters(
    count: int, grid: Size, step: int, mask_ratio: float, generator: torch.Generator
) -> Mask:
    """Process one random unit of each 2 x 2, and hide a share of these.

    Units have `step` x `step` cells of the grid, whose sides are multiples of two of them.
    """
    rows, columns = (side // (2 * step) for side in grid)
    quarter = draw_rows(lambda n: torch.randint(4, (n, rows, columns), generator=generator), count)
    seen = torch.ones(count, rows * columns, dtype=torch.bool)
    if mask_ratio and rows * columns > 1:
        seen = draw_masks(count, rows * columns, mask_ratio, generator)
    chosen = quarter[:, None] == torch.arange(4).view(1, 4, 1, 1)  # B, 4, h, w
    units = F.pixel_shuffle((chosen & seen.view(count, 1, rows, columns)).float(), 2)[:, 0]
    size = (2 * rows * step, 2 * columns * step)
    return Mask(spread_cells(units.bool().flatten(1), step, size).flatten(1), quarter)


def spread_cells(cells: Tensor, side: int, size: Size) -> Tensor:
    """Repeat each cell (B, N) `side` x `side` times, and cut the map (B, H, W) to its size.

    A grid that does not cover the map is a `ShapeError`.
    """
    rows, columns = (-(-length // side) for length in size)
    if cells.shape[1] != rows * columns:
        message = (
            f"a mask must have {rows} x {columns} cells to cover {size[0]} x {size[1]} by cells of "
            f"{side} x {side}, got {cells.shape[1]}. Resize the images to multiples of {side}."
        )
        raise ShapeError(message)
    grid = cells.unflatten(1, (rows, columns))
    return grid.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, : size[0], : size[1]]
