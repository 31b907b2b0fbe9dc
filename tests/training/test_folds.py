# SPDX-License-Identifier: Apache-2.0
"""k-fold runs: what each fold holds, their report, and going on where they were cut."""

from __future__ import annotations

import json
from statistics import fmean, stdev

import pytest

import muntin
from muntin.data.grouping import fold_apart
from muntin.errors import ConfigError
from muntin.runs import Run
from muntin.samples import Entry, Listing
from tests.small import train_small, write_images


def listing_of(source, rows) -> Listing:
    entries = tuple(
        Entry(path=f"{number}.png", class_ids=(class_id,), group=group)
        for number, (class_id, group) in enumerate(rows)
    )
    return Listing(source=str(source), entries=entries, class_names=("a", "b"))


def folds_of(listing: Listing, count: int, *, groups="none", seed=0):
    return [
        fold_apart(listing, groups=groups, folds=count, fold=number, seed=seed)
        for number in range(1, count + 1)
    ]


def test_every_image_validates_once_and_classes_are_even(tmp_path):
    listing = listing_of(tmp_path, [(number % 2, "") for number in range(22)])
    parts = folds_of(listing, 5)
    held = [entry.path for _, val, _ in parts for entry in val.entries]
    assert sorted(held) == sorted(entry.path for entry in listing.entries)
    for train, val, _ in parts:
        assert not {e.path for e in train.entries} & {e.path for e in val.entries}
        assert len(train) + len(val) == 22
        assert 4 <= len(val) <= 5
        assert all(2 <= count <= 3 for count in val.class_counts)


def test_groups_stay_together(tmp_path):
    listing = listing_of(tmp_path, [(number % 2, f"patient {number // 4}") for number in range(32)])
    for train, val, _ in folds_of(listing, 4, groups="none"):
        groups = [{entry.group for entry in part.entries} for part in (train, val)]
        assert not groups[0] & groups[1]
        assert len(val) == 8


def test_another_seed_gives_other_folds(tmp_path):
    listing = listing_of(tmp_path, [(number % 2, "") for number in range(40)])
    first, again, other = (
        [[e.path for e in val.entries] for _, val, _ in folds_of(listing, 4, seed=seed)]
        for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.fixture(scope="module")
def folds(tmp_path_factory):
    """Two folds that stopped in the first and went on, their folder and the data."""
    root = tmp_path_factory.mktemp("folds")
    data = write_images(root / "data", classes=("ash", "birch"), each=4)
    cut = train_small(data, root / "out", folds=2, epochs=1, stop_after=1)
    assert cut.interrupted
    assert not (root / "out" / "fold_2").exists()
    assert not (root / "out" / "results.json").exists()
    run = train_small(data, root / "out", folds=2, resume=True)
    return run, root / "out", data


def test_the_report_is_mean_and_spread(folds):
    run, out, _ = folds
    values = json.loads((out / "results.json").read_text())
    assert [row["run"] for row in values["folds"]] == ["fold_1", "fold_2"]
    figures = [row["figures"]["loss"] for row in values["folds"]]
    assert values["mean"]["loss"] == pytest.approx(fmean(figures))
    assert values["std"]["loss"] == pytest.approx(stdev(figures))
    assert run.metrics["loss"] == pytest.approx(fmean(figures))
    text = (out / "results.md").read_text()
    assert f"{fmean(figures):.4f}" in text
    assert "fold 2" in text


def test_folds_are_whole_runs(folds):
    _, out, data = folds
    configs = [Run.open(out / f"fold_{number}").config for number in (1, 2)]
    assert configs[0].train == configs[1].train
    assert [(one.data_config.folds, one.data_config.fold) for one in configs] == [(2, 1), (2, 2)]
    (label,) = muntin.load(out / "fold_2")(data / "ash" / "0.png")
    assert label.class_names[0] in ("ash", "birch")


def test_finished_folds_are_kept(folds):
    _, out, data = folds
    before = [(out / f"fold_{n}" / "weights.safetensors").stat().st_mtime_ns for n in (1, 2)]
    train_small(data, out, folds=2, resume=True)
    after = [(out / f"fold_{n}" / "weights.safetensors").stat().st_mtime_ns for n in (1, 2)]
    assert before == after


def test_another_number_of_folds_cannot_go_on(folds):
    _, out, data = folds
    with pytest.raises(ConfigError, match=r"data\.folds"):
        train_small(data, out, folds=3, resume=True)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"folds": 1}, "folds"), ({"folds": 2, "val": "x"}, "val")],
)
def test_what_makes_no_folds_is_refused(folds, tmp_path, options, named):
    with pytest.raises(ConfigError, match=named):
        train_small(folds[2], tmp_path / "out", **options)
