# SPDX-License-Identifier: Apache-2.0
"""Faults that only a training shows are named at its end, in the card and by `muntin doctor`."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from muntin.diagnosing.run_diagnosis import diagnose_run
from tests.small import CLASSES, image, train_small, write_images

PLAIN = {"train.optimizer": "adamw", "train.lr_batch": 0, "train.learning_rate": 1e-3}


def rotate_classes(folder):
    """The names of the classes in validation, each given to the next one."""
    first, *others = CLASSES
    shutil.move(folder / "val" / first, folder / "val" / "kept")
    for name, source in zip(CLASSES, [*others, "kept"], strict=True):
        shutil.move(folder / "val" / source, folder / "val" / name)


def shuffle_labels(folder):
    """Each image gets a class that has nothing to do with it."""
    for class_id, name in enumerate(CLASSES):
        for number in range(100, 180):  # of few, chance alone gets some right
            image(class_id, number).save(folder / "val" / name / f"{number}.png")
    generator = np.random.default_rng(0)
    for part in ("train", "val"):
        paths = sorted((folder / part).rglob("*.png"))
        for number, path in enumerate(paths):
            name = CLASSES[generator.integers(len(CLASSES))]
            shutil.move(path, folder / part / name / f"{number}_shuffled.png")


RUNS = {
    "classes in another order in validation": ("permuted-classes", rotate_classes, {}),
    "labels of other images": ("no-signal", shuffle_labels, {}),
    "a rate that moves nothing": ("rate-low", None, {"train.learning_rate": 1e-8}),
    "a frozen random backbone": (
        "frozen", None, {"train.freeze": -1, "train.learning_rate": 1e-6},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "all", each=48)
    for name in CLASSES:
        for part, numbers in (("train", range(40)), ("val", range(40, 48))):
            (folder / part / name).mkdir(parents=True)
            for number in numbers:
                shutil.move(folder / "all" / name / f"{number}.png", folder / part / name)
    shutil.rmtree(folder / "all")
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:train.freeze=-1 with random weights")
@pytest.mark.parametrize("name", RUNS)
def test_a_cause_at_the_end(name, trees, tmp_path):
    code, seed, settings = RUNS[name]
    data = shutil.copytree(trees, tmp_path / "data")
    if seed is not None:
        seed(data)
    run = train_small(data, tmp_path / "run", epochs=8, settings={**PLAIN, **settings})
    card = (run.path / "README.md").read_text()
    assert f"{code}: " in card.partition("## Diagnosis")[2]
    assert code in {one.code for one in diagnose_run(run.path).findings}
