# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Stochastic depth: residual branches are dropped per image."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from muntin.nn import memory_efficient
from muntin.shapes import Float

__all__ = ["DropPath", "drop_path_schedule"]


class DropPath(nn.Module):
    """Drop a residual branch for random images, and scale it up for the others.

    Source:
        Huang et al. 2016 (arXiv 1603.09382); per image, scaled by 1 / (1 - rate), as timm.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Float[Tensor, "B *rest"]) -> Float[Tensor, "B *rest"]:
        """Apply drop path; identity outside training."""
        if not self.training or self.rate == 0:
            return branch
        # One draw per image; 1 / (1 - rate) keeps the expectation of the branch.
        kept = torch.rand(branch.shape[0], device=branch.device) >= self.rate
        scale = kept.to(branch.dtype) / (1 - self.rate)
        return branch * scale.view(-1, *[1] * (branch.ndim - 1))

    def add(
        self, x: Float[Tensor, "B *rest"], branch: Callable[[Tensor], Tensor], chunked: bool = False
    ) -> Float[Tensor, "B *rest"]:
        """Compute ``x + self(branch(x))``, without computing the branch of dropped images."""
        # Chunks lower the peak memory of attention on a CPU; the result is the same.
        run = partial(memory_efficient.apply_in_chunks, branch) if chunked else branch
        if (
            not self.training
            or self.rate == 0
            or not memory_efficient.applies(x)
            or memory_efficient.has_hooks(self)
        ):
            return x + self(run(x))
        # Same draw as in `forward`, so both paths consume the generator alike.
        kept = torch.rand(x.shape[0], device=x.device) >= self.rate
        added: Tensor = memory_efficient.add_kept(x, run, kept, 1 / (1 - self.rate))
        return added

    def extra_repr(self) -> str:
        """Show the rate in the printed model."""
        return f"rate={self.rate:.3f}"


def drop_path_schedule(rate: float, depth: int) -> list[float]:
    """Rates that rise linearly from 0 at the first block to `rate` at the last.

    Example:
        >>> drop_path_schedule(0.2, 3)
        [0.0, 0.1, 0.2]
    """
    return [rate * index / max(depth - 1, 1) for index in range(depth)]
