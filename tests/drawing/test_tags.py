# SPDX-License-Identifier: Apache-2.0
"""Tags never cover small objects or each other, and stay in the image."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from muntin.drawing.detection_drawing import draw_detections
from muntin.drawing.tags import Tag, draw_tags
from tests.drawing.test_detections import detections, pixels

RED = (255, 0, 0)
BACK = (90, 90, 90)


def tagged(places, *, sides=(640, 480), text="person 0.99", **options):
    image = Image.new("RGB", sides, BACK)
    colours = [(255, number, 0) for number in range(len(places))]
    tags = [Tag(place, text, colour) for place, colour in zip(places, colours, strict=True)]
    left_out = draw_tags(image, tags, size=13, **options)
    return np.asarray(image), left_out


def painted(image, colour):
    return (image == colour).all(axis=2)


@pytest.mark.parametrize("corner", [(0, 0), (300, 200), (628, 468), (0, 468), (628, 0), (314, 0)])
def test_a_small_object_is_not_covered(corner):
    x, y = corner
    place = (x, y, x + 11, y + 11)
    image, left_out = tagged([place])
    assert left_out == 0
    assert (image[y : y + 12, x : x + 12] == BACK).all()
    assert painted(image, RED).sum() > 500
    found = detections([[x, y, x + 12, y + 12]], size=(480, 640))
    whole = np.asarray(draw_detections(pixels(480, 640), found))
    # Of the drawing, only the lines of the box lie on the object.
    assert (whole[y + 3 : y + 9, x + 3 : x + 9] == 90).all()


def test_no_tag_covers_another_tag_or_a_small_object():
    generator = np.random.default_rng(3)
    corners = (generator.random((25, 2)) * (600, 440)).astype(int)
    places = [(x, y, x + 11, y + 11) for x, y in corners.tolist()]
    image, left_out = tagged(places)
    assert left_out == 0
    assert all(painted(image, (255, number, 0)).any() for number in range(25))
    wide = []
    for number in range(25):
        own = painted(image, (255, number, 0))
        high = np.flatnonzero(own.sum(axis=1) > 20)
        wide.append(len(high))
    # Each tag is whole: 17 lines of its colour, but for where letters fill them.
    assert min(wide) >= 15
    image, left_out = tagged([(310, 230, 321, 241)] * 100)
    assert 0 < left_out < 100


def test_a_tag_that_is_away_has_a_line():
    crowd = [(x, y, x + 19, y + 19) for x in range(200, 420, 20) for y in range(150, 330, 20)]
    image, _ = tagged([(300, 230, 311, 241), *crowd])
    red = painted(image, RED)
    assert red[:150].sum() + red[330:].sum() + red[150:330, :200].sum() > 500
    assert red[150:330, 200:420].any(), "the line crosses what the tag keeps off"
    without, _ = tagged([(300, 230, 311, 241), *crowd], lines=False)
    assert not painted(without, RED).any()


def test_a_large_object_has_its_tag_where_it_begins():
    image, _ = tagged([(100, 0, 600, 470)])
    rows, columns = np.nonzero(painted(image, RED))
    assert (rows.min(), columns.min()) == (0, 100)


@pytest.mark.parametrize("sides", [(1, 1), (30, 30), (640, 3)])
def test_images_smaller_than_a_tag(sides):
    image, _ = tagged([(0, 0, sides[0] - 1, sides[1] - 1)], sides=sides)
    assert image.shape == (*sides[::-1], 3)
    assert draw_tags(Image.new("RGB", sides), [], size=13) == 0
