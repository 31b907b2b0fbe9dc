# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Several views of one picture, tiles of it or its mirror image, and one result of them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from muntin.configs import check_range
from muntin.heads.conventions import SelectConfig
from muntin.ops.boxes import covered_share, suppress
from muntin.results import Detections
from muntin.run_lengths import decode_mask, encode_mask, shift_mask
from muntin.shapes import Size

__all__ = ["Window", "cut_windows", "merge_views", "mirror_back", "place_in"]

EDGE = 2.0
"""Pixels from the edge of a tile at which a box is taken for a piece of something larger."""

PIECE = 0.7
"""A piece is dropped when this part of it lies inside a larger box of its class."""

AS_SURE = 0.5
"""Part of the piece's score that this larger box must have at least."""


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Give this part of a picture (H, W, C)."""
        rows = slice(self.top, self.top + self.height)
        return pixels[rows, self.left : self.left + self.width]


def cut_windows(size: Size, tile: Size, *, overlap: float = 0.25) -> list[Window]:
    """Lay tiles over a picture, evenly, so that neighbours overlap.

    Args:
        size: (height, width) of the picture in pixels.
        tile: (height, width) of a tile in pixels; smaller pictures are one tile.
        overlap: Least part of a tile's side that it shares with its neighbour.

    Returns:
        Tiles, row by row; all of one size.

    Raises:
        ConfigError: The tile is too small, or the overlap leaves no step.

    Example:
        >>> [window.left for window in cut_windows((100, 250), (100, 100), overlap=0.25)]
        [0, 75, 150]
    """
    check_range("tile", min(tile), 32, 10**6)
    check_range("overlap", overlap, 0, 0.9)
    starts = []
    sides = []
    for whole, part in zip(size, tile, strict=True):
        side = min(whole, part)
        step = max(1, int(side * (1 - overlap)))
        count = 1 + -(-(whole - side) // step)
        starts.append([round(i * (whole - side) / max(count - 1, 1)) for i in range(count)])
        sides.append(side)
    return [Window(top, left, *sides) for top in starts[0] for left in starts[1]]


def place_in(found: Detections, window: Window, size: Size) -> Detections:
    """Bring boxes of a part of a picture to the pixels of the picture; masks stay as they are.

    Most of what tiles see is dropped when they are merged, so masks are moved after that.
    """
    boxes = found.boxes + np.array([window.left, window.top] * 2)
    return replace(found, size=size, boxes=boxes)


def mirror_back(found: Detections) -> Detections:
    """Bring what was found in the mirror image to the pixels of the picture."""
    width = found.size[1]
    boxes = found.boxes[:, [2, 1, 0, 3]] * np.array([-1, 1, -1, 1]) + np.array([width, 0, width, 0])
    masks = found.masks
    if masks is not None:
        masks = tuple(encode_mask(decode_mask(mask)[:, ::-1]) for mask in masks)
    return replace(found, boxes=boxes, masks=masks)


def merge_views(
    views: Sequence[Detections], windows: Sequence[Window], select: SelectConfig, most: int
) -> Detections:
    """Make one result of several views of a picture.

    A box that ends at the inner edge of a tile is a piece; it is dropped when a larger box of its
    class that is about as sure holds most of it. What two views see is told once.

    Args:
        views: What was found in each, as `place_in` gives it.
        windows: The part of the picture that each view shows.
        select: How boxes suppress each other.
        most: Boxes that are told.
    """
    every = _join(views)
    pieces = np.concatenate([_are_pieces(v, w) for v, w in zip(views, windows, strict=True)])
    seen_in = np.repeat(np.arange(len(views)), [len(view) for view in views])
    # Before suppression, in which a piece may beat the whole that it is a piece of.
    wanted = np.flatnonzero(_are_wanted(every, pieces, select.class_agnostic))
    every, seen_in = every.select(wanted), seen_in[wanted]
    kept, scores = suppress(
        torch.from_numpy(every.boxes),
        torch.from_numpy(every.scores).float(),
        torch.from_numpy(every.class_ids),
        iou=select.iou,
        # Two tiles that share an object find it twice, even where a head finds each once.
        kind="hard" if select.suppression == "none" else select.suppression,
        class_agnostic=select.class_agnostic,
        most=most,
        least_score=select.score_threshold,
    )
    rows = kept.numpy()
    told = replace(every.select(rows), scores=scores.double().numpy())
    return _place_masks(told, [windows[view] for view in seen_in[rows]])


def _place_masks(found: Detections, windows: Sequence[Window]) -> Detections:
    """Bring the masks of parts to the size of the picture."""
    if found.masks is None:
        return found
    masks = tuple(
        shift_mask(mask, size=found.size, top=window.top, left=window.left)
        if tuple(mask["size"]) != found.size
        else mask
        for mask, window in zip(found.masks, windows, strict=True)
    )
    return replace(found, masks=masks)


def _join(views: Sequence[Detections]) -> Detections:
    first = views[0]
    masks = None
    if first.masks is not None:
        masks = tuple(mask for view in views for mask in view.masks or ())
    return replace(
        first,
        boxes=np.concatenate([view.boxes for view in views]),
        class_ids=np.concatenate([view.class_ids for view in views]),
        scores=np.concatenate([view.scores for view in views]),
        class_names=tuple(name for view in views for name in view.class_names),
        masks=masks,
    )


def _are_pieces(found: Detections, window: Window) -> NDArray[np.bool_]:
    """Which boxes end at an edge of the window that is no edge of the picture."""
    height, width = found.size
    left, top, right, bottom = found.boxes.T
    ends = [
        (left - window.left < EDGE) & (window.left > 0),
        (top - window.top < EDGE) & (window.top > 0),
        (window.left + window.width - right < EDGE) & (window.left + window.width < width),
        (window.top + window.height - bottom < EDGE) & (window.top + window.height < height),
    ]
    return np.logical_or.reduce(ends)


def _are_wanted(
    found: Detections, pieces: NDArray[np.bool_], class_agnostic: bool
) -> NDArray[np.bool_]:
    """Which boxes are no pieces of others; large pieces are looked at first."""
    wanted = np.ones(len(found), bool)
    areas = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(axis=1)
    places = np.flatnonzero(pieces)
    for index in places[np.argsort(-areas[places], kind="stable")]:
        same = class_agnostic | (found.class_ids == found.class_ids[index])
        sure = found.scores >= AS_SURE * found.scores[index]
        larger = same & sure & (areas > areas[index]) & wanted
        box = torch.from_numpy(found.boxes[index : index + 1]).float()
        others = torch.from_numpy(found.boxes[larger]).float()
        wanted[index] = float(covered_share(box, others)[0]) < PIECE
    return wanted
