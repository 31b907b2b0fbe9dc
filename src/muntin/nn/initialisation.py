# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""How fresh transformers start."""

from __future__ import annotations

from torch import nn

__all__ = ["start_linears"]


def start_linears(module: nn.Module, std: float = 0.02) -> None:
    """Draw every linear weight below `module` from a truncated normal, and zero the biases.

    Source:
        What microsoft/Swin-Transformer, DeiT and timm do; normal layers keep PyTorch's ones and
        zeros, convolutions PyTorch's own default.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
