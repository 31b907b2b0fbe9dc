# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What every attention layer of a backbone read.

The network runs once as it always does; before each attention layer a hook notes what goes in, and
is taken off again. Attention weights are then computed by the plain formula from what was noted,
one layer and one head at a time, so they are what is meant whatever fused back end ran.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from muntin.explaining.attention_extraction import Call, Reader, find_reader
from muntin.explaining.layers import AttentionLayer
from muntin.shapes import Float, Size

__all__ = ["trace"]


def trace(
    backbone: nn.Module, images: Float[Tensor, "1 in_chans H W"]
) -> tuple[AttentionLayer, ...]:
    """Show an image to a backbone and note what its attention layers read.

    Args:
        backbone: One of ours, or the timm adapter around a ViT or a Swin V1. It is left as it was:
            hooks are taken off whatever happens.
        images: A batch of one, normalised.

    Returns:
        The layers in the order in which they ran; none where nothing can be read.

    Raises:
        ShapeError: The backbone refuses this height and width.

    Source:
        The weights are those of equation 4 of Liu et al. 2021 (arXiv 2103.14030) and of
        Vaswani et al. 2017, equation 1. Compared with timm 1.0.31 (fused attention off) in
        tests/explaining/test_tracing.py, tolerance 1e-5.
    """
    calls: dict[str, Call] = {}
    hooks: list[RemovableHandle] = []
    size: Size = (images.shape[2], images.shape[3])
    readers: dict[str, Reader] = {}
    try:
        for name, module in backbone.named_modules():
            reader = find_reader(module)
            if reader is not None:
                readers[name] = reader
                note = partial(_note, calls, backbone, name, size)
                hooks.append(module.register_forward_pre_hook(note, with_kwargs=True))
        with torch.inference_mode(False), torch.no_grad():
            backbone(images.clone())
    finally:
        for hook in hooks:
            hook.remove()
    layers = (readers[name](call) for name, call in calls.items())
    return tuple(layer for layer in layers if layer is not None)


def _note(
    calls: dict[str, Call],
    backbone: nn.Module,
    name: str,
    size: Size,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    calls[name] = Call(
        backbone=backbone, name=name, module=module, args=args, kwargs=kwargs, size=size
    )
