# SPDX-License-Identifier: Apache-2.0
"""From which score on objects count: the run's results say so, the journal of an older run does."""

from __future__ import annotations

from pathlib import Path

import pytest

from muntin.data.transforms import Preprocessing
from muntin.errors import ConfigError, RunError
from muntin.heads.head_table import DETECTORS
from muntin.prediction.from_run import find_threshold, load
from muntin.results import DEFAULT_SCORE_THRESHOLD
from muntin.run_config import RunConfig
from muntin.run_files import write_results
from muntin.runs import Results, Run, append_journal, read_results
from muntin.samples import Classes
from muntin.zoo import model_config


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A folder without weights."""
    config = RunConfig(
        task="detect", data="d", model_name="swin_nano", model=model_config("swin_nano"),
        head=DETECTORS["fcos_small"],
    )  # fmt: skip
    pre = Preprocessing(img_size=(64, 64), mean=(0.5,) * 3, std=(0.25,) * 3)
    run = Run(path=tmp_path, config=config, classes=Classes(names=("cat",)), preprocessing=pre)
    run.write()
    return run


def write_journal(run: Run) -> None:
    append_journal(run.path, {"epoch": 1, "val_box_ap": 0.2, "val_best_threshold": 0.3})
    append_journal(run.path, {"epoch": 2, "val_box_ap": 0.4, "val_best_threshold": 0.6})
    append_journal(run.path, {"epoch": 3, "val_box_ap": 0.4, "val_best_threshold": 0.7})
    append_journal(run.path, {"epoch": 4, "train_loss": 0.1})


def test_results_come_first(run):
    write_journal(run)
    figures = {"box_ap": 0.5, "best_threshold": 0.25, "ap": [0.5, None]}
    write_results(run.path, 3, figures)
    assert read_results(run) == Results(epoch=3, figures=figures, score_threshold=0.25)
    assert find_threshold(run).score == pytest.approx(0.25 - 1e-4)


def test_an_older_run_has_a_journal_alone(run):
    write_journal(run)
    figures = {"box_ap": 0.4, "best_threshold": 0.6}
    assert read_results(run) == Results(epoch=2, figures=figures, score_threshold=0.6)
    assert find_threshold(run).score == pytest.approx(0.6 - 1e-4)


def test_a_run_that_was_never_validated(run):
    assert read_results(run) == Results()
    assert find_threshold(run).score == DEFAULT_SCORE_THRESHOLD
    append_journal(run.path, {"epoch": 1, "train_loss": 0.1})
    assert find_threshold(run).score == DEFAULT_SCORE_THRESHOLD


def test_validation_found_nothing(run):
    write_journal(run)
    write_results(run.path, 1, {"box_ap": 0.0, "best_threshold": None})
    assert find_threshold(run).score == DEFAULT_SCORE_THRESHOLD


def test_broken_results(run):
    (run.path / "results.json").write_text("{")
    with pytest.raises(RunError, match=r"results\.json"):
        find_threshold(run)


@pytest.mark.parametrize("name", ["least", "detector_threshold"])
def test_a_threshold_is_reported_under_the_name_it_was_given(run, name):
    with pytest.raises(ConfigError, match=rf"^{name} .*2"):
        load(run, **{name: 2.0})
    with pytest.raises(ConfigError, match=rf"^{name} needs a detector.*0\.5"):
        load(run, **{name: 0.5})
