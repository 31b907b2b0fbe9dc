# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The two-layer perceptron of a transformer block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from muntin.shapes import Float

__all__ = ["Mlp"]


class Mlp(nn.Module):
    """Linear, GELU (exact), linear; applied to each token alone."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*tokens C"]) -> Float[Tensor, "*tokens C"]:
        """Transform every token."""
        hidden = self.fc1(x)
        if not self.training or not torch.is_grad_enabled():
            return self._finish(hidden)
        # GELU is not kept but done again on the way back, which stops before the product.
        out: Tensor = checkpoint(self._finish, hidden, use_reentrant=False)
        return out

    def _finish(self, hidden: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(hidden))))
