# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""How many images fit into memory in a step of training, found by looking at one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from muntin.devices import free_bytes
from muntin.heads.network import Network
from muntin.recipes import TrainConfig
from muntin.shapes import Size
from muntin.training.checkpointing import checkpoint_blocks

__all__ = ["fit_batch", "saved_bytes"]

SHARE = {"cuda": 0.8, "cpu": 0.5}
"""Part of the free memory that a step may take."""


def fit_batch(
    network: Network,
    config: TrainConfig,
    img_size: Size,
    example: Callable[[Size], dict[str, Any]],
    device: str,
    notes: list[str],
    *,
    free: int = -1,
) -> TrainConfig:
    """Make the batch small enough for the memory, and accumulate steps to make up for it.

    Args:
        network: Of a dense task; its weights are not changed.
        config: Its batch size is what the recipe wants.
        img_size: (height, width) of the images in pixels.
        example: As in `muntin.tasks.task.Dense`.
        device: "cuda", "cpu" or "mps".
        notes: A line is added when the batch changes.
        free: Bytes that nobody uses; asked of the machine when -1.
    """
    room = (free_bytes(device) if free < 0 else free) * SHARE.get(device, 0.5)
    measured = copy.deepcopy(network)
    if config.checkpointing:
        checkpoint_blocks(measured.backbone)
    each = saved_bytes(measured, img_size, example)
    # Gradients and the optimiser's two moments stand beside what is remembered.
    weights = 4 * sum(p.numel() * p.element_size() for p in network.parameters())
    fits = max(1, int((room - weights) / max(each, 1)))
    if fits >= config.batch_size:
        return config
    steps = -(-config.batch_size // fits)
    notes.append(
        f"batch {fits} instead of {config.batch_size}, {steps} steps a weight change: one image "
        f"takes {each / 2**20:.0f} MiB, and {room / 2**20:.0f} MiB are free (--batch-size)"
    )
    return replace(config, batch_size=fits, accumulate=steps * config.accumulate)


def saved_bytes(network: Network, img_size: Size, example: Callable[[Size], dict[str, Any]]) -> int:
    """Bytes that a network remembers of one image on the forward pass."""
    stride = 32
    high, wide = (-(-side // stride) * stride for side in img_size)
    in_chans = getattr(network.backbone.config, "in_chans", 3)
    parameter = next(network.parameters())
    image = torch.zeros(1, in_chans, high, wide, device=parameter.device)
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    was_training = network.training
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    network.train()
    with torch.random.fork_rng(devices=[]), saved_tensors_hooks(keep, lambda tensor: tensor):
        features, targets = network.features(image), example((high, wide))
        head: Any = network.head
        head.losses(features, **targets) if targets else head(features)
    network.train(was_training)
    for name, value in network.named_buffers():
        value.copy_(buffers[name])  # batch norms have counted
    held = {p.untyped_storage().data_ptr() for p in network.parameters()}
    return sum(count for pointer, count in seen.items() if pointer not in held)
