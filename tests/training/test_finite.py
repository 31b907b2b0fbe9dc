# SPDX-License-Identifier: Apache-2.0
"""What is not finite is neither learnt from nor kept; bf16 gives way to fp32."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch import nn

from muntin.errors import MuntinWarning, TrainingError
from muntin.heads.network import Head
from muntin.objectives.objective import MeanLoss, Objective
from muntin.scoring.evaluator import Outputs, Scored, join_outputs
from tests.objectives.fitting import DIM, fit_objective


class Pull(Head):
    """One vector, which is pulled to ones."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(DIM))

    def forward(self, features):
        return self.place

    def losses(self, features, targets, **_):
        raise NotImplementedError


class _Spoil(torch.autograd.Function):
    """The identity, whose gradient is another number."""

    @staticmethod
    def forward(ctx, x, value):
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.full_like(gradient, ctx.value), None


class Spoiled(Objective):
    """The gradient, or the loss, has the value `value` in the steps `wrong` (counted over all)."""

    def __init__(self, *, wrong=(), value=torch.nan, loss=False, only_bf16=True, goals=()):
        self.wrong, self.value, self.loss, self.only_bf16 = wrong, value, loss, only_bf16
        self.goals = list(goals)
        self.steps, self.precisions = 0, []

    def prepare(self, views, device):
        return len(views[0].indices)

    def losses(self, network, inputs):
        bf16 = torch.is_autocast_enabled("cpu")
        self.precisions.append(bf16)
        place = network.head.place
        hit = self.steps in self.wrong and (bf16 or not self.only_bf16)
        self.steps += 1
        if hit and not self.loss:
            place = _Spoil.apply(place, self.value)
        loss = F.mse_loss(place, torch.ones(DIM))
        return {"loss": (loss * self.value if hit and self.loss else loss).expand(inputs)}

    def evaluate(self, network, loader, device, autocast):
        empty = torch.empty(0)
        losses = torch.ones(1)
        return Outputs(answers=empty, truth=empty, losses=losses, indices=torch.zeros(1).long())

    def score(self, parts, listing):
        goal, loss = self.goals.pop(0) if self.goals else (0.0, None)
        figures = {"goal": goal} if loss is None else {"goal": goal, "loss": loss}
        return Scored(
            figures=figures, metric=MeanLoss(), outputs=join_outputs(parts), listing=listing
        )

    def goal(self, figures):
        return "goal", figures["goal"]


def fit(folder, objective, *, precision="bf16-mixed", **options):
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    return fit_objective(folder, "run", objective, Pull(), fabric=fabric, **options)


def kept(folder):
    return load_file(folder / "run" / "weights.safetensors")["head.place"]


@pytest.mark.parametrize(
    ("value", "loss"),
    [(torch.nan, False), (torch.inf, False), (1e30, False), (torch.nan, True), (-torch.inf, True)],
)
def test_a_step_that_fails_in_bf16_is_left_out_and_the_rest_is_fp32(tmp_path, value, loss):
    objective = Spoiled(wrong=(4,), value=value, loss=loss)
    with pytest.warns(MuntinWarning, match=r"epoch 2, step 2: left out.*fp32"):
        result = fit(tmp_path, objective)
    assert result.epochs == 4
    assert objective.precisions == [True] * 5 + [False] * 7
    plain = tmp_path / "plain"
    fit(plain, Spoiled(), precision="32-true")
    # One step less than the other has made, from the same start.
    assert kept(tmp_path).isfinite().all()
    assert 0 < kept(tmp_path).mean() < kept(plain).mean()


def test_a_resumed_run_stays_in_fp32(tmp_path):
    with pytest.warns(MuntinWarning, match="fp32"):
        fit(tmp_path, Spoiled(wrong=(1,)), stop_after=4)
    again = Spoiled()
    fit(tmp_path, again, resume=True)
    assert again.precisions == [False] * 8


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
@pytest.mark.parametrize("loss", [False, True])
def test_what_fails_in_fp32_too_ends_with_the_last_good_state(tmp_path, precision, loss):
    objective = Spoiled(wrong=range(4, 12), loss=loss, only_bf16=False)
    half = precision != "32-true"
    what = "loss must stay finite, got nan" if loss else r"gradient.*nan \(head\.place\)"
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(TrainingError, match=rf"{what}.*train\.learning_rate"):
            fit(tmp_path, objective, precision=precision)
    assert sum(one.category is MuntinWarning for one in warned) == half
    assert kept(tmp_path).isfinite().all()
    saved = load_file(tmp_path / "run" / "last.ckpt" / "state.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values() if tensor.is_floating_point())
    state = json.loads((tmp_path / "run" / "last.ckpt" / "state.json").read_text())
    assert state["position"]["epoch"] == 1


class Exploding(Spoiled):
    """Ruins a weight behind the back of the gradients, as a moment that overflowed would."""

    def after_step(self, network):
        if self.steps == 6:
            with torch.no_grad():
                network.head.place[3] = torch.inf


@pytest.mark.parametrize("options", [{}, {"stop_after": 6}])
def test_weights_are_checked_before_they_are_kept(tmp_path, options):
    with pytest.raises(TrainingError, match=r"state.*head\.place"):
        fit(tmp_path, Exploding(), precision="32-true", **options)
    assert kept(tmp_path).isfinite().all()


TIES = {
    "the later of equals": ([(0.0, None)] * 4, 4),
    "the lower loss": ([(0.5, 2.0), (0.5, 1.0), (0.5, 3.0), (0.5, 1.5)], 2),
    "the later of equal losses": ([(0.5, 2.0), (0.5, 1.0), (0.5, 1.0), (0.4, 0.1)], 3),
    "the goal before the loss": ([(0.5, 1.0), (0.6, 9.0), (0.5, 0.1), (0.1, 0.1)], 2),
    "no loss is worse than any": ([(0.5, 9.0), (0.5, float("nan")), (0.4, 0.0), (0.4, 0.0)], 1),
}


@pytest.mark.parametrize("case", TIES)
def test_ties_of_the_goal(tmp_path, case):
    goals, best = TIES[case]
    fit(tmp_path, Spoiled(goals=goals), precision="32-true")
    state = json.loads((tmp_path / "run" / "last.ckpt" / "state.json").read_text())
    assert state["position"]["best_epoch"] == best
    assert json.loads((tmp_path / "run" / "results.json").read_text())["epoch"] == best
