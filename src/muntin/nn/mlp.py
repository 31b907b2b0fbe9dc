# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The two-layer perceptron of a transformer block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from muntin.shapes import Float

__all__ = ["Mlp"]


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
