# SPDX-License-Identifier: Apache-2.0
"""A time limit holds, on a clock that only the work of a run moves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from muntin.heads.classification_head import LinearHead
from muntin.objectives.objective import MeanLoss, Objective
from muntin.runs import read_journal
from muntin.scoring.evaluator import Outputs, Scored, join_outputs
from muntin.training.time_limit import TimeLimit
from tests.objectives.fitting import DIM, PLAIN, fit_objective


class Timed(Objective):
    """Takes so many seconds for a step, an image in validation, and a checkpoint."""

    def __init__(self, step=1.0, image=1.0, start=0.0, save=1.0, first_step=0.0):
        self.now, self.validations = 100.0, []
        self.step, self.image, self.start, self.save = step, image, start, save
        self.first_step = first_step
        self.steps = 0

    def prepare(self, views, device):
        return views[0].images.float()

    def losses(self, network, inputs):
        self.now += self.step + (self.first_step if self.steps == 0 else 0)
        self.steps += 1
        logits = network.head(network.features(inputs))
        return {"loss": F.mse_loss(logits, torch.zeros_like(logits)).expand(len(inputs))}

    def evaluate(self, network, loader, device, autocast):
        places = torch.cat([batch.indices for batch in loader])
        self.now += self.start + self.image * len(places)
        self.validations.append((len(places), self.steps, self.now))
        empty = torch.empty(0)
        return Outputs(answers=empty, truth=empty, losses=torch.ones(len(places)), indices=places)

    def score(self, parts, listing):
        metric = MeanLoss()
        metric.update(torch.ones(1))
        return Scored(
            figures=metric.compute(), metric=metric, outputs=join_outputs(parts), listing=listing
        )

    def goal(self, figures):
        return "loss", -figures["loss"]

    def state(self):
        self.now += self.save
        return {}


# Few images to validate, three steps an epoch; seconds of a step, an image, and so on.
TASKS = {
    "classification: short steps": {"step": 2.5, "image": 0.1, "save": 0.2},
    "detection: a validation of half the limit": {"step": 2.0, "image": 5.0, "save": 1.0},
    "segmentation: long steps, images one by one": {"step": 11.0, "image": 5.0, "save": 3.0},
    "a first step that compiles": {"step": 3.0, "image": 1.0, "first_step": 30.0},
    "workers that start slowly": {"step": 3.0, "image": 1.0, "start": 5.0},
    "a slow disk": {"step": 3.0, "image": 1.0, "save": 6.0},
}


@pytest.mark.parametrize(
    ("task", "limit"),
    [*((task, 60) for task in TASKS), *((task, 120) for task in list(TASKS)[1:3])],
)
def test_a_time_limit_holds(tmp_path, task, limit):
    objective = Timed(**TASKS[task])
    begun = objective.now
    train = {"max_time_s": float(limit), "epochs": 10_000}
    result = fit_objective(
        tmp_path, "run", objective, LinearHead(DIM, 4), train=train, clock=lambda: objective.now
    )
    spent = objective.now - begun
    assert result.seconds == spent
    assert spent <= limit + max(5, 0.05 * limit)
    # Nor is it wasted: what was left is less than a last round of steps and validation takes.
    count, steps, _ = objective.validations[-1]
    assert spent >= 0.9 * limit - objective.start - objective.image * count - 5 * objective.save - 5
    assert steps == objective.steps, "the last weights are validated"
    assert count == max(count for count, _, _ in objective.validations)
    assert not result.interrupted
    rates = [line["learning_rate"] for line in read_journal(tmp_path / "run")]
    assert len(rates) == 1 or rates[-1] < rates[0] / 2, "it follows the clock"


@pytest.mark.parametrize("task", TASKS)
def test_a_larger_limit_goes_on_where_the_first_one_ended(tmp_path, task):
    """It holds over both sittings, and the rate is that of the longer run at this point."""
    objective = Timed(**TASKS[task])
    train = {"epochs": 10_000, "decay": "linear", "min_lr": 0.0}

    def fit(limit, **options):
        begun = objective.now
        result = fit_objective(
            tmp_path, "run", objective, LinearHead(DIM, 4), clock=lambda: objective.now,
            train={**train, "max_time_s": limit}, **options,
        )  # fmt: skip
        lines = read_journal(tmp_path / "run")
        return result, objective.now - begun, lines

    _, first, before = fit(60.0)
    objective.now += 1000.0  # between the sittings
    result, second, lines = fit(160.0, resume=True)
    # What a sitting does after its last checkpoint is not in it.
    assert result.seconds == pytest.approx(first + second, abs=objective.save + 0.001)
    assert first + second <= 160 + 8
    assert lines[: len(before)] == before
    assert second > 50
    if task.endswith("short steps"):  # where reserves hardly matter
        rates = [line["learning_rate"] / PLAIN["learning_rate"] for line in lines]
        done = (lines[len(before)]["seconds"] - objective.step) / 152
        assert rates[len(before) - 1] < 0.1
        assert rates[len(before)] == pytest.approx(1 - done, abs=0.03)
    _, third, _ = fit(160.0, resume=True)  # without more time
    assert first + second + third <= 160 + 8 + objective.save


def test_even_the_shortest_limit_allows_a_step_and_a_validation(tmp_path):
    objective = Timed(step=50.0, image=50.0)
    result = fit_objective(
        tmp_path, "run", objective, LinearHead(DIM, 4), clock=lambda: objective.now,
        train={"max_time_s": 1.0, "epochs": 10_000},
    )  # fmt: skip
    assert (objective.steps, result.epochs) == (1, 1)
    assert result.figures


def test_what_is_reserved():
    time_limit = TimeLimit(limit_s=100.0, validation_s=10.0, saving_s=2.0, closing_s=1.0)
    for seconds in (4.0, 1.0):
        time_limit.add_step(seconds)
    assert time_limit.reserve_s == pytest.approx(0.9 * 4 + 1.1 * 13 + 5)
    assert time_limit.progress(50.0) == pytest.approx(50 / (100 - time_limit.reserve_s))
    assert TimeLimit(limit_s=0.0, validation_s=9.0).progress(1e9) == 0.0
    assert not time_limit.allows_validation(200.0, 0.04, first=False)
    assert time_limit.allows_validation(250.0, 0.04, first=False)
    assert not time_limit.allows_validation(0.0, 0.04, first=True)
    assert TimeLimit(limit_s=0.0, validation_s=9.0).allows_validation(0.0, 0.04, first=False)
