# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""One attention layer of a network: what it read, where its tokens lie, who looks at whom.

Letters: h heads, d width of a head, G groups (windows) of tokens that look at each other, Q queries
and N keys of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from muntin.ops.windows import WindowLayout
from muntin.shapes import Float, Int, Size

__all__ = ["MAX_PAIRS", "AttentionLayer", "QueriesAndKeys"]

MAX_PAIRS = 2**25
"""Pairs of tokens of one head that are computed at a time; 128 MiB of weights."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QueriesAndKeys:
    """Queries and keys of a layer.

    Attributes:
        queries: Multiplied by the scale already.
        keys: What they are compared with.
        bias: Added to the scores of each head.
        mask: Added to the scores of each group.
        linear: Whether weights are the products themselves over their sum (performers) and not the
            softmax of scores.
    """

    queries: Float[Tensor, "h G Q d"]
    keys: Float[Tensor, "h G N d"]
    bias: Float[Tensor, "h Q N"] | None = None
    mask: Float[Tensor, "G Q N"] | None = None
    linear: bool = False

    def attention_weights(self, head: int) -> Float[Tensor, "G Q N"]:
        """Give the attention of one head; rows sum to 1."""
        scores = self.queries[head] @ self.keys[head].transpose(1, 2)
        if self.linear:
            return scores / scores.sum(dim=-1, keepdim=True).clamp(min=1e-30)
        if self.bias is not None:
            scores = scores + self.bias[head]
        if self.mask is not None:
            scores = scores + self.mask
        return scores.softmax(dim=-1)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AttentionLayer:
    """One attention layer: what it read, and where its tokens lie in the image.

    Attributes:
        name: Of the module in the backbone.
        title: For readers, such as "stage 1, block 2 (shifted)".
        stage: Counted from 1; a plain ViT has one; 0 for layers before the blocks.
        num_heads: Heads.
        grid: Tokens down and across that are looked at.
        stride: Pixels from one of them to the next.
        pooled: How many of them, down and across each, ask as one.
        prefix: Tokens without a place, which come first: class token, distillation token.
        queries: Number (row by row) of each query in its grid; -1 for padding and prefix.
        keys: Number of each key in `grid`; -1 for padding and prefix.
        layout: Where the windows lie; None without windows.
        pair: Computes queries and keys.
        scores: What the softmax is taken of: products of queries and keys, the same with a bias of
            position and a mask, or cosines with both.
    """

    name: str
    title: str
    stage: int
    num_heads: int
    grid: Size
    stride: int
    prefix: tuple[str, ...]
    queries: Int[Tensor, "G Q"]
    keys: Int[Tensor, "G N"]
    pair: Callable[[], QueriesAndKeys]
    layout: WindowLayout | None = None
    pooled: int = 1
    scores: Literal["product", "biased", "cosine"] = "product"

    @property
    def query_grid(self) -> Size:
        """Queries down and across."""
        return self.grid[0] // self.pooled, self.grid[1] // self.pooled

    @property
    def num_pairs(self) -> int:
        """Pairs of tokens that look at each other, padding included."""
        return self.queries.numel() * self.keys.shape[1]

    @property
    def elsewhere(self) -> str:
        """What attention can go to that has no place in the image, for readers; or nothing."""
        names = list(self.prefix)
        if int((self.keys < 0).sum()) > len(self.prefix) * len(self.keys):
            names.append("padding")
        return " or ".join(name if name == "padding" else f"the {name}" for name in names)

    @property
    def is_global(self) -> bool:
        """Whether every token looks at every other."""
        return len(self.keys) == 1 and int((self.keys >= 0).sum()) == self.grid[0] * self.grid[1]

    def attention_weights(self) -> Iterator[Float[Tensor, "G Q N"]]:
        """Give the attention of one head after another; rows (queries) sum to 1."""
        with torch.inference_mode(False), torch.no_grad():
            pairs = self.pair()
        for head in range(self.num_heads):
            with torch.inference_mode(False), torch.no_grad():
                weights = pairs.attention_weights(head)
            yield weights

    def mean_attention(self) -> Float[Tensor, "G Q N"]:
        """Give the mean over the heads."""
        heads = self.attention_weights()
        total = next(heads)
        for weights in heads:
            total += weights
        return total / self.num_heads
