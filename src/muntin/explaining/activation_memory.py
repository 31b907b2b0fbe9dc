# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Cost of attention: the FLOP formulas of the Swin paper, and activation memory.

Memory is counted on networks that are built on the meta device, without allocating anything.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from muntin.models.swin import SwinConfig
from muntin.shapes import Size
from muntin.zoo.families import BackboneConfig, build_backbone

__all__ = ["activation_bytes", "msa_macs", "window_msa_macs", "with_global_windows"]


def msa_macs(height: int, width: int, dim: int) -> int:
    """Multiply-adds of global attention over a map, including projections (equation 1).

    Example:
        >>> msa_macs(56, 56, 96)
        2003828736
    """
    tokens = height * width
    return 4 * tokens * dim**2 + 2 * tokens**2 * dim


def window_msa_macs(height: int, width: int, dim: int, window: int) -> int:
    """Multiply-adds of window attention over a map, including projections (equation 2).

    Example:
        >>> window_msa_macs(56, 56, 96, 7)
        145108992
    """
    return 4 * height * width * dim**2 + 2 * window**2 * height * width * dim


def with_global_windows(config: SwinConfig, side: int) -> SwinConfig:
    """Enlarge the windows of a Swin to its whole maps, so that its attention is global.

    Args:
        config: The Swin to change.
        side: Image side in pixels; a multiple of the coarsest stride.
    """
    maps = tuple(side // (config.patch_size * 2**stage) for stage in range(len(config.depths)))
    return replace(config, img_size=(side, side), window_size=maps)


def activation_bytes(config: BackboneConfig, size: Size) -> int:
    """Count the activations that autograd saves for the backward pass of one image.

    Attention is computed as in the papers, with its weights saved; a step of `muntin train`, which
    recomputes some activations, saves less. Each storage is counted once; parameters are excluded.

    Args:
        config: Config of the backbone, which is built on the meta device.
        size: (height, width) of the image in pixels.

    Returns:
        Bytes in float32.
    """
    fields = {"drop_path_rate": 0.0, "attention": "reference"}
    known = {name: value for name, value in fields.items() if hasattr(config, name)}
    with torch.device("meta"):
        body = build_backbone(replace(config, **known))  # type: ignore[arg-type]
    own = {parameter.untyped_storage()._cdata for parameter in body.parameters()}
    saved: dict[int, Any] = {}

    def record(tensor: Tensor) -> Tensor:
        # Views share one storage, which autograd holds once however often it is saved.
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    # Only the math backend materialises attention weights as the papers' formulas assume.
    hooks = torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor)
    with torch.enable_grad(), hooks, sdpa_kernel(SDPBackend.MATH):
        body(torch.empty(1, config.in_chans, *size, device="meta"))
    return sum(storage.nbytes() for storage in saved.values())
