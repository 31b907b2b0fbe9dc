# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Tensors that belong to another window or picture size, brought to the one at hand."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from muntin.errors import ShapeError
from muntin.ops.positions import resample_grid
from muntin.shapes import Float, Size

__all__ = ["crop_table", "embed_table", "resample_positions", "resample_table"]


def embed_table(
    table: Float[Tensor, "positions h"], *, window: Size, full: Size
) -> Float[Tensor, "full_positions h"]:
    """Place the relative-position table of a window in the middle of a larger window's table.

    Args:
        table: The smaller table.
        window: Its window, (height, width) in tokens.
        full: The larger window.

    Returns:
        A table whose middle is `table`, exactly. Positions further apart than `window` knows get
        the value of the nearest one that it knows.
    """
    rows, columns = full[0] - window[0], full[1] - window[1]
    grid = table.t().reshape(1, -1, 2 * window[0] - 1, 2 * window[1] - 1)
    grid = F.pad(grid.float(), (columns, columns, rows, rows), mode="replicate")  # 1, h, 2M-1, 2M-1
    return grid.flatten(2)[0].t().to(table.dtype)


def crop_table(
    table: Float[Tensor, "full_positions h"], *, window: Size, full: Size
) -> Float[Tensor, "positions h"]:
    """Take the middle of a relative-position table: what a smaller window reads of it."""
    rows, columns = full[0] - window[0], full[1] - window[1]
    grid = table.view(2 * full[0] - 1, 2 * full[1] - 1, -1)
    grid = grid[rows : grid.shape[0] - rows, columns : grid.shape[1] - columns]
    return grid.flatten(0, 1)


def resample_table(
    table: Float[Tensor, "positions h"], *, window: int
) -> Float[Tensor, "new_positions h"]:
    """Stretch the relative-position table of a square window to another square window.

    Args:
        table: Learned biases, logits added before the softmax.
        window: Side of the window wanted, in tokens.

    Returns:
        The stretched table, of the same type.

    Raises:
        ShapeError: The table does not belong to a square window.

    Source:
        Bicubic, align_corners=False, as microsoft/Swin-Transformer@f82860b (utils.py) does when it
        fine-tunes with another window.
    """
    span = round(table.shape[0] ** 0.5)
    if span * span != table.shape[0] or span % 2 == 0:
        message = (
            f"table must have (2M-1)^2 rows for a square window of side M, got {table.shape[0]}. "
            f"Build the model with the window that the table was learned with."
        )
        raise ShapeError(message)
    grid = table.t().reshape(1, -1, span, span).float()
    grid = F.interpolate(grid, size=(2 * window - 1, 2 * window - 1), mode="bicubic")
    return grid.flatten(2)[0].t().to(table.dtype)


def resample_positions(
    embedding: Float[Tensor, "1 N C"], *, new: Size, num_prefix: int, antialias: bool
) -> Float[Tensor, "1 N2 C"]:
    """Resize the position embeddings of a square picture to another grid.

    Raises:
        ShapeError: The tokens are not `num_prefix` plus a square.
    """
    tokens = embedding.shape[1] - num_prefix
    side = round(max(tokens, 0) ** 0.5)
    if side * side != tokens or not tokens:
        message = (
            f"embedding must have {num_prefix} prefix tokens and a square grid, got "
            f"{embedding.shape[1]} tokens. Build the model with the class token and img_size that "
            f"it was learned with."
        )
        raise ShapeError(message)
    return resample_grid(
        embedding, old=(side, side), new=new, num_prefix=num_prefix, antialias=antialias
    )
