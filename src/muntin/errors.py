# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The error family, and the functions that word messages about names.

Every message says, in this order: what must hold, what came, where it came from, what to do.
Users can catch `MuntinError`, or the builtin that they expect.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ConfigError",
    "DataError",
    "MissingExtra",
    "MuntinError",
    "MuntinWarning",
    "RunError",
    "ShapeError",
    "TrainingError",
    "WeightError",
    "shorten",
    "unknown_name",
]


class MuntinError(Exception):
    """Root of every error that muntin raises on purpose: the input is wrong, not the program."""


class MuntinWarning(UserWarning):
    """Something was left out or done otherwise; the work goes on."""


class ConfigError(MuntinError, ValueError):
    """A setting is unknown, out of range, or has no effect in this path."""


class ShapeError(MuntinError, ValueError):
    """A tensor does not have the sides that the operation needs."""


class DataError(MuntinError, ValueError):
    """A data set, an image or an annotation cannot be used as it is."""


class WeightError(MuntinError, RuntimeError):
    """Weights do not fit the model, or their file cannot be read."""


class RunError(MuntinError, RuntimeError):
    """A run folder is incomplete, or cannot be written."""


class TrainingError(MuntinError, RuntimeError):
    """Training cannot go on (the loss is not a number, the data ran out)."""


class MissingExtra(MuntinError, ImportError):
    """An optional library is needed and is not installed."""


_OTHER_WORDS = {"gpu": "cuda", "nvidia": "cuda"}
"""What people call things whose name is another."""


def unknown_name(kind: str, name: object, known: Iterable[str], *, hint: str = "") -> str:
    """Word the message for a name that is not in a table.

    Args:
        kind: What the name stands for, as a user would say it ("model", "option").
        name: What came.
        known: Every accepted name.
        hint: Where the whole list can be seen; one sentence.

    Returns:
        One or two sentences that suggest the nearest accepted name when there is one.

    Example:
        >>> unknown_name("model", "swin_tiney", ["swin_tiny", "vit_base"])
        "Unknown model 'swin_tiney'. Did you mean 'swin_tiny'?"
    """
    names = sorted(known)
    lower = {each.lower(): each for each in names}
    text = str(name).lower()
    near = [word for word in (_OTHER_WORDS.get(text),) if word in lower]
    near = near or difflib.get_close_matches(text, lower, n=1, cutoff=0.6)
    near = near or [each for each in lower if len(text) > 2 and each.startswith(text)][:1]
    parts = [f"Unknown {kind} {name!r}."]
    if near:
        parts.append(f"Did you mean {lower[near[0]]!r}?")
    elif names:
        parts.append(f"Known: {shorten(names, most=12)}.")
    if hint:
        parts.append(hint)
    return " ".join(parts)


def shorten(items: Iterable[object], *, most: int = 5) -> str:
    """List the first items and count the rest.

    Example:
        >>> shorten(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    every = [str(item) for item in items]
    shown = ", ".join(every[:most])
    rest = len(every) - most
    return f"{shown} and {rest} more" if rest > 0 else shown
