# SPDX-License-Identifier: Apache-2.0
"""What the site takes from elsewhere: its navigation from folders, the reference from the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer

import muntin
from muntin.commands import app

DOCS = Path(__file__).resolve().parent
WIDTH = 90  # characters of a line of help
COMMANDS, NAMES = "<!-- help of every command -->", "<!-- every public name -->"


def on_config(config: Any) -> Any:
    """Replace folders in the navigation by their pages."""
    named = {page for page in _leaves(config.nav) if not page.endswith("/")}
    config.nav = [_expand(entry, named) for entry in config.nav]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks of the reference by what the code says of itself."""
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, "\n\n".join(help_texts()))
    if NAMES in markdown:
        names = "\n\n".join(f"::: muntin.{name}" for name in muntin.__all__)
        markdown = markdown.replace(NAMES, names)
    return markdown


def help_texts() -> list[str]:
    """Give a section of Markdown for each command: what `muntin VERB --help` prints, unboxed."""
    commands = typer.main.get_command(app).commands
    return [f"## {name}\n\n```text\n{_help(name, commands[name])}\n```" for name in commands]


def _help(name: str, command: Any) -> str:
    command.rich_markup_mode = None  # boxes are for terminals
    context = command.context_class(command, info_name=f"muntin {name}", terminal_width=WIDTH)
    return command.get_help(context)


def _leaves(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    children = entry.values() if isinstance(entry, dict) else entry
    return [leaf for child in children for leaf in _leaves(child)]


def _expand(entry: Any, named: set[str]) -> Any:
    """Expand an entry of the navigation, a title with entries below it or a path."""
    if not isinstance(entry, dict):
        return entry
    ((title, below),) = entry.items()
    if isinstance(below, str) and not below.endswith("/"):
        return entry
    paths = [below] if isinstance(below, str) else below
    return {title: [page for path in paths for page in _pages(path, named)]}


def _pages(path: str, named: set[str]) -> list[str]:
    if not path.endswith("/"):
        return [path]
    found = [
        file.relative_to(DOCS).as_posix()
        for file in (DOCS / path).glob("*.md")
        if not re.search(r"\.\w\w\.md$", file.name)
    ]
    return sorted(set(found) - named, key=lambda page: (not page.endswith("/index.md"), page))
