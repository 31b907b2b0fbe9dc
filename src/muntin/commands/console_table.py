# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Tables, on a terminal and in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["print_table"]

# Wide enough for every model name; a pipe has no width.
_PIPE_WIDTH = 240


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; cells that exceed a narrow terminal are wrapped, never truncated."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    table = Table()
    for title in titles:
        table.add_column(Text(title), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # not markup: a class may be called "[red]"
    console.print(table)
