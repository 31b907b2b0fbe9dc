# SPDX-License-Identifier: Apache-2.0
"""How to add an objective: one class, which the loop trains and resumes, under 40 lines."""

from __future__ import annotations

import inspect

import torch
import torch.nn.functional as F

from muntin.data.transforms import normalise
from muntin.heads.classification_head import LinearHead
from muntin.objectives.objective import MeanLoss, Objective
from muntin.scoring.evaluator import Outputs, Scored, join_outputs
from tests.objectives.fitting import DIM, PRE, fit_objective


class Rotation(Objective):
    """Predict by which quarter turn an image was rotated (RotNet), without any labels."""

    def prepare(self, views, device):
        images = normalise(views[0].images.to(device), PRE)
        turns = torch.randint(4, (len(images),))  # of the generator that the loop seeds
        rows = zip(images, turns.tolist(), strict=True)
        return torch.stack([image.rot90(k, (1, 2)) for image, k in rows]), turns.to(device)

    def losses(self, network, inputs):
        images, turns = inputs
        logits = network.head(network.features(images))
        return {"rotation": F.cross_entropy(logits, turns, reduction="none")}

    @torch.no_grad()
    def evaluate(self, network, loader, device, autocast):
        network.eval()
        torch.manual_seed(0)
        rows = [(self.losses(network, self.prepare((b,), device)), b.indices) for b in loader]
        network.train()
        empty = torch.empty(0)
        return Outputs(
            answers=empty, truth=empty, losses=torch.cat([r["rotation"] for r, _ in rows]),
            indices=torch.cat([i for _, i in rows]),
        )  # fmt: skip

    def score(self, parts, listing):
        outputs, metric = join_outputs(parts), MeanLoss()
        metric.update(outputs.losses)
        return Scored(figures=metric.compute(), metric=metric, outputs=outputs, listing=listing)

    def goal(self, figures):
        return "loss", -figures["loss"]


def test_the_loop_trains_and_resumes_it(tmp_path):
    def train(name, objective=Rotation, **options):
        torch.manual_seed(1)
        return fit_objective(tmp_path, name, objective(), LinearHead(DIM, 4), **options)

    whole = train("whole")
    assert train("parts", stop_after=5).interrupted
    assert train("parts", resume=True).figures == whole.figures
    assert whole.figures["num_images"] == 6


def test_it_is_short():
    assert len(inspect.getsource(Rotation).splitlines()) <= 40


class TwoViews(Rotation):
    """Checks what the loop gives to an objective that asks for two views of each image."""

    views = 2

    def __init__(self):
        self.seen = set()

    def prepare(self, views, device):
        self.seen.add(len(views))
        if len(views) == 2:  # validation has one
            first, second = views
            assert first.indices.equal(second.indices)
            assert not first.images.equal(second.images)
        return super().prepare(views, device)


def test_an_objective_gets_the_views_it_asks_for(tmp_path):
    torch.manual_seed(1)
    objective = TwoViews()
    fit_objective(tmp_path, "run", objective, LinearHead(DIM, 4))
    assert objective.seen == {1, 2}
