# SPDX-License-Identifier: Apache-2.0
"""How to add a backbone: one class that computes features and names its layers, under 40 lines."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from torch import nn

from muntin.data.transforms import Preprocessing
from muntin.features import Backbone, Features, FeatureSpec, count_stages
from muntin.heads.network import Network
from muntin.prediction.predictor import Predictor
from muntin.samples import Classes, Skeleton
from muntin.tasks.task_table import TASKS
from muntin.train_config import TrainConfig
from muntin.training.optimization import freeze_stages, group_parameters


class Pyramid(Backbone):
    """Two convolutions: maps at strides 4 and 8."""

    stage_unit = "stage"

    def __init__(self, dim=8):
        super().__init__()
        self.dim = dim
        self.stem = nn.Conv2d(3, dim, 4, stride=4)
        self.blocks = nn.ModuleList(
            [nn.Conv2d(dim, dim, 3, padding=1), nn.Conv2d(dim, 2 * dim, 2, stride=2)]
        )

    @property
    def spec(self):
        return FeatureSpec(channels=(self.dim, 2 * self.dim), strides=(4, 8))

    @property
    def embed_channels(self):
        return 2 * self.dim

    def features(self, images, *, sizes=None, mask=None):
        self._refuse_mask(mask)
        fine = self.blocks[0](self.stem(images)).relu()
        coarse = self.blocks[1](fine).relu()
        return Features(
            images, sizes=sizes, maps=lambda: [fine, coarse], vector=lambda: coarse.mean((2, 3))
        )

    def layer_of(self, name):
        return int(name.split(".")[1]) + 1 if name.startswith("blocks") else 0

    def stage_of(self, name):
        return self.layer_of(name)

    def decays(self, name):
        return True


def build(task):
    row = TASKS[task]
    config = None if row.dense is None else row.dense.heads[row.dense.default_head["small"]]
    skeleton = Skeleton(names=("nose", "tail"), edges=((0, 1),))
    classes = Classes(names=("cat", "dog"), skeleton=skeleton if task == "pose" else None)
    torch.manual_seed(0)
    backbone = Pyramid()
    return row, classes, Network(backbone, row.build_head(backbone, classes, config))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_predicts_with_it(task):
    row, classes, network = build(task)
    fits = {"classification": "center_crop", "segmentation": "sliding_window"}
    fit = fits.get(row.kind, "instance_crop" if row.top_down else "letterbox")
    pre = Preprocessing(img_size=(64, 64), mean=(0.5,) * 3, std=(0.25,) * 3, fit=fit)
    predictor = Predictor(network, row, classes, pre, device="cpu")
    boxes = [[0, 0, 70, 50]] if row.top_down else None
    (result,) = predictor(np.zeros((50, 70, 3), np.uint8), boxes=boxes)
    assert result.size == (50, 70)


def test_its_layers_decay_and_freeze():
    _, _, network = build("classify")
    scales = {n: g.scale for g in group_parameters(network, 0.5) for n in g.names}
    assert scales["backbone.stem.weight"] == 0.125
    assert scales["backbone.blocks.1.weight"] == 0.5
    assert scales["head.fc.weight"] == 1.0
    assert TrainConfig(freeze=1).freeze <= count_stages(network.backbone)
    frozen = freeze_stages(network, 1)
    assert sorted({name.rpartition(".")[0] for name in frozen}) == [
        "backbone.blocks.0", "backbone.stem"
    ]  # fmt: skip


def test_it_is_short():
    assert len(inspect.getsource(Pyramid).splitlines()) <= 40
