# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What is asked for, checked before anything is computed, and names for the images."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from muntin.errors import ConfigError, DataError, unknown_name
from muntin.explaining.sections import SECTIONS

__all__ = ["check_point", "check_sections", "check_target", "list_images", "name_images"]


def check_sections(sections: str | Sequence[str]) -> tuple[str, ...]:
    """Give the names of the sections that are wanted; a text is one of them.

    Raises:
        ConfigError: There is no such section.

    Example:
        >>> check_sections("cut"), check_sections(["cut", "cost"])
        (('cut',), ('cut', 'cost'))
    """
    names = (sections,) if isinstance(sections, str) else tuple(sections)
    for name in names:
        if name not in SECTIONS:
            raise ConfigError(unknown_name("section", str(name), SECTIONS))
    return names


def check_point(point: Any) -> None:  # noqa: ANN401 (whatever a user gives)
    """Refuse what is not (x, y) from 0 to 1, nor None.

    Raises:
        ConfigError: It is neither.
    """
    if point is None:
        return
    try:
        x, y = (float(value) for value in point)
    except (TypeError, ValueError):
        x = y = math.nan
    if not (0 <= x <= 1 and 0 <= y <= 1):
        said = repr(point) if math.isnan(x) else f"{x:g},{y:g}"
        message = (
            f"point must be x,y from 0 to 1 in the image, got {said}. Leave it out for the middle."
        )
        raise ConfigError(message)


def check_target(target: Any) -> None:  # noqa: ANN401 (whatever a user gives)
    """Refuse what is neither a name nor a whole number, nor None.

    Raises:
        ConfigError: It is none of these.
    """
    if target is None or isinstance(target, str):
        return
    try:
        whole = not isinstance(target, bool) and operator.index(target) is not None
    except TypeError:
        whole = False
    if not whole:
        message = (
            f"target must be the name of a class or keypoint, or a whole number, got {target!r}. "
            f"Leave it out for what the model is surest of."
        )
        raise ConfigError(message)


def list_images(images: Any) -> list[Any]:  # noqa: ANN401 (whatever a user gives)
    """Give a list of images, of whatever was given.

    Raises:
        DataError: There is none, or it is of a kind that is not taken.
    """
    if _is_image(images):
        return [images]
    single = hasattr(images, "shape") or not isinstance(images, Iterable)
    found = [images] if single else list(images)
    if not found:
        message = "there must be an image to explain, got none. Give a path, or several."
        raise DataError(message)
    for image in found:
        if not _is_image(image):
            shape = f" of shape {tuple(image.shape)}" if hasattr(image, "shape") else ""
            message = (
                f"an image must be a path, a PIL image or an (H, W, 3) uint8 RGB array, or a "
                f"list of them, got {type(image).__name__}{shape}. Of a tensor (3, H, W) uint8 "
                f"give tensor.permute(1, 2, 0).numpy()."
            )
            raise DataError(message)
    return found


def _is_image(image: object) -> bool:
    return isinstance(image, str | Path | Image.Image | np.ndarray)


def name_images(images: Sequence[Any]) -> list[str]:
    """Name images for people: files by their names, those of one name by their folders too.

    Example:
        >>> name_images(["a/ring/0.png", "a/disc/0.png", "b/1.png"])
        ['ring/0.png', 'disc/0.png', '1.png']
    """
    parts = [Path(one).parts if isinstance(one, str | Path) else () for one in images]
    names = [own[-1] if own else f"image {number}" for number, own in enumerate(parts, 1)]
    for depth in range(2, max(map(len, parts), default=0) + 1):
        alike = [name for name in names if names.count(name) > 1]
        names = [
            "/".join(own[-depth:]) if name in alike else name
            for name, own in zip(names, parts, strict=True)
        ]
    return names
