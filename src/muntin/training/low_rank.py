# SPDX-License-Identifier: Apache-2.0
"""Low-rank adaptation (LoRA): few trained weights beside frozen ones, merged when they are saved.

Source:
    Hu et al. 2021 (arXiv 2106.09685), section 4.1: a frozen weight W becomes W + (alpha / r) B A
    with A of r rows drawn at random and B zero. Here for every linear layer of the blocks, MLPs
    included.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muntin.errors import ConfigError, TrainingError
from muntin.features import Backbone
from muntin.heads.network import Network
from muntin.shapes import Float
from muntin.train_config import TrainConfig

_DOWN, _UP = "lora_a", "lora_b"

RATE = 1e-3
"""Peak learning rate: some ten times that of full fine-tuning, as for adapters of any rank with
alpha fixed (Schulman et al. 2025, "LoRA Without Regret")."""

MERGE_TOLERANCE = 1e-4
"""Difference between a merged layer and an adapted one, relative to the largest output."""


def suit_adapters(config: TrainConfig) -> TrainConfig:
    """Adapt a recipe of full training to adapters: their own rate, one for all layers, adamw."""
    return replace(
        config, optimizer="adamw", learning_rate=RATE, lr_batch=0, layer_decay=1.0, ema_decay=0.0,
        init="plain",
    )  # fmt: skip


def adapt_layers(network: Network, rank: int, alpha: float) -> int:
    """Freeze the backbone, and add adapters to the linear layers of its trainable blocks.

    Layers that are frozen already (`TrainConfig.freeze`) get none, so nothing of them is kept for
    the backward pass.

    Args:
        network: Changed in place.
        rank: Rows of A and columns of B; at most the smaller side of a layer is used.
        alpha: Factor on the product of both, divided by the rank.

    Returns:
        Number of adapted layers.

    Raises:
        ConfigError: No block that is trained has a linear layer.
    """
    backbone = network.backbone
    # Before everything is frozen: what still requires a gradient is what the user left to train.
    layers = [layer for layer in _linear_layers(backbone) if layer.weight.requires_grad]
    backbone.requires_grad_(False)
    if not layers:
        message = (
            f"train.adapt=lora requires blocks with linear layers that train.freeze leaves to "
            f"train, got none in {type(backbone).__name__}. Lower train.freeze, or omit --adapt."
        )
        raise ConfigError(message)
    for layer in layers:
        used = min(rank, *layer.weight.shape)
        down = nn.init.kaiming_uniform_(
            layer.weight.new_empty(used, layer.in_features), math.sqrt(5)
        )
        layer.register_parameter(_DOWN, nn.Parameter(down))
        # B is zero, so that training starts from the outputs of the loaded weights.
        layer.register_parameter(
            _UP, nn.Parameter(layer.weight.new_zeros(layer.out_features, used))
        )
        layer.lora_scale = alpha / used
        # A hook rather than another class: subclasses and the names of the weights stay.
        layer.register_forward_hook(_add_low_rank)
    return len(layers)


def merged_state(network: nn.Module) -> dict[str, Tensor]:
    """State dict of a network without adapters that computes the same.

    Raises:
        TrainingError: A merged layer differs from the adapted one.
    """
    state = network.state_dict()
    for name, layer in network.named_modules():
        if not hasattr(layer, _DOWN):
            continue
        prefix = f"{name}." if name else ""
        down, up = state.pop(prefix + _DOWN), state.pop(prefix + _UP)
        weight = layer.weight.detach()
        # In float64: the product is rounded once, to the type of the weight.
        merged = (weight.double() + layer.lora_scale * up.double() @ down.double()).to(weight.dtype)
        _verify(name, layer, merged)
        state[f"{prefix}weight"] = merged
    return state


def _linear_layers(backbone: Backbone) -> list[Any]:
    found = (part for block in backbone.blocks for part in block.modules())
    return [part for part in found if isinstance(part, nn.Linear)]


def _add_low_rank(
    layer: Any,  # noqa: ANN401 (a linear layer with adapters)
    inputs: tuple[Any, ...],
    output: Float[Tensor, "*map Co"],
) -> Float[Tensor, "*map Co"]:
    """Add (alpha / r) B A x to the output of the layer."""
    low = F.linear(F.linear(inputs[0], layer.lora_a), layer.lora_b)
    return output + layer.lora_scale * low


def _verify(name: str, layer: Any, merged: Float[Tensor, "Co C"]) -> None:  # noqa: ANN401 (as above)
    """Compare a merged layer with the adapted one, on inputs drawn from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, layer.in_features, generator=generator).to(merged)
    plain = F.linear(x, layer.weight.detach())
    low = F.linear(F.linear(x, layer.lora_a.detach()), layer.lora_b.detach())
    wanted, got = plain + layer.lora_scale * low, F.linear(x, merged)
    error = float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))
    if not error <= MERGE_TOLERANCE:  # true for nan too
        message = (
            f"merged weights must give the outputs of the adapted ones within {MERGE_TOLERANCE:g}, "
            f"got a difference of {error:.2g} in {name}. Lower train.learning_rate or "
            f"train.lora_alpha."
        )
        raise TrainingError(message)
