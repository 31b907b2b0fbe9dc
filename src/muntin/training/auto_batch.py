# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Automatic batch size: how many images of a training step fit into memory."""

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
from muntin.training.recompute import checkpoint_blocks

__all__ = ["MEMORY_SHARE", "fit_batch_size", "saved_bytes"]

MEMORY_SHARE = {"cuda": 0.8, "cpu": 0.5}
"""Share of the free memory that a step may use."""


def fit_batch_size(
    network: Network,
    config: TrainConfig,
    img_size: Size,
    example: Callable[[Size], dict[str, Any]],
    device: str,
    notes: list[str],
    *,
    free: int = -1,
) -> TrainConfig:
    """Reduce the batch until a step fits into memory, and accumulate gradients in return.

    Args:
        network: Network of a dense task; not changed.
        config: Its batch size is that of the recipe.
        img_size: (height, width) of the images in pixels.
        example: As in `muntin.tasks.task.DenseTask`.
        device: "cuda", "cpu" or "mps".
        notes: A line is appended if the batch changes.
        free: Free memory in bytes; -1 = query the device.
    """
    budget = (free_bytes(device) if free < 0 else free) * MEMORY_SHARE.get(device, 0.5)
    # On a copy: checkpointing replaces the forward methods of the blocks.
    measured = copy.deepcopy(network)
    if config.checkpointing:
        checkpoint_blocks(measured.backbone)
    each = saved_bytes(measured, img_size, example)
    # Weights, gradients and two moments of the optimizer need memory beside the activations.
    weights = 4 * sum(p.numel() * p.element_size() for p in network.parameters())
    fits = max(1, int((budget - weights) / max(each, 1)))
    if fits >= config.batch_size:
        return config
    steps = -(-config.batch_size // fits)
    notes.append(
        f"batch {fits} instead of {config.batch_size}, gradients accumulated over {steps} steps: "
        f"an image needs {each / 2**20:.0f} MiB of {budget / 2**20:.0f} MiB (--batch-size)"
    )
    return replace(config, batch_size=fits, accumulate=steps * config.accumulate)


def saved_bytes(network: Network, img_size: Size, example: Callable[[Size], dict[str, Any]]) -> int:
    """Bytes that the forward pass of one image saves for the backward pass.

    Args:
        network: Left unchanged, batch norm statistics included.
        img_size: (height, width) in pixels.
        example: As in `muntin.tasks.task.DenseTask`.
    """
    stride = 32
    high, wide = (-(-side // stride) * stride for side in img_size)
    in_chans = getattr(network.backbone.config, "in_chans", 3)
    parameter = next(network.parameters())
    image = torch.zeros(1, in_chans, high, wide, device=parameter.device)
    storages: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        # By storage: views and repeated saves of one tensor need its memory only once.
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    was_training = network.training
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    network.train()
    # Measuring must not change the random numbers of the training that follows.
    with torch.random.fork_rng(devices=[]), saved_tensors_hooks(record, lambda tensor: tensor):
        features, targets = network.features(image), example((high, wide))
        head: Any = network.head
        head.losses(features, **targets) if targets else head(features)
    network.train(was_training)
    for name, value in network.named_buffers():
        value.copy_(buffers[name])  # undo the update of the batch norms
    # Saved weights are not activations: they exist anyway.
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    return sum(count for pointer, count in storages.items() if pointer not in parameters)
