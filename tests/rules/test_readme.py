# SPDX-License-Identifier: Apache-2.0
"""ARCHITECTURE shows the tree as it is, README numbers as they were measured."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rules.sources import PACKAGE, ROOT, none, rooms

PAGE = ROOT / "ARCHITECTURE.md"
REPORT = ROOT / "benchmarks" / "report.py"
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def _tree_lines() -> list[str]:
    """Lines of the fenced tree that belong to the package."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    trees = [block for block in blocks if "src/muntin" in block]
    assert trees, "ARCHITECTURE.md needs a fenced tree with a line for src/muntin/"
    lines = trees[0].splitlines()
    first = next(number for number, line in enumerate(lines) if "src/muntin" in line)
    inside = []
    for line in lines[first + 1 :]:
        column = _column(line)
        if column is not None and column <= (_column(lines[first]) or 0):
            break  # the next folder beside src/muntin
        if column is not None:
            inside.append(line)
    return inside


def _column(line: str) -> int | None:
    """Where the name of an entry begins; None for a line that only carries the lines on."""
    found = re.search(r"[\w.]", line)
    return found.start() if found else None


def _entries(line: str) -> list[str]:
    """``errors.py`` and ``ops/`` of a line, without the words that explain them."""
    return re.findall(r"(?<![\w/])(\w+\.py|\w+/)(?=\s|$)", line)


def test_every_room_is_in_the_tree_and_explained() -> None:
    lines = _tree_lines()
    wrong = []
    for room in rooms():
        having = [line for line in lines if room in _entries(line)]
        if not having:
            wrong.append(f"{room} is missing")
        elif len(re.findall(r"\w+", having[0].split(room)[-1])) < 2:
            wrong.append(f"{room} is not explained")
    none(wrong, "The tree in ARCHITECTURE.md has one line a room.")


def test_the_tree_shows_nothing_that_is_not_there() -> None:
    present = {*rooms(), "__init__.py", "__main__.py"}
    nested = {path.name for path in PACKAGE.rglob("*.py")}
    nested |= {f"{path.name}/" for path in PACKAGE.rglob("*") if path.is_dir()}
    shown = {entry for line in _tree_lines() for entry in _entries(line)}
    none(sorted(shown - present - nested), "Take these out of the tree in ARCHITECTURE.md.")


@pytest.mark.skipif(not REPORT.is_file(), reason="benchmarks/report.py is not there")
def test_numbers_equal_the_results() -> None:
    command = [sys.executable, str(REPORT), "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_a_result_says_how_it_was_measured(path: Path) -> None:
    assert re.match(r"\d{4}-\d\d-\d\d_[\w.-]+_[\w.-]+\.json$", path.name), "date_device_topic.json"
    keys = _keys(json.loads(path.read_text(encoding="utf-8")))
    missing = {"command", "commit", "date", "device", "torch"} - keys
    assert not missing, f"{path.name} lacks {sorted(missing)}"


def _keys(value: object) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*(_keys(inner) for inner in value.values()))
    if isinstance(value, list):
        return set().union(*(_keys(inner) for inner in value))
    return set()
