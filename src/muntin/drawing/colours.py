# SPDX-License-Identifier: Apache-2.0
"""One colour per class, the same in every drawing."""

from __future__ import annotations

import colorsys

from PIL import ImageColor

Colour = tuple[int, int, int]
"""Red, green, blue."""

# Okabe and Ito: distinguishable with colour vision deficiency.
ORANGE, SKY, GREEN, VERMILION = "#E69F00", "#56B4E9", "#009E73", "#D55E00"
PURPLE, BLUE, YELLOW, INK = "#CC79A7", "#0072B2", "#F0E442", "#222222"

LINE_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
"""Of lines and bars."""

# In an order in which the first few are far apart, whatever colours one sees.
_PALETTE = (ORANGE, SKY, GREEN, VERMILION, PURPLE, BLUE, YELLOW)


def colour_of(class_id: int) -> Colour:
    """Give the colour of a class: seven, the same lighter, then darker, then hues all round.

    Example:
        >>> colour_of(0)
        (230, 159, 0)
    """
    cycle, place = divmod(class_id, len(_PALETTE))
    if cycle > 2:  # hues of consecutive classes differ by the golden angle
        parts = colorsys.hsv_to_rgb(class_id * 0.618 % 1, 0.75 - 0.3 * (class_id % 2), 0.95)
        mixed = [round(255 * part) for part in parts]
    else:
        towards, share = ((0, 0.0), (255, 0.45), (0, 0.4))[cycle]
        plain = ImageColor.getrgb(_PALETTE[place])[:3]
        mixed = [round(value + (towards - value) * share) for value in plain]
    return mixed[0], mixed[1], mixed[2]
