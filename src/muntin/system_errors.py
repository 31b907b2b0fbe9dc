# SPDX-License-Identifier: Apache-2.0
"""Messages for errors caused by the system or by a missing library."""

from __future__ import annotations

import errno
import re

from muntin.errors import MissingExtra

# Error numbers for a full disk, and for a file where a folder is needed or vice versa.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WRONG_KIND = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


def cannot_write(path: object, error: Exception) -> str:
    """Format the message for a file that could not be written; the advice depends on the `errno`.

    Example:
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
    """Build the error for an optional library that is not installed."""
    message = (
        f"{purpose} needs {library}, which is not installed. Run: pip install 'muntin[{extra}]'"
    )
    return MissingExtra(message)
