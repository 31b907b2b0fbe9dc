# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Record the inputs of every attention layer of a backbone.

The network runs once, unmodified; a forward pre-hook on each attention layer records its input and
is removed afterwards. Attention weights are recomputed from the recorded inputs with the plain
formula, one layer and one head at a time, because fused kernels never materialise them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from muntin.explaining.attention_extraction import AttentionExtractor, LayerCall, find_extractor
from muntin.explaining.layers import AttentionLayer
from muntin.shapes import Float, Size

__all__ = ["trace"]


def trace(
    backbone: nn.Module, images: Float[Tensor, "1 in_chans H W"]
) -> tuple[AttentionLayer, ...]:
    """Run a backbone and record its attention layers.

    Args:
        backbone: A model of muntin, or the timm adapter around a ViT or a Swin V1. Its hooks are
            removed even after an error.
        images: A batch of one, normalised.

    Returns:
        The layers in execution order; empty if no layer has an extractor.

    Raises:
        ShapeError: The backbone does not accept this height and width.

    Source:
        The weights are those of equation 4 of Liu et al. 2021 (arXiv 2103.14030) and of
        Vaswani et al. 2017, equation 1. Compared with timm 1.0.31 (fused attention off) in
        tests/explaining/test_attention_trace.py, tolerance 1e-5.
    """
    calls: dict[str, LayerCall] = {}
    handles: list[RemovableHandle] = []
    size: Size = (images.shape[2], images.shape[3])
    extractors: dict[str, AttentionExtractor] = {}
    try:
        for name, module in backbone.named_modules():
            extractor = find_extractor(module)
            if extractor is not None:
                extractors[name] = extractor
                hook = partial(_record_call, calls, backbone, name, size)
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        with torch.inference_mode(False), torch.no_grad():
            backbone(images.clone())
    finally:
        for handle in handles:
            handle.remove()
    layers = (extractors[name](call) for name, call in calls.items())
    return tuple(layer for layer in layers if layer is not None)


def _record_call(
    calls: dict[str, LayerCall],
    backbone: nn.Module,
    name: str,
    size: Size,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    calls[name] = LayerCall(
        backbone=backbone, name=name, module=module, args=args, kwargs=kwargs, size=size
    )
