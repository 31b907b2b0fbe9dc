# SPDX-License-Identifier: Apache-2.0
"""Masks of queries of whole models of the transformers library, in cells.

Letters: B images, Q queries, H, W cells of the model, h, w cells of `stride` pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from muntin.features import Features
from muntin.shapes import Bool, Float


def inside(features: Features, stride: int) -> Bool[Tensor, "B h w"]:
    """Cells of `stride` pixels whose centres are no padding."""
    images = features.maps[0]
    high, wide = (
        stride * (torch.arange(-(-side // stride), device=images.device) + 0.5)
        for side in images.shape[2:]
    )
    sizes = features.sizes.to(images.device)
    return (high < sizes[:, :1])[:, :, None] & (wide < sizes[:, 1:])[:, None, :]


def mask_logits(
    logits: Float[Tensor, "B Q H W"], features: Features, stride: int
) -> Float[Tensor, "B Q h w"]:
    """Masks in cells of `stride` pixels, whatever the model's own are."""
    logits = logits.float()
    cells = [-(-side // stride) for side in features.maps[0].shape[2:]]
    if cells == [*logits.shape[2:]]:
        return logits
    return F.interpolate(logits, cells, mode="bilinear", align_corners=False)


def mask_boxes(logits: Float[Tensor, "B Q h w"]) -> Float[Tensor, "B Q 4"]:
    """Left, top, right and bottom edge of what is above 0, in cells; 0 where nothing is.

    Between the centres of two cells values are linear, as they are resized.
    """
    edges = []
    for dim in (2, 3):
        line = logits.amax(dim)  # over rows: of each column
        first = _first_crossing(line)
        end = line.shape[2] - _first_crossing(line.flip(2))
        found = (line > 0).any(2)
        edges.append((torch.where(found, first, 0.0), torch.where(found, end, 0.0)))
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], dim=2)


def _first_crossing(line: Float[Tensor, "B Q n"]) -> Float[Tensor, "B Q"]:
    """Where a line of cells first rises above 0."""
    places = torch.arange(line.shape[2], device=line.device)
    first = torch.where(line > 0, places, line.shape[2] - 1).amin(2, keepdim=True)
    inside, outside = line.gather(2, first), line.gather(2, (first - 1).clamp(min=0))
    share = outside / (outside - inside).clamp(max=-1e-12)
    crossing = torch.where(first > 0, first - 0.5 + share, 0.0)
    return crossing[..., 0]
