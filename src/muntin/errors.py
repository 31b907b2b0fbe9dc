# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The error family, and the functions that word messages that several rooms share.

Every message says, in this order: what must hold, what came, where it came from, what to do.
Users can catch `MuntinError`, or the builtin that they expect.
"""

from __future__ import annotations

import difflib
import errno
import re
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
    "cannot_write",
    "missing_extra",
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
    """A data set, a picture or an annotation cannot be used as it is."""


class WeightError(MuntinError, RuntimeError):
    """Weights do not fit the model, or their file cannot be read."""


class RunError(MuntinError, RuntimeError):
    """A run folder is incomplete, or cannot be written."""


class TrainingError(MuntinError, RuntimeError):
    """Training cannot go on (the loss is not a number, the data ran out)."""


class MissingExtra(MuntinError, ImportError):
    """An optional library is needed and is not installed."""


def unknown_name(kind: str, name: str, known: Iterable[str], *, hint: str = "") -> str:
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
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    parts = [f"Unknown {kind} {name!r}."]
    if near:
        parts.append(f"Did you mean {near[0]!r}?")
    elif names:
        parts.append(f"Known: {shorten(names, most=12)}.")
    if hint:
        parts.append(hint)
    return " ".join(parts)


# What the system says when there is no room, and when something of another kind is in the way.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


def cannot_write(path: object, error: Exception) -> str:
    """Word the message for a file that the system, or a library, could not write.

    Args:
        path: The file or folder.
        error: What was raised; what to do depends on its `errno`.

    Example:
        >>> cannot_write("a.png", OSError(errno.ENOSPC, "No space left on device"))
        'a.png could not be written (No space left on device). Free some space.'
    """
    said = getattr(error, "strerror", None) or str(error)
    # Libraries written in Rust raise errors of their own, with the number in the text.
    number = re.search(r"os error (\d+)", said)
    code = int(number[1]) if number else getattr(error, "errno", None)
    if code in _FULL:
        advice = "Free some space"
    elif code in _IN_THE_WAY:
        advice = "A file lies where a folder must be, or a folder where a file must be: move it"
    else:
        advice = "Choose a place that can be written"
    return f"{path} could not be written ({said}). {advice}."


def missing_extra(library: str, extra: str, purpose: str) -> MissingExtra:
    """Build the error for an optional library that is not installed."""
    message = (
        f"{purpose} needs {library}, which is not installed. Run: pip install 'muntin[{extra}]'"
    )
    return MissingExtra(message)


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
