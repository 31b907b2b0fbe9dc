# SPDX-License-Identifier: Apache-2.0
"""What the site takes from elsewhere: its navigation from folders, the reference from the code."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import typer
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig

import muntin
from muntin.commands import app

Entry = str | dict[str, "str | list[str]"]
"""Of the navigation: a path, or a title with one or several below it."""

DOCS = Path(__file__).resolve().parent
WIDTH = 90  # characters of a line of help
COMMANDS, NAMES = "<!-- help of every command -->", "<!-- every public name -->"

SIGNS, CHARACTERS = r"\u3001-\u301f\uff01-\uff5e", r"\u4e00-\u9fff\uff08"
CHINESE_LINES = re.compile(
    rf"(?<=[{SIGNS}])\n *(?=[{CHARACTERS}A-Za-z]|`(?!``))|(?<=[{CHARACTERS}])\n *(?=[{CHARACTERS}])"
)
"""The end of a line between Chinese characters, or after one of their signs and before a word."""

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Replace folders in the navigation by their pages."""
    entries: list[Entry] = config.nav or []
    named = {path for entry in entries for path in _below(entry)}
    config.nav = [_expand(entry, named) for entry in entries]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks of the reference by what the code says of itself, and join Chinese lines.

    A browser shows the end of a line as a space, which Chinese sentences do not have.
    """
    markdown = CHINESE_LINES.sub("", markdown)
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


def _help(name: str, command: typer.core.TyperCommand) -> str:
    command.rich_markup_mode = None  # boxes are for terminals
    context = command.context_class(command, info_name=f"muntin {name}", terminal_width=WIDTH)
    return command.get_help(context)


def on_page_content(written: str, **_: Any) -> str:
    """Write formulas as MathML, which browsers draw without a script."""
    displays = {"div": "block", "span": "inline"}
    return FORMULA.sub(
        lambda one: convert(html.unescape(one[2]), display=displays[one[1]]), written
    )


def _below(entry: Entry) -> list[str]:
    """The paths of an entry."""
    if isinstance(entry, str):
        return [entry]
    (below,) = entry.values()
    return [below] if isinstance(below, str) else below


def _expand(entry: Entry, named: set[str]) -> Entry:
    """An entry with pages in place of folders."""
    if not any(path.endswith("/") for path in _below(entry)):
        return entry
    (title,) = entry
    return {title: [page for path in _below(entry) for page in _pages(path, named)]}


def _pages(path: str, named: set[str]) -> list[str]:
    """A page alone, or those of a folder that the navigation does not name, index.md first."""
    if not path.endswith("/"):
        return [path]
    found = {
        file.relative_to(DOCS).as_posix()
        for file in (DOCS / path).glob("*.md")
        if not re.search(r"\.\w\w\.md$", file.name)
    }
    return sorted(found - named, key=lambda page: (not page.endswith("/index.md"), page))
