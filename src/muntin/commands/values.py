# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Parsers of command-line values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Literal

from muntin.errors import ConfigError

__all__ = [
    "parse_batch",
    "parse_names",
    "parse_point",
    "parse_scales",
    "parse_settings",
    "parse_size",
    "parse_tile",
    "parse_time",
    "to_json",
]

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_time(text: str) -> float:
    """Parse 90, 90s, 15m or 2h to seconds; empty is 0.

    Raises:
        ConfigError: The text has another form, or is not above 0.
    """
    if not text:
        return 0.0
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if found is None or float(found[1]) == 0:
        message = f"--max-time must be a time such as 90s, 15m or 2h, got {text!r}."
        raise ConfigError(message)
    return float(found[1]) * _UNITS[found[2]]


def parse_size(text: str) -> tuple[int, int]:
    """Parse 224 or 224x320 (height x width) to pixels; empty is (0, 0).

    Raises:
        ConfigError: The text has another form.
    """
    if not text:
        return 0, 0
    found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text.strip())
    if found is None:
        message = f"--img-size must be a side such as 224, or HxW such as 224x320, got {text!r}."
        raise ConfigError(message)
    return int(found[1]), int(found[2] or found[1])


def parse_batch(text: str) -> int:
    """Parse a batch size; auto is 0.

    Raises:
        ConfigError: The text is neither a positive integer nor auto.
    """
    if text == "auto":
        return 0
    if not text.isdecimal() or int(text) == 0:
        message = f"--batch-size must be a positive integer or auto, got {text!r}."
        raise ConfigError(message)
    return int(text)


def parse_tile(text: str) -> int | Literal["auto"] | None:
    """Parse a side in pixels, or auto; empty is None.

    Raises:
        ConfigError: The text is neither.
    """
    if not text:
        return None
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) == 0:
        message = f"--tile must be a side in pixels or auto, got {text!r}."
        raise ConfigError(message)
    return int(text)


def parse_scales(text: str) -> tuple[float, ...]:
    """Parse comma-separated scale factors; empty is 1.

    Raises:
        ConfigError: A factor is not a number.
    """
    try:
        return tuple(float(part) for part in text.split(",")) if text else (1.0,)
    except ValueError as error:
        message = f"--scales must be numbers such as 0.75,1,1.25, got {text!r}."
        raise ConfigError(message) from error


def parse_point(text: str) -> tuple[float, float] | None:
    """Parse x,y in [0, 1] as a point of an image; empty is None.

    Raises:
        ConfigError: The text is not such a point.
    """
    if not text:
        return None
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        x, y = -1.0, -1.0
    if not (0 <= x <= 1 and 0 <= y <= 1):
        message = f"--point must be x,y in [0, 1], such as 0.5,0.25, got {text!r}."
        raise ConfigError(message)
    return x, y


def parse_names(text: str) -> tuple[str, ...]:
    """Parse comma-separated names; empty is ()."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_settings(texts: Iterable[str], option: str = "--set") -> dict[str, str]:
    """Parse ``name=value`` arguments.

    Raises:
        ConfigError: An argument has no ``=``.
    """
    settings = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            example = "train.epochs=10" if option == "--set" else "max_detections=1000"
            message = f"{option} must be name=value, such as {example}, got {text!r}."
            raise ConfigError(message)
        settings[name.strip()] = value.strip()
    return settings


def to_json(values: Any) -> str:  # noqa: ANN401 (whatever JSON can hold)
    """Format one JSON document."""
    return json.dumps(values, indent=2)
