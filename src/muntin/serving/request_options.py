# SPDX-License-Identifier: Apache-2.0
"""Options of requests: text in a form and in an address, values in JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from muntin.serving.batching import RefusedError

OPTIONS = ("model", "threshold", "tta", "tile")


def join_options(options: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Join the options of the address and the body, which may not say different things.

    Raises:
        RefusedError: They do, or one is unknown.
    """
    values: dict[str, Any] = {}
    for name, value in options:
        if name not in OPTIONS:
            message = f"options must be among {', '.join(OPTIONS)}, got {name[:100]!r}."
            raise RefusedError(422, message)
        if value in (None, ""):
            continue
        if name in values and str(values[name]).lower() != str(value).lower():
            message = (
                f"{name} must be given once, in the address or in the body, got "
                f"{str(values[name])[:100]!r} and {str(value)[:100]!r}. Leave one out."
            )
            raise RefusedError(422, message)
        values[name] = value
    return values


def parse_options(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Read options, which are text in a form and in an address, and values in JSON.

    Raises:
        RefusedError: One is out of its range.
    """
    if (threshold := values.get("threshold")) not in (None, ""):
        try:
            number = math.nan if isinstance(threshold, bool) else float(threshold)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not 0 <= number <= 1:
            message = f"threshold must be a number from 0 to 1, got {str(threshold)[:100]!r}."
            raise RefusedError(422, message)
        yield "threshold", number
    if (tta := values.get("tta")) not in (None, ""):
        chosen = {"true": True, "1": True, "false": False, "0": False}.get(str(tta).lower())
        if chosen is None:
            message = f"tta must be true or false, got {str(tta)[:100]!r}."
            raise RefusedError(422, message)
        yield "tta", chosen
    if (tile := values.get("tile")) not in (None, ""):
        text = str(tile)
        if text != "auto" and not re.fullmatch(r"[1-9]\d{0,8}", text):
            message = f"tile must be a side in pixels, or auto, got {text[:100]!r}."
            raise RefusedError(422, message)
        yield "tile", text if text == "auto" else int(text)
