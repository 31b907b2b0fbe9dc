# SPDX-License-Identifier: Apache-2.0
"""Instances cut out of images: beside transformers' processor, there and back, and at random."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import VitPoseImageProcessor

from muntin.data.keypoint_transforms import (
    KeypointAugmentConfig,
    crop_box,
    crop_region,
    crop_transform,
    to_keypoints,
    warp_crop,
)
from muntin.data.transforms import Preprocessing, normalise
from muntin.errors import ConfigError
from muntin.samples import Objects, Skeleton
from muntin.targets import Keypoints
from tests.data.scenes import augment

PRE = Preprocessing(
    img_size=(256, 192), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), fit="instance_crop"
)
NAMES = ("nose", "left ear", "right ear")
SKELETON = Skeleton(names=NAMES, flip_pairs=((1, 2),), mirrored=True, sigmas=(0.05,) * 3)


def smooth_image(high=300, wide=400, seed=0):
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, high // 8, wide // 8)))
    pixels = torch.nn.functional.interpolate(coarse, (high, wide), mode="bicubic")
    return pixels[0].clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("box", [(50, 40, 150, 240), (200, 100, 380, 180), (-20, -30, 90, 120)])
def test_equal_to_transformers(box):
    pixels = smooth_image()
    left, top, right, bottom = map(float, box)
    theirs = VitPoseImageProcessor()(
        pixels.permute(1, 2, 0).numpy(),
        boxes=[[[left, top, right - left, bottom - top]]],
        return_tensors="pt",
    )["pixel_values"][0]
    frame = crop_box((left, top, right, bottom), PRE)
    ours = normalise(warp_crop(pixels, frame, PRE)[None], PRE)[0]
    # Ours fades to black over the last pixel, as OpenCV does; theirs is cut off there.
    rows, columns = np.mgrid[:256, :192]
    x, y = (
        crop_transform(frame, PRE)
        .inverse(np.stack([columns, rows], axis=-1) * 1.0)
        .transpose(2, 0, 1)
    )
    inside = torch.from_numpy((x >= 0) & (x <= 399) & (y >= 0) & (y <= 299))
    assert inside.float().mean() > 0.2
    assert ((ours - theirs).abs() * inside).max() < 1.05 / 255 / 0.22
    region = crop_region(pixels, frame, PRE)
    again = warp_crop(region.pixels, region.move_frame(frame), PRE)
    assert (again.int() - warp_crop(pixels, frame, PRE).int()).abs().max() <= 1


def objects(points, box):
    return Objects(
        boxes=np.array([box], np.float64),
        class_ids=np.zeros(1, np.int64),
        crowd=np.zeros(1, bool),
        areas=np.zeros(1),
        keypoints=np.array([points], np.float64),
    )


def dotted(points, size):
    """An image that is bright where the points are."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    total = np.zeros(size)
    for x, y, _ in points:
        total += np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * (size[0] / 60) ** 2))
    grey = torch.from_numpy((total.clip(0, 1) * 250).astype(np.uint8))
    return grey[None].expand(3, -1, -1).contiguous()


def brightest(image, near):
    """Middle of what is bright around a point."""
    x, y = (round(float(v)) for v in near)
    top, left = max(0, y - 12), max(0, x - 12)
    part = image[0, top : y + 13, left : x + 13].double()
    rows, columns = torch.meshgrid(
        torch.arange(top, top + part.shape[0]), torch.arange(left, left + part.shape[1]),
        indexing="ij",
    )  # fmt: skip
    return torch.stack([(columns * part).sum(), (rows * part).sum()]) / part.sum()


@pytest.mark.parametrize("alignment", ["udp", "msra"])
@pytest.mark.parametrize("size", [(300, 400), (1500, 2000)])
@pytest.mark.parametrize("padding", [1.0, 1.25])
def test_points_stay_on_the_image(alignment, size, padding):
    pre = replace(PRE, img_size=(256, 256), alignment=alignment, padding=padding)
    scale = size[0] / 300
    points = np.array([[120, 90, 2], [250, 200, 2], [180, 140, 2]]) * [scale, scale, 1]
    pixels = dotted(points, size)
    box = (0, 0, size[1], size[0]) if padding == 1 else tuple(np.array([60, 40, 320, 260]) * scale)
    frame = crop_box(box, pre)
    region = crop_region(pixels, frame, pre)
    target = to_keypoints(objects(points, box), 0, frame, region)
    image = warp_crop(region.pixels, target.frame.double().numpy(), pre)
    crop = crop_transform(frame, pre)
    for point in points[:, :2]:
        there = crop(point)
        assert np.abs(brightest(image, there).numpy() - there).max() < 0.15
        assert np.allclose(crop.inverse(there), point)
    assert max(region.pixels.shape[1:]) < 2 * 256 * 1.8, "large images are kept small"


def test_random_changes_move_points_with_the_image():
    pre = replace(PRE, img_size=(256, 256), padding=1.0)
    points = np.array([[120, 90, 2], [250, 200, 2], [180, 140, 2]])
    pixels = dotted(points, (300, 400))
    frame = crop_box((0, 0, 400, 300), pre)
    region = crop_region(pixels, frame, pre)
    target = to_keypoints(objects(points, (0, 0, 400, 300)), 0, frame, region)
    config = KeypointAugmentConfig(flip=0.5, scale=0.3, shift=0.05, rotation=30, rotate=1.0)
    seen = 0
    for seed in range(40):
        image, moved = augment(region.pixels, target, config, pre, seed, SKELETON)
        assert image.shape == (3, 256, 256)
        for k in torch.where(moved.known)[0]:
            point = moved.points[k]
            if point.min() > 12 and point.max() < 243:
                assert (brightest(image, point) - point).abs().max() < 0.6
                seen += 1
    assert seen > 60


def test_the_mirror_swaps_partners():
    pre = replace(PRE, img_size=(64, 64), padding=1.0)
    target = Keypoints(
        points=torch.tensor([[31.5, 10.0], [10.0, 5.0], [50.0, 5.0]]),
        known=torch.tensor([True, True, False]),
        frame=torch.tensor([0.0, 0.0, 63.0, 63.0]),
    )
    pixels = torch.zeros(3, 64, 64, dtype=torch.uint8)
    config = KeypointAugmentConfig(flip=1.0, scale=0, rotate=0, half_body=0)
    _, moved = augment(pixels, target, config, pre, 0, SKELETON)
    assert moved.known.tolist() == [True, False, True]
    assert torch.allclose(moved.points[2], torch.tensor([53.0, 5.0]))
    assert torch.allclose(moved.points[0], torch.tensor([31.5, 10.0]))
    still = replace(SKELETON, mirrored=False)
    _, same = augment(pixels, target, config, pre, 0, still)
    assert torch.allclose(same.points, target.points)


def test_chance_depends_on_the_seed_alone():
    pre = replace(PRE, img_size=(64, 64))
    pixels = smooth_image(90, 90)
    target = Keypoints(
        points=torch.rand(3, 2) * 90,
        known=torch.ones(3, dtype=torch.bool),
        frame=torch.tensor([5.0, 5.0, 80.0, 80.0]),
    )
    config = KeypointAugmentConfig(occlude=1.0, jitter=0.5, shift=0.1)
    one, two, other = (augment(pixels, target, config, pre, seed, SKELETON) for seed in (1, 1, 2))
    assert torch.equal(one[0], two[0])
    assert all(a.equal(b) for a, b in zip(one[1], two[1], strict=True))
    assert not torch.equal(one[0], other[0])


def test_half_a_body_is_half_of_the_points():
    names = tuple(f"point {k}" for k in range(10))
    pre = replace(PRE, img_size=(64, 64))
    points = torch.stack([torch.full((10,), 100.0), torch.linspace(20, 180, 10)], dim=1)
    target = Keypoints(
        points=points,
        known=torch.ones(10, dtype=torch.bool),
        frame=torch.tensor([0.0, 0.0, 199.0, 199.0]),
    )
    pixels = torch.zeros(3, 200, 200, dtype=torch.uint8)
    config = KeypointAugmentConfig(flip=0, scale=0, rotate=0, half_body=1.0)
    halves = set()
    for seed in range(8):
        _, moved = augment(pixels, target, config, pre, seed, Skeleton(names=names))
        halves.add(tuple(moved.known.tolist()))
    assert len(halves) == 2
    assert all(5 <= sum(half) <= 7 for half in halves), "the margin may show a neighbour"


@pytest.mark.parametrize("place", ["corner", "both ends", "middle"])
@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_a_crop_never_loses_its_subject(place, size):
    """Whole images of 480 x 640: the subject may be anywhere, as in an open field."""
    points = {
        "corner": [[610, 450], [620, 455], [625, 470]],
        "both ends": [[5, 5], [630, 470], [0, 0]],
        "middle": [[300, 200], [310, 210], [330, 250]],
    }[place]
    rows = [[*point, 2] for point in points]
    rows[2][2] = 0 if place == "both ends" else 2
    one = objects(rows, (0, 0, 640, 480))
    pre = replace(PRE, img_size=size, padding=1.0)
    frame = crop_box(one.boxes[0], pre)
    region = crop_region(dotted(np.array(rows)[:1], (480, 640)), frame, pre)
    target = to_keypoints(one, 0, frame, region)
    config = KeypointAugmentConfig()
    for seed in range(60):
        image, moved = augment(region.pixels, target, config, pre, seed, SKELETON)
        known = int(moved.known.sum())
        assert 2 * known >= int(target.known.sum()), (seed, known)
        point = moved.points[0]
        if moved.known[0] and point.min() > 12 and (point < torch.tensor(size[::-1]) - 13).all():
            assert (brightest(image, point) - point).abs().max() < 2.5, seed


@pytest.mark.parametrize("box", [(10, 10, 10.2, 10.2), (395, 295, 400, 300), (-500, 0, -400, 50)])
def test_strange_boxes(box):
    pixels = smooth_image()
    frame = crop_box(box, PRE)
    region = crop_region(pixels, frame, PRE)
    image = warp_crop(region.pixels, region.move_frame(frame), PRE)
    assert image.shape == (3, 256, 192)


def test_nonsense_is_refused():
    with pytest.raises(ConfigError, match=r"augment\.flip"):
        KeypointAugmentConfig(flip=2)
    with pytest.raises(ConfigError, match=r"augment\.rotation"):
        KeypointAugmentConfig(rotation=-1)
