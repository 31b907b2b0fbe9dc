# SPDX-License-Identifier: Apache-2.0
"""Mimetic initialisation of attention layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from muntin.shapes import Float


@torch.no_grad()
def init_mimetic(network: nn.Module, seed: int) -> int:
    """Initialise attention layers with the structure of trained ones; helps most on small data.

    Changes every module with `qkv`, `proj` and `num_heads`, and returns their number. The product
    of query and key weights is near the identity (tokens attend to similar tokens), that of value
    and output weights near its negative. With a relative position bias, each head starts
    attending to one neighbour, like a tap of a convolution.

    Source:
        Trockman and Kolter 2023 (arXiv 2305.09828), section 4, with alpha = beta = 0.7 for queries
        and keys and 0.4 for values and output. The neighbour bias is ours, after ConViT
        (arXiv 2103.10697). Measured in docs/lab-notes.
    """
    generator = torch.Generator().manual_seed(seed)
    count = 0
    for part in network.modules():
        qkv, proj = getattr(part, "qkv", None), getattr(part, "proj", None)
        if not isinstance(qkv, nn.Linear) or not isinstance(proj, nn.Linear):
            continue
        if qkv.out_features != 3 * qkv.in_features:  # a layer that widens has no identity
            continue
        count += 1
        dim, heads = qkv.in_features, int(part.num_heads)  # type: ignore[arg-type]
        _init_queries(qkv.weight, heads, generator)
        # V and output weights: W_v W_o begins close to -0.4 I.
        left, sizes, right = _near_identity_svd(dim, 0.4, -0.4, generator)
        qkv.weight[2 * dim :] = sizes.sqrt()[:, None] * right
        proj.weight.copy_(left * sizes.sqrt())
        table = getattr(part, "relative_position_bias_table", None)
        if isinstance(table, nn.Parameter) and hasattr(part, "window"):
            table.copy_(_neighbour_bias(int(part.window), heads))  # type: ignore[arg-type]
    return count


def _near_identity_svd(
    dim: int, noise: float, identity: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of a random matrix plus a multiple of the identity."""
    random = torch.randn(dim, dim, generator=generator) / dim**0.5
    left, sizes, right = torch.linalg.svd(noise * random + identity * torch.eye(dim))
    return left, sizes, right


def _init_queries(weight: Tensor, heads: int, generator: torch.Generator) -> None:
    """Initialise queries and keys of each head with the leading part of a near-identity."""
    dim = weight.shape[1]
    width = dim // heads
    for head in range(heads):
        left, sizes, right = _near_identity_svd(dim, 0.7, 0.7, generator)
        # Split the singular values evenly between queries and keys.
        root = sizes[:width].sqrt()
        rows = slice(head * width, (head + 1) * width)
        weight[:dim][rows] = root[:, None] * left[:, :width].T
        weight[dim : 2 * dim][rows] = root[:, None] * right[:width]


# Offset (row, column) of each head, cyclically: neighbours first, the token itself last.
_NEIGHBOURS = ((0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1), (0, 0))


def _neighbour_bias(window: int, heads: int) -> Float[Tensor, "positions h"]:
    """Bias that falls with the squared distance from the offset of each head, to a floor."""
    offsets = torch.arange(1 - window, window)
    columns = []
    for head in range(heads):
        row, column = _NEIGHBOURS[head % len(_NEIGHBOURS)]
        distance = (offsets[:, None] - row) ** 2 + (offsets[None, :] - column) ** 2
        columns.append(-0.7 * distance.flatten().clamp(max=9).float())
    return torch.stack(columns, dim=1)
