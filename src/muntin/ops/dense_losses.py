# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Losses of every pixel from logits of coarser cells, without logits of every pixel in memory.

A decoder gives logits at a quarter of the resolution, labels are at full resolution, and with many
classes the enlarged logits are by far the largest tensor of a step, held twice more by the softmax
and its gradient. Here they are enlarged, compared and forgotten strip by strip, forward and back.

Letters: B images, K classes, h and w cells, H and W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from muntin.ops.resampling import bilinear_matrix
from muntin.shapes import Float, Int

__all__ = ["IGNORED", "MapLosses", "map_losses"]

IGNORED = -1
"""Label of pixels that are neither learnt from nor scored."""

STRIP_VALUES = 2**23
"""Enlarged logits that are in memory at a time; 32 MiB in float32."""


class MapLosses(NamedTuple):
    """Losses of each picture; 0 for one whose pixels are all ignored.

    Attributes:
        cross_entropy: Mean over the pixels, weighted by class where weights are given.
        dice: 1 - the Dice coefficient, mean over the classes that are in the picture.
    """

    cross_entropy: Float[Tensor, " B"]
    dice: Float[Tensor, " B"]


def map_losses(
    logits: Float[Tensor, "B K h w"],
    labels: Int[Tensor, "B H W"],
    *,
    class_weights: Float[Tensor, " K"] | None = None,
    smoothing: float = 0.0,
) -> MapLosses:
    """Compare logits, enlarged bilinearly to the size of the labels, with the labels.

    Args:
        logits: Of cells.
        labels: Class numbers of pixels; `IGNORED` where there is none.
        class_weights: Factor on the cross-entropy of the pixels of each class.
        smoothing: Part of the target that is spread over all classes.

    Returns:
        Both losses; the gradient of one that is not used costs nothing.

    Source:
        Dice: Milletari et al. 2016 (arXiv 1606.04797), with plain sums in the denominator.
    """
    height, width = labels.shape[1:]
    batch, classes, high, wide = logits.shape
    rows = bilinear_matrix(height, high, device=logits.device)
    columns = bilinear_matrix(width, wide, device=logits.device)
    step = max(1, STRIP_VALUES // (batch * classes * width))
    weights = torch.ones(classes, device=logits.device) if class_weights is None else class_weights
    totals: list[Tensor] | None = None
    for start in range(0, height, step):
        part = rows[start : start + step]
        touched = torch.where(part.any(dim=0))[0]
        first, last = int(touched[0]), int(touched[-1]) + 1
        sums = checkpoint(
            _strip_sums,
            logits[:, :, first:last],
            part[:, first:last],
            columns,
            labels[:, start : start + step],
            weights,
            smoothing,
            use_reentrant=False,
        )
        totals = [*sums] if totals is None else [a + b for a, b in zip(totals, sums, strict=True)]
    assert totals is not None, "labels have at least one row"
    wrong, weight, shared, said, there = totals
    present = there > 0
    dice = 1 - 2 * shared / (said + there).clamp(min=1e-6)
    return MapLosses(
        cross_entropy=wrong / weight.clamp(min=1e-6),
        dice=(dice * present).sum(dim=1) / present.sum(dim=1).clamp(min=1),
    )


def _strip_sums(
    cells: Tensor, rows: Tensor, columns: Tensor, labels: Tensor, weights: Tensor, smoothing: float
) -> tuple[Tensor, ...]:
    """What both losses need of a strip: sums over its pixels, of each picture (and class)."""
    # Sums over many pixels are not for half precision.
    with torch.autocast(cells.device.type, enabled=False):
        enlarged = rows @ (cells.float() @ columns.T)  # B, K, strip, W
    known = labels != IGNORED
    target = torch.where(known, labels, 0).long()[:, None]  # B, 1, strip, W
    log_scores = F.log_softmax(enlarged, dim=1)
    loss = -log_scores.gather(1, target)[:, 0]
    weight = weights[target[:, 0]] * known
    wrong = loss * weight * (1 - smoothing)
    if smoothing:
        spread = -(log_scores * weights[:, None, None]).mean(dim=1)
        wrong = wrong + smoothing * spread * known
    scores = log_scores.exp() * known[:, None]
    shared = scores.gather(1, target)[:, 0]
    batch, classes = enlarged.shape[:2]
    zeros = scores.new_zeros(batch, classes)
    flat = torch.where(known, target[:, 0], 0).flatten(1)
    return (
        wrong.sum(dim=(1, 2)),
        weight.sum(dim=(1, 2)),
        zeros.scatter_add(1, flat, (shared * known).flatten(1)),
        scores.sum(dim=(2, 3)),
        zeros.scatter_add(1, flat, known.float().flatten(1)),
    )
