# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Window attention: one entry, several back ends that must agree.

Letters: B images, H and W sides of the map in tokens, C channels, h heads, d width of a head, nW
windows of an image, N tokens of a window.

The entry reads the map as the qkv projection leaves it and writes the map as the output
projection wants it, so a back end may do shift, cut, bias, mask, softmax and the way back in one
go. `reference` says what is meant; `sdpa` gives the same to PyTorch's fused attention. A new back
end is a function with the same arguments and a row in `BACKENDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from muntin.errors import ConfigError, ShapeError, unknown_name
from muntin.ops.windows import WindowLayout, cut_windows, join_windows, shift_mask
from muntin.shapes import Float

__all__ = ["BACKENDS", "BackendName", "window_attention"]

BackendName = Literal["auto", "reference", "sdpa"]


def window_attention(
    qkv: Float[Tensor, "B H W C3"],
    bias: Float[Tensor, "h N N"],
    layout: WindowLayout,
    *,
    scale: float,
    fill: Float[Tensor, " C3"] | None = None,
    dropout: float = 0.0,
    backend: BackendName = "auto",
) -> Float[Tensor, "B H W C"]:
    """Multi-head self-attention inside the windows of a map.

    Args:
        qkv: Queries, keys and values of every token, in this order along the channels, each
            split into heads.
        bias: Relative position bias, logits added before the softmax; one matrix a head.
        layout: Where the windows lie; `layout.size` is (H, W).
        scale: Queries are multiplied by it, 1/sqrt(d) in the paper.
        fill: What `qkv` is at a padded token: the bias of the qkv projection, since published
            systems pad its input with zeros. Padded tokens are attended to, as they do. Zeros
            when left out.
        dropout: Probability of dropping an attention weight; 0 outside training.
        backend: "auto" takes the fastest one that qualifies.

    Returns:
        The values, averaged with the attention weights, of every token.

    Raises:
        ConfigError: `backend` is unknown.
        ShapeError: `qkv` is not the map of `layout`, or its channels do not split into heads.

    Source:
        Liu et al. 2021 (arXiv 2103.14030), section 3.2, equation 4. Compared with timm 1.0.31,
        torchvision 0.29.2 and transformers 5.23 in tests/parity/test_swin_parity.py.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise ConfigError(unknown_name("attention back end", backend, ["auto", *BACKENDS]))
    heads = bias.shape[0]
    if tuple(qkv.shape[1:3]) != layout.size or qkv.shape[3] % (3 * heads):
        message = (
            f"qkv must be B, {layout.size[0]}, {layout.size[1]}, 3*heads*d with heads={heads}, "
            f"got {tuple(qkv.shape)}. Lay out the windows for the map at hand."
        )
        raise ShapeError(message)
    run = BACKENDS[_choose(qkv, bias) if backend == "auto" else backend]
    return run(qkv, bias, layout, scale, fill, dropout)


def _choose(qkv: Tensor, bias: Tensor) -> str:
    """Pick a back end for "auto"."""
    # On the CPU, SDPA is fused only when nothing needs a gradient; with one it is slower than
    # the plain formula (benchmarks/results).
    learns = torch.is_grad_enabled() and (qkv.requires_grad or bias.requires_grad)
    return "reference" if learns and qkv.device.type == "cpu" else "sdpa"


def _split(
    qkv: Tensor, layout: WindowLayout, heads: int, fill: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    windows = cut_windows(qkv, layout, fill)  # B, nW, N, 3C
    batch, num_windows, tokens, channels = windows.shape
    windows = windows.view(batch, num_windows, tokens, 3, heads, channels // (3 * heads))
    q, k, v = windows.permute(3, 0, 1, 4, 2, 5).unbind(0)  # B, nW, h, N, d each
    return q, k, v


def _reference(
    qkv: Tensor,
    bias: Tensor,
    layout: WindowLayout,
    scale: float,
    fill: Tensor | None,
    dropout: float,
) -> Tensor:
    q, k, v = _split(qkv, layout, bias.shape[0], fill)
    scores = (q * scale) @ k.transpose(-2, -1) + bias  # B, nW, h, N, N
    mask = shift_mask(layout, device=qkv.device, dtype=bias.dtype)
    if mask is not None:
        scores = scores + mask[:, None]
    weights = scores.softmax(dim=-1).to(v.dtype)
    if dropout:
        weights = F.dropout(weights, dropout)
    return join_windows((weights @ v).transpose(2, 3).flatten(3), layout)


def _sdpa(
    qkv: Tensor,
    bias: Tensor,
    layout: WindowLayout,
    scale: float,
    fill: Tensor | None,
    dropout: float,
) -> Tensor:
    heads = bias.shape[0]
    # The windows of an image are shown as so many more heads: then bias + mask is one matrix a
    # "head" and is broadcast over the images, not copied for each.
    q, k, v = (part.flatten(1, 2) for part in _split(qkv, layout, heads, fill))  # B, nW*h, N, d
    mask = shift_mask(layout, device=qkv.device, dtype=bias.dtype)
    added = bias.expand(layout.num_windows, -1, -1, -1)  # nW, h, N, N
    if mask is not None:
        added = added + mask[:, None]
    added = added.flatten(0, 1).to(q.dtype)  # nW*h, N, N
    out = F.scaled_dot_product_attention(q, k, v, added[None], dropout, scale=scale)
    out = out.unflatten(1, (layout.num_windows, heads))  # B, nW, h, N, d
    return join_windows(out.transpose(2, 3).flatten(3), layout)


BackEnd = Callable[[Tensor, Tensor, WindowLayout, float, Tensor | None, float], Tensor]

BACKENDS: dict[str, BackEnd] = {"reference": _reference, "sdpa": _sdpa}
