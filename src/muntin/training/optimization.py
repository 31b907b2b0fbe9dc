# SPDX-License-Identifier: Apache-2.0
"""Optimizers, their parameter groups, and schedules of learning rate and image size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from muntin.errors import ConfigError
from muntin.features import count_stages
from muntin.heads.network import Network
from muntin.shapes import Size
from muntin.train_config import TrainConfig
from muntin.training.sharding import ShardedMuon


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterGroup:
    """Names of parameters with the same optimizer settings.

    `scale` is a factor on the learning rate. A `matrix` is one in the blocks, which muon may
    update.
    """

    names: tuple[str, ...]
    decays: bool
    scale: float
    matrix: bool


def group_parameters(network: Network, layer_decay: float) -> list[ParameterGroup]:
    """Group the trainable parameters of a network: each is in exactly one group.

    Layers are counted in forward order: patch and position embedding are layer 0, each block is
    the next layer, downsampling belongs to the block before it, and everything after the last
    block (norm, head) is one layer more. `layer_decay` is the factor on the learning rate from each
    layer to the one before it.

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
        outside = inner == name  # not part of the backbone: a head
        layer = blocks + 1 if outside else backbone.layer_of(inner)
        # Biases and scales of norms have one dimension; decay would only pull them towards 0.
        decays = parameter.ndim > 1 and (outside or backbone.decays(inner))
        # Muon orthogonalises matrices of hidden layers; embeddings and heads stay with adamw.
        matrix = decays and 0 < layer <= blocks and parameter.ndim == 2
        # Parameters with equal settings share a group, which one fused kernel updates.
        key = (decays, layer_decay ** (blocks + 1 - layer), matrix)
        groups.setdefault(key, []).append(name)
    return [
        ParameterGroup(names=tuple(members), decays=decays, scale=scale, matrix=matrix)
        for (decays, scale, matrix), members in groups.items()
    ]


def check_freeze(backbone: Any, freeze: int) -> None:  # noqa: ANN401 (any family)
    """Refuse to freeze more stages than the backbone has."""
    if freeze > (count := count_stages(backbone)):
        message = (
            f"train.freeze must be at most {count}, the number of {backbone.stage_unit}s of this "
            f"{type(backbone).__name__}, got {freeze}. Lower it, or freeze the whole backbone "
            f"with -1."
        )
        raise ConfigError(message)


def freeze_stages(network: Network, freeze: int) -> list[str]:
    """Freeze the leading stages of the backbone, and return the names of the frozen parameters.

    Stages are blocks in backbones with one stage; -1 = the whole backbone, 0 = none.
    """
    backbone: Any = network.backbone
    check_freeze(backbone, freeze)
    frozen = []
    for name, parameter in backbone.named_parameters():
        # Stage 0 is the stem: freezing any stage freezes what comes before it.
        if freeze == -1 or (freeze > 0 and backbone.stage_of(name) <= freeze):
            parameter.requires_grad = False
            frozen.append(f"backbone.{name}")
    return frozen


def scaled_learning_rate(config: TrainConfig) -> float:
    """Learning rate for the effective batch, `batch_size * accumulate` images."""
    if config.lr_batch == 0:
        return config.learning_rate
    # The linear scaling rule (arXiv 1706.02677): twice the batch, twice the rate.
    return config.learning_rate * config.batch_size * config.accumulate / config.lr_batch


def build_optimizers(
    network: Network,
    config: TrainConfig,
    auxiliary: torch.nn.Module | None = None,
    *,
    sharded: bool = False,
) -> list[torch.optim.Optimizer]:
    """Build the optimizers for parameters that are not frozen, and those of an `auxiliary` module.

    `sharded` says that the parameters are (`muntin.training.sharding`). Each group stores its full
    learning rate as ``peak``.
    """
    parameters = dict(network.named_parameters())
    groups = group_parameters(network, config.layer_decay)
    if not groups:
        message = (
            f"train.freeze={config.freeze} must leave parameters to train, got none. Lower it."
        )
        raise ConfigError(message)
    rate = scaled_learning_rate(config)
    muon_rows: list[dict[str, Any]] = []
    adamw_rows: list[dict[str, Any]] = []
    for group in groups:
        # Updates of the two optimizers differ in size, so each has a rate of its own.
        uses_muon = config.optimizer == "muon" and group.matrix
        peak = (config.muon_learning_rate if uses_muon else rate) * group.scale
        row = {
            "params": [parameters[name] for name in group.names],
            "weight_decay": config.weight_decay if group.decays else 0.0,
            "lr": peak,
            "peak": peak,
        }
        (muon_rows if uses_muon else adamw_rows).append(row)
    if auxiliary is not None:
        decayed = {"weight_decay": config.weight_decay, "lr": rate, "peak": rate}
        adamw_rows.append({"params": [*auxiliary.parameters()], **decayed})
    optimizers: list[torch.optim.Optimizer] = []
    if adamw_rows:
        fused = not torch.backends.mps.is_available()
        optimizers.append(torch.optim.AdamW(adamw_rows, lr=rate, betas=config.betas, fused=fused))
    if muon_rows:
        # Updates of the size of adamw's, whatever the shape of the matrix (arXiv 2502.16982).
        muon = ShardedMuon if sharded else torch.optim.Muon
        rate = config.muon_learning_rate
        optimizers.append(muon(muon_rows, lr=rate, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def lr_factor(config: TrainConfig, progress: float) -> float:
    """Factor on the learning rate: linear warmup, then cosine, linear or step decay.

    Examples:
        >>> [round(lr_factor(TrainConfig(warmup=0.1), p), 3) for p in (0.05, 0.1, 0.55, 1.0)]
        [0.5, 1.0, 0.505, 0.01]
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < config.warmup:
        return max(progress / config.warmup, 1e-3)  # a rate of 0 would waste the first step
    if config.decay == "steps":
        # A step decay has its own lower end: `min_lr` does not apply.
        return 0.1 ** sum(progress >= step for step in config.steps)
    # Progress since the warmup, stretched to [0, 1], so that each decay ends with the training.
    decayed = (progress - config.warmup) / max(1 - config.warmup, 1e-9)
    cosine = (1 + math.cos(math.pi * decayed)) / 2
    factor = 1 - decayed if config.decay == "linear" else cosine
    return config.min_lr + (1 - config.min_lr) * factor


def img_size_at(config: TrainConfig, full: Size, step: int, progress: float) -> Size:
    """Size of the training images in pixels, in multiples of `step` and never more than `full`.

    `step` is the stride of the coarsest map: its multiples need no padding. `progress` is in [0,
    1].
    """
    if config.start_size >= 1 or progress >= config.full_size_from:
        return full
    # Each side keeps at least one cell of the coarsest map.
    part = config.start_size
    return (
        min(full[0], max(step, round(full[0] * part / step) * step)),
        min(full[1], max(step, round(full[1] * part / step) * step)),
    )
