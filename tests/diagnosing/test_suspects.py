# SPDX-License-Identifier: Apache-2.0
"""Labels that contradict the answers are listed, others are not."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from muntin.data.detection import list_detect
from muntin.diagnosing.run_diagnosis import write_suspects
from muntin.diagnosing.run_faults import diagnose_result, is_failed
from muntin.diagnosing.suspects import find_copies, find_label_errors
from muntin.errors import RunError
from muntin.metrics.class_metrics import ClassificationMetric, SemanticMetric
from muntin.metrics.detection_metric import DetectionMetric
from muntin.results import Detections, SemanticMap
from muntin.runs import Run, append_journal
from muntin.samples import Entry, Listing, MaskEncoding
from muntin.scoring.evaluator import Outputs, Scored
from muntin.synthetic.datasets import write_coco
from tests.small import train_small, write_images

NAMES = ("ash", "birch", "cedar")


def scored_of(metric, answers, truth, listing):
    rows = torch.arange(len(listing))
    outputs = Outputs(answers=answers, truth=truth, losses=torch.empty(0), indices=rows)
    return Scored(figures={}, metric=metric, outputs=outputs, listing=listing)


def classified(truth, predicted, sure=0.9):
    """Answers that give one class most of the score."""
    metric = ClassificationMetric(3)
    scores = torch.full((len(truth), 3), (1 - sure) / 2)
    scores[torch.arange(len(truth)), torch.tensor(predicted)] = sure
    metric.update(scores.log(), torch.tensor(truth))
    entries = tuple(Entry(path=f"{n}.png", class_ids=(one,)) for n, one in enumerate(truth))
    listing = Listing(source="x", entries=entries, class_names=NAMES)
    return scored_of(metric, scores.log(), torch.tensor(truth), listing)


def test_a_class_that_is_contradicted_with_certainty():
    truth = [0, 1, 2] * 5
    predicted = [*truth[:-1], 0]
    (found,) = find_label_errors("val", classified(truth, predicted))
    assert (found.kind, found.part, found.path) == ("class", "val", "14.png")
    assert found.score == pytest.approx(0.9)
    assert find_label_errors("val", classified(truth, truth)) == []


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    folder = write_coco(tmp_path_factory.mktemp("o"), num_train=6, num_val=2, size=(64, 64))
    return list_detect(folder).train


def found_objects(listing, change=lambda row, columns: None):
    """Detections equal to the annotations but for what `change` does to one image's."""
    answers = []
    for row, entry in enumerate(listing.entries):
        columns = [entry.objects.boxes.copy(), entry.objects.class_ids.copy()]
        change(row, columns)
        boxes, class_ids = columns
        answers.append(
            Detections(
                path=entry.path,
                size=entry.size,
                boxes=boxes,
                class_ids=class_ids,
                scores=np.full(len(boxes), 0.95),
                class_names=tuple(listing.class_names[n] for n in class_ids),
            )
        )
    metric = DetectionMetric(listing.class_names, masks=False)
    truth = [entry.objects for entry in listing.entries]
    metric.update(answers, truth)
    return scored_of(metric, answers, truth, listing)


def test_objects_that_one_side_lacks_or_calls_otherwise(objects):
    def change(row, columns):
        if row == 0:
            columns[0], columns[1] = columns[0][1:], columns[1][1:]
        if row == 1:
            columns[1][0] = (columns[1][0] + 1) % len(objects.class_names)
        if row == 2:
            columns[0][0] = [0, 0, 4, 4]

    found = find_label_errors("train", found_objects(objects, change))
    kinds = {(one.kind, one.path) for one in found}
    first, second, third = (entry.path for entry in objects.entries[:3])
    assert kinds == {
        ("unfound", first), ("class", second), ("missing", third), ("unfound", third),
    }  # fmt: skip
    assert find_label_errors("train", found_objects(objects)) == []


def test_a_mask_that_hardly_agrees():
    maps = [np.arange(64).reshape(8, 8) % 2 for _ in range(9)]
    answers = [
        SemanticMap(path="", size=(8, 8), labels=m.astype(np.int16), class_names=NAMES)
        for m in maps
    ]
    truth = [*maps[:-1], 1 - maps[-1]]
    entries = tuple(Entry(path=f"{n}.png", mask=f"{n}.png") for n in range(9))
    encoding = MaskEncoding(kind="index", values=(0, 1, 2))
    listing = Listing(source="x", entries=entries, class_names=NAMES, encoding=encoding)
    scored = scored_of(SemanticMetric(NAMES), answers, truth, listing)
    assert [one.path for one in find_label_errors("val", scored)] == ["8.png"]


def test_copies_in_two_parts_and_files(objects, tmp_path):
    for part in ("train", "val"):
        write_images(tmp_path / part, each=2 if part == "train" else 1, side=32)
    paths = {part: sorted((tmp_path / part).rglob("*.png")) for part in ("train", "val")}
    sets = {
        part: Listing(
            source=str(tmp_path),
            entries=tuple(Entry(path=str(path.relative_to(tmp_path))) for path in found),
            class_names=NAMES,
        )
        for part, found in paths.items()
    }
    copies = find_copies(sets)
    assert {(one.path, one.other) for one in copies} >= {("train/ash/0.png", "val/ash/0.png")}
    suspects = [*find_label_errors("train", found_objects(objects, _forget_first)), *copies]
    written = write_suspects(suspects, tmp_path / "out")
    names = ["suspects.json", "suspects.csv", "label_errors.png", "copies.png"]
    assert [path.name for path in written] == names
    rows = json.loads(written[0].read_text())
    assert [row["path"] for row in rows] == [one.path for one in suspects]
    assert len(list(csv.DictReader(written[1].read_text().splitlines()))) == len(suspects)
    with Image.open(written[2]) as sheet:
        assert sheet.width > 200
    with pytest.raises(RunError, match=r"--out .*suspects\.json"):
        write_suspects(suspects, tmp_path / "out")


def _forget_first(row, columns):
    if row == 0:
        columns[0], columns[1] = columns[0][1:], columns[1][1:]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    data = write_images(folder / "trees", each=8)
    return Run.open(train_small(data, folder / "run", epochs=1).path)


def test_figures_of_nothing_have_a_cause(run, objects):
    assert not is_failed(run, {"balanced_accuracy": 0.5, "top1": 0.5})
    nothing = {"balanced_accuracy": 1 / 3, "top1": 0.4}
    assert is_failed(run, nothing)
    (short,) = diagnose_result(run, (objects, objects), nothing, None)
    assert short.code == "too-short"


@pytest.mark.parametrize(("lines", "said"), [([{"steps": 1}], "1 step"), ([{}, {}], "4 steps"),
                         ([{}, {"steps": 1}], "3 steps")])  # fmt: skip
def test_an_epoch_that_was_cut_counts_its_own_steps(run, objects, tmp_path, lines, said):
    for number, line in enumerate(lines, 1):
        append_journal(tmp_path, {"epoch": number, "train_loss": 1.0, **line})
    nothing = {"balanced_accuracy": 1 / 3, "top1": 0.4}
    ours = replace(run, path=tmp_path)
    (short,) = diagnose_result(ours, (objects, objects), nothing, None)
    assert (short.code, short.detail) == ("too-short", said)


def test_permuted_classes_are_told_from_answers(run, tmp_path):
    truth = [0, 1, 2] * 50
    scored = classified(truth, [(one + 1) % 3 for one in truth])
    nothing = {"balanced_accuracy": 0.0, "top1": 0.0}
    for epoch in range(1, 40):
        append_journal(tmp_path, {"epoch": epoch, "train_loss": 1 / epoch, "learning_rate": 1e-3})
    run = replace(run, path=tmp_path)
    many = Listing(source=str(tmp_path), entries=scored.listing.entries, class_names=NAMES)
    codes = [one.code for one in diagnose_result(run, (many, many), nothing, scored)]
    assert "permuted-classes" in codes
    for few, found in (([0, 1, 2] * 6, [1, 2, 0] * 6), (truth, [(1, 2, 1)[one] for one in truth])):
        scored = classified(few, found)
        codes = [one.code for one in diagnose_result(run, (many, many), nothing, scored)]
        assert "permuted-classes" not in codes, "chance, and two classes found as one"
