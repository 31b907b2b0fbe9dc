# SPDX-License-Identifier: Apache-2.0
"""Links and pictures of documents lead somewhere; Chinese pages are those of the English ones."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.docs.pages import (
    DOCS,
    ROOT,
    anchors_of,
    blocks_of,
    documents,
    is_translation,
    lines_of,
    links_of,
    place,
    prose_of,
    site_pages,
    twin_of,
)
from tests.rules.sources import none

MOST_README_LINES = 160
READ_IN_ENGLISH = ("reference",)


def test_links_lead_to_what_is_there() -> None:
    wrong = [
        f"{place(page, line)} {target}"
        for page in documents()
        for line, target in links_of(page)
        if not _is_there(page, target)
    ]
    none(wrong, "No such file or heading.")


def _is_there(page: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    found = page
    if path:
        found = ROOT / path[1:] if path.startswith("/") else page.parent / path
    if is_translation(page) and twin_of(found).is_file():
        found = twin_of(found)  # the site leads to the page of the reader's language
    if not found.exists():
        return False
    return not anchor or (found.suffix == ".md" and anchor in anchors_of(found))


@pytest.mark.parametrize(
    ("page", "target", "there"),
    [
        ("docs/index.md", "reference/data.md", True),
        ("docs/index.md", "reference/none.md", False),
        ("docs/reference/data.md", "#objects-coco", True),
        ("docs/reference/data.md", "#objects-none", False),
        ("docs/index.md", "/ARCHITECTURE.md#the-layers", True),
        ("docs/index.md", "/ARCHITECTURE.md#the-roof", False),
    ],
)
def test_what_is_there(page: str, target: str, there: bool) -> None:
    assert _is_there(ROOT / page, target) == there


def test_every_page_has_a_chinese_twin() -> None:
    read = [
        page
        for page in site_pages()
        if page.parent == ROOT or page.relative_to(DOCS).parts[0] not in READ_IN_ENGLISH
    ]
    lacking = [page for page in read if not is_translation(page) and not twin_of(page).is_file()]
    none([place(page, 1) for page in lacking], "Write the Chinese page beside it.")
    lone = {page for page in read if is_translation(page)} - {twin_of(page) for page in read}
    none([place(page, 1) for page in sorted(lone)], "The English page is gone.")


@pytest.mark.parametrize(
    "page",
    [page for page in site_pages() if not is_translation(page) and twin_of(page).is_file()],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_a_chinese_page_has_the_same_code(page: Path) -> None:
    ours, theirs = blocks_of(page), blocks_of(twin_of(page))
    for one, other in zip(ours, theirs, strict=False):
        message = f"{place(page, one.line)} and {place(twin_of(page), other.line)} differ"
        assert one.compared() == other.compared(), message
    assert len(ours) == len(theirs), f"{place(page, 1)}: {len(ours)} blocks, not {len(theirs)}"


def test_chinese_pages_have_one_word_for_one_idea() -> None:
    text = (DOCS / "reference" / "words.md").read_text(encoding="utf-8")
    table = text.split("\n## Chinese\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| .* \| (.+) \|$", table, re.MULTILINE)[1:]
    others = [word for cell in cells for word in cell.split(", ")]
    assert len(others) > 5
    # A word of letters may be part of a name.
    pattern = "|".join(rf"\b{word}s?\b" if word.isascii() else word for word in others)
    pages = [(page, prose_of(page)) for page in site_pages() if is_translation(page)]
    texts = ROOT / "src" / "muntin" / "explaining" / "texts" / "zh.toml"
    pages.append((texts, tuple(enumerate(lines_of(texts), 1))))
    wrong = [
        f"{place(page, number)} {found[0]}"
        for page, lines in pages
        for number, line in lines
        if (found := re.search(pattern, re.sub(r"<!--.*?-->|\]\([^)]*\)|^\w+ = '", "", line)))
    ]
    none(wrong, "docs/reference/words.md has the words of Chinese pages.")


def test_readme_has_only_absolute_links_on_an_index() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for row in build["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(row["pattern"], row["replacement"], text)
    targets = re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", text)
    assert len(targets) > 30
    wrong = [a or b for a, b in targets if not re.match(r"https://|#", a or b)]
    none(wrong, "An index shows README alone; see pyproject.toml.")


def test_readme_is_short() -> None:
    for page in (ROOT / "README.md", twin_of(ROOT / "README.md")):
        assert len(page.read_text(encoding="utf-8").splitlines()) <= MOST_README_LINES, page.name
