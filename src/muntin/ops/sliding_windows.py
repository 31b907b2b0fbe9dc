# SPDX-License-Identifier: Apache-2.0
"""Sliding-window prediction: logits of an image of any size, yielded in strips of rows.

Windows overlap; their weights fall to 0 near the edges and sum to 1, so the result has no seams.
Memory holds logits of one row of windows, never of the whole image. Bilinear resizing has explicit
weights, so that any rows of the result can be computed alone.

Letters: B windows, C channels, K classes, h and w cells, H and W pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from muntin.shapes import Float, Int, Real, Size


class Mixing(NamedTuple):
    """Linear interpolation weights along one axis.

    For each new point: indices of the old points before and after it, and the weight `share` of the
    latter.
    """

    low: Int[Tensor, " N"]
    high: Int[Tensor, " N"]
    share: Float[Tensor, " N"]


def bilinear_mixing(
    after: int, before: int, *, covered: float | None = None, device: torch.device | None = None
) -> Mixing:
    """Compute the weights of ``interpolate(mode="bilinear", align_corners=False)`` along an axis.

    Points are pixel centres; beyond the outermost centres the value is constant. `covered` is the
    length of the new axis in old points; default: `before`.
    """
    length = before if covered is None else covered
    # Pixel-centre convention: centre i + 0.5 maps to (i + 0.5) * scale - 0.5. Float64, so
    # that rounding does not pick a wrong neighbour on long lines.
    places = (torch.arange(after, dtype=torch.float64) + 0.5) * (length / after) - 0.5
    places = places.clamp(0, before - 1)
    low = places.floor().long()
    high = (low + 1).clamp(max=before - 1)
    share = (places - low).float()
    return Mixing(low.to(device), high.to(device), share.to(device))


def bilinear_matrix(
    after: int, before: int, *, device: torch.device | None = None
) -> Float[Tensor, "after before"]:
    """Build `bilinear_mixing` as a matrix.

    ``rows @ cells @ columns.T`` resizes a map; a subset of `rows` gives a strip of it.
    """
    low, high, share = bilinear_mixing(after, before)
    matrix = torch.zeros(after, before)
    # Added, not assigned: at the borders low and high are the same point.
    matrix.scatter_add_(1, low[:, None], (1 - share)[:, None])
    matrix.scatter_add_(1, high[:, None], share[:, None])
    return matrix.to(device)


ALIGN = 32
"""Windows start at multiples of this many pixels, so that their cells are cells of the image."""

STRIP_VALUES = 2**20
"""Upper bound on full-resolution logits in memory, 4 MiB in float32: what a cache may hold."""

PredictWindows = Callable[[Real[Tensor, "B C H W"]], Iterable[Float[Tensor, "K h w"]]]


class Strip(NamedTuple):
    """Some rows of the result from `top` on, with the logits of every pixel."""

    top: int
    logits: Float[Tensor, "K rows W"]


class _Window(NamedTuple):
    """A window along one axis: first and end pixel, first cell, and the weight of each cell."""

    start: int
    end: int
    first: int
    weights: Tensor


def slide(
    image: Real[Tensor, "C H W"],
    predict: PredictWindows,
    window: Size,
    out_size: Size,
    *,
    stride: int,
    overlap: float = 0.25,
    rows: int = 0,
) -> Iterator[Strip]:
    """Compute the logits of every pixel of an image, in strips from top to bottom without overlap.

    The image has the scale of the network input; `predict` maps images to one cell per `stride`
    pixels, rounded up. An image that fits into a window, (height, width), is processed whole;
    `overlap` is the fraction of a window shared with the next one. Strips have `rows` rows; 0
    derives them from `STRIP_VALUES`.
    """
    covered = [side / stride for side in image.shape[1:]]
    image = _pad_to_stride(image, stride)
    height, width = image.shape[1:]
    lines = _cut(height, window[0], overlap, stride)
    columns = _cut(width, window[1], overlap, stride)
    cells = (-(-height // stride), -(-width // stride))
    # Separable weights: the total at (y, x) is the product of both lines.
    weights = _total(lines, cells[0])[:, None] * _total(columns, cells[1])
    down = bilinear_mixing(out_size[0], cells[0], covered=covered[0])
    across = bilinear_mixing(out_size[1], cells[1], covered=covered[1], device=image.device)
    band: Tensor | None = None  # K, rows, w: logits of the rows from `base` on
    base = done = 0
    # One row of windows at a time; `band` holds rows of cells that later windows still change.
    for number, line in enumerate(lines):
        found = _predict_row(image, predict, line, columns, cells[1])
        last = number == len(lines) - 1
        # Rows above the next row of windows are final.
        ready = cells[0] if last else lines[number + 1].first
        end = line.first + len(line.weights)
        if band is None:
            band = found.new_zeros(found.shape[0], 0, cells[1])
        grown = band.new_zeros(band.shape[0], end - base - band.shape[1], cells[1])
        band = torch.cat([band, grown], dim=1)
        band[:, line.first - base : end - base] += found
        step = rows or max(1, STRIP_VALUES // (band.shape[0] * out_size[1]))
        while done < out_size[0]:
            stop = min(done + step, out_size[0])
            # A pixel row mixes two rows of cells; both must be final.
            if int(down.high[stop - 1]) >= ready and not last:
                break
            low, high = int(down.low[done]), int(down.high[stop - 1]) + 1
            part = band[:, low - base : high - base] / weights[low:high].to(band)
            # Enlarge columns, then rows: K, rows, w -> K, rows, W.
            mixed = _mix(part, across.low, across.high, across.share, dim=2)
            first, second, share = (part[done:stop].to(band.device) for part in down)
            yield Strip(done, _mix(mixed, first - low, second - low, share, dim=1))
            done = stop
        if done < out_size[0]:
            # Drop rows of cells that no further pixel reads.
            needed = min(int(down.low[done]), ready)
            band, base = band[:, needed - base :].clone(), needed


def _pad_to_stride(image: Tensor, stride: int) -> Tensor:
    """Replicate the last row and column until both sides are multiples of the stride."""
    height, width = image.shape[1:]
    if height % stride == 0 and width % stride == 0:
        return image
    rows = torch.arange(-(-height // stride) * stride, device=image.device).clamp(max=height - 1)
    columns = torch.arange(-(-width // stride) * stride, device=image.device)
    return image[:, rows][:, :, columns.clamp(max=width - 1)]


def _cut(length: int, window: int, overlap: float, stride: int) -> list[_Window]:
    """Split an axis into overlapping windows with their blending weights."""
    # Whole multiples of ALIGN, so that cells of windows and of the image coincide.
    window = window if length <= window else max(ALIGN * 2, window // ALIGN * ALIGN)
    if length <= window:
        return [_Window(0, length, 0, torch.ones(-(-length // stride)))]
    step = max(ALIGN, int(window * (1 - overlap)) // ALIGN * ALIGN)
    starts = [*range(0, length - window, step), -(-(length - window) // ALIGN) * ALIGN]
    windows = []
    for number, start in enumerate(starts):
        end = min(start + window, length)
        cells = -(-(end - start) // stride)
        middle = (torch.arange(cells) + 0.5) * stride + start
        weight = torch.ones(cells)
        # From a quarter of the overlap inwards to three quarters, one window takes over.
        if number:
            shared = starts[number - 1] + window - start
            weight = ((middle - start) / shared * 2 - 0.5).clamp(0, 1)
        if number < len(starts) - 1:
            shared = end - starts[number + 1]
            weight = weight * ((end - middle) / shared * 2 - 0.5).clamp(0, 1)
        windows.append(_Window(start, end, start // stride, weight))
    return windows


def _total(windows: list[_Window], cells: int) -> Tensor:
    """Sum of the weights of all windows at each cell of an axis."""
    total = torch.zeros(cells)
    for window in windows:
        total[window.first : window.first + len(window.weights)] += window.weights
    return total


def _predict_row(
    image: Tensor, predict: PredictWindows, line: _Window, columns: list[_Window], wide: int
) -> Tensor:
    """Weighted logits of the cells of one row of windows."""
    by_size: dict[int, list[_Window]] = defaultdict(list)
    for column in columns:
        # The last window may be narrower; only equal sizes can share a batch.
        by_size[column.end - column.start].append(column)
    found: Tensor | None = None
    for alike in by_size.values():
        views = [image[:, line.start : line.end, c.start : c.end] for c in alike]
        for column, logits in zip(alike, predict(torch.stack(views)), strict=True):
            if found is None:
                found = logits.new_zeros(*logits.shape[:2], wide, dtype=torch.float32)
            weight = (line.weights[:, None] * column.weights).to(found)
            found[:, :, column.first : column.first + len(column.weights)] += (
                logits.to(found) * weight
            )
    assert found is not None, "there is at least one window"
    return found


def _mix(values: Tensor, low: Tensor, high: Tensor, share: Tensor, *, dim: int) -> Tensor:
    shape = [1, 1, 1]
    shape[dim] = -1
    mixed = values.index_select(dim, low)
    return mixed.lerp_(values.index_select(dim, high), share.view(shape))
