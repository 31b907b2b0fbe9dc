# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""A JSON list of any length, printed on stdout once it is complete."""

from __future__ import annotations

import shutil
import sys
import tempfile
import textwrap
from contextlib import ExitStack
from typing import Any

from muntin.commands.values import to_json

__all__ = ["JsonList"]

MAX_BUFFER = 2**24
"""Characters held in memory; longer lists go to a temporary file."""


class JsonList(ExitStack):
    """Collects the items of a JSON list as text; the temporary file ends with the context.

    Nothing is printed before `print`, so that a command that fails leaves stdout empty.
    """

    def __init__(self) -> None:
        super().__init__()
        file = tempfile.SpooledTemporaryFile(MAX_BUFFER, "w+", encoding="utf-8", newline="")  # noqa: SIM115 (entered below)
        self._file = self.enter_context(file)
        self._count = 0

    def add(self, item: dict[str, Any]) -> None:
        """Append an item."""
        self._file.write(",\n" if self._count else "[\n")
        self._file.write(textwrap.indent(to_json(item), "  "))
        self._count += 1

    def mark(self) -> tuple[int, int]:
        """Return the current end, for `cut`."""
        return self._file.tell(), self._count

    def cut(self, mark: tuple[int, int]) -> None:
        """Remove everything added after a mark."""
        place, self._count = mark
        self._file.seek(place)
        self._file.truncate()

    def print(self) -> None:
        """Write the list to stdout."""
        self._file.write("\n]\n" if self._count else "[]\n")
        self._file.seek(0)
        shutil.copyfileobj(self._file, sys.stdout)
