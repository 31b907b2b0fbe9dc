# SPDX-License-Identifier: Apache-2.0
"""Colours are told apart, and letters on any of them are read."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image, ImageColor, ImageDraw

from muntin.drawing.layout import draw_tag
from muntin.drawing.style import PALETTE, colour_of


def to_lab(colour):
    """CIELAB of an sRGB colour, under D65."""
    part = np.array(colour) / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    matrix = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    ratio = matrix @ linear / np.array([0.95047, 1, 1.08883])
    x, y, z = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def ciede2000(first, second):
    """Colour difference of two CIELAB colours, by Sharma, Wu and Dalal (2005)."""
    (l1, a1, b1), (l2, a2, b2) = first, second
    mean = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    gain = 1.5 - 0.5 * np.sqrt(mean**7 / (mean**7 + 25.0**7))
    c1, c2 = np.hypot(gain * a1, b1), np.hypot(gain * a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, gain * a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = (h2 - h1 + 180) % 360 - 180 if c1 * c2 else 0.0
    hue = (h1 + turn / 2) % 360 if c1 * c2 else h1 + h2
    chroma, light = (c1 + c2) / 2, ((l1 + l2) / 2 - 50) ** 2
    cosines = [
        weight * np.cos(np.radians(times * hue + shift))
        for weight, times, shift in ((-0.17, 1, -30), (0.24, 2, 0), (0.32, 3, 6), (-0.2, 4, -63))
    ]
    width = 1 + 0.015 * chroma * (1 + sum(cosines))
    parts = [
        (l2 - l1) / (1 + 0.015 * light / np.sqrt(20 + light)),
        (c2 - c1) / (1 + 0.045 * chroma),
        2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2)) / width,
    ]
    spread = np.sin(np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2))))
    blue = -2 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7)) * spread
    return np.sqrt(sum(part**2 for part in parts) + blue * parts[1] * parts[2])


@pytest.mark.parametrize(
    ("first", "second", "difference"),
    [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, -0.001, 2.49), (50, 0.0011, -2.49), 4.7461),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((22.7233, 20.0904, -46.694), (23.0331, 14.973, -42.5619), 2.0373),
        ((90.8027, -2.0831, 1.441), (91.1528, -1.6435, 0.0447), 1.4441),
    ],
)
def test_the_measure_itself(first, second, difference):
    """Pairs of the published test data."""
    assert ciede2000(first, second) == pytest.approx(difference, abs=1e-4)


def test_colours_are_well_separated():
    assert len(PALETTE) >= 40
    known = [to_lab(ImageColor.getrgb(name)) for name in PALETTE]
    assert min(ciede2000(*pair) for pair in itertools.combinations(known, 2)) >= 14.9
    # Those that are used most are further apart.
    assert min(ciede2000(*pair) for pair in itertools.combinations(known[:7], 2)) >= 21.7
    for light, a, b in known:
        assert 28 < light < 91
        assert np.hypot(a, b) > 20


def test_every_number_has_a_colour():
    assert len({colour_of(number) for number in range(300)}) == 300
    assert colour_of(1) == (86, 180, 233)


@pytest.mark.parametrize("name", PALETTE)
def test_letters_on_a_colour_have_a_contrast_of_four_and_a_half(name):
    colour = ImageColor.getrgb(name)
    image = Image.new("RGB", (40, 20), "red")
    draw_tag(ImageDraw.Draw(image), (0, 0, 39, 19), "\u2588\u2588", colour, size=16)
    ink = image.getpixel((8, 10))
    assert ink in ((0, 0, 0), (255, 255, 255))
    lights = sorted(to_light(each) for each in (ink, colour))
    assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 4.5


def to_light(colour):
    """Relative luminance: Y of CIE XYZ."""
    light = to_lab(colour)[0]
    return ((light + 16) / 116) ** 3 if light > 8 else light * (3 / 29) ** 3
