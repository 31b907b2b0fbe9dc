# SPDX-License-Identifier: Apache-2.0
"""Images as results: drawings, maps of class numbers, and objects cut out."""

from __future__ import annotations

import re
import shutil
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from muntin.drawing.saving import save_image, save_labels
from muntin.drawing.style import colours_of
from muntin.prediction.formats.items import Answer, FormatContext, sure_items
from muntin.results import SemanticMap
from muntin.staging import format_json, replacing, writing

_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]')  # in names of files, somewhere


def copy_image(image: Path | NDArray[np.uint8], place: Path) -> None:
    """Copy an image file as it is, or write pixels as PNG."""
    if not isinstance(image, Path):
        save_image(Image.fromarray(image), place)
        return
    with writing(place), replacing(place) as fresh:
        shutil.copyfile(image, fresh)


def write_labels(result: SemanticMap, place: Path) -> None:
    """Write the class number of each pixel, in colours where 8 bits are enough."""
    if len(result.class_names) > 256:
        save_labels(result.labels, place)
        return
    image = Image.fromarray(result.labels.astype(np.uint8))
    palette = colours_of(len(result.class_names), result.colors)
    image.putpalette([*chain.from_iterable(palette)])
    save_image(image, place)


def format_class_table(context: FormatContext) -> dict[str, str]:
    """Give the number of each class, which readers of masks look for."""
    numbers = {name: number for number, name in enumerate(context.classes.names)}
    return {"classes.json": format_json(numbers)}


def write_crops(
    answer: Answer, pixels: NDArray[np.uint8], name: str, context: FormatContext
) -> None:
    """Cut out what scores enough, into a folder a class; of classified images the best class."""
    items = sure_items(answer, context)
    for item in items[:1] if "classes" in answer else items:
        left, top, right, bottom = np.rint(item.box).astype(int).clip(0).tolist()
        piece = pixels[top:bottom, left:right]
        folder = _FORBIDDEN.sub("_", item.name).strip(". ") or f"class {item.class_id}"
        ending = ".png" if "classes" in answer else f"_{item.number}.png"
        if piece.size:
            save_image(Image.fromarray(piece), context.folder / "crops" / folder / (name + ending))
