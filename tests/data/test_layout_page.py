# SPDX-License-Identifier: Apache-2.0
"""Every row of READERS has example trees in the page, which it reads, and a row in its table."""

import pytest

from muntin.data.data_config import DataConfig
from muntin.data.grouping import give_groups
from muntin.tasks.task_table import TASKS
from tests.data.layout_page import GROUPS, PAGE, can_use, data_of, files_of, page, trees_of

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


@pytest.mark.parametrize(("task", "reader", "readers", "tree"), CASES)
def test_groups_are_given_beside_every_layout(tmp_path, task, reader, readers, tree):
    """By a groups.csv, which changes nothing else, and by a pattern."""
    data = data_of(reader, tree, tmp_path)
    before = TASKS[task].list_data(data, None, DataConfig()).train
    rows = "".join(f"{entry.path},g\n" for entry in before.entries)
    (tmp_path / "groups.csv").write_text(f"path,group\n{rows}", encoding="utf-8")
    after = TASKS[task].list_data(data, None, DataConfig()).train
    assert [entry.path for entry in after.entries] == [entry.path for entry in before.entries]
    for groups, name in (("auto", "g"), (r"(\w)\.\w+$", None)):
        notes = []
        found = give_groups(after, groups, notes).entries
        assert {entry.group for entry in found} == {
            name or entry.path.rpartition(".")[0][-1] for entry in found
        }
        assert f"from {'groups.csv' if name else 'data.groups'}" in notes[0]


def test_the_page_shows_the_rows():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.data.layout_page"


def test_a_tree_is_paths_and_texts():
    tree = "a.yaml  names: [x]\n  | train: b\n  |   c: 1\nb/1.jpg\nm/1.png  0 255"
    found = [("a.yaml", "names: [x]\ntrain: b\n  c: 1"), ("b/1.jpg", ""), ("m/1.png", "0 255")]
    assert [*files_of(tree)] == found
