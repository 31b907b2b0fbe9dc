# SPDX-License-Identifier: Apache-2.0
"""Small networks of every family with random weights, and a context for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from muntin.data.batches import center_crop
from muntin.data.transforms import Preprocessing, normalise, to_tensor
from muntin.explaining.context import Context
from muntin.heads.classification_head import LinearHead
from muntin.heads.network import Network
from muntin.models.hiera import Hiera, HieraConfig
from muntin.models.swin import Swin
from muntin.models.swin_v2 import SwinV2, SwinV2Config
from muntin.models.t2t_vit import T2TViT, T2TViTConfig
from muntin.models.timm_backbone import TimmBackbone, TimmConfig
from muntin.models.vit import ViT
from muntin.samples import Classes
from muntin.tasks.classification_task import CLASSIFY
from tests.parity.peers import SWIN, VIT, perturb

SWIN_V2 = SwinV2Config(
    embed_dim=16, depths=(2, 2, 2), num_heads=(1, 2, 4), window_size=4, img_size=(32, 32),
    patch_size=2, out_indices=(0, 1, 2), pretrained_windows=(0, 0, 0),
)  # fmt: skip
HIERA = HieraConfig(embed_dim=8, depths=(1, 2, 3, 2), num_heads=1, img_size=(64, 64))
T2T = T2TViTConfig(embed_dim=24, depth=2, num_heads=3, token_dim=8, img_size=(48, 48))
T2T_QUADRATIC = T2TViTConfig(
    embed_dim=24, depth=2, num_heads=3, token_dim=8, img_size=(48, 48),
    token_attention="transformer",
)  # fmt: skip

BUILDERS = {
    "vit": lambda: ViT(VIT),
    "registers": lambda: ViT(
        replace(VIT, registers=2, layer_scale=0.1, activation="swiglu", pool="token_and_mean")
    ),
    "swin": lambda: Swin(SWIN),
    "swin_v2": lambda: SwinV2(SWIN_V2),
    "hiera": lambda: Hiera(HIERA),
    "t2t": lambda: T2TViT(T2T),
    "t2t_quadratic": lambda: T2TViT(T2T_QUADRATIC),
}


def build(name: str) -> nn.Module:
    return perturb(BUILDERS[name]())


def timm_body(name: str) -> nn.Module:
    return perturb(TimmBackbone(TimmConfig(name=name)))


def make_context(backbone: nn.Module | None, size=(40, 56), **changes) -> Context:
    """A context with a random image that needs no resizing."""
    network: nn.Module = nn.Identity()
    if backbone is not None:
        network = Network(backbone, LinearHead(backbone.embed_channels, 3)).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    pre = Preprocessing(img_size=size, mean=(0.5,) * 3, std=(0.25,) * 3)
    shown = center_crop(to_tensor(pixels), pre)
    given = {
        "name": "small",
        "network": network,
        "task": CLASSIFY,
        "classes": Classes(names=("a", "b", "c")),
        "pre": pre,
        "pixels": pixels,
        "shown": shown,
        "images": normalise(shown[None], pre),
    }
    return Context(**{**given, **changes})


def state_of(network: nn.Module) -> dict:
    """State that an explanation must not change."""
    return {
        "training": [part.training for part in network.modules()],
        "learns": [value.requires_grad for value in network.parameters()],
        "hooks": [
            (name, kind, len(getattr(part, kind)))
            for name, part in network.named_modules()
            for kind in vars(part)
            if kind.endswith("_hooks")
        ],
        "gradients": [
            None if value.grad is None else value.grad.clone() for value in network.parameters()
        ],
        "values": [value.detach().clone() for value in network.state_dict().values()],
    }


def assert_untouched(before: dict, network: nn.Module) -> None:
    after = state_of(network)
    assert all(after[name] == before[name] for name in ("training", "learns", "hooks"))
    for kind in ("gradients", "values"):
        for one, other in zip(before[kind], after[kind], strict=True):
            assert one is other is None or torch.equal(one, other)
