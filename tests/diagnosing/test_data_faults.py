# SPDX-License-Identifier: Apache-2.0
"""Faults that were put into data are named, and clean data has none."""

from __future__ import annotations

from pathlib import Path

import pytest

from muntin.data.data_config import DataConfig
from muntin.diagnosing.data_faults import diagnose_data
from muntin.synthetic.datasets import write_classify, write_coco, write_frames, write_maps
from muntin.tasks.task_table import find_task
from tests.diagnosing.seeded_faults import DATA_FAULTS


def diagnose(task: str, path: Path) -> list[str]:
    """Codes of what is found, in their order."""
    _, found = diagnose_data(lambda: find_task(task).list_data(path, None, DataConfig()))
    return [one.code for one in found]


# One of each code always, the others with the slow tests.
FIRST = {seeded.code: name for name, seeded in reversed(DATA_FAULTS.items())}
NAMES = [
    pytest.param(name, marks=() if FIRST[seeded.code] == name else pytest.mark.slow)
    for name, seeded in DATA_FAULTS.items()
]


@pytest.mark.parametrize("name", NAMES)
def test_a_seeded_fault_is_named_first(name: str, tmp_path: Path) -> None:
    seeded = DATA_FAULTS[name]
    seeded.write(tmp_path)
    assert diagnose(seeded.task, tmp_path)[:1] == [seeded.code]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_clean_sets_have_no_fault(seed: int, tmp_path: Path) -> None:
    counts = {"num_train": 30, "num_val": 12, "seed": seed}
    write_classify(tmp_path / "c", num_train_per_class=8, num_val_per_class=4, seed=seed)
    write_coco(tmp_path / "o", max_objects=3, **counts)
    write_maps(tmp_path / "m", **counts)
    write_frames(tmp_path / "f", **counts)
    sets = [("classify", "c"), ("detect", "o"), ("instance", "o"), ("semantic", "m"), ("pose", "f")]
    for task, folder in [*sets, ("pose", "o"), ("semantic", "o")]:
        assert diagnose(task, tmp_path / folder) == [], (task, folder)
