# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""One attention layer of a network: queries, keys, attention weights and token positions.

Letters: h heads, d width of a head, G groups (windows) of tokens that attend to each other,
Q queries and N keys of a group.
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
"""Maximum number of token pairs of one head that are computed at once; 128 MiB of weights."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QueriesAndKeys:
    """Queries and keys of a layer.

    Attributes:
        queries: Already multiplied by the scale.
        keys: Keys.
        bias: Bias of each head, added to the scores.
        mask: Mask of each group, added to the scores.
        linear: Whether weights are the products divided by their sum (Performers) instead of the
            softmax of the scores.
    """

    queries: Float[Tensor, "h G Q d"]
    keys: Float[Tensor, "h G N d"]
    bias: Float[Tensor, "h Q N"] | None = None
    mask: Float[Tensor, "G Q N"] | None = None
    linear: bool = False

    def attention_weights(self, head: int) -> Float[Tensor, "G Q N"]:
        """Compute the attention weights of one head; rows sum to 1."""
        # One head at a time: all heads together would take num_heads times MAX_PAIRS values.
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
    """One attention layer and the positions of its tokens in the image.

    Attributes:
        name: Module name in the backbone.
        title: Display title, such as "stage 1, block 2 (shifted)".
        stage: Stage, from 1; a plain ViT has one; 0 for layers before the blocks.
        num_heads: Number of heads.
        grid: (rows, columns) of the keys.
        stride: Pixels between neighbouring keys.
        pooled: Query pooling factor of each side; 1 without pooling.
        prefix: Names of the tokens before the patches: class token, distillation token.
        queries: Row-major index of each query in `query_grid`; -1 for padding and prefix.
        keys: Row-major index of each key in `grid`; -1 for padding and prefix.
        layout: Layout of the windows; None without windows.
        pair: Computes queries and keys.
        scores: Argument of the softmax: scaled dot products, the same plus position bias and mask,
            or scaled cosines plus both.
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
        """(rows, columns) of the queries."""
        return self.grid[0] // self.pooled, self.grid[1] // self.pooled

    @property
    def num_pairs(self) -> int:
        """Number of token pairs that attend to each other, including padding."""
        return self.queries.numel() * self.keys.shape[1]

    @property
    def elsewhere(self) -> str:
        """Display name of the keys outside the image (prefix tokens, padding); may be empty."""
        names = list(self.prefix)
        if int((self.keys < 0).sum()) > len(self.prefix) * len(self.keys):
            names.append("padding")
        return " or ".join(name if name == "padding" else f"the {name}" for name in names)

    @property
    def is_global(self) -> bool:
        """Whether every token attends to every other."""
        return len(self.keys) == 1 and int((self.keys >= 0).sum()) == self.grid[0] * self.grid[1]

    def attention_weights(self) -> Iterator[Float[Tensor, "G Q N"]]:
        """Yield the attention weights of each head; rows (queries) sum to 1."""
        with torch.inference_mode(False), torch.no_grad():
            pairs = self.pair()
        for head in range(self.num_heads):
            with torch.inference_mode(False), torch.no_grad():
                weights = pairs.attention_weights(head)
            yield weights

    def mean_attention(self) -> Float[Tensor, "G Q N"]:
        """Compute the mean attention over the heads."""
        heads = self.attention_weights()
        total = next(heads)
        for weights in heads:
            total += weights
        return total / self.num_heads
