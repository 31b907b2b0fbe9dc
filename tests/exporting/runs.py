# SPDX-License-Identifier: Apache-2.0
"""Run folders of every task, with fresh weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import muntin
from muntin.data.transforms import Preprocessing
from muntin.run_config import RunConfig
from muntin.run_files import WEIGHTS
from muntin.runs import Run
from muntin.samples import Classes, Skeleton
from muntin.weights.weight_files import write_weights
from tests.detectors import tiny_detector

SMALL = {"depths": (1, 1), "num_heads": (1, 2), "embed_dim": 16, "out_indices": (0, 1)}
NORMAL = {"mean": (0.485, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
SKELETON = Skeleton(
    names=("nose", "left", "right"), edges=((0, 1),), flip_pairs=((1, 2),), sigmas=(0.1, 0.1, 0.1)
)


def write_run(path: Path, kind: str, *, side: int = 128, seed: int = 0) -> Run:
    """A run of a classifier, or of the head of this name."""
    torch.manual_seed(seed)
    options: dict[str, Any] = {"window_size": 4, "img_size": 64, **SMALL}
    shown: dict[str, Any] = {"img_size": (64, 64)}
    classes, head, name = Classes(names=("ash", "birch", "cedar")), None, "classify"
    if kind == "classify":
        network = muntin.create_model("swin_nano", num_classes=3, **options)
    elif kind == "pose":
        classes = Classes(names=("mouse",), skeleton=SKELETON)
        network = muntin.create_pose_estimator(
            "swin_nano", num_keypoints=3, head="light_pose_small", **options
        )
        shown, name = {"img_size": (64, 96), "fit": "instance_crop", "padding": 1.0}, "pose"
    elif kind == "semantic":
        network = muntin.create_segmenter("swin_nano", num_classes=3, head="light_small", **options)
        shown, name = {"img_size": (64, 64), "fit": "sliding_window"}, "semantic"
    else:
        name = "instance" if "mask" in kind else "detect"
        front = kind.partition(" ")[0]  # "dense_small masks": of both tasks
        network = tiny_detector(front, 3, task=name, seed=seed, threshold=0.05, most=100)
        shown = {"img_size": (side, 128), "fit": "letterbox"}
    with torch.no_grad():
        for parameter_name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)
            if "fc_cls.weight" in parameter_name or "classes.weight" in parameter_name:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
            if "twin.weight" in parameter_name:
                parameter.copy_(torch.randn_like(parameter) * 0.02)
    head = None if kind == "classify" else network.head.config
    run = Run(
        path=path,
        config=RunConfig(
            task=name, data="", model_name="swin_nano", model=network.backbone.config, head=head
        ),
        classes=classes,
        preprocessing=Preprocessing(**NORMAL, **shown),
    )
    run.write()
    write_weights(path / WEIGHTS, network.state_dict(), {"dialect": "muntin"})
    return run
