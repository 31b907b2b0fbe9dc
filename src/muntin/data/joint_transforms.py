# SPDX-License-Identifier: Apache-2.0
"""Geometry and colours that are drawn once for a sample and change all of it together.

torchvision resizes and recolours pixels. Boxes, masks and keypoints are moved here, by one rule: it
scales keypoints without the half pixel to their middles, resizes masks beside the middles of pixels
and cuts off boxes, unless told otherwise, before their visible part is compared with the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from muntin.data.transforms import Interpolation, resize
from muntin.run_lengths import decode_mask, to_run_lengths
from muntin.samples import Objects, Skeleton
from muntin.shapes import Float, Real, Size
from muntin.targets import BoxTargets

MIN_VISIBLE = 0.25
"""Objects of which a crop keeps less than this part of the box are dropped."""

_TRIES = 10


class Window(NamedTuple):
    """A part of an image, the size that it is brought to, and how it is mirrored and turned then.

    `part` is top, left, height and width, `size` that before any turn; `flips` exchange top and
    bottom, and left and right; `turns` are quarter turns, anticlockwise.
    """

    part: tuple[int, int, int, int]
    size: Size
    flips: tuple[bool, bool] = (False, False)
    turns: int = 0

    def move_pixels(
        self, image: Real[Tensor, "C H W"], interpolation: Interpolation
    ) -> Real[Tensor, "C h w"]:
        """Give what is seen of an image."""
        top, left, high, wide = self.part
        seen = image[:, top : top + high, left : left + wide]
        return self._orient(resize(seen, self.size, interpolation))

    def move_labels(self, labels: Tensor) -> Tensor:
        """Give what is seen of maps of labels (..., H, W): each pixel gets the nearest one.

        A view of `labels` if only a part is cut out.
        """
        top, left, high, wide = self.part
        seen = labels[..., top : top + high, left : left + wide]
        if self.size != (high, wide):
            rows, columns = map(_nearest_pixels, (high, wide), self.size)
            seen = seen.index_select(-2, rows).index_select(-1, columns)
        return self._orient(seen)

    def move_points(self, xy: Float[Tensor, "... 2"], middle: float) -> Float[Tensor, "... 2"]:
        """Give where points come to lie, before any turn.

        `middle` is where the middle of the first pixel lies: 0.5 for edges of boxes, 0 for
        keypoints.
        """
        top, left, high, wide = self.part
        offset = 0.5 - middle
        scale = torch.tensor([self.size[1] / wide, self.size[0] / high])
        moved = (xy - torch.tensor([left, top]) + offset) * scale - offset
        if not any(self.flips):
            return moved
        ends = torch.tensor([self.size[1], self.size[0]]) - 2 * offset
        return torch.where(torch.tensor(self.flips[::-1]), ends - moved, moved)

    def _orient(self, maps: Tensor) -> Tensor:
        axes = [axis for axis, flip in zip((-2, -1), self.flips, strict=True) if flip]
        maps = maps.flip(axes) if axes else maps
        return maps.rot90(self.turns, (-2, -1)) if self.turns else maps


def _nearest_pixels(before: int, after: int) -> Tensor:
    """The pixel of a line of `before` that is nearest to each of one of `after`."""
    places = (np.arange(after) + 0.5) * before / after
    return torch.from_numpy(np.minimum(places.astype(np.int64), before - 1))


def fit_part(whole: Size, limit: Size, scale: float) -> tuple[Size, Size]:
    """Give the size of the part of an image that fills `limit` once scaled, and what it becomes."""
    rows, columns = (
        min(side, max(1, round(most / scale))) for side, most in zip(whole, limit, strict=True)
    )
    high, wide = (
        min(most, max(1, round(side * scale)))
        for side, most in zip((rows, columns), limit, strict=True)
    )
    return (rows, columns), (high, wide)


def find_place(
    whole: Size, part: Size, rng: np.random.Generator, accepts: Callable[[int, int], bool]
) -> tuple[int, int, bool]:
    """Draw where a part is cut out: top, left, and whether one of ten tries was accepted."""
    for _ in range(_TRIES):
        top = int(rng.integers(whole[0] - part[0] + 1))
        left = int(rng.integers(whole[1] - part[1] + 1))
        if accepts(top, left):
            return top, left, True
    return top, left, False


def jitter_colors(image: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast and, of three channels, saturation and hue; each every second time.

    Of floats and of bands that are no colours, brightness and contrast only.
    """
    if not strength:
        return image
    if image.is_floating_point() or image.shape[0] > 3:
        low, high = max(1 - strength, 0.0), 1 + strength
        factors = [float(rng.uniform(low, high)) if rng.random() < 0.5 else 1.0 for _ in range(2)]
        return adjust_bands(image, *factors)
    from torchvision.transforms.v2 import functional as tvf

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


def adjust_bands(image: Tensor, brightness: float, contrast: float) -> Tensor:
    """Multiply values, and their distance from the mean of their band, within 0 to 255."""
    values = (image.float() * brightness).clamp(0, 255)
    mean = values.mean(dim=(-2, -1), keepdim=True)
    changed = (mean + contrast * (values - mean)).clamp(0, 255)
    return changed if image.is_floating_point() else changed.round().to(image.dtype)


def move_boxes(targets: BoxTargets, window: Window, skeleton: Skeleton | None) -> BoxTargets:
    """Bring objects to the pixels of a window; keypoints outside it are unknown."""

    def move(boxes: Tensor) -> Tensor:
        corners = window.move_points(boxes.view(-1, 2, 2), 0.5)
        return torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)

    moved = targets._replace(
        boxes=move(targets.boxes),
        ignored=move(targets.ignored),
        layers=window.move_labels(targets.layers),
    )
    if skeleton is None or targets.points is None:
        return moved
    xy, seen = window.move_points(targets.points[:, :, :2], 0.0), targets.points[:, :, 2:]
    # One mirror swaps sides; two turn the image by half a circle.
    if window.flips[0] != window.flips[1]:
        order = list(skeleton.partners)
        xy, seen = xy[:, order], seen[:, order]
    ends = xy.new_tensor([window.size[1], window.size[0]]) - 0.5
    inside = ((xy >= -0.5) & (xy <= ends)).all(dim=2, keepdim=True)
    return moved._replace(points=torch.cat([xy, seen * inside], dim=2))


def drop_unseen(moved: BoxTargets, size: Size) -> BoxTargets:
    """Cut boxes off at the edges, draw those with masks tight again, and drop what is not seen."""
    limits = torch.tensor([size[1], size[0]] * 2, dtype=torch.float32)
    boxes = torch.minimum(moved.boxes.clamp(min=0), limits)
    area = (moved.boxes[:, 2:] - moved.boxes[:, :2]).prod(dim=1)
    sides = boxes[:, 2:] - boxes[:, :2]
    seen = (sides.clamp(min=0).prod(dim=1) >= MIN_VISIBLE * area) & (sides >= 1).all(dim=1)
    tight, has = boxes_of_masks(moved)
    drawn = moved.layer_of >= 0
    cut = (boxes != moved.boxes).any(dim=1)
    boxes = torch.where((drawn & has & cut)[:, None], tight, boxes)
    ignored = torch.minimum(moved.ignored.clamp(min=0), limits)
    alive = ((ignored[:, 2:] - ignored[:, :2]) > 0).all(dim=1)
    moved = moved._replace(boxes=boxes, ignored=ignored[alive])
    return moved.keep(seen & (has | ~drawn))


def boxes_of_masks(targets: BoxTargets) -> tuple[Tensor, Tensor]:
    """Give the tight box of each object's mask, and whether any of the mask is left."""
    layers, rows, columns = torch.nonzero(targets.layers, as_tuple=True)
    owners = targets.layers[layers, rows, columns].long()[:, None].expand(-1, 4)
    # Smallest left and top, and, as negative numbers, largest right and bottom.
    sides = torch.stack([columns, rows, -columns - 1, -rows - 1], dim=1).float()
    tight = torch.full((len(targets.boxes) + 1, 4), torch.inf)
    tight = tight.scatter_reduce(0, owners, sides, "amin")[1:]
    has = tight[:, 0].isfinite()
    return torch.where(has[:, None], tight * torch.tensor([1, 1, -1, -1]), 0.0), has


def to_box_targets(objects: Objects, original: Size, kept: Size) -> BoxTargets:
    """Bring objects from the pixels of the original to those of the image as it is kept."""
    window, single = Window((0, 0, *original), kept), ~objects.crowd
    boxes = torch.from_numpy(objects.boxes).float().view(-1, 2, 2)
    boxes = window.move_points(boxes, 0.5).view(-1, 4)
    points = None
    if objects.keypoints is not None:
        rows = torch.from_numpy(objects.keypoints[single]).float()
        points = torch.cat([window.move_points(rows[:, :, :2], 0.0), rows[:, :, 2:]], dim=2)
    layers, layer_of = _draw_layers(objects, original, window)
    return BoxTargets(
        boxes=boxes[single],
        class_ids=torch.from_numpy(objects.class_ids[single]).long(),
        ignored=boxes[~single],
        layers=layers,
        layer_of=layer_of,
        points=points,
    )


def _draw_layers(objects: Objects, original: Size, window: Window) -> tuple[Tensor, Tensor]:
    """Masks of the objects that are no crowds, in as few layers as a greedy search finds."""
    masks = [mask for mask, crowd in zip(objects.masks, objects.crowd, strict=False) if not crowd]
    layers: list[np.ndarray] = []
    layer_of = np.full(int((~objects.crowd).sum()), -1, np.int64)
    for number, mask in enumerate(masks):
        if mask is None:
            continue
        drawn = torch.from_numpy(decode_mask(to_run_lengths(mask, original)))
        bitmap = window.move_labels(drawn).numpy()
        lines, places = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
        if not len(lines):
            continue
        part = slice(lines[0], lines[-1] + 1), slice(places[0], places[-1] + 1)
        inside = bitmap[part]
        at = next((i for i, layer in enumerate(layers) if not layer[part][inside].any()), None)
        if at is None:
            at = len(layers)
            layers.append(np.zeros(window.size, np.int32))
        layers[at][part][inside] = number + 1
        layer_of[number] = at
    stacked = np.stack(layers) if layers else np.zeros((0, *window.size), np.int32)
    return torch.from_numpy(stacked), torch.from_numpy(layer_of)
