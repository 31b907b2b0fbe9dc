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


# One of each way to look always, the others with the slow tests.
FIRST = (
    "COCO boxes as fractions", "YOLO classes from 1", "boxes of mirrored images",
    "masks of background only", "boxes of other images",
    "ears swapped", "validation in BGR", "black images", "copies with another class",
)  # fmt: skip
NAMES = [
    pytest.param(name, marks=() if name in FIRST else pytest.mark.slow) for name in DATA_FAULTS
]


@pytest.mark.parametrize("name", NAMES)
def test_a_seeded_fault_is_named_first(name: str, tmp_path: Path) -> None:
    seeded = DATA_FAULTS[name]
    seeded.write(tmp_path)
    assert diagnose(seeded.task, tmp_path)[:1] == [seeded.code]


def write_clean(folder: Path, **counts) -> None:
    write_coco(folder / "o", max_objects=3, **counts)
    write_maps(folder / "m", **counts)


def test_clean_sets_have_no_fault(tmp_path: Path) -> None:
    write_clean(tmp_path, num_train=24, num_val=12, size=(64, 64))
    for task, folder in [("detect", "o"), ("semantic", "m")]:
        assert diagnose(task, tmp_path / folder) == [], (task, folder)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_clean_sets_of_every_task_have_no_fault(seed: int, tmp_path: Path) -> None:
    counts = {"num_train": 30, "num_val": 12, "seed": seed}
    write_clean(tmp_path, **counts)
    write_classify(tmp_path / "c", num_train_per_class=8, num_val_per_class=4, seed=seed)
    write_frames(tmp_path / "f", **counts)
    sets = [("classify", "c"), ("detect", "o"), ("instance", "o"), ("semantic", "m"), ("pose", "f")]
    for task, folder in [*sets, ("pose", "o"), ("semantic", "o")]:
        assert diagnose(task, tmp_path / folder) == [], (task, folder)
