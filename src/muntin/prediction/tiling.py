# SPDX-License-Identifier: Apache-2.0
"""Tiled and mirrored detection: cut an image into views, and merge their detections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from muntin.configs import check_range
from muntin.data.transforms import Preprocessing
from muntin.heads.detector import SelectConfig
from muntin.ops.boxes import covered_fraction, suppress
from muntin.prediction.batch import Crop, CroppedImage, LoadedImage, fit_image
from muntin.results import Detections
from muntin.run_lengths import decode_mask, encode_mask, shift_mask
from muntin.shapes import Size

EDGE = 2.0
"""A box that ends within this many pixels of a tile edge may be part of a larger object."""

MIN_COVERED = 0.7
"""A partial box is dropped if at least this share of it lies in a larger box of its class."""

MIN_RELATIVE_SCORE = 0.5
"""Minimum score of that larger box, relative to the score of the partial one."""


MIN_TILING_RATIO = 3
"""Ratio of image side to network side from which tiles may find more."""

SMALL_OBJECT_PX = 32
"""Side of small objects as the network sees them (COCO: "small")."""


def needs_tiles(result: object, side: int, min_score: float) -> bool:
    """Whether tiles may find more in an image: it was scaled down a lot, and its objects are small.

    Args:
        result: What was found in the whole image; small if it is nothing.
        side: The longer side in pixels that the network sees.
        min_score: Score from which objects count.
    """
    if not isinstance(result, Detections) or max(result.size) <= MIN_TILING_RATIO * side:
        return False
    boxes = result.above(min_score).boxes
    sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1)) * side / max(result.size)
    return not len(sides) or bool(np.median(sides) <= SMALL_OBJECT_PX)


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Crop the region from an image (H, W, C)."""
        rows = slice(self.top, self.top + self.height)
        return pixels[rows, self.left : self.left + self.width]


def crop_views(
    image: LoadedImage,
    pre: Preprocessing,
    select: SelectConfig,
    *,
    tile: int | Literal["auto"] | None,
    tta: bool,
) -> CroppedImage:
    """Make the views of an image: the whole of it, its tiles, and mirrored versions of these.

    Options as in `Predictor.stream`; `select` defines how boxes of the views suppress each other.
    """
    tiles = _choose_tiles(image.size, tile, pre)
    regions = (Region(0, 0, *image.size), *tiles)
    merge = partial(
        _merge,
        regions=regions,
        size=image.size,
        select=select,
        # The limit is per tile: each may hold as many objects as one image.
        limit=select.max_detections * max(1, len(tiles)),
    )
    return CroppedImage(len(regions) * (2 if tta else 1), _cut(image, regions, pre, tta), merge)


def _choose_tiles(
    size: Size, tile: int | Literal["auto"] | None, pre: Preprocessing
) -> list[Region]:
    """Tiles of an image; none where one tile would hold it."""
    if tile is None:
        return []
    side = _choose_side(tile, pre)
    if tile == "auto" and max(size) <= 1.5 * max(side):
        return []
    regions = cut_tiles(size, side)
    return regions if len(regions) > 1 else []


def _choose_side(tile: int | Literal["auto"], pre: Preprocessing) -> Size:
    if tile != "auto":
        return tile, tile
    return pre.typical_size if min(pre.typical_size) > 0 else pre.img_size


def count_tiles(size: Size, tile: int | Literal["auto"], pre: Preprocessing) -> int:
    """Count the tiles that `tile` cuts from an image of (height, width), without making them."""
    tops, lefts = (_starts(*each) for each in zip(size, _choose_side(tile, pre), strict=True))
    return len(tops) * len(lefts)


def _cut(
    image: LoadedImage, regions: Sequence[Region], pre: Preprocessing, tta: bool
) -> Iterator[Crop]:
    for mirrored in (False, True) if tta else (False,):
        for region in regions:
            pixels = region.cut(image.pixels)
            # Mirrored before it is resized: a resized side is rounded, padding is at the right.
            pixels = pixels[:, ::-1] if mirrored else pixels
            yield fit_image(LoadedImage(image.path, pixels), pre)


def _merge(
    found: Sequence[Detections],
    *,
    regions: Sequence[Region],
    size: Size,
    select: SelectConfig,
    limit: int,
) -> Detections:
    count = len(regions)
    upright = [*found[:count], *(unflip_detections(one) for one in found[count:])]
    seen = [regions[place % count] for place in range(len(found))]
    placed = [
        shift_detections(one, region, size) for one, region in zip(upright, seen, strict=True)
    ]
    return merge_views(placed, seen, select, limit)


def cut_tiles(size: Size, tile: Size, *, overlap: float = 0.25) -> list[Region]:
    """Cover an image with evenly spaced tiles of one size, row by row; smaller images are one tile.

    `overlap` is the minimum overlap of neighbours, as a share of the side of a tile.

    Examples:
        >>> [region.left for region in cut_tiles((100, 250), (100, 100), overlap=0.25)]
        [0, 75, 150]
    """
    check_range("tile", min(tile), 32, 10**6)
    check_range("overlap", overlap, 0, 0.9)
    tops, lefts = (_starts(*each, overlap) for each in zip(size, tile, strict=True))
    sides = [min(each) for each in zip(size, tile, strict=True)]
    return [Region(top, left, *sides) for top in tops for left in lefts]


def _starts(whole: int, part: int, overlap: float = 0.25) -> list[int]:
    """Where tiles begin along one side."""
    side = min(whole, part)
    step = max(1, int(side * (1 - overlap)))
    count = 1 + -(-(whole - side) // step)
    return [round(i * (whole - side) / max(count - 1, 1)) for i in range(count)]


def shift_detections(found: Detections, region: Region, size: Size) -> Detections:
    """Shift boxes from a region to the pixels of the image; masks are left as they are.

    Merging drops most detections, so masks are shifted only afterwards.
    """
    boxes = found.boxes + np.array([region.left, region.top] * 2)
    return replace(found, size=size, boxes=boxes)


def unflip_detections(found: Detections) -> Detections:
    """Map detections of the mirrored image to the pixels of the image."""
    width = found.size[1]
    boxes = found.boxes[:, [2, 1, 0, 3]] * np.array([-1, 1, -1, 1]) + np.array([width, 0, width, 0])
    masks = found.masks
    if masks is not None:
        masks = tuple(encode_mask(decode_mask(mask)[:, ::-1]) for mask in masks)
    return replace(found, boxes=boxes, masks=masks)


def merge_views(
    views: Sequence[Detections],
    regions: Sequence[Region],
    select: SelectConfig,
    max_detections: int,
) -> Detections:
    """Merge the detections of several views of an image, `max_detections` at most.

    A box that ends at the inner edge of a tile is partial; it is dropped if a larger box of its
    class with a similar score covers most of it. Duplicates are suppressed, as `select` asks for.
    `views` come from `shift_detections`; `regions` are the parts of the image that they show.
    """
    every = _join(views)
    partial_boxes = np.concatenate(
        [_are_partial(v, w) for v, w in zip(views, regions, strict=True)]
    )
    view_of = np.repeat(np.arange(len(views)), [len(view) for view in views])
    # Before NMS, in which a partial box may suppress the complete one.
    wanted = np.flatnonzero(_are_wanted(every, partial_boxes, select.class_agnostic))
    every, view_of = every.select(wanted), view_of[wanted]
    kept, scores = suppress(
        torch.from_numpy(every.boxes),
        torch.from_numpy(every.scores).float(),
        torch.from_numpy(every.class_ids) * (not select.class_agnostic),
        iou=select.iou,
        # Overlapping tiles detect an object twice, even with heads that need no NMS.
        kind="hard" if select.suppression == "none" else select.suppression,
        limit=max_detections,
        min_score=select.score_threshold,
    )
    rows = kept.numpy()
    merged = replace(every.select(rows), scores=scores.double().numpy())
    return _place_masks(merged, [regions[view] for view in view_of[rows]])


def _place_masks(found: Detections, regions: Sequence[Region]) -> Detections:
    if found.masks is None:
        return found
    masks = tuple(
        shift_mask(mask, size=found.size, top=region.top, left=region.left)
        if tuple(mask["size"]) != found.size
        else mask
        for mask, region in zip(found.masks, regions, strict=True)
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


def _are_partial(found: Detections, region: Region) -> NDArray[np.bool_]:
    """Find boxes that end at an edge of the region inside the image."""
    height, width = found.size
    left, top, right, bottom = found.boxes.T
    ends = [
        (left - region.left < EDGE) & (region.left > 0),
        (top - region.top < EDGE) & (region.top > 0),
        (region.left + region.width - right < EDGE) & (region.left + region.width < width),
        (region.top + region.height - bottom < EDGE) & (region.top + region.height < height),
    ]
    return np.logical_or.reduce(ends)


def _are_wanted(
    found: Detections, partial_boxes: NDArray[np.bool_], class_agnostic: bool
) -> NDArray[np.bool_]:
    """Find boxes that are not part of others; large partial boxes are checked first."""
    wanted = np.ones(len(found), bool)
    areas = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(axis=1)
    places = np.flatnonzero(partial_boxes)
    for index in places[np.argsort(-areas[places], kind="stable")]:
        same = class_agnostic | (found.class_ids == found.class_ids[index])
        similar = found.scores >= MIN_RELATIVE_SCORE * found.scores[index]
        larger = same & similar & (areas > areas[index]) & wanted
        box = torch.from_numpy(found.boxes[index : index + 1]).float()
        others = torch.from_numpy(found.boxes[larger]).float()
        wanted[index] = float(covered_fraction(box, others)[0]) < MIN_COVERED
    return wanted
