# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Validation of the arguments of `explain`, before anything is computed, and image names."""

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
    """Validate section names; a string is one name.

    Raises:
        ConfigError: A section is unknown.

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
    """Check that a point is None or (x, y), both in [0, 1].

    Raises:
        ConfigError: It is not.
    """
    if point is None:
        return
    try:
        x, y = (float(value) for value in point)
    except (TypeError, ValueError):
        x = y = math.nan
    if not (0 <= x <= 1 and 0 <= y <= 1):
        got = repr(point) if math.isnan(x) else f"{x:g},{y:g}"
        message = (
            f"point must be x,y with both in [0, 1], relative to the image, got {got}. "
            f"Omit it to use the centre."
        )
        raise ConfigError(message)


def check_target(target: Any) -> None:  # noqa: ANN401 (whatever a user gives)
    """Check that a target is None, a name or an integer.

    Raises:
        ConfigError: It is not.
    """
    if target is None or isinstance(target, str):
        return
    try:
        is_integer = not isinstance(target, bool) and operator.index(target) is not None
    except TypeError:
        is_integer = False
    if not is_integer:
        message = (
            f"target must be the name of a class or keypoint, or an integer, got {target!r}. "
            f"Omit it to use the highest-scoring prediction."
        )
        raise ConfigError(message)


def list_images(images: Any) -> list[Any]:  # noqa: ANN401 (whatever a user gives)
    """Normalise one image or an iterable of images to a list.

    Raises:
        DataError: The list is empty, or an element has an unsupported type.
    """
    if _is_image(images):
        return [images]
    single = hasattr(images, "shape") or not isinstance(images, Iterable)
    found = [images] if single else list(images)
    if not found:
        message = "images must not be empty, got none. Pass one or more images to explain."
        raise DataError(message)
    for image in found:
        if not _is_image(image):
            shape = f" of shape {tuple(image.shape)}" if hasattr(image, "shape") else ""
            message = (
                f"images must be paths, PIL images or (H, W, 3) uint8 RGB arrays, got "
                f"{type(image).__name__}{shape}. For a (3, H, W) uint8 tensor, pass "
                f"tensor.permute(1, 2, 0).numpy()."
            )
            raise DataError(message)
    return found


def _is_image(image: object) -> bool:
    return isinstance(image, str | Path | Image.Image | np.ndarray)


def name_images(images: Sequence[Any]) -> list[str]:
    """Give each image a display name: the file name, with parent folders where it is ambiguous.

    Example:
        >>> name_images(["a/ring/0.png", "a/disc/0.png", "b/1.png"])
        ['ring/0.png', 'disc/0.png', '1.png']
    """
    parts = [Path(one).parts if isinstance(one, str | Path) else () for one in images]
    names = [own[-1] if own else f"image {number}" for number, own in enumerate(parts, 1)]
    for depth in range(2, max(map(len, parts), default=0) + 1):
        ambiguous = [name for name in names if names.count(name) > 1]
        names = [
            "/".join(own[-depth:]) if name in ambiguous else name
            for name, own in zip(names, parts, strict=True)
        ]
    return names
