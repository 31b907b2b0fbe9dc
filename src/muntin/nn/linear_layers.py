# SPDX-License-Identifier: Apache-2.0
"""Linear layers: initialisation, qkv projections without key bias, and perceptrons."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muntin.shapes import Float


def init_linear_weights(module: nn.Module, std: float = 0.02) -> None:
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


class BiasedLinear(nn.Linear):
    """A linear layer whose bias is an argument of `forward`."""

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__(dim, dim_out, bias=False)

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "*map C"], bias: Float[Tensor, " Co"] | None
    ) -> Float[Tensor, "*map Co"]:
        """Transform every token."""
        return F.linear(x, self.weight, bias)


def without_key_bias(qv_bias: Float[Tensor, " C2"]) -> Float[Tensor, " C3"]:
    """Insert zeros for the keys between the biases of queries and values."""
    # BEiT and Swin V2: a bias of the keys cancels in the softmax (of plain products).
    query, value = qv_bias.chunk(2)
    return torch.cat([query, torch.zeros_like(query), value])


class Mlp(nn.Module):
    """Linear, GELU (exact), linear; applied to each token alone."""

    recomputable = ("forward",)

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "*tokens C"], norm: nn.Module | None = None
    ) -> Float[Tensor, "*tokens C"]:
        """Transform every token, normalised before if there is a norm."""
        x = x if norm is None else norm(x)
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))
