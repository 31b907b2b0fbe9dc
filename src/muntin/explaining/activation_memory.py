# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What attention takes: the formulas of the Swin paper, and what networks keep, counted.

Networks are built without memory, on the meta device.
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
    """Multiply-adds of attention among all tokens of a map, projections included (equation 1).

    Example:
        >>> msa_macs(56, 56, 96)
        2003828736
    """
    tokens = height * width
    return 4 * tokens * dim**2 + 2 * tokens**2 * dim


def window_msa_macs(height: int, width: int, dim: int, window: int) -> int:
    """Multiply-adds of attention inside windows, projections included (equation 2).

    Example:
        >>> window_msa_macs(56, 56, 96, 7)
        145108992
    """
    return 4 * height * width * dim**2 + 2 * window**2 * height * width * dim


def with_global_windows(config: SwinConfig, side: int) -> SwinConfig:
    """Give a Swin whose windows are as large as its maps: it attends everywhere.

    Args:
        config: A Swin.
        side: Of the image in pixels; a multiple of the coarsest stride.
    """
    maps = tuple(side // (config.patch_size * 2**stage) for stage in range(len(config.depths)))
    return replace(config, img_size=(side, side), window_size=maps)


def activation_bytes(config: BackboneConfig, size: Size) -> int:
    """Count what a training step keeps of one image for the backward pass, in bytes (float32).

    Layers are computed as written in the papers, the weights of attention kept: a step of
    `muntin train`, which computes some of it again on the backward pass, keeps less. Tensors that
    autograd keeps are counted once each, parameters are not.

    Args:
        config: Of a backbone, which is built without memory.
        size: (height, width) of the image in pixels.
    """
    fields = {"drop_path_rate": 0.0, "attention": "reference"}
    known = {name: value for name, value in fields.items() if hasattr(config, name)}
    with torch.device("meta"):
        body = build_backbone(replace(config, **known))  # type: ignore[arg-type]
    own = {parameter.untyped_storage()._cdata for parameter in body.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.enable_grad(), hooks, sdpa_kernel(SDPBackend.MATH):
        body(torch.empty(1, config.in_chans, *size, device="meta"))
    return sum(storage.nbytes() for storage in kept.values())
