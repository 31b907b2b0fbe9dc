# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Which parameter learns how: weight decay, layer decay, freezing, and the optimisers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from muntin.errors import ConfigError
from muntin.features import count_stages
from muntin.heads.network import Network
from muntin.recipes import TrainConfig

__all__ = [
    "Group",
    "build_optimizers",
    "check_freeze",
    "freeze_stages",
    "group_parameters",
    "scaled_rate",
]


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


def group_parameters(network: Network, layer_decay: float) -> list[Group]:
    """Sort the learning parameters of a network.

    Layers are counted in the order of the network: patches and positions are 0, each block one
    more, the way to the next stage belongs to the block before it, and what follows the last
    block (norm, head) is one more again.

    Args:
        network: Its backbone says which layer a parameter belongs to.
        layer_decay: Factor on the learning rate from a layer to the one before.

    Returns:
        Groups that together hold every parameter that requires a gradient, once.

    Source:
        Layers as in SimMIM and MAE fine-tuning; no decay on biases, norms, position embeddings
        and tables, and tokens as in microsoft/Swin-Transformer.
    """
    backbone: Any = network.backbone
    blocks = len(backbone.blocks)
    groups: dict[tuple[bool, float, bool], list[str]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        inner = name.removeprefix("backbone.")
        outside = inner == name  # of the backbone
        layer = blocks + 1 if outside else backbone.layer_of(inner)
        decays = parameter.ndim > 1 and (outside or backbone.decays(inner))
        matrix = decays and 0 < layer <= blocks and parameter.ndim == 2
        key = (decays, layer_decay ** (blocks + 1 - layer), matrix)
        groups.setdefault(key, []).append(name)
    return [
        Group(names=tuple(members), decays=decays, scale=scale, matrix=matrix)
        for (decays, scale, matrix), members in groups.items()
    ]


def check_freeze(backbone: Any, freeze: int) -> None:  # noqa: ANN401 (any family)
    """Refuse to freeze more than a backbone has.

    Args:
        backbone: Names its stages.
        freeze: As in `freeze_stages`.

    Raises:
        ConfigError: It has fewer stages.
    """
    if freeze > (count := count_stages(backbone)):
        message = (
            f"train.freeze must be at most {count}, the {backbone.stage_unit}s of this "
            f"{type(backbone).__name__}, got {freeze}. Lower it, or freeze the whole backbone "
            f"with -1."
        )
        raise ConfigError(message)


def freeze_stages(network: Network, freeze: int) -> list[str]:
    """Stop the leading stages of the backbone from learning.

    Args:
        network: Changed: its frozen parameters no longer require a gradient.
        freeze: Stages, or blocks where the backbone has only one stage, patches included; -1 for
            the whole backbone; 0 for nothing.

    Returns:
        Names of the frozen parameters.

    Raises:
        ConfigError: The backbone has fewer stages.
    """
    backbone: Any = network.backbone
    check_freeze(backbone, freeze)
    frozen = []
    for name, parameter in backbone.named_parameters():
        if freeze == -1 or (freeze > 0 and backbone.stage_of(name) <= freeze):
            parameter.requires_grad = False
            frozen.append(f"backbone.{name}")
    return frozen


def scaled_rate(config: TrainConfig, batch_size: int) -> float:
    """Learning rate at the effective batch (images a weight change)."""
    if config.lr_batch == 0:
        return config.learning_rate
    return config.learning_rate * batch_size * config.accumulate / config.lr_batch


def build_optimizers(
    network: Network, config: TrainConfig, batch_size: int
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
