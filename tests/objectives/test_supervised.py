# SPDX-License-Identifier: Apache-2.0
"""Learning from annotations: two tasks on one pass of the backbone."""

from __future__ import annotations

import numpy as np
import torch

from muntin.data.batches import Batch
from muntin.data.transforms import Preprocessing
from muntin.heads.classification_head import build_classifier
from muntin.heads.network import Head, Network
from muntin.objectives.supervised_objective import Supervised, SupervisedTask
from muntin.samples import Classes
from muntin.tasks.task_table import find_task
from muntin.zoo.model_building import model_config
from muntin.zoo.model_zoo import build_backbone

SMALL = {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2), "out_indices": (0, 1)}
PRE = Preprocessing(img_size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
CPU = torch.device("cpu")


def a_batch(count: int = 4) -> Batch:
    sides = torch.full((count, 2), 16)
    rng = np.random.default_rng(0)
    return Batch(
        images=torch.from_numpy(rng.integers(0, 256, (count, 3, 16, 16), dtype=np.uint8)),
        sizes=sides,
        originals=sides,
        indices=torch.arange(count),
        weights=torch.ones(count),
        num_real=count,
    )


def a_task(labels: list[int], num_classes: int, **options) -> SupervisedTask:
    names = tuple("abcdef"[:num_classes])
    return SupervisedTask(
        task=find_task("classify"),
        classes=Classes(names=names),
        labels=torch.tensor(labels),
        **options,
    )


def a_backbone():
    torch.manual_seed(0)
    return build_backbone(model_config("swin_nano_patch2_window4_32", SMALL))


def test_two_tasks_cost_one_pass_and_have_the_losses_of_each_alone():
    backbone = a_backbone()
    heads = {"color": build_classifier(backbone, 3), "form": build_classifier(backbone, 2)}
    tasks = {"color": a_task([0, 1, 2, 0], 3), "form": a_task([1, 1, 0, 0], 2, loss_weight=0.5)}
    passes = []
    backbone.patch_embed.register_forward_hook(lambda *_: passes.append(1))
    objective = Supervised(tasks, PRE)
    inputs = objective.prepare((a_batch(),), CPU)
    losses = objective.losses(Network(backbone, heads), inputs)
    assert len(passes) == 1
    assert sorted(losses) == ["color/classes", "form/classes"]
    for name, row in tasks.items():
        alone = Supervised({"head": row}, PRE)
        found = alone.losses(Network(backbone, heads[name]), alone.prepare((a_batch(),), CPU))
        assert losses[f"{name}/classes"].equal(found["classes"])


def test_every_head_learns_and_so_does_the_backbone():
    backbone = a_backbone()
    heads: dict[str, Head] = {
        "color": build_classifier(backbone, 3), "form": build_classifier(backbone, 2)
    }  # fmt: skip
    network = Network(backbone, heads)
    objective = Supervised({"color": a_task([0, 1, 2, 0], 3), "form": a_task([1, 1, 0, 0], 2)}, PRE)
    losses = objective.losses(network, objective.prepare((a_batch(),), CPU))
    torch.stack([*losses.values()]).sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None]


def test_the_weight_of_a_task_scales_its_losses():
    network = Network(a_backbone(), build_classifier(a_backbone(), 2))
    found = []
    for weight in (1.0, 0.5):
        objective = Supervised({"head": a_task([1, 1, 0, 0], 2, loss_weight=weight)}, PRE)
        found.append(objective.losses(network, objective.prepare((a_batch(),), CPU))["classes"])
    assert found[1].equal(found[0] * 0.5)
