# SPDX-License-Identifier: Apache-2.0
"""Every row of READERS has example trees in the page, which it reads, and a row in its table."""

import pytest

from tests.data.layout_page import GROUPS, PAGE, can_use, files_of, page, trees_of

CASES = [
    pytest.param(tasks[0], reader, readers, tree, id=f"{tasks[0]}-{reader.name}-{number}")
    for kind, tasks, readers in GROUPS
    for reader in readers
    for number, tree in enumerate(trees_of(kind, reader))
]


def test_every_layout_has_an_example():
    every = [(kind, reader) for kind, _, readers in GROUPS for reader in readers]
    missing = [f"{kind}: {reader.name}" for kind, reader in every if not trees_of(kind, reader)]
    assert not missing, f"sections are lacking in {PAGE.name}, see layout_page.py: {missing}"


@pytest.mark.parametrize(("task", "reader", "readers", "tree"), CASES)
def test_an_example_is_read_without_a_problem_by_its_reader(task, reader, readers, tree):
    assert can_use(task, reader, readers, tree)


def test_the_page_shows_the_rows():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.data.layout_page"


def test_a_tree_is_paths_and_texts():
    tree = "a.yaml  names: [x]\n  | train: b\n  |   c: 1\nb/1.jpg\nm/1.png  0 255"
    found = [("a.yaml", "names: [x]\ntrain: b\n  c: 1"), ("b/1.jpg", ""), ("m/1.png", "0 255")]
    assert [*files_of(tree)] == found
