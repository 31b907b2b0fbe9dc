# SPDX-License-Identifier: Apache-2.0
"""The values that masks hold, and the classes they stand for: two values, gaps, loss, opacity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from muntin.data.mask_values import read_mask
from muntin.data.semantic import check_semantic, list_semantic
from muntin.errors import DataError
from muntin.samples import Classes
from muntin.targets import IGNORED

SIZE = (61, 83)  # height, width
RED, GREEN = (255, 0, 0), (0, 128, 0)


def drawn(seed: int, *values):
    """(H, W) number of the value at each pixel: areas of every value but the first, which is 0."""
    image = Image.new("L", SIZE[::-1], 0)
    draw = ImageDraw.Draw(image)
    for number in range(1, len(values)):
        x, y = 4 + 25 * (number - 1) + seed, 5 + 3 * seed
        shape = draw.ellipse if number % 2 else draw.rectangle
        shape((x, y, x + 19, y + 30), fill=number)
    return np.asarray(image)


def write(root: Path, *values, ending="png", count=2, change=lambda image: image, **options):
    """Images, and masks of drawn values, changed before they are saved."""
    for seed in range(count):
        (root / "images").mkdir(parents=True, exist_ok=True)
        (root / "masks").mkdir(exist_ok=True)
        Image.new("RGB", SIZE[::-1], (90, 80, 70)).save(root / "images" / f"{seed}.png")
        pixels = np.array(values, np.uint8)[drawn(seed, *values)]
        change(Image.fromarray(pixels)).save(root / "masks" / f"{seed}.{ending}", **options)
    return root


def labels(data, place=0):
    return read_mask(data.train, data.train.entries[place]).labels


VALUES = {
    "0, 1": ((0, 1), ("background", "foreground"), (0, 1)),
    "0, 255": ((0, 255), ("background", "foreground"), (0, 1)),
    "0, 128": ((0, 128), ("background", "foreground"), (0, 1)),
    "1, 2": ((1, 2), ("background", "foreground"), (0, 1)),
    "7, 255": ((7, 255), ("background", "foreground"), (0, 1)),
    "void beside two": ((0, 1, 255), ("background", "foreground"), (0, 1, IGNORED)),
    "gaps": ((0, 50, 100), ("class 0", "class 50", "class 100"), (0, 1, 2)),
    "gaps and void": ((0, 3, 9, 255), ("class 0", "class 3", "class 9"), (0, 1, 2, IGNORED)),
    "black and another": (((0, 0, 0), RED), ("background", "foreground"), (0, 1)),
    "three colours": (((0, 0, 0), GREEN, RED), ("#000000", "#008000", "#FF0000"), (0, 1, 2)),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_that_occur_are_the_classes(tmp_path, case):
    values, names, wanted = VALUES[case]
    data = list_semantic(write(tmp_path, *values))
    assert data.train.class_names == names
    assert (labels(data) == np.array(wanted)[drawn(0, *values)]).all()
    assert not data.problems


NAMED = {
    "two names": ((0, 255), "sky\nbird\n", ("sky", "bird"), (0, 1)),
    "as many as values": ((0, 50, 255), "a\nb\nc\n", ("a", "b", "c"), (0, 1, 2)),
    "one name": ((0, 255), "bird\n", ("background", "bird"), (0, 1)),
    "one name for 0 and 1": ((0, 1), "bird\n", ("background", "bird"), (0, 1)),
}


@pytest.mark.parametrize("case", NAMED)
def test_names_in_the_order_of_values(tmp_path, case):
    values, text, names, wanted = NAMED[case]
    (write(tmp_path, *values) / "classes.txt").write_text(text)
    data = list_semantic(tmp_path)
    assert data.train.class_names == names
    assert (labels(data) == np.array(wanted)[drawn(0, *values)]).all()


LOSSY = {
    "JPEG": {"ending": "jpg", "quality": 75},
    "poor JPEG": {"ending": "jpeg", "quality": 40},
    "WebP": {"ending": "webp", "quality": 80},
    "PNG made of JPEG": {"quality": 60},
    "smoothed": {"change": lambda image: image.resize((166, 122), 2).resize(SIZE[::-1], 2)},
}


@pytest.mark.parametrize("values", [(0, 255), (0, 128), (20, 220)])
@pytest.mark.parametrize("case", LOSSY)
def test_two_values_stored_with_loss_are_cleaned(tmp_path, case, values):
    options = dict(LOSSY[case])
    if case == "PNG made of JPEG":
        quality = options.pop("quality")

        def options_change(image):
            image.save(tmp_path / "one.jpg", quality=quality)
            return Image.open(tmp_path / "one.jpg")

        options["change"] = options_change
    data = list_semantic(write(tmp_path / "set", *values, **options))
    wanted = drawn(0, *values)
    assert data.train.class_names == ("background", "foreground")
    assert (labels(data) != wanted).mean() < 0.01  # at edges
    assert "stored with loss" in data.note
    assert check_semantic(tmp_path / "set").ok


def test_several_values_stored_with_loss(tmp_path):
    values = (0, 128, 255)
    data = list_semantic(write(tmp_path, *values, ending="jpg", quality=85))
    found, wanted = labels(data), drawn(0, *values)
    assert data.train.class_names == ("class 0", "class 128", "class 255")
    wrong = (found != wanted) & (found != IGNORED)
    assert wrong.mean() < 0.01
    assert (found == IGNORED).mean() < 0.15
    for label in range(3):
        assert ((found == label) & (wanted == label)).sum() > 0.7 * (wanted == label).sum()


def test_colours_stored_with_loss(tmp_path):
    values = ((0, 0, 0), GREEN, RED)
    write(tmp_path, *values, ending="jpg", quality=90)
    with pytest.raises(DataError, match=r"JPEG.*classes\.json"):
        list_semantic(tmp_path)
    (tmp_path / "classes.json").write_text('{"a": "#FF0000", "b": "#008000", "void": "#000000"}')
    data = list_semantic(tmp_path)
    found, wanted = labels(data), np.array((IGNORED, 1, 0))[drawn(0, *values)]
    assert not data.fault
    assert ((found != wanted) & (found != IGNORED)).mean() < 0.01
    assert (found == wanted).mean() > 0.75


@pytest.mark.parametrize("names", ["", "a\nb\nc\nd\n"])
def test_class_numbers_stored_with_loss_are_refused(tmp_path, names):
    write(tmp_path, 0, 1, 2, 3, ending="jpg", quality=75)
    if names:
        (tmp_path / "classes.txt").write_text(names)
    with pytest.raises(DataError, match="JPEG"):
        list_semantic(tmp_path)


def test_thin_lines_stored_with_loss(tmp_path):
    def line(image):
        thin = Image.new("L", image.size, 0)
        ImageDraw.Draw(thin).line((3, 5, 70, 40), fill=255, width=1)
        return thin

    data = list_semantic(write(tmp_path, 0, 255, ending="jpg", quality=90, change=line))
    assert data.train.class_names == ("background", "foreground")
    found = labels(data)
    assert 30 < (found == 1).sum() < 150


def in_alpha(color):
    def change(image):
        result = Image.new("RGB", image.size, color)
        result.putalpha(image)
        return result

    return change


@pytest.mark.parametrize("values", [(0, 255), (0, 100, 200), (0, 128)])
def test_masks_in_the_alpha_channel(tmp_path, values):
    data = list_semantic(write(tmp_path, *values, change=in_alpha((255, 255, 255))))
    assert data.train.encoding.kind == "alpha"
    assert data.train.num_classes == len(values)
    assert (labels(data) == drawn(0, *values)).all()
    again = list_semantic(tmp_path, classes=Classes(
        names=data.train.class_names, encoding=data.train.encoding
    ))  # fmt: skip
    assert again.train.encoding == data.train.encoding


def test_photographs_cut_out_by_alpha(tmp_path):
    rng = np.random.default_rng(0)

    def change(image):
        photo = Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8))
        photo.putalpha(image)
        return photo

    data = list_semantic(write(tmp_path, 0, 255, change=change))
    assert (labels(data) == drawn(0, 0, 255)).all()


def test_palettes_of_gif_are_numbered_as_they_like(tmp_path):
    write(tmp_path, 0, 255, ending="gif")
    white_first = Image.fromarray(1 - drawn(1, 0, 255).astype(np.uint8), "P")
    white_first.putpalette([255] * 3 + [0] * 3 + [9] * 750)
    white_first.save(tmp_path / "masks" / "1.gif")
    data = list_semantic(tmp_path)
    for place in range(2):
        assert (labels(data, place) == drawn(place, 0, 255)).all()


ONE_CLASS = {
    "one value": ((0,), {}),
    "one opaque value": ((255,), {"change": in_alpha((7, 7, 7))}),
    "one colour": ((RED,), {}),
}


@pytest.mark.parametrize("case", ONE_CLASS)
def test_one_class_in_all_is_no_task(tmp_path, case):
    values, options = ONE_CLASS[case]
    data = list_semantic(write(tmp_path, *values, **options))
    assert "one class" in data.fault
    assert not check_semantic(tmp_path).ok


def test_one_class_can_be_evaluated(tmp_path):
    """Data of evaluation may have only one of the classes of a run."""
    run = list_semantic(write(tmp_path / "train", 0, 255)).train
    classes = Classes(names=run.class_names, encoding=run.encoding)
    data = list_semantic(write(tmp_path / "test", 0), classes=classes)
    assert not data.fault
    assert (labels(data) == 0).all()


@pytest.mark.parametrize("colors", ["road:#FF0000", "road:255"])
def test_a_single_named_class_has_a_background(tmp_path, colors):
    value = RED if "#" in colors else 255
    black = (0, 0, 0) if "#" in colors else 0
    data = list_semantic(write(tmp_path, black, value), colors=[colors])
    assert data.train.class_names == ("background", "road")
    assert not data.fault
    assert (labels(data) == drawn(0, 0, 1)).all()


def numbered(root: Path, *masks, folder="masks"):
    """Masks of squares in a row: each value is one square, or two for a value in a list."""
    for place, values in enumerate(masks):
        (root / "images").mkdir(parents=True, exist_ok=True)
        (root / folder).mkdir(exist_ok=True)
        Image.new("RGB", SIZE[::-1]).save(root / "images" / f"{place}.png")
        pixels = np.zeros(SIZE, np.uint8)
        for number, value in enumerate(values):
            pixels[9:40, 2 + 12 * number : 10 + 12 * number] = value
        Image.fromarray(pixels).save(root / folder / f"{place}.png")
    return root


NUMBERS = {
    "objects": ([(1, 2), (1, 2, 3), (1,), ()], "masks", True),
    "one area of ten in two": ([(1, 2, 3, 4, 5, 1), (1, 2, 3, 4), (1,)], "masks", True),
    "one folder says so": ([(1, 2), (1, 2)], "PedMasks", True),
    "as many in each": ([(1, 2, 3), (1, 2, 3)], "masks", None),
    "two at most": ([(1, 2), (1,)], "masks", None),
    "a number is left out": ([(1, 2), (1, 3), (2,)], "masks", False),
    "areas in parts": ([(1, 2, 1), (1, 2, 3, 2), (1,)], "masks", False),
}


@pytest.mark.parametrize(("masks", "folder", "objects"), NUMBERS.values(), ids=NUMBERS)
def test_numbers_of_objects_are_no_classes(tmp_path, masks, folder, objects):
    root = numbered(tmp_path / "a", *masks, folder=folder)
    data = list_semantic(root)
    most = max(value for values in masks for value in values)
    assert data.train.num_classes == (2 if objects else most + 1)
    assert ("number objects" in data.note) == (objects is True)
    assert ("for numbers of objects" in data.note) == (objects is None)
    if objects:
        assert data.train.class_names == ("background", "foreground")
        assert [labels(data, n).max() for n in range(len(masks))] == [int(any(v)) for v in masks]
        assert [(labels(data, n) > 0).sum() for n in range(len(masks))] == [
            248 * len(values) for values in masks
        ]
        listing = data.train
        run = Classes(names=listing.class_names, multi_label=False, encoding=listing.encoding)
        other = list_semantic(numbered(tmp_path / "b", (1, 2, 3)), classes=run)
        assert labels(other).sum() == 3 * 248
        colors = [f"c{n}:{n}" for n in range(most + 1)]
        assert list_semantic(root, colors=colors).train.num_classes == most + 1
