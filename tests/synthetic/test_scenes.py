# SPDX-License-Identifier: Apache-2.0
import time

import numpy as np
import pytest

from muntin.errors import ConfigError
from muntin.synthetic.scenes import CLASS_NAMES, KEYPOINT_NAMES, Scene, make_scene


def many(count: int = 40) -> list[Scene]:
    return [make_scene(7, index, size=(72, 96), max_objects=5) for index in range(count)]


def test_same_arguments_same_scene_and_other_index_another():
    first, again, other = (make_scene(3, index, size=(40, 56)) for index in (5, 5, 6))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.objects[0].keypoints, again.objects[0].keypoints)
    assert not np.array_equal(first.image, other.image)
    assert not np.array_equal(first.image, make_scene(4, 5, size=(40, 56)).image)


def test_global_random_state_is_left_alone():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    make_scene(0, 0)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_boxes_fit_masks_tightly():
    for scene in many():
        assert scene.image.shape == (72, 96, 3)
        assert scene.image.dtype == np.uint8
        for one in scene.objects:
            x0, y0, x1, y1 = map(int, one.box_xyxy)
            assert one.mask[y0:y1, x0:x1].sum() == one.mask.sum() > 0
            assert one.mask[y0].any()
            assert one.mask[y1 - 1].any()
            assert one.mask[:, x0].any()
            assert one.mask[:, x1 - 1].any()


def test_masks_of_a_scene_do_not_overlap():
    for scene in many():
        assert np.sum([one.mask for one in scene.objects], axis=0).max() == 1


def test_keypoints_lie_on_the_object():
    checked = found = 0
    for scene in many():
        for one in scene.objects:
            assert one.keypoints.shape == (len(KEYPOINT_NAMES), 3)
            centre = one.keypoints[0, :2]
            for x, y, seen in one.keypoints[1:]:
                if seen < 2:
                    continue
                # A little towards the centre is inside, as far outwards is not.
                inner = (0.9 * np.array((x, y)) + 0.1 * centre).astype(int)
                window = one.mask[
                    max(0, inner[1] - 1) : inner[1] + 2, max(0, inner[0] - 1) : inner[0] + 2
                ]
                checked += 1
                found += window.any()
                outer = (1.3 * np.array((x, y)) - 0.3 * centre).astype(int)
                if 0 <= outer[0] < 96 and 0 <= outer[1] < 72:
                    assert not one.mask[outer[1], outer[0]]
    assert checked > 100
    assert found > 0.97 * checked  # of the others, what lies just inside is covered


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_mark_points_to_the_top(name):
    """The mark is black or white; it is found between the centre and the top keypoint."""
    hits = total = 0
    for index in range(30):
        scene = make_scene(11, index, size=(128, 128), classes=(name,))
        (one,) = scene.objects
        centre, top = one.keypoints[0, :2], one.keypoints[1, :2]
        share = {"ring": 0.76, "star": 0.48, "triangle": 0.51}.get(name, 0.72)
        x, y = (centre + share * (top - centre)).astype(int)
        if not (0 <= x < 128 and 0 <= y < 128) or not one.mask[y, x]:
            continue
        spread = np.ptp(scene.image[y, x].astype(int))  # a grey, apart from the noise
        hits += spread < 40
        total += 1
    assert total > 15
    assert hits == total


def test_covered_keypoints_and_classes_that_were_asked_for():
    scenes = many(80)
    seen = np.concatenate([one.keypoints[:, 2] for s in scenes for one in s.objects])
    assert set(np.unique(seen)) == {0, 1, 2}
    assert {one.class_id for s in scenes for one in s.objects} == set(range(len(CLASS_NAMES)))
    assert max(len(s.objects) for s in scenes) > 2
    only = make_scene(0, 0, classes=("star", "disc"))
    assert all(one.class_id in (0, 1) for one in only.objects)


def test_colour_does_not_tell_the_class():
    """The mean colours of classes differ no more than those of random halves of one class."""
    means = {
        name: np.mean(
            [
                make_scene(2, i, size=(32, 32), classes=(name,)).image.mean((0, 1))
                for i in range(80)
            ],
            axis=0,
        )
        for name in CLASS_NAMES
    }
    overall = np.mean(list(means.values()), axis=0)
    assert max(np.abs(mean - overall).max() for mean in means.values()) < 20


@pytest.mark.parametrize("size", [(16, 16), (16, 80), (97, 33)])
def test_odd_sizes(size):
    scene = make_scene(0, 1, size=size, max_objects=8)
    assert scene.image.shape == (*size, 3)
    assert scene.objects[0].mask.shape == size


def test_scenes_are_made_quickly():
    make_scene(0, 0, size=(64, 64))
    best = min(_time_one(index) for index in range(20))
    assert best < 0.02  # about 2 ms; the rest is for busy machines


def _time_one(index: int) -> float:
    start = time.perf_counter()
    make_scene(0, index, size=(64, 64))
    return time.perf_counter() - start


def test_errors():
    with pytest.raises(ConfigError, match=r"classes must .* cross, .* got moon"):
        make_scene(0, 0, classes=("disc", "moon"))
    with pytest.raises(ConfigError, match=r"got none"):
        make_scene(0, 0, classes=())
    with pytest.raises(ConfigError, match=r"at least 16 pixels .* got size=\(8, 64\)"):
        make_scene(0, 0, size=(8, 64))
    with pytest.raises(ConfigError, match=r"max_objects=0"):
        make_scene(0, 0, max_objects=0)
