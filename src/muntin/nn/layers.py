# SPDX-License-Identifier: Apache-2.0
"""Layers of a block: linear ones and their initialisation, perceptrons, stochastic depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muntin.batch_rows import draw_rows
from muntin.ops.dot_attention import is_recorded
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


Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "swiglu"]
"""GELU, exact, by the hyperbolic tangent (JAX's default) or by the logistic function (CLIP's); or
gated, where the first layer is twice as wide: silu(one half) * the other (DINOv2)."""


def activate(x: Float[Tensor, "*map C"], activation: Activation) -> Float[Tensor, "*map Co"]:
    """Apply the nonlinearity of an MLP; "swiglu" halves the channels.

    Source:
        Hendrycks & Gimpel 2016 (arXiv 1606.08415), section 2; Shazeer 2020 (arXiv 2002.05202).
    """
    if activation == "swiglu":
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value
    if activation == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


class Mlp(nn.Module):
    """Linear, nonlinear, linear; applied to each token alone."""

    recomputable = ("forward",)

    def __init__(
        self, dim: int, hidden_dim: int, dropout: float = 0.0, activation: Activation = "gelu"
    ) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.fc1 = nn.Linear(dim, hidden_dim * (2 if activation == "swiglu" else 1))
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "*tokens C"], norm: nn.Module | None = None
    ) -> Float[Tensor, "*tokens C"]:
        """Transform every token, normalised before if there is a norm."""
        x = x if norm is None else norm(x)
        return self.dropout(self.fc2(self.dropout(activate(self.fc1(x), self.activation))))


class LayerScale(nn.Module):
    """A learned factor for each channel of a branch (DeiT III; Touvron et al. 2021, CaiT)."""

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), start))

    def forward(self, x: Float[Tensor, "*tokens C"]) -> Float[Tensor, "*tokens C"]:
        """Scale every channel."""
        return x * self.gamma


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
        kept = self._draw(branch) >= self.rate
        scale = kept.to(branch.dtype) / (1 - self.rate)
        return branch * scale.view(-1, *[1] * (branch.ndim - 1))

    def add(
        self, x: Float[Tensor, "B *rest"], branch: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "B *rest"]:
        """Compute ``x + self(branch(x))``, without computing the branch of dropped images.

        If every image drops the branch, one is computed with factor 0, so that its parameters get
        a gradient.
        """
        if not self.training or self.rate == 0 or not _can_gather(x):
            return x + self(branch(x))
        # Same draw as in `forward`, so both paths consume the generator alike.
        kept = (self._draw(x) >= self.rate).nonzero()[:, 0]
        scale = 1 / (1 - self.rate)
        if len(kept) == len(x):
            # No image was dropped: no gather, one fused multiply-add.
            return torch.add(x, branch(x), alpha=scale)
        if not len(kept):
            kept, scale = kept.new_zeros(1), 0.0
        part = branch(x.index_select(0, kept))
        dtype = torch.promote_types(x.dtype, part.dtype)
        return x.to(dtype).index_add(0, kept, part.to(dtype), alpha=scale)

    def _draw(self, x: Tensor) -> Tensor:
        return draw_rows(lambda count: torch.rand(count, device=x.device), x.shape[0])

    def extra_repr(self) -> str:
        """Show the rate in the printed model."""
        return f"rate={self.rate:.3f}"


def _can_gather(x: Tensor) -> bool:
    """Whether the number of kept images may decide shapes: not in a recorded graph."""
    return not (is_recorded(x) or (x.is_cuda and torch.cuda.is_current_stream_capturing()))


def drop_path_schedule(rate: float, depth: int) -> list[float]:
    """Rates that rise linearly from 0 at the first block to `rate` at the last.

    Examples:
        >>> drop_path_schedule(0.2, 3)
        [0.0, 0.1, 0.2]
    """
    return [rate * index / max(depth - 1, 1) for index in range(depth)]
