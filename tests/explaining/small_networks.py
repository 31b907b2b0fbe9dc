# SPDX-License-Identifier: Apache-2.0
"""Small networks of every family and task, each with an image to explain."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

import muntin
from muntin.data.transforms import Preprocessing, normalise
from muntin.engines.engine_network import EngineNetwork, HeadInfo
from muntin.explaining.context import Context
from muntin.models.timm_backbone import TimmBackbone
from muntin.samples import Classes, Skeleton
from muntin.synthetic.scenes import make_scene
from muntin.tasks.task_table import find_task

NORMAL = {"mean": (0.485, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
NAMES = ("ash", "birch", "cedar")
TINY = {"embed_dim": 16, "depths": (2, 2, 2), "num_heads": (1, 2, 4)}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "swin": ("swin_nano", TINY),
    "swin_v2": ("swinv2_tiny_window8_256", {"depths": (2, 2), "out_indices": (0, 1),
        "embed_dim": 16, "num_heads": (1, 2), "window_size": 4, "img_size": 32}),
    "vit": ("vit_tiny_patch16_224", {"embed_dim": 16, "depth": 3, "num_heads": 2,
        "patch_size": 8, "img_size": 64}),
    "vit_mean": ("vit_tiny_patch16_224", {"embed_dim": 16, "depth": 3, "num_heads": 2,
        "patch_size": 8, "img_size": 64, "pool": "mean", "out_indices": (0, 1, 2)}),
    "deit": ("deit_tiny_distilled_patch16_224", {"embed_dim": 16, "depth": 2, "num_heads": 2,
        "img_size": 64}),
    "t2t": ("t2t_vit_7", {"depth": 2, "img_size": 64}),
    "hiera": ("hiera_tiny_224", {"embed_dim": 16, "depths": (1, 1, 1, 1), "img_size": 64}),
    "timm_vit": ("timm:test_vit", {}),
    "timm_convnext": ("timm:test_convnext", {}),
}  # fmt: skip


def build(family: str, *, in_chans: int = 3, seed: int = 0) -> nn.Module:
    """A classifier of three classes with random weights."""
    name, options = FAMILIES[family]
    torch.manual_seed(seed)
    network = muntin.create_model(name, num_classes=3, in_chans=in_chans, **options).eval()
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.normal_(0, 0.5)
    return network


def make_context(
    network: nn.Module,
    *,
    task: str = "classify",
    size: tuple[int, int] = (48, 80),
    in_chans: int = 3,
    index: int = 0,
    fit: str = "center_crop",
    **more: Any,
) -> Context:
    """A context with a generated scene, padded at the right and bottom if necessary."""
    size = (160, 160) if isinstance(getattr(network, "backbone", None), TimmBackbone) else size
    scene = make_scene(5, index, size=(max(16, size[0]), max(16, size[1])), max_objects=3)
    pixels = np.ascontiguousarray(scene.image[: size[0], : size[1]])
    shown = torch.from_numpy(pixels).permute(2, 0, 1)
    if in_chans != 3:
        shown = shown.sum(dim=0, keepdim=True).div(3).byte().repeat(in_chans, 1, 1)
    known = in_chans if in_chans in (1, 3) else 3
    pre = Preprocessing(
        img_size=size, mean=NORMAL["mean"][:known], std=NORMAL["std"][:known], in_chans=known,
        fit=fit, padding=1.0,
    )  # fmt: skip
    images = normalise(shown[None], pre) if known == in_chans else shown[None].float() / 128 - 1
    if fit == "letterbox":
        rest = (0, -size[1] % 32, 0, -size[0] % 32)
        images = nn.functional.pad(images, rest)
    skeleton = Skeleton(names=("nose", "left", "right"), edges=((0, 1),))
    classes = Classes(names=NAMES, skeleton=skeleton if task == "pose" else None)
    row = find_task(task, getattr(getattr(network, "head", None), "config", None))
    options: dict[str, Any] = {"name": "tiny", "task": row, "classes": classes, "pre": pre, **more}
    return Context(
        network=network, pixels=pixels, shown=shown, images=images,
        **options,
    )  # fmt: skip


def in_engine(network: nn.Module, pre: Preprocessing, canvas: tuple[int, int], *, finds: bool):
    """Wrap a network as an exported file does: pixel arrays in, output arrays out."""

    def run(inputs: list[np.ndarray]) -> list[np.ndarray]:
        pixels, *sizes = map(torch.from_numpy, inputs)
        with torch.no_grad():
            answer = network(normalise(pixels, pre), *sizes)
        if not finds:
            return [answer.numpy()]
        return [torch.stack([getattr(one, name)[:5] for one in answer]).numpy()
                 for name in ("boxes", "scores", "class_ids")]  # fmt: skip

    config = getattr(network.head, "config", None)
    front = HeadInfo(config=config, stride=int(getattr(network.head, "stride", 0)))
    return EngineNetwork(lambda size, count: run, [canvas], front, finds=finds, groups=None)
