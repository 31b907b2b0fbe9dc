# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Errors whose cause lies outside: the system will not write, a library is not installed."""

from __future__ import annotations

import errno
import re

from muntin.errors import MissingExtra

__all__ = ["cannot_write", "missing_extra"]

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
