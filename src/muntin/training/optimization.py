# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Which parameter learns how: weight decay, layer decay, freezing, and the optimisers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from muntin.errors import ConfigError
from muntin.recipes import TrainConfig

__all__ = ["Group", "build_optimizers", "freeze_stages", "group_parameters", "scaled_rate"]

_UNDECAYED = re.compile(
    r"\.cpb_mlp\."
    r"|(relative_position_bias_table|logit_scale|absolute_pos_embed|pos_embed|_token)$"
)
_BLOCK = re.compile(r"(?:^|\.)(?:layers\.\d+\.)?blocks\.\d+\.")
_STAGE = re.compile(r"^(?:layers|blocks)\.(\d+)\.")
_STEM = re.compile(
    r"^(?:patch_embed\.|tokens_to_token\.|absolute_pos_embed$|pos_embed$|(?:cls|dist)_token$)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Parameters that learn alike.

    Attributes:
        names: Their names in the network.
        decays: Whether weight decay applies.
        scale: Factor on the learning rate.
        matrix: Whether they are matrices inside the blocks, which muon may update.
    """

    names: tuple[str, ...]
    decays: bool
    scale: float
    matrix: bool


def group_parameters(network: nn.Module, layer_decay: float) -> list[Group]:
    """Sort the learning parameters of a network.

    Layers are counted in the order of the network: patches and positions are 0, each block one
    more, the way to the next stage belongs to the block before it, and what follows the last
    block (norm, head) is one more again.

    Args:
        network: Its backbone's blocks are named ``blocks.N`` or ``layers.N.blocks.N``.
        layer_decay: Factor on the learning rate from a layer to the one before.

    Returns:
        Groups that together hold every parameter that requires a gradient, once.

    Source:
        Layers as in SimMIM and MAE fine-tuning; no decay on biases, norms, position embeddings
        and tables, and tokens as in microsoft/Swin-Transformer.
    """
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    layers = _count_layers([name for name, _ in network.named_parameters()])
    last = max(layers.values(), default=0)
    parameters = dict(network.named_parameters())
    groups: dict[tuple[bool, float, bool], list[str]] = {}
    for name in names:
        parameter = parameters[name]
        decays = parameter.ndim > 1 and not _UNDECAYED.search(name)
        inside = bool(_BLOCK.search(name)) or ".downsample." in name
        matrix = decays and inside and parameter.ndim == 2
        key = (decays, layer_decay ** (last - layers[name]), matrix)
        groups.setdefault(key, []).append(name)
    return [
        Group(names=tuple(members), decays=decays, scale=scale, matrix=matrix)
        for (decays, scale, matrix), members in groups.items()
    ]


def _count_layers(names: list[str]) -> dict[str, int]:
    """Number of the layer that each parameter belongs to, by the order of the network."""
    blocks: dict[str, int] = {}
    for name in names:
        found = _BLOCK.search(name)
        if found:
            blocks.setdefault(name[: found.end()], len(blocks) + 1)
    layers = {}
    current = 0
    for name in names:
        found = _BLOCK.search(name)
        if found:
            current = blocks[name[: found.end()]]
            layers[name] = current
        elif _STEM.match(name.removeprefix("backbone.")):
            layers[name] = 0
        elif ".downsample." in name:
            layers[name] = current
        else:
            layers[name] = len(blocks) + 1
    return layers


def freeze_stages(network: nn.Module, freeze: int) -> list[str]:
    """Stop the leading stages of the backbone from learning.

    Args:
        network: Changed: its frozen parameters no longer require a gradient.
        freeze: Stages of a Swin or blocks of a ViT, patches included; -1 for the whole backbone;
            0 for nothing.

    Returns:
        Names of the frozen parameters.
    """
    frozen = []
    for name, parameter in network.named_parameters():
        inner = name.removeprefix("backbone.")
        if inner == name or freeze == 0:
            continue
        stage = _STAGE.match(inner)
        leading = bool(_STEM.match(inner)) or (stage is not None and int(stage[1]) < freeze)
        if freeze == -1 or leading:
            parameter.requires_grad = False
            frozen.append(name)
    return frozen


def scaled_rate(config: TrainConfig, batch_size: int) -> float:
    """Learning rate at the effective batch (pictures a weight change)."""
    if config.lr_batch == 0:
        return config.learning_rate
    return config.learning_rate * batch_size * config.accumulate / config.lr_batch


def build_optimizers(
    network: nn.Module, config: TrainConfig, batch_size: int
) -> list[torch.optim.Optimizer]:
    """Make the optimisers. Each group remembers its full rate as ``peak``.

    Raises:
        ConfigError: Nothing is left to learn.
    """
    parameters = dict(network.named_parameters())
    groups = group_parameters(network, config.layer_decay)
    if not groups:
        message = f"train.freeze={config.freeze} must leave something to learn, got nothing."
        raise ConfigError(message)
    rate = scaled_rate(config, batch_size)
    by_muon: list[dict[str, Any]] = []
    by_adamw: list[dict[str, Any]] = []
    for group in groups:
        uses_muon = config.optimizer == "muon" and group.matrix
        peak = (config.muon_learning_rate if uses_muon else rate) * group.scale
        row = {
            "params": [parameters[name] for name in group.names],
            "weight_decay": config.weight_decay if group.decays else 0.0,
            "lr": peak,
            "peak": peak,
        }
        (by_muon if uses_muon else by_adamw).append(row)
    optimizers: list[torch.optim.Optimizer] = []
    if by_adamw:
        optimizers.append(torch.optim.AdamW(by_adamw, lr=rate, betas=config.betas, fused=_fuses()))
    if by_muon:
        # Steps as large as adamw's, whatever the shape of the matrix (arXiv 2502.16982).
        optimizers.append(
            torch.optim.Muon(by_muon, lr=config.muon_learning_rate, adjust_lr_fn="match_rms_adamw")
        )
    return optimizers


def _fuses() -> bool:
    return not torch.backends.mps.is_available()
