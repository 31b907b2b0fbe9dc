# SPDX-License-Identifier: Apache-2.0
"""Pages of the documents: their blocks of code, headings and links."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SITE = "https://github.com/muntin/muntin/blob/main/"
PICTURES = "https://raw.githubusercontent.com/muntin/muntin/main/"
OFF_SITE = ("adr", "lab-notes")

_FENCE = re.compile(r"^( *)(```+|~~~+) *(\w*).*$")
_MARK = re.compile(r"^ *<!-- *(not run|exit code (\d+))(?:: *(.*?))? *-->$")
_COMMENT = re.compile(r"(^|\s)#.*$", re.MULTILINE)
_LINK = re.compile(r"\]\(<?([^()\s>]+)>?(?: \"[^\"]*\")?\)|(?:href|src)=\"([^\"]+)\"")
_ANCHOR = re.compile(r"\{ *#([\w-]+)|\b(?:id|name)=\"([\w-]+)\"")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page.

    Attributes:
        kind: "sh", "python", "text" ...; empty if the fence names none.
        text: What is between the fences, without their indentation.
        line: Number of its first line in the page.
        exit_code: What its last command exits with.
        left_out: Why it is not run; None if it is.
    """

    kind: str
    text: str
    line: int
    exit_code: int = 0
    left_out: str | None = None

    @property
    def runs(self) -> bool:
        return self.kind in ("sh", "python") and self.left_out is None

    def compared(self) -> tuple[object, ...]:
        """What a translation has, too: output may be drawn in other words, comments translated."""
        if self.kind not in ("sh", "python"):
            return self.kind, self.text if self.kind in ("json", "csv", "yaml", "toml") else ""
        lines = [line.rstrip() for line in _COMMENT.sub("", self.text).splitlines()]
        return self.kind, tuple(filter(None, lines)), self.exit_code, self.left_out is None


@cache
def lines_of(page: Path) -> tuple[str, ...]:
    return tuple(page.read_text(encoding="utf-8").splitlines())


@cache
def blocks_of(page: Path) -> tuple[Block, ...]:
    """Every fenced block, in the order of the page."""
    found, lines, number = [], lines_of(page), 0
    while number < len(lines):
        opened = _FENCE.match(lines[number])
        if opened:
            first = number + 1
            number = first
            while number < len(lines) and lines[number].strip() != opened[2]:
                number += 1
            assert number < len(lines), f"{place(page, first)}: the block has no end"
            mark = _MARK.match(lines[first - 2]) if first > 1 else None
            text = textwrap.dedent("\n".join(lines[first:number]) + "\n")
            found.append(
                Block(
                    kind=opened[3],
                    text=text,
                    line=first + 1,
                    exit_code=int((mark and mark[2]) or 0),
                    left_out=(mark[3] or "") if mark and mark[1] == "not run" else None,
                )
            )
        number += 1
    return tuple(found)


@cache
def prose_of(page: Path) -> tuple[tuple[int, str], ...]:
    """Numbered lines outside fenced blocks, without code in backticks."""
    inside = {
        number
        for block in blocks_of(page)
        for number in range(block.line - 1, block.line + block.text.count("\n") + 1)
    }
    return tuple(
        (number, re.sub(r"`[^`]*`", "", line))
        for number, line in enumerate(lines_of(page), 1)
        if number not in inside
    )


@cache
def anchors_of(page: Path) -> frozenset[str]:
    """Anchors of a page: those that it names, and of headings, as GitHub and the site make them."""
    lines = lines_of(page)
    outside = [lines[number - 1] for number, _ in prose_of(page)]
    found = {one[1] or one[2] for line in outside for one in _ANCHOR.finditer(line)}
    for line in outside:
        heading = re.match(r"#{1,6} +(.*?)(?: *\{[^}]*\})?$", line)
        if heading:
            words = re.sub(r"\]\([^)]*\)", "", heading[1]).lower()
            found.add(re.sub(r"[^\w\- ]", "", words).strip().replace(" ", "-"))
    return frozenset(found)


def links_of(page: Path) -> Iterator[tuple[int, str]]:
    """(line, target) of links and pictures to files of the repository, or within the page."""
    for number, line in prose_of(page):
        for one in _LINK.finditer(line):
            target = one[1] or one[2]
            for start in (SITE, PICTURES):
                if target.startswith(start):
                    yield number, "/" + target.removeprefix(start)
            if not re.match(r"[a-z]+:", target):
                yield number, target


def place(page: Path, line: int) -> str:
    return f"{page.relative_to(ROOT).as_posix()}:{line}"


def is_translation(page: Path) -> bool:
    return page.name.endswith(".zh.md") or page.name == "README_zh.md"


def twin_of(page: Path) -> Path:
    """The Chinese page of an English one."""
    if page.parent == ROOT:
        return page.with_name(f"{page.stem}_zh.md")
    return page.with_name(f"{page.stem}.zh.md")


def documents() -> list[Path]:
    """Every Markdown file of the root and of ``docs/``."""
    return sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])


def site_pages() -> list[Path]:
    """README and the pages of the site, in both languages."""
    pages = [page for page in DOCS.rglob("*.md") if page.relative_to(DOCS).parts[0] not in OFF_SITE]
    return sorted([*ROOT.glob("README*.md"), *pages])
