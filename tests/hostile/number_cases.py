# SPDX-License-Identifier: Apache-2.0
"""Trainings whose numbers are extreme: rates, pixels, examples; kept weights are finite."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from muntin.errors import MuntinError
from muntin.run_files import find_results
from muntin.runs import Run
from tests.golden.material import DATA
from tests.hostile.harness import Case, Place
from tests.hostile.run_cases import TINY, USED

FAST = (
    "--set=train.warmup=0", "--set=train.clip_grad=0", "--set=train.learning_rate=100",
    "--set=train.muon_learning_rate=100", "--epochs=3",
)  # fmt: skip
RATES = {
    "zero": ("--set=train.learning_rate=0", "--set=train.muon_learning_rate=0"),
    "huge": FAST,
    "huge-adamw": (*FAST, "--set=train.optimizer=adamw"),
    "huge-half": (*FAST, "--precision=bf16", "--set=train.residual=half"),
    "fp16": ("--precision=fp16",),
}
Change = Callable[[Path], None]


def number_cases() -> Iterator[Case]:
    """Rates, pixels and examples of each task."""
    for task in USED:
        for label, words in RATES.items():
            if label in ("zero", "huge", "fp16") or task == "classify":
                yield _case(task, "rates", label, words=words)
        for value in (0, 255):
            yield _case(task, "constant images", f"{value}", _recolour(value), expect="accept")
        for label, value in VALUES.items():
            yield _case(task, "values not finite", label, _spoil(value))
        for label, change in EXAMPLES[task].items():
            expect = "refuse" if label.startswith("no-") else "either"
            yield _case(task, "few examples", label, change, expect=expect)


def _case(
    task: str, kind: str, label: str, change: Change | None = None, words: tuple[str, ...] = (),
    expect: str = "either",
) -> Case:  # fmt: skip
    def build(place: Place) -> list[str]:
        data = place.source / "data"
        shutil.copytree(DATA / USED[task][0], data)
        if change is not None:
            change(data)
        side = () if task == "classify" else ("--img-size=64",)
        return ["train", task, str(data), *TINY, *side, *words, "--out", f"{place.out}/run"]

    name = f"numbers/{task}/{kind}/{label}"
    return Case(name=name, kind=kind, build=build, expect=expect, inspect=_find_not_finite)


def _find_not_finite(place: Place) -> list[str]:
    """What is wrong with a run, if there is one that kept weights."""
    run = place.out / "run"
    if not (run / "weights.safetensors").exists():
        return []
    try:
        find_results(run, verify=True)
        state = Run.open(run).load_network().state_dict()
    except MuntinError as error:
        return [f"the run cannot be opened: {error}"]
    return [f"{name} is not finite" for name, one in state.items() if not one.isfinite().all()]


def _images(data: Path) -> list[Path]:
    return [path for path in sorted(data.rglob("*.png")) if "masks" not in path.parts]


def _recolour(value: int) -> Change:
    def change(data: Path) -> None:
        for path in _images(data):
            Image.new("RGB", Image.open(path).size, (value,) * 3).save(path)

    return change


VALUES = {"nan": np.nan, "inf": np.inf, "minus-inf": -np.inf, "3e38": 3e38}


def _spoil(value: float) -> Change:
    """A third of each image is this; of the first one, all."""

    def change(data: Path) -> None:
        for number, path in enumerate(_images(data)):
            pixels = np.asarray(Image.open(path).convert("L")).astype(np.float32) / 255
            pixels[:: 3 if number else 1] = value
            Image.fromarray(pixels).save(path, "TIFF")

    return change


def _empty(data: Path) -> None:
    for path in (data / "train").rglob("*.png"):
        path.unlink()


def _annotations(change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Change:
    def rewrite(data: Path) -> None:
        path = data / "annotations" / "instances_train.json"
        values = json.loads(path.read_text())
        values["annotations"] = change(values["annotations"])
        path.write_text(json.dumps(values))

    return rewrite


def _all(**fields: object) -> Change:
    return _annotations(lambda rows: [{**row, **fields} for row in rows])


def _fill_masks(value: int) -> Change:
    def change(data: Path) -> None:
        for path in sorted((data / "masks" / "train").iterdir()):
            mask = Image.open(path)
            mask.paste(value, (0, 0, *mask.size))
            mask.save(path)

    return change


def _cells(cells: str) -> Change:
    """Give every keypoint of the training set the same cells."""

    def change(data: Path) -> None:
        path = data / "train" / "CollectedData.csv"
        lines = path.read_text().splitlines()
        head, count = lines[:3], lines[0].count(",") // 2
        rows = [",".join([row.split(",")[0], *[cells] * count]) for row in lines[3:]]
        path.write_text("\n".join([*head, *rows]) + "\n")

    return change


OBJECTS: dict[str, Change] = {
    "no-objects": _annotations(lambda rows: []),
    "no-object-but-crowds": _all(iscrowd=1),
    "one-object": _annotations(lambda rows: rows[:1]),
    "tiny": _all(bbox=[3, 3, 0.01, 0.01], area=1e-4, segmentation=[[3, 3, 3.01, 3, 3.01, 3.01]]),
    "large": _all(bbox=[0, 0, 64, 64], area=4096),
}
EXAMPLES: dict[str, dict[str, Change]] = {
    "classify": {"one-each": lambda data: None, "no-examples": _empty},
    "detect": OBJECTS,
    "instance": OBJECTS,
    "semantic": {"one-class": _fill_masks(0), "no-class": _fill_masks(255)},
    "pose": {"one-place": _cells("5,5"), "edge": _cells("0,0"), "no-point": _cells(",")},
}
