# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Record the outputs of modules with forward hooks, without changing what a network computes.

Layer names are not needed: the module output that a feature map was made of is view by its values.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from muntin.shapes import Float, Size

__all__ = ["as_map", "find_map", "record", "replace_output", "tensors_in", "with_gradients"]

MAX_PREFIX = 16
"""Largest number of prefix tokens: class token, distillation token, registers."""


@contextmanager
def record(modules: Iterable[nn.Module]) -> Iterator[list[tuple[nn.Module, Any]]]:
    """Collect the outputs of modules in execution order while the context is active.

    Args:
        modules: Modules of any network.
    """
    outputs: list[tuple[nn.Module, Any]] = []

    def append_output(module: nn.Module, _: Any, output: Any) -> None:  # noqa: ANN401 (any module)
        outputs.append((module, output))

    handles = [module.register_forward_hook(append_output) for module in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replace_output(module: nn.Module, output: Any) -> Iterator[None]:  # noqa: ANN401 (any module)
    """Replace the output of a module while the context is active."""
    handle = module.register_forward_hook(lambda *_: output)
    try:
        yield
    finally:
        handle.remove()


def tensors_in(output: Any) -> list[Tensor]:  # noqa: ANN401 (any module)
    """Flatten an output of nested lists and tuples to its tensors."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, (list, tuple)):
        return [tensor for part in output for tensor in tensors_in(part)]
    return []


def as_map(tensor: Tensor, grid: Size, channels: int) -> Float[Tensor, "B C H W"] | None:
    """View tokens as a feature map.

    Args:
        tensor: (B, H, W, C) or (B, C, H, W), possibly padded at the right and bottom; or
            (B, N, C), possibly with prefix tokens.
        grid: (height, width) of the map in cells.
        channels: C.

    Returns:
        A view of the tensor without padding and prefix tokens; None if the shape does not match.
    """
    high, wide = grid
    if tensor.ndim == 4 and tensor.shape[3] == channels:
        padded = (tensor.shape[1], tensor.shape[2])
        if padded == grid or (padded[0] >= high and padded[1] >= wide):
            return tensor[:, :high, :wide].permute(0, 3, 1, 2)
    if tensor.ndim == 4 and tuple(tensor.shape[1:]) == (channels, high, wide):
        return tensor
    if tensor.ndim == 3 and tensor.shape[2] == channels:
        prefix = tensor.shape[1] - high * wide
        if 0 <= prefix <= MAX_PREFIX:
            return tensor[:, prefix:].transpose(1, 2).unflatten(2, grid)
    return None


def find_map(
    feature_map: Float[Tensor, "B C H W"], outputs: list[tuple[nn.Module, Any]]
) -> Tensor | None:
    """Find the module output that a map was made of: the first with equal or close values.

    Args:
        feature_map: A map that the backbone computed from the same images.
        outputs: Outputs collected by `record`.

    Returns:
        The output in its own layout (see `as_map`); None if no module computed it.
    """
    grid = (feature_map.shape[2], feature_map.shape[3])
    candidates = []
    for _, output in outputs:
        for tensor in tensors_in(output):
            view = as_map(tensor.detach(), grid, feature_map.shape[1])
            if view is not None and view.shape == feature_map.shape:
                if torch.equal(view, feature_map):
                    return tensor
                candidates.append((tensor, view))
    near = (t for t, view in candidates if torch.allclose(view, feature_map, rtol=1e-4, atol=1e-5))
    return next(near, None)


def with_gradients(network: nn.Module) -> nn.Module:
    """Give a network whose parameters can take part in autograd.

    Returns the network itself, or a copy if it was built under `torch.inference_mode`: inference
    tensors can never require gradients.
    """
    tensors = [*network.parameters(), *network.buffers()]
    if not any(tensor.is_inference() for tensor in tensors):
        return network
    with torch.inference_mode(False):
        memo: dict[int, Any] = {
            id(tensor): nn.Parameter(tensor.clone(), requires_grad=tensor.requires_grad)
            if isinstance(tensor, nn.Parameter)
            else tensor.clone()
            for tensor in tensors
        }
        return copy.deepcopy(network, memo)
