# SPDX-License-Identifier: Apache-2.0
"""Exception classes, and functions that format messages.

Every message states, in this order: the requirement, the value received, its origin, the remedy.
"""

from __future__ import annotations

import difflib
import errno
import re
import shlex
from collections.abc import Iterable, Sized

_ADDRESS = re.compile("[A-Za-z][A-Za-z0-9+.-]+:/")  # a drive has one letter


class MuntinError(Exception):
    """Base class of all errors of muntin: the input is wrong, not the program.

    Attributes:
        told: Whether another process of the same training says it, so that this one need not.
    """

    told: bool = False


class MuntinWarning(UserWarning):
    """Something was skipped or handled differently; the operation continues."""


class ConfigError(MuntinError, ValueError):
    """A setting is unknown, out of range, or without effect here."""


class UsageError(ConfigError):
    """The words of a command line make no sense, whatever the input."""


class ShapeError(MuntinError, ValueError):
    """A tensor has the wrong shape for the operation."""


class DataError(MuntinError, ValueError):
    """A data set, an image or an annotation is invalid."""


class UnitError(DataError):
    """Annotations are in another unit or order than their format requires."""


class ShardError(MuntinError):
    """A part of a packed data set is torn, missing or out of reach, which no other image mends.

    A loading process sends its errors with a traceback around them; only their line is kept.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition("ShardError: ")[2].strip())


class WeightError(MuntinError, RuntimeError):
    """Weights do not fit the model, or cannot be read."""


class RunError(MuntinError, RuntimeError):
    """A run folder is incomplete, or cannot be written."""


class TrainingError(MuntinError, RuntimeError):
    """Training cannot continue (the loss is NaN, no data is left)."""


class ClusterError(MuntinError, RuntimeError):
    """A cluster cannot be used, or stopped working."""


class MissingExtra(MuntinError, ImportError):
    """A required optional library is not installed."""


_SYNONYMS = {"gpu": "cuda", "nvidia": "cuda"}
"""Common names of accepted values."""


def unknown_name(kind: str, name: object, known: Iterable[str], *, hint: str = "") -> str:
    """Format the message for an unknown name, with the closest known name if there is one.

    `kind` is what the name refers to, in the user's terms; `hint` says where the whole list is.

    Examples:
        >>> unknown_name("model", "swin_tiney", ["swin_tiny", "vit_base"])
        "Unknown model 'swin_tiney'. Did you mean 'swin_tiny'?"
    """
    names = sorted(known)
    lower = {each.lower(): each for each in names}
    text = str(name).lower()
    # What all have in common, such as "train.", makes no name similar to another.
    group = text[: text.rfind(".") + 1]
    if group and all(each.startswith(group) for each in lower):
        text, lower = text[len(group) :], {key[len(group) :]: lower[key] for key in lower}
    near = [word for word in (_SYNONYMS.get(text),) if word in lower]
    near = near or difflib.get_close_matches(text, lower, n=1, cutoff=0.6)
    near = near or [each for each in lower if len(text) > 2 and each.startswith(text)][:1]
    parts = [f"Unknown {kind} {name!r}."]
    if near:
        parts.append(f"Did you mean {lower[near[0]]!r}?")
    elif names:
        parts.append(f"Known: {shorten(names, limit=12)}.")
    if hint:
        parts.append(hint)
    return " ".join(parts)


def shorten(items: Iterable[object], *, limit: int = 5) -> str:
    """Join the first items and count the rest.

    Examples:
        >>> shorten(["a", "b", "c"], limit=2)
        'a, b and 1 more'
    """
    every = [str(item) for item in items]
    shown = ", ".join(every[:limit])
    rest = len(every) - limit
    return f"{shown} and {rest} more" if rest > 0 else shown


def quote(path: object) -> str:
    """Write a path as a shell takes it, for commands that are shown.

    Examples:
        >>> quote("runs/a"), quote("my runs/a")
        ('runs/a', "'my runs/a'")
    """
    return shlex.quote(str(path))


def first_line(error: Exception) -> str:
    """Give the first line of a message, or the name of the class of an error without one."""
    return (str(error) or type(error).__name__).splitlines()[0]


def plural(count: int, noun: str, several: str = "") -> str:
    """Write a number with its noun.

    Examples:
        >>> plural(1, "image"), plural(0, "image"), plural(2, "class", "classes")
        ('1 image', '0 images', '2 classes')
    """
    return f"{count} {noun if count == 1 else several or noun + 's'}"


def check_columns(**columns: Sized | None) -> None:
    """Check that columns have equal length; None is no column.

    Raises:
        ShapeError: They do not.
    """
    lengths = {name: len(column) for name, column in columns.items() if column is not None}
    if len({*lengths.values()}) > 1:
        *names, last = lengths
        *counts, count = map(str, lengths.values())
        message = (
            f"{', '.join(names)} and {last} must have equal length, got {', '.join(counts)} and "
            f"{count}."
        )
        raise ShapeError(message)


# Error numbers for a full disk, and for a file where a folder is needed or vice versa.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WRONG_KIND = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


def cannot_write(path: object, error: Exception) -> str:
    """Format the message for a file that could not be written; the advice depends on the `errno`.

    Examples:
        >>> cannot_write("a.png", OSError(errno.ENOSPC, "No space left on device"))
        'a.png could not be written (No space left on device). Free disk space.'
    """
    reason = getattr(error, "strerror", None) or str(error)
    # Libraries written in Rust raise their own exceptions, with the error number in the text.
    number = re.search(r"os error (\d+)", reason)
    code = int(number[1]) if number else getattr(error, "errno", None)
    if code in _FULL:
        advice = "Free disk space"
    elif code in _WRONG_KIND:
        advice = "A file is where a folder is needed, or vice versa; move it"
    else:
        advice = "Choose a writable location"
    return f"{path} could not be written ({reason}). {advice}."


def missing_extra(library: str, extra: str, purpose: str) -> MissingExtra:
    """Build the error for an optional library that is not installed, or some ("a and b")."""
    verb = "are" if " and " in library else "is"
    message = (
        f"{purpose} needs {library}, which {verb} not installed. Run: pip install 'muntin[{extra}]'"
    )
    return MissingExtra(message)


def where_to_look(place: object, accepted: str) -> str:
    """Say what to do where no file is; cameras and streams are read by one command alone."""
    if not str(place).isdecimal() and not _ADDRESS.match(str(place)):
        return "Check the path."
    return (
        f"Cameras and streams are read by muntin predict alone: save what is there, and give "
        f"{accepted}."
    )
