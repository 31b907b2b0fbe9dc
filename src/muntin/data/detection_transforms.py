# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Images and the objects in them, transformed together.

Everything random comes from one generator per image, so what an image becomes depends on (seed,
epoch, index) alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from muntin.configs import check_range
from muntin.data.box_targets import nearest_pixels
from muntin.data.transforms import BatchTransform, Preprocessing, letterbox_scale, resize
from muntin.errors import ConfigError
from muntin.samples import Skeleton
from muntin.shapes import Size, UInt8
from muntin.targets import BoxTargets, Target

__all__ = [
    "DetectionAugmentConfig",
    "augment_detection",
    "jitter_colors",
    "letterbox",
]

MIN_VISIBLE = 0.25
"""Objects of which a crop keeps less than this part of the box are dropped."""

_CROP_FROM, _CROP_SIDES = (400, 500, 600), (384, 600)  # pixels

_TRIES = 10  # crops, to find one that holds an object; then one is laid over an object


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectionAugmentConfig:
    """Augmentation for boxes, masks and keypoints.

    Attributes:
        scale: Range of the size of the image relative to that which just fits `img_size`;
            what is larger than the window then is cropped ("large-scale jitter" is 0.1 to 2).
        window: Sides of the part that is learnt from, relative to `img_size`: below 1, steps are
            cheaper, and objects have the size at which they are found later all the same.
        short_sides: Instead of `scale`: the shorter side of the image gets one of these lengths in
            pixels, the longer one at most that of `img_size`; nothing is cropped.
        crop: With `short_sides`, probability of cropping first: 384 to 600
            pixels a side of the image whose shorter side has 400, 500 or 600 (arXiv 2005.12872).
        flip: Probability of mirroring left and right.
        flip_vertical: Probability of mirroring top and bottom.
        jitter: Strength of random brightness, contrast, saturation and hue, 0 to 1.
    """

    kind: ClassVar[str] = "detection"

    scale: tuple[float, float] = (1.0, 1.0)
    window: float = 1.0
    short_sides: tuple[int, ...] = ()
    crop: float = 0.0
    flip: float = 0.5
    flip_vertical: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        """Validate the ranges."""
        for name in ("crop", "flip", "flip_vertical", "jitter"):
            check_range(f"augment.{name}", getattr(self, name), 0, 1)
        check_range("augment.window", self.window, 0.05, 1)
        for value in self.scale:
            check_range("augment.scale", value, 0.01, 10)
        for side in self.short_sides:
            check_range("augment.short_sides", side, 8, 10**5)
        if self.scale[0] > self.scale[1]:
            message = f"augment.scale must rise, got {self.scale}."
            raise ConfigError(message)
        if self.short_sides and (self.scale != (1.0, 1.0) or self.window != 1):
            message = (
                f"augment.scale and augment.window have no effect beside augment.short_sides, got "
                f"{self.scale}, {self.window} and {self.short_sides}. Set one or the other."
            )
            raise ConfigError(message)

    @property
    def groups_by_shape(self) -> bool:
        """Images keep their proportions, so batches of one shape need less padding."""
        return True

    @property
    def batch_transform(self) -> BatchTransform | None:
        """None: boxes change with their image."""
        return None

    def augment(
        self,
        image: UInt8[Tensor, "C H W"],
        target: Target | None,
        *,
        original: Size,
        pre: Preprocessing,
        seed: int,
        skeleton: Skeleton | None,
    ) -> tuple[UInt8[Tensor, "C h w"], Target | None]:
        """See `muntin.data.transforms.Augmentation`."""
        rng = np.random.default_rng(seed)
        assert isinstance(target, BoxTargets), "images with objects have boxes"
        return augment_detection(image, target, self, pre, rng, skeleton)


def letterbox(image: UInt8[Tensor, "C H W"], pre: Preprocessing) -> UInt8[Tensor, "C h w"]:
    """Resize an image, keeping its proportions, until it just fits `img_size`."""
    height, width = image.shape[-2:]
    size = _scaled(image, letterbox_scale((height, width), pre.img_size))
    return resize(image, size, pre.interpolation)


def augment_detection(
    image: UInt8[Tensor, "C H W"],
    targets: BoxTargets,
    config: DetectionAugmentConfig,
    pre: Preprocessing,
    rng: np.random.Generator,
    skeleton: Skeleton | None = None,
) -> tuple[UInt8[Tensor, "C h w"], BoxTargets]:
    """Change an image and its objects at random.

    Args:
        image: As it is kept.
        targets: Its objects, in its pixels.
        config: What to do.
        pre: Gives `img_size`; the result is never larger than its window, except with
            `short_sides`, where its shorter side is one of them.
        rng: Where chance comes from.
        skeleton: Of the keypoints, where there are some: defines the flip pairs.

    Returns:
        The changed image, not padded, and the objects that are still in it.
    """
    window = _choose_window(image, targets, config, pre.img_size, rng)
    top, left, high, wide, size = window
    flips = (rng.random() < config.flip_vertical, rng.random() < config.flip)
    if skeleton is not None and not skeleton.mirrored:
        flips = (False, False)
    part = image[:, top : top + high, left : left + wide]
    image = resize(part, size, pre.interpolation)
    axes = [axis for axis, flip in zip((-2, -1), flips, strict=True) if flip]
    if axes:
        image = image.flip(axes)
    if config.jitter:
        image = jitter_colors(image, config.jitter, rng)
    moved = _move(targets, (top, left, high, wide), size, flips)
    if skeleton is not None and targets.points is not None:
        points = _move_points(targets.points, (top, left, high, wide), size, flips, skeleton)
        moved = moved._replace(points=points)
    return image, _drop_unseen(moved, size)


_Window = tuple[int, int, int, int, Size]
"""Top, left, height and width of the part that is cut out, and the size that it is brought to."""


def _choose_window(
    image: Tensor,
    targets: BoxTargets,
    config: DetectionAugmentConfig,
    full: Size,
    rng: np.random.Generator,
) -> _Window:
    height, width = image.shape[-2:]
    if config.short_sides:
        return _choose_side(image, targets, config, full, rng)
    low, high = np.log(config.scale[0]), np.log(config.scale[1])
    scale = float(np.exp(rng.uniform(low, high))) * letterbox_scale((height, width), full)
    # An image lies in `full` whichever way round it fits.
    turned = full if (height <= width) == (full[0] <= full[1]) else full[::-1]
    limit = (round(turned[0] * config.window), round(turned[1] * config.window))
    part = (min(height, round(limit[0] / scale)), min(width, round(limit[1] / scale)))
    part = (max(1, part[0]), max(1, part[1]))
    top, left = _choose_place((height, width), part, targets, rng)
    size = (max(1, round(part[0] * scale)), max(1, round(part[1] * scale)))
    return top, left, *part, (min(size[0], limit[0]), min(size[1], limit[1]))


def _choose_side(
    image: Tensor,
    targets: BoxTargets,
    config: DetectionAugmentConfig,
    full: Size,
    rng: np.random.Generator,
) -> _Window:
    """One of several lengths for the shorter side, perhaps of a part of the image."""
    whole = (image.shape[-2], image.shape[-1])
    part, top, left = whole, 0, 0
    if rng.random() < config.crop:
        before = float(rng.choice(_CROP_FROM)) / min(whole)
        low, high = ([min(side * before, end) for side in whole] for end in _CROP_SIDES)
        high, wide = (rng.uniform(low, high) / before).round().astype(int).tolist()
        part = max(1, min(whole[0], high)), max(1, min(whole[1], wide))
        top, left = _choose_place(whole, part, targets, rng)
    short = int(config.short_sides[rng.integers(len(config.short_sides))])
    scale = min(short / min(part), max(full) / max(part))
    return top, left, *part, (max(1, round(part[0] * scale)), max(1, round(part[1] * scale)))


def _choose_place(
    whole: Size, part: Size, targets: BoxTargets, rng: np.random.Generator
) -> tuple[int, int]:
    """Where a part is cut out, such that the middle of an object is in it if there is one."""
    middles = (targets.boxes[:, :2] + targets.boxes[:, 2:]) / 2
    for _ in range(_TRIES):
        top = int(rng.integers(whole[0] - part[0] + 1))
        left = int(rng.integers(whole[1] - part[1] + 1))
        start = torch.tensor([left, top])
        inside = (middles >= start) & (middles < start + torch.tensor([part[1], part[0]]))
        if not len(middles) or inside.all(dim=1).any():
            return top, left
    x, y = map(int, middles[rng.integers(len(middles))].tolist())
    return _choose_start(y, whole[0], part[0], rng), _choose_start(x, whole[1], part[1], rng)


def _choose_start(middle: int, whole: int, part: int, rng: np.random.Generator) -> int:
    """Where a part of a line begins that holds one of its pixels."""
    middle = min(middle, whole - 1)
    return int(rng.integers(max(0, middle - part + 1), min(middle, whole - part) + 1))


def jitter_colors(image: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast and, of three channels, saturation and hue; each every second time."""
    steps = [tvf.adjust_brightness, tvf.adjust_contrast]
    if image.shape[0] == 3:
        steps.append(tvf.adjust_saturation)
    for number in rng.permutation(len(steps)):
        factor = float(rng.uniform(1 - strength, 1 + strength))
        if rng.random() < 0.5:
            image = steps[number](image, max(factor, 0.0))
    if image.shape[0] == 3 and rng.random() < 0.5:
        image = tvf.adjust_hue(image, float(rng.uniform(-0.1, 0.1)) * strength)
    return image


def _move(
    targets: BoxTargets, part: tuple[int, int, int, int], size: Size, flips: tuple[bool, bool]
) -> BoxTargets:
    top, left, high, wide = part
    scale = torch.tensor([size[1] / wide, size[0] / high] * 2)
    start = torch.tensor([left, top] * 2)
    rows = torch.from_numpy(nearest_pixels(high, size[0])) + top
    columns = torch.from_numpy(nearest_pixels(wide, size[1])) + left
    rows = rows.flip(0) if flips[0] else rows
    columns = columns.flip(0) if flips[1] else columns

    def move(boxes: Tensor) -> Tensor:
        moved = (boxes - start) * scale
        if flips[0]:
            moved = torch.stack(
                [moved[:, 0], size[0] - moved[:, 3], moved[:, 2], size[0] - moved[:, 1]], 1
            )
        if flips[1]:
            moved = torch.stack(
                [size[1] - moved[:, 2], moved[:, 1], size[1] - moved[:, 0], moved[:, 3]], 1
            )
        return moved

    return targets._replace(
        boxes=move(targets.boxes),
        ignored=move(targets.ignored),
        layers=targets.layers[:, rows][:, :, columns],
    )


def _move_points(
    points: Tensor,
    part: tuple[int, int, int, int],
    size: Size,
    flips: tuple[bool, bool],
    skeleton: Skeleton,
) -> Tensor:
    """Keypoints in the pixels of the part; those outside it are unknown."""
    top, left, high, wide = part
    scale = points.new_tensor([size[1] / wide, size[0] / high])
    xy = (points[:, :, :2] - points.new_tensor([left, top]) + 0.5) * scale - 0.5
    limits = points.new_tensor([size[1] - 1, size[0] - 1])
    # One mirror swaps sides; two turn the image by half a circle.
    for axis, flip in zip((1, 0), flips, strict=True):
        if flip:
            xy[..., axis] = limits[axis] - xy[..., axis]
    seen = points[:, :, 2:]
    if flips[0] != flips[1]:
        order = list(skeleton.partners)
        xy, seen = xy[:, order], seen[:, order]
    inside = ((xy >= -0.5) & (xy <= limits + 0.5)).all(dim=2, keepdim=True)
    return torch.cat([xy, seen * inside], dim=2)


def _drop_unseen(moved: BoxTargets, size: Size) -> BoxTargets:
    """Cut boxes off at the edges, draw those with masks tight again, and drop what is not seen."""
    limits = torch.tensor([size[1], size[0]] * 2, dtype=torch.float32)
    boxes = torch.minimum(moved.boxes.clamp(min=0), limits)
    area = (moved.boxes[:, 2:] - moved.boxes[:, :2]).prod(dim=1)
    sides = boxes[:, 2:] - boxes[:, :2]
    seen = (sides.clamp(min=0).prod(dim=1) >= MIN_VISIBLE * area) & (sides >= 1).all(dim=1)
    tight, has = _boxes_of(moved)
    drawn = moved.layer_of >= 0
    cut = (boxes != moved.boxes).any(dim=1)
    boxes = torch.where((drawn & has & cut)[:, None], tight, boxes)
    keep = torch.where(seen & (has | ~drawn))[0]
    new_number = torch.zeros(len(boxes) + 1, dtype=moved.layers.dtype)
    new_number[keep + 1] = torch.arange(1, len(keep) + 1, dtype=moved.layers.dtype)
    ignored = torch.minimum(moved.ignored.clamp(min=0), limits)
    alive = ((ignored[:, 2:] - ignored[:, :2]) > 0).all(dim=1)
    return BoxTargets(
        boxes=boxes[keep],
        class_ids=moved.class_ids[keep],
        ignored=ignored[alive],
        layers=new_number[moved.layers.long()],
        layer_of=moved.layer_of[keep],
        points=None if moved.points is None else moved.points[keep],
    )


def _boxes_of(targets: BoxTargets) -> tuple[Tensor, Tensor]:
    """The tight box of each object's mask, and whether any of the mask is left."""
    count = len(targets.boxes)
    tight = torch.zeros(count + 1, 4)
    tight[:, :2] = torch.inf
    for layer in targets.layers:
        rows, columns = torch.nonzero(layer, as_tuple=True)
        owner = layer[rows, columns].long()
        x, y = columns.float(), rows.float()
        for place, values, how in (
            (0, x, "amin"),
            (1, y, "amin"),
            (2, x + 1, "amax"),
            (3, y + 1, "amax"),
        ):
            tight[:, place].scatter_reduce_(0, owner, values, how)
    tight = tight[1:]
    has = tight[:, 2] > 0
    return torch.where(has[:, None], tight, 0.0), has


def _scaled(image: Tensor, scale: float) -> Size:
    height, width = image.shape[-2:]
    return max(1, round(height * scale)), max(1, round(width * scale))
