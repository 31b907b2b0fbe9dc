# SPDX-License-Identifier: Apache-2.0
"""Copies, versions and frames stay on one side of a split, and a check names them."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from muntin.data.data_config import DataConfig
from muntin.data.duplicates import find_alike, hash_image
from muntin.data.grouping import original_of, split_apart, video_of
from muntin.data.listing import check_classify, list_classify
from muntin.errors import ConfigError, DataError
from muntin.samples import Entry, Listing
from muntin.tasks.task_table import TASKS

HASH = {"0": "0a1b2c3d4e", "1": "f0e1d2c3b4"}


def scene(seed: int, size=(90, 120)) -> Image.Image:
    """Smooth colours with an object."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (5, 6, 3), np.uint8))
    return coarse.resize(size[::-1], Image.Resampling.BICUBIC)


def again(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


COPIES = {
    "jpeg": lambda image: again(image, 40),
    "smaller": lambda image: image.resize((61, 45)),
    "larger": lambda image: image.resize((300, 225)),
    "lighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.2),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(1.5)),
}


def save(root: Path, path: str, image: Image.Image) -> None:
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    image.save(place)


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_alike_and_other_images_are_not(kind):
    scenes = [scene(seed) for seed in range(40)]
    images = [*scenes, *map(COPIES[kind], scenes)]
    hashes = [hash_image(np.array(image)) for image in images]
    numbers = find_alike(np.stack([one.values for one in hashes])).tolist()
    assert numbers[:40] == [*range(40)]
    assert all(number in (place, place - 40) for place, number in enumerate(numbers))
    assert sum(number < 40 for number in numbers[40:]) >= 36


def test_equal_pixels_have_equal_digests_in_any_file_and_shapes_count():
    image = np.zeros((4, 6, 3), np.uint8)
    assert hash_image(image).digest == hash_image(image.copy()).digest
    assert hash_image(image).digest != hash_image(image.reshape(6, 4, 3)).digest
    even = np.stack([hash_image(image + value).values for value in (0, 200)])
    assert len(set(find_alike(even).tolist())) == 2, "even images have nothing to compare"


def test_those_alike_through_others_have_one_number_like_a_slow_search():
    rng = np.random.default_rng(0)
    values = rng.choice([-1.0, 1.0], (90, 256)).astype(np.float32)
    for place in range(30, 90):  # chains of images that differ by 5 bits from one before
        values[place] = values[place - 30]
        values[place, rng.choice(64, 5, replace=False)] *= -1
    values[:, 64:] /= np.linalg.norm(values[:, 64:], axis=1, keepdims=True)
    order = rng.permutation(90)
    near = (values[:, None, :64] != values[None, :, :64]).sum(-1) <= 8
    near = (near & (values[:, 64:] @ values[:, 64:].T > 0.95))[order][:, order]
    slow = np.arange(90)
    for _ in range(90):
        slow = np.array([slow[row].min() for row in near])
    assert find_alike(values[order]).tolist() == slow.tolist()


@pytest.mark.parametrize(
    ("path", "original", "video"),
    [
        ("train/images/a_jpg.rf.0a1b2c.jpg", "images/a_jpg", None),
        ("valid/images/a_jpg.rf.ffee00.jpg", "images/a_jpg", None),
        ("a.rf.jpg", None, None),
        ("clip_mp4-0012_jpg.rf.0a12bc.jpg", "clip_mp4-0012_jpg", "clip_mp4-"),
        ("cat/frame_000001.PNG", None, "cat/frame_"),
        ("test/cow_frame12_left.png", None, "cow_frame"),
        ("x/vid1_0001.png", None, "x/vid1_"),
        ("seq-2/img5.png", None, "seq-2/"),
        ("video1.png", None, None),
        ("IMG_0001.jpg", None, None),
        ("keyframed/IMG_0001.jpg", None, None),
        ("frame.png", None, None),
    ],
)
def test_what_names_say(path, original, video):
    assert original_of(path) == original
    assert video_of(path) == video


def entries_of(names, classes=1):
    return tuple(Entry(path=name, class_ids=(n % classes,)) for n, name in enumerate(names))


def listing_of(root: Path, names, classes=1) -> Listing:
    class_names = tuple(map(str, range(classes)))
    return Listing(source=str(root), entries=entries_of(names, classes), class_names=class_names)


def sides(listing: Listing, key, **options) -> tuple[set[str], list[str]]:
    """Keys that are on both sides, and the notes."""
    options = {"groups": "auto", "fraction": 0.25, "seed": 0, **options}
    train, val, notes = split_apart(listing, **options)
    assert len(train) + len(val) == len(listing)
    assert len(train)
    assert len(val)
    one, two = ({key(entry.path) for entry in part.entries} for part in (train, val))
    return one & two, notes


def original(path: str) -> str:
    return path.rpartition("/")[2].split("_")[0]


@pytest.mark.parametrize("kind", ["identical", "jpeg", "smaller", "names"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_copies_stay_on_one_side(tmp_path, kind, seed):
    names = []
    for number in range(12):
        image = scene(number)
        for copy, digits in HASH.items():
            if kind == "names":
                names.append(f"{number}_jpg.rf.{digits}.png")
                image = scene(100 + len(names))
            else:
                names.append(f"{number}_{copy}.png")
                image = COPIES[kind](image) if copy == "1" and kind in COPIES else image
            save(tmp_path, names[-1], image)
    listing = listing_of(tmp_path, names)
    both, notes = sides(listing, original, seed=seed)
    assert not both
    assert any("kept on one side" in note and "24 images" in note for note in notes)
    both, notes = sides(listing, original, seed=seed, groups="none")
    assert both, "the split of earlier versions parts them"
    assert not any("one side" in note for note in notes)


def test_without_copies_the_split_is_that_of_earlier_versions(tmp_path):
    names = [f"{number}.png" for number in range(20)]
    for number, name in enumerate(names):
        save(tmp_path, name, scene(number))
    listing = listing_of(tmp_path, names, classes=2)
    new = split_apart(listing, groups="auto", fraction=0.2, seed=3)
    old = split_apart(listing, groups="none", fraction=0.2, seed=3)
    assert new == old


def test_frames_of_a_video_stay_together_but_a_single_video_is_cut_into_scenes(tmp_path):
    several = [f"clip{video}_frame{frame:03}.png" for video in range(8) for frame in range(5)]
    both, notes = sides(listing_of(tmp_path, several), lambda path: path[:5])
    assert not both
    assert "40 images frames of one video" in " ".join(notes)
    one = [f"frame_{frame}.png" for frame in range(60)]
    train, val, notes = split_apart(listing_of(tmp_path, one), groups="auto", fraction=0.2, seed=0)
    assert "cut into runs" in " ".join(notes)
    taken = sorted(int(entry.path[6:-4]) for entry in val.entries)
    assert taken == list(range(taken[0], taken[0] + 12)), "one scene"
    assert len(train) == 48


def test_a_still_camera_does_not_refuse_to_train(tmp_path):
    """Every class is one run of frames that are alike."""
    names = [f"{kind}/{number}.png" for kind in ("cat", "dog") for number in range(12)]
    for number, name in enumerate(names):
        image = scene(int(name.startswith("dog")))
        image.putpixel((number, 3), (255, 0, number))
        save(tmp_path, name, image)
    listing = list_classify(tmp_path).train
    train, val, notes = split_apart(listing, groups="auto", fraction=0.25, seed=0)
    assert Counter(entry.class_ids for entry in val.entries) == {(0,): 3, (1,): 3}
    assert len(train) == 18
    assert "cut into runs" in " ".join(notes)
    pairs = listing_of(tmp_path, ["a.png", "b.png"], classes=2)
    for name in ("a.png", "b.png"):
        save(tmp_path, name, scene(5))
    with pytest.raises(DataError, match="got 2 images"):
        split_apart(pairs, groups="auto", fraction=0.5, seed=0)


@pytest.mark.parametrize("given", ["pattern", "table", "ends"])
def test_groups_are_given_for_any_task(tmp_path, given):
    names = [f"im/{patient}-{number}.png" for patient in range(6) for number in range(4)]
    for number, name in enumerate(names):
        save(tmp_path, name, scene(number))
    if given != "pattern":
        cut = 3 if given == "ends" else 0
        rows = "".join(f"{name[cut:]},{name.split('-')[0]}\n" for name in names)
        (tmp_path / "groups.csv").write_text(f"path,group\n{rows}", encoding="utf-8")
    groups = "([0-9]+)-[0-9]+" if given == "pattern" else "auto"
    both, notes = sides(
        listing_of(tmp_path, names), lambda path: path.split("-")[0], groups=groups, seed=1
    )
    assert not both
    assert "6 groups" in notes[0]


@pytest.mark.parametrize(
    ("groups", "table", "kind", "match"),
    [
        ("[", "", ConfigError, r"data\.groups.*'\['"),
        ("nothing", "", ConfigError, r"data\.groups.*'nothing'"),
        ("auto", "file,patient\n0.png,1\n", DataError, "path and group.*patient"),
        ("auto", "path,group\nx.png,1\n", DataError, "x.png"),
        ("auto", "", DataError, "path and group"),
    ],
)
def test_groups_that_are_none(tmp_path, groups, table, kind, match):
    names = [f"{number}.png" for number in range(4)]
    for number, name in enumerate(names):
        save(tmp_path, name, scene(number))
    if groups == "auto":
        (tmp_path / "groups.csv").write_text(table, encoding="utf-8")
    with pytest.raises(kind, match=match):
        split_apart(listing_of(tmp_path, names), groups=groups, fraction=0.5, seed=0)


@pytest.mark.parametrize("parted", [True, False])
def test_a_check_names_copies(tmp_path, parted):
    for number in range(8):
        folder = "train/" if parted else ""
        save(tmp_path, f"{folder}{'ab'[number % 2]}/{number}.png", scene(number))
    for number in (0, 1):
        folder = "val/" if parted else ""
        copy = COPIES["jpeg"](scene(number))
        save(tmp_path, f"{folder}{'ab'[number]}/copy{number}.png", copy)
    report = check_classify(tmp_path)
    said = " ".join([*report.lines, *(f"{one.file} {one.what}" for one in report.problems)])
    assert report.ok
    assert "that look alike" in said
    assert "a/0.png" in said
    assert "copy0.png" in said
    assert ("scores will be too high" in said) == parted
    assert ("kept on one side" in said) == (not parted)


def test_older_runs_repeat_their_split():
    assert DataConfig().groups == "auto"
    assert DataConfig.upgrade({"val_fraction": 0.2})["groups"] == "none"
    assert DataConfig.upgrade({"groups": "a(b)"})["groups"] == "a(b)"


@pytest.mark.parametrize("task", ["classify", "detect", "semantic", "pose"])
def test_every_check_takes_a_pattern(tmp_path, task):
    report = TASKS[task].check_data(tmp_path / "none", DataConfig(groups="("))
    assert not report.ok
