# SPDX-License-Identifier: Apache-2.0
"""A tiny ViT, a few generated images, and the training loop for any objective."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn

from muntin.data.classification_transforms import AugmentConfig
from muntin.data.listing import list_classify
from muntin.data.transforms import Preprocessing
from muntin.heads.network import Network
from muntin.run_config import RunConfig
from muntin.runs import Run
from muntin.samples import Classes
from muntin.synthetic.datasets import write_classify
from muntin.train_config import MachineConfig, TrainConfig
from muntin.training.loop import FitResult, Loop
from muntin.training.progress import Reporter
from muntin.training.request import PreparedRun
from muntin.zoo.model_building import model_config
from muntin.zoo.model_zoo import build_backbone

SIDE, PATCH, DIM = 32, 8, 16
PLAIN = {"batch_size": 4, "epochs": 4, "learning_rate": 3e-3, "lr_batch": 0, "warmup": 0.0}
PRE = Preprocessing(img_size=(SIDE, SIDE), mean=(0.5,) * 3, std=(0.25,) * 3)
MODEL = model_config(
    "vit_tiny_patch16_224",
    {"embed_dim": DIM, "depth": 2, "num_heads": 2, "patch_size": PATCH, "img_size": (SIDE, SIDE)},
)


def fit_objective(
    folder: Path, name: str, objective, head: nn.Module, *,
    fabric: Fabric | None = None, clock=time.monotonic, train=None, **options,
) -> FitResult:  # fmt: skip
    """Train four epochs of three steps, and write the run folder `name`."""
    if not (folder / "set").exists():
        sizes = {"num_train_per_class": 2, "num_val_per_class": 1, "size": (SIDE, SIDE)}
        write_classify(folder / "set", **sizes)
    data = list_classify(folder / "set")
    config = RunConfig(
        task="classify", data="", model_name="vit", model=MODEL,
        machine=MachineConfig(device="cpu", compile="off", workers=0),
        train=TrainConfig(**{**PLAIN, **(train or {})}),
        augment=AugmentConfig(),
    )  # fmt: skip
    run = Run(
        path=folder / name, config=config, preprocessing=PRE,
        classes=Classes(names=data.train.class_names),
    )  # fmt: skip
    torch.manual_seed(0)
    network = Network(build_backbone(MODEL), head)
    prepared = PreparedRun(
        run=run, network=network, train=data.train, val=data.val, keep_batch=True, notes=()
    )
    run.path.mkdir(exist_ok=True)
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    begun = clock()
    loop = Loop(fabric, prepared, objective, Reporter(None), clock)
    return loop.fit(started=begun, **options)
