# SPDX-License-Identifier: Apache-2.0
"""One instance cut out of its image, in evaluation and in training, and its keypoints with it.

Points are (x, y) in pixels; (0, 0) is the middle of the first pixel. A box is made of edges, which
lie half a pixel beside; the frame of an instance is what is seen of it, from point to point.

Source:
    Sizes of crops, warps and random changes as in mmpose and ViTPose (top_down_transform): "msra"
    and "udp" place pixels as published. Compared with transformers' VitPoseImageProcessor in
    tests/data/test_keypoint_transforms.py.
    Differs: where more than two pixels of an image fall on one of the crop, it is made smaller
    first, antialiased; half a body is either half of the known points along their longer extent,
    whatever the skeleton.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from muntin.configs import check_range
from muntin.data.joint_transforms import jitter_colors
from muntin.data.transforms import Augmentation, Preprocessing, Sample, resize
from muntin.samples import Objects, Skeleton
from muntin.shapes import Real, Size
from muntin.targets import Keypoints

REACH = 1.75
"""What is kept of an image around an instance, in sides of its crop."""

FINEST = 2.0
"""Pixels of the image that are kept for one of the crop, along each side."""

HALF_BODY_FROM = 8
"""Known points from which half a body is something to learn from."""

Frame = NDArray[np.float64]
"""Left, top, right and bottom of a frame, (4,)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeypointAugmentConfig(Augmentation):
    """Augmentation for crops of single instances.

    Attributes:
        flip: Probability of mirroring left and right, where the skeleton allows it.
        scale: Greatest change of size, as a part: 0.5 is from half to one and a half.
        shift: Greatest shift, in sides of the crop.
        rotation: Usual angle in degrees; at most twice that.
        rotate: Probability of turning at all.
        half_body: Probability of looking at one half of the instance only.
        occlude: Probability of covering parts with boxes of the mean colour.
        jitter: Strength of random brightness, contrast, saturation and hue, 0 to 1.
    """

    kind: ClassVar[str] = "keypoints"

    flip: float = 0.5
    scale: float = 0.5
    shift: float = 0.0
    rotation: float = 40.0
    rotate: float = 0.6
    half_body: float = 0.3
    occlude: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        """Validate the ranges."""
        self._check_shares("flip", "rotate", "half_body", "occlude", "jitter")
        check_range("augment.scale", self.scale, 0, 0.9)
        check_range("augment.shift", self.shift, 0, 1)
        check_range("augment.rotation", self.rotation, 0, 180)

    def augment(
        self, sample: Sample, pre: Preprocessing, seed: int, skeleton: Skeleton | None = None
    ) -> Sample:
        """See `Augmentation`; keypoints that come to lie outside the crop are unknown.

        Where most of what is looked at would lie outside, the crop is moved until it holds all.
        """
        rng = np.random.default_rng(seed)
        target = sample.target
        assert isinstance(target, Keypoints), "crops of instances have keypoints"
        assert skeleton is not None, "data sets with keypoints have a skeleton"
        points, known = target.points.double().numpy(), target.known.numpy()
        frame, subject = target.frame.double().numpy(), points[known]
        if rng.random() < self.half_body and known.sum() >= HALF_BODY_FROM:
            subject = _half(subject, rng)
            frame = crop_box(_box_around(subject), pre)
        middle, sides = _middle_and_sides(frame)
        factor = 1 + self.scale * float(np.clip(rng.normal(), -1, 1))
        shift = self.shift * np.clip(rng.normal(size=2), -1, 1)
        turn = float(np.clip(rng.normal(), -2, 2)) * self.rotation
        angle = turn if rng.random() < self.rotate else 0.0
        mirrored = skeleton.mirrored and rng.random() < self.flip
        middle, sides = middle + shift * sides, sides * factor
        frame = np.concatenate([middle - sides / 2, middle + sides / 2])
        affine = crop_transform(frame, pre, angle=np.deg2rad(angle), mirrored=mirrored)
        limits = np.array([pre.img_size[1] - 1, pre.img_size[0] - 1])
        if 2 * _inside(affine(subject), limits).sum() < len(subject):
            affine = _hold(affine, subject, limits)
        image = jitter_colors(_warp(sample.pixels, affine, pre.img_size), self.jitter, rng)
        if rng.random() < self.occlude:
            image = _cover(image, pre, rng)
        moved = affine(points)
        if mirrored:
            order = list(skeleton.partners)
            moved, known = moved[order], known[order]
        keypoints = Keypoints(
            points=torch.from_numpy(moved).float(),
            known=torch.from_numpy(known & _inside(moved, limits)),
            frame=torch.tensor([0.0, 0.0, *limits], dtype=torch.float32),
        )
        return Sample(image, sample.size, keypoints)


class Affine(NamedTuple):
    """A map of the plane: points @ matrix.T + offset."""

    matrix: NDArray[np.float64]
    offset: NDArray[np.float64]

    def __call__(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Move points (..., 2)."""
        moved: NDArray[np.float64] = points @ self.matrix.T + self.offset
        return moved

    @property
    def inverse(self) -> Affine:
        """The inverse map."""
        back: NDArray[np.float64] = np.linalg.inv(self.matrix).astype(np.float64)
        return Affine(back, -back @ self.offset)


class Region(NamedTuple):
    """A part of an image, perhaps made smaller, that holds an instance and something around it."""

    pixels: Real[Tensor, "C h w"]
    to_region: Affine

    def move_frame(self, frame: Frame) -> Frame:
        """Bring a frame of the image to the points of the part."""
        moved: Frame = self.to_region(frame.reshape(2, 2)).reshape(4)
        return moved


def crop_box(box: Sequence[float] | NDArray[np.float64], pre: Preprocessing) -> Frame:
    """Give what is seen of an instance: its box, widened to the proportions of the crop.

    The box is made of edges, the frame goes from point to point.
    """
    left, top, right, bottom = (float(edge) for edge in box)
    wide, high = max(right - left, 1.0), max(bottom - top, 1.0)
    ratio = pre.img_size[1] / pre.img_size[0]
    sides = np.array([max(wide, high * ratio), max(high, wide / ratio)]) * pre.padding
    middle = np.array([(left + right) / 2, (top + bottom) / 2])
    # As published, the middle of a box in the numbers of its edges is taken for a point. Whole
    # images are placed so that their first and last pixels become those of the crop.
    if pre.alignment == "udp" and pre.padding == 1:
        middle, sides = middle - 0.5, np.maximum(sides - 1, 1.0)
    return np.concatenate([middle - sides / 2, middle + sides / 2])


def crop_transform(
    frame: Frame, pre: Preprocessing, *, angle: float = 0.0, mirrored: bool = False
) -> Affine:
    """Give the way from points of an image to points of the crop of a frame, perhaps turned."""
    middle, sides = _middle_and_sides(frame)
    size = np.array(pre.img_size[::-1], np.float64)
    steps = size - 1 if pre.alignment == "udp" else size
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]]) @ np.diag([-1.0 if mirrored else 1.0, 1.0])
    matrix = np.diag(steps / sides) @ turn
    return Affine(matrix, steps / 2 - matrix @ middle)


def crop_region(image: Real[Tensor, "C H W"], frame: Frame, pre: Preprocessing) -> Region:
    """Cut out what evaluation and training may need of an image for one instance."""
    middle, sides = _middle_and_sides(frame)
    high, wide = image.shape[1:]
    reach = REACH * sides / 2
    low = np.floor(middle - reach).astype(int)
    end = np.ceil(middle + reach).astype(int) + 1
    left, top = np.clip(low, 0, [wide - 1, high - 1]).tolist()
    right, bottom = np.clip(end, [left + 1, top + 1], [wide, high]).tolist()
    pixels = image[:, top:bottom, left:right]
    shrink = max(1.0, float((sides / np.array(pre.img_size[::-1])).max()) / FINEST)
    size = (max(1, round(pixels.shape[1] / shrink)), max(1, round(pixels.shape[2] / shrink)))
    scale = np.array([size[1] / pixels.shape[2], size[0] / pixels.shape[1]])
    # Edges are scaled; the middle of a pixel is half a pixel from its edge.
    offset = -np.array([left, top]) * scale + (scale - 1) / 2
    return Region(resize(pixels, size, "bilinear").clone(), Affine(np.diag(scale), offset))


def to_keypoints(objects: Objects, instance: int, frame: Frame, region: Region) -> Keypoints:
    """Bring an instance and its frame to the pixels of a region."""
    assert objects.keypoints is not None, "an instance has keypoints"
    rows = objects.keypoints[instance]
    return Keypoints(
        points=torch.from_numpy(region.to_region(rows[:, :2])).float(),
        known=torch.from_numpy(rows[:, 2] > 0),
        frame=torch.from_numpy(region.move_frame(frame)).float(),
    )


def warp_crop(
    image: Real[Tensor, "C H W"], frame: Frame, pre: Preprocessing
) -> Real[Tensor, "C h w"]:
    """Give an instance as prediction sees it, by its frame in an image or in a region of one."""
    return _warp(image, crop_transform(frame, pre), pre.img_size)


def _middle_and_sides(frame: Frame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return (frame[:2] + frame[2:]) / 2, frame[2:] - frame[:2]


def _warp(image: Tensor, affine: Affine, size: Size) -> Real[Tensor, "C h w"]:
    """Read an image where the pixels of the crop come from; black outside it."""
    back = affine.inverse
    high, wide = image.shape[1:]
    corners = back(np.array([[0, 0], [size[1], 0], [0, size[0]], [size[1], size[0]]], np.float64))
    left, top = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, [wide - 1, high - 1])
    right, bottom = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 2, 1, [wide, high])
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    part = image[:, top:bottom, left:right]
    matrix = torch.from_numpy(back.matrix).float()
    offset = torch.from_numpy(back.offset - [left, top]).float()
    rows, columns = torch.arange(size[0]).float(), torch.arange(size[1]).float()
    x = matrix[0, 0] * columns[None, :] + matrix[0, 1] * rows[:, None] + offset[0]
    y = matrix[1, 0] * columns[None, :] + matrix[1, 1] * rows[:, None] + offset[1]
    # grid_sample counts edges from -1 to 1.
    x = (2 * x + 1) / part.shape[2] - 1
    y = (2 * y + 1) / part.shape[1] - 1
    grid = torch.stack([x, y], dim=-1)[None]
    values = F.grid_sample(part[None].float(), grid, mode="bilinear", align_corners=False)
    if image.is_floating_point():
        return values[0]
    return values[0].round_().clamp_(0, 255).to(torch.uint8)


def _inside(points: NDArray[np.float64], limits: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether points lie in a crop, whose last pixel is at `limits`."""
    return np.logical_and.reduce((points >= -0.5) & (points <= limits + 0.5), axis=1)


def _hold(affine: Affine, points: NDArray[np.float64], limits: NDArray[np.int64]) -> Affine:
    """Move the crop by as little as needed, and widen it where needed, to hold all points."""
    seen = affine(points)
    scale = min(1.0, float((limits / np.maximum(np.ptp(seen, axis=0), 1e-9)).min()))
    middle = limits / 2
    seen = scale * (seen - middle) + middle
    shift = np.maximum(-seen.min(axis=0), np.minimum(limits - seen.max(axis=0), 0))
    return Affine(scale * affine.matrix, scale * (affine.offset - middle) + middle + shift)


def _half(there: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """One half of the points along their longer extent."""
    axis = int(np.argmax(np.ptp(there, axis=0)))
    order = np.argsort(there[:, axis], kind="stable")
    half = len(order) // 2
    chosen: NDArray[np.float64] = there[order[:half] if rng.random() < 0.5 else order[-half:]]
    return chosen


def _box_around(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The box of the points, with a margin as large again as half of it."""
    low, high = points.min(axis=0), points.max(axis=0)
    margin = np.maximum((high - low) / 4, 4.0)
    return np.concatenate([low - margin, high + margin])


def _cover(image: Tensor, pre: Preprocessing, rng: np.random.Generator) -> Tensor:
    """Paint one to three boxes, each at most 0.3 of a side, in the mean colour."""
    high, wide = image.shape[1:]
    color = torch.tensor(pre.mean_color, dtype=image.dtype)[:, None, None]
    image = image.clone()
    for _ in range(int(rng.integers(1, 4))):
        sides = rng.uniform(0.08, 0.3, size=2)
        place = (rng.uniform(0, 1 - sides) * [high, wide]).astype(int).tolist()
        bottom, right = place[0] + int(sides[0] * high), place[1] + int(sides[1] * wide)
        image[:, place[0] : bottom, place[1] : right] = color
    return image
