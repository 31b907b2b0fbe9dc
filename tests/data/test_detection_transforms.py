# SPDX-License-Identifier: Apache-2.0
"""Image, boxes and masks move together, whatever is drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as tvf

from muntin.data.batches import fit
from muntin.data.dense_transforms import DetectionAugmentConfig
from muntin.data.joint_transforms import Window, to_box_targets
from muntin.data.transforms import Preprocessing
from muntin.errors import ConfigError
from muntin.samples import Objects, Skeleton
from tests.data.scenes import augment, mask_of, objects_of, scene_of, targets_of, tight_box


def preprocessing(img_size=(96, 96), **more) -> Preprocessing:
    chosen = {"fit": "letterbox", "interpolation": "bilinear", **more}
    return Preprocessing(img_size=img_size, mean=(0.5,) * 3, std=(0.25,) * 3, **chosen)


def paint(mask) -> torch.Tensor:
    return (torch.as_tensor(np.asarray(mask)).to(torch.uint8) * 255).expand(3, -1, -1).contiguous()


def shape_of(original) -> tuple[int, int]:
    return original.shape[1], original.shape[2]


def edge_of(mask: torch.Tensor) -> torch.Tensor:
    """Pixels within one of the outline."""
    padded = F.pad(mask[None, None].float(), (1, 1, 1, 1), mode="replicate")
    return (F.max_pool2d(padded, 3, 1) != -F.max_pool2d(-padded, 3, 1))[0, 0]


CONFIGS = {
    "plain": DetectionAugmentConfig(flip=0),
    "flips": DetectionAugmentConfig(flip=1, flip_vertical=1),
    "jitter": DetectionAugmentConfig(scale=(0.1, 2.0)),
    "large": DetectionAugmentConfig(scale=(1.5, 2.0), flip_vertical=0.5),
    "small": DetectionAugmentConfig(scale=(0.3, 0.6)),
    "sides": DetectionAugmentConfig(short_sides=(40, 64, 110)),
    "sides and crop": DetectionAugmentConfig(short_sides=(48, 80), crop=1.0),
}
SIZES = {"wide": (90, 120), "high": (130, 70), "square": (96, 96), "long": (40, 160)}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("img_size", [(96, 96), (64, 128), (128, 80)])
def test_image_boxes_and_masks_move_together(name, size, img_size):
    config, pre = CONFIGS[name], preprocessing(img_size)
    for index in range(3):
        scene, before = scene_of(index, size)
        for number, one in enumerate(scene.objects):
            # Painted alone, each object tells where it went.
            image, after = augment(paint(one.mask), before, config, pre, index)
            assert after.layers.shape[1:] == image.shape[1:]
            place = after.class_ids.tolist().index(number) if number in after.class_ids else -1
            if place < 0:
                continue
            seen, mask = image[0] >= 128, mask_of(after, place)
            assert ((seen != mask) & ~edge_of(mask)).sum() <= 2  # tips of one pixel
            box, inner, outer = after.boxes[place], tight_box(mask), tight_box(image[0] > 10)
            assert (box[2:] - box[:2]).min() >= 1
            # The box holds the mask, whose thin tips may be lost, and is no larger than the paint.
            assert (inner[:2] >= box[:2] - 1.01).all(), (inner, box)
            assert (inner[2:] <= box[2:] + 1.01).all(), (inner, box)
            assert (outer[:2] <= box[:2] + 1.01).all(), (outer, box)
            assert (outer[2:] >= box[2:] - 1.01).all(), (outer, box)


@pytest.mark.parametrize("name", CONFIGS)
def test_masks_are_not_a_fraction_of_a_pixel_aside(name):
    shifts = []
    for index in range(12):
        scene, before = scene_of(index, SIZES["wide"])
        for number, one in enumerate(scene.objects):
            image, after = augment(paint(one.mask), before, CONFIGS[name], preprocessing(), index)
            if number not in after.class_ids or min(image.shape[1:]) < 30:
                continue
            mask = mask_of(after, after.class_ids.tolist().index(number)).float()
            shifts.append(middle_of(image[0].float()) - middle_of(mask))
    mean = torch.stack(shifts).mean(dim=0)
    assert len(shifts) > 15
    assert mean.abs().max() < 0.12, mean


def middle_of(weights: torch.Tensor) -> torch.Tensor:
    rows, columns = (torch.arange(side).float() for side in weights.shape)
    total = weights.sum()
    return torch.stack([weights.sum(1) @ rows, weights.sum(0) @ columns]) / total


@pytest.mark.parametrize("name", CONFIGS)
def test_targets_are_whole(name):
    for index in range(8):
        scene, before = scene_of(index)
        image, after = augment(
            torch.from_numpy(scene.image).permute(2, 0, 1), before, CONFIGS[name],
            preprocessing(), 100 + index,
        )  # fmt: skip
        count = len(after.boxes)
        assert len(after.class_ids) == len(after.layer_of) == count
        assert after.boxes.dtype == torch.float32
        assert after.layers.dtype == before.layers.dtype
        assert set(after.layers.unique().tolist()) <= set(range(count + 1))
        high, wide = shape_of(image)
        assert (after.boxes >= 0).all()
        assert (after.boxes <= torch.tensor([wide, high, wide, high])).all()
        assert image.dtype == torch.uint8


def expected_limit(size, img_size):
    lies = size[0] <= size[1]
    return img_size if lies == (img_size[0] <= img_size[1]) else img_size[::-1]


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("img_size", [(96, 96), (64, 128), (128, 64)])
def test_never_larger_than_wanted(size, img_size):
    original = torch.zeros(3, *size, dtype=torch.uint8)
    targets = targets_of([np.ones(size, bool)])
    full = fit(original, size, preprocessing(img_size))
    limit = expected_limit(size, img_size)
    assert full.shape[1] <= limit[0]
    assert full.shape[2] <= limit[1]
    assert full.shape[1] == limit[0] or full.shape[2] == limit[1]
    assert full.shape[1] / full.shape[2] == pytest.approx(size[0] / size[1], rel=0.05)
    heights = []
    for index in range(40):
        image, _ = augment(
            original, targets, DetectionAugmentConfig(scale=(0.1, 2.0)), preprocessing(img_size),
            index,
        )  # fmt: skip
        assert image.shape[1] <= limit[0]
        assert image.shape[2] <= limit[1]
        heights.append(image.shape[1])
    assert min(heights) < 0.3 * full.shape[1]
    assert max(heights) >= full.shape[1]
    plain, _ = augment(
        original, targets, DetectionAugmentConfig(flip=0), preprocessing(img_size), 0
    )
    assert plain.shape == full.shape


def test_a_image_that_fits_is_left_alone():
    scene, before = scene_of(1, (96, 96))
    original = torch.from_numpy(scene.image).permute(2, 0, 1).contiguous()
    image, after = augment(original, before, DetectionAugmentConfig(flip=0), preprocessing(), 0)
    assert image.equal(original)
    for left, right in zip(before[:-1], after[:-1], strict=True):
        assert left.equal(right)
    assert after.points is None


@pytest.mark.parametrize("flips", [(1, 0), (0, 1), (1, 1)])
def test_mirrored_twice_is_the_same(flips):
    scene, before = scene_of(2, (90, 96))
    original = torch.from_numpy(scene.image).permute(2, 0, 1).contiguous()
    config = DetectionAugmentConfig(flip=flips[0], flip_vertical=flips[1])
    image, once = augment(original, before, config, preprocessing(), 0)
    assert not image.equal(original)
    image, twice = augment(image, once, config, preprocessing(), 0)
    assert image.equal(original)
    for left, right in zip(before, twice, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-4)


def test_the_same_seed_gives_the_same():
    scene, before = scene_of(3)
    original = torch.from_numpy(scene.image).permute(2, 0, 1)
    config = DetectionAugmentConfig(scale=(0.5, 2.0), jitter=0.5, flip_vertical=0.5)
    state = torch.get_rng_state()
    one, other, third = (
        augment(original, before, config, preprocessing(), seed) for seed in (5, 5, 6)
    )
    assert one[0].equal(other[0])
    assert all(left.equal(right) for left, right in zip(one[1][:-1], other[1][:-1], strict=True))
    assert one[0].shape != third[0].shape or not one[0].equal(third[0])
    assert torch.get_rng_state().equal(state), "everything comes from the generator"


def test_crops_keep_an_object_and_drop_what_is_out():
    masks = np.zeros((2, 100, 100), bool)
    masks[0, 5:15, 5:15] = True
    masks[1, 80:95, 82:96] = True
    before = targets_of(masks)
    original = torch.zeros(3, 100, 100, dtype=torch.uint8)
    dropped = 0
    for index in range(60):
        _, after = augment(
            original,
            before,
            DetectionAugmentConfig(scale=(2.0, 2.0)),
            preprocessing((100, 100)),
            index,
        )
        assert len(after.boxes) >= 1
        dropped += len(after.boxes) == 1
    assert dropped > 30


def test_what_is_dropped_is_mostly_out():
    kept, lost = [], []
    config, pre = DetectionAugmentConfig(scale=(1.4, 2.0), flip=0), preprocessing()
    for index in range(60):
        scene, before = scene_of(index % 10)
        for number, one in enumerate(scene.objects):
            # How much of the whole object is in the crop, counted in the image.
            image, after = augment(paint(one.mask), before, config, pre, index)
            scale, box = (after.layers.shape[1] / 90) ** 2, before.boxes[number]
            inside = float((image[0] >= 128).sum())
            share = inside / float((box[2:] - box[:2]).prod() * scale)
            (kept if number in after.class_ids else lost).append(share)
    assert len(kept) > 60
    assert len(lost) > 20
    # An outline fills half of its box or so; a quarter of the box must be left.
    assert max(lost) < 0.9
    assert np.median(lost) < 0.2 < np.median(kept)


def test_crowds_and_objects_without_masks():
    masks = np.zeros((3, 60, 60), bool)
    masks[0, 5:55, 5:30], masks[1, 10:20, 35:50], masks[2, 30:50, 35:55] = True, True, True
    objects = objects_of(masks, crowd=[0])
    objects = type(objects)(
        boxes=objects.boxes, class_ids=objects.class_ids, crowd=objects.crowd,
        areas=objects.areas, masks=(objects.masks[0], None, objects.masks[2]),
    )  # fmt: skip
    before = to_box_targets(objects, (60, 60), (60, 60))
    original = torch.zeros(3, 60, 60, dtype=torch.uint8)
    pre = preprocessing((120, 120))
    _, after = augment(original, before, DetectionAugmentConfig(flip=1), pre, 0)
    assert after.ignored.tolist() == [[60, 10, 110, 110]]
    assert after.class_ids.tolist() == [1, 2]
    assert after.layer_of.tolist() == [-1, 0]
    assert after.boxes[0].tolist() == [20, 20, 50, 40]
    assert tight_box(mask_of(after, 1)).equal(after.boxes[1])
    for index in range(30):
        _, cut = augment(
            original, before, DetectionAugmentConfig(scale=(2.0, 2.0)), preprocessing((60, 60)),
            index,
        )  # fmt: skip
        sides = cut.ignored[:, 2:] - cut.ignored[:, :2]
        assert (sides > 0).all()
        assert (cut.ignored >= 0).all()
        assert (cut.ignored <= 60).all()


def test_without_any_mask_or_object():
    original = torch.zeros(3, 50, 70, dtype=torch.uint8)
    some = objects_of([np.ones((50, 70), bool)])
    boxes_only = type(some)(
        boxes=np.array([[10.0, 10, 30, 40]]), class_ids=np.array([4]), crowd=np.zeros(1, bool),
        areas=np.array([600.0]),
    )  # fmt: skip
    none = type(some)(
        boxes=np.zeros((0, 4)), class_ids=np.zeros(0, np.int64), crowd=np.zeros(0, bool),
        areas=np.zeros(0),
    )  # fmt: skip
    for objects, count in ((boxes_only, 1), (none, 0)):
        before = to_box_targets(objects, (50, 70), (50, 70))
        assert before.layers.shape == (0, 50, 70)
        for config in CONFIGS.values():
            image, after = augment(original, before, config, preprocessing(), 1)
            assert len(after.boxes) == len(after.layer_of) == count
            assert after.layers.shape == (0, *image.shape[1:])


def test_objects_that_overlap_stay_whole():
    masks = np.zeros((3, 80, 80), bool)
    masks[0, 10:50, 10:50] = masks[1, 20:60, 20:60] = masks[2, 30:70, 30:70] = True
    before = targets_of(masks)
    assert len(before.layers) == 3
    original = torch.zeros(3, 80, 80, dtype=torch.uint8)
    _, after = augment(
        original, before, DetectionAugmentConfig(flip=1), preprocessing((160, 160)), 0
    )
    for number in range(3):
        assert int(mask_of(after, number).sum()) == 80 * 80
        assert tight_box(mask_of(after, number)).equal(after.boxes[number])


@pytest.mark.parametrize("scale", [1.0, 0.5, 2.0])
def test_objects_of_one_pixel(scale):
    mask = np.zeros((40, 40), bool)
    mask[20, 31] = True
    before = targets_of([mask])
    image, after = augment(
        paint(mask), before, DetectionAugmentConfig(scale=(scale, scale), flip=0),
        preprocessing((40, 40)),
        0,
    )  # fmt: skip
    if scale < 1:
        assert len(after.boxes) == 0, "what is smaller than a pixel cannot be learnt"
        return
    assert len(after.boxes) == 1
    assert tight_box(mask_of(after, 0)).equal(after.boxes[0])
    assert image[0][mask_of(after, 0)].float().mean() > 60


def test_thin_objects_that_a_smaller_image_loses_have_no_mask():
    thin = np.zeros((200, 200), bool)
    thin[100, 20:180] = True
    targets = to_box_targets(objects_of([thin]), (200, 200), (20, 20))
    assert targets.boxes.shape == (1, 4)
    if targets.layer_of[0] >= 0:
        assert mask_of(targets, 0).any()
    image = torch.zeros(3, 20, 20, dtype=torch.uint8)
    _, after = augment(image, targets, DetectionAugmentConfig(), preprocessing((20, 20)), 0)
    assert len(after.boxes) == 0  # a tenth of a pixel high


def test_a_large_photograph_and_a_line_of_pixels():
    for size in ((1, 50), (50, 1), (2, 300)):
        mask = np.ones(size, bool)
        image, after = augment(
            paint(mask), targets_of([mask]), DetectionAugmentConfig(scale=(0.5, 2.0)),
            preprocessing(),
            0,
        )  # fmt: skip
        assert min(image.shape[1:]) >= 1
        assert max(image.shape[1:]) <= 96
        assert len(after.boxes) <= 1


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"flip": 1.5}, r"augment.flip must be from 0 to 1, got 1.5"),
        ({"scale": (2.0, 0.5)}, r"augment.scale must rise, got \(2.0, 0.5\)"),
        ({"scale": (0.0, 1.0)}, r"augment.scale must be from 0.01"),
        ({"scale": (0.5, 1.0), "short_sides": (64,)}, r"no effect beside augment.short_sides"),
        ({"short_sides": (2,)}, r"augment.short_sides must be from 8"),
    ],
)
def test_what_cannot_be_drawn_is_refused(values, match):
    with pytest.raises(ConfigError, match=match):
        DetectionAugmentConfig(**values)


def test_keypoints_move_with_the_image():
    size, names = (90, 120), ("nose", "left", "right")
    skeleton = Skeleton(names=names, flip_pairs=((1, 2),), mirrored=True)
    points = np.array([[[40, 30, 2], [70, 50, 2], [20, 60, 1]]], np.float64)
    rows, columns = np.mgrid[: size[0], : size[1]]
    original = np.stack(
        [250 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18) for x, y, _ in points[0]]
    )
    pixels = torch.from_numpy(original.round().astype(np.uint8))
    objects = Objects(
        boxes=np.array([[10.0, 20, 90, 70]]),
        class_ids=np.zeros(1, np.int64),
        crowd=np.zeros(1, bool),
        areas=np.ones(1),
        keypoints=points,
    )
    targets = to_box_targets(objects, size, size)
    assert targets.points is not None
    pre = Preprocessing(img_size=(128, 128), mean=(0,) * 3, std=(1,) * 3, fit="letterbox")
    for flip, order in ((0.0, [0, 1, 2]), (1.0, [0, 2, 1])):
        config = DetectionAugmentConfig(scale=(0.6, 1.5), flip=flip)
        for seed in range(10):
            image, moved = augment(pixels, targets, config, pre, seed, skeleton)
            brightest = image.flatten(1).argmax(dim=1)
            found = torch.stack([brightest % image.shape[2], brightest // image.shape[2]], dim=1)
            for number, channel in enumerate(order):
                if moved.points[0, number, 2] > 0:
                    assert (moved.points[0, number, :2] - found[channel]).abs().max() < 1.5
    config = DetectionAugmentConfig(scale=(0.6, 1.5), flip=0.5)
    still = Skeleton(names=names)
    for seed in range(6):
        _, moved = augment(pixels, targets, config, pre, seed, still)
        x = moved.points[0, :, 0]
        assert x[2] < x[0] < x[1], "never mirrored"


def test_where_torchvision_moves_boxes_masks_and_keypoints_otherwise():
    """Why `Window` moves them; when one of its answers changes, this may go."""
    half = Window((0, 20, 40, 20), (20, 20))
    corners = torch.tensor([[10.0, 0], [30, 20]])
    box = {"data": corners.view(1, 4), "format": "XYXY", "canvas_size": (40, 40)}
    assert half.move_points(corners, 0.5).tolist() == [[-10, 0], [10, 10]]
    cut = tvf.resized_crop(tv_tensors.BoundingBoxes(**box), 0, 20, 40, 20, [20, 20])
    assert cut.tolist() == [[0, 0, 10, 10]], "cut off: half of it or all of it?"
    whole = tv_tensors.BoundingBoxes(**box, clamping_mode=None)
    assert tvf.resized_crop(whole, 0, 20, 40, 20, [20, 20]).tolist() == [[-10, 0, 10, 10]]

    third = Window((0, 0, 1, 9), (1, 3))
    labels = torch.arange(9)[None].to(torch.int16)
    assert third.move_labels(labels).tolist() == [[1, 4, 7]], "the middle of three"
    assert tvf.resize(tv_tensors.Mask(labels), [1, 3]).tolist() == [[0, 3, 6]], "the first"

    double = Window((0, 0, 4, 4), (8, 8))
    points = torch.tensor([[0.0, 0], [3, 3]])
    assert double.move_points(points, 0).tolist() == [[0.5, 0.5], [6.5, 6.5]]
    theirs = tvf.resize(tv_tensors.KeyPoints(points, canvas_size=(4, 4)), [8, 8])
    assert theirs.tolist() == [[0, 0], [6, 6]]
