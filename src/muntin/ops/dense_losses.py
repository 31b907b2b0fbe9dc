# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Losses of every pixel from logits of coarser cells, without logits of every pixel in memory.

A decoder gives logits at a quarter of the resolution, labels are at full resolution, and with many
classes the enlarged logits are by far the largest tensor of a step, held twice more by the softmax
and its gradient. Here they are enlarged, compared and forgotten strip by strip, once for the losses
and once more for their gradient, which is written out.

Letters: B images, K classes, h and w cells, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from muntin.ops.resampling import bilinear_matrix
from muntin.shapes import Float, Int

__all__ = ["IGNORED", "MapLosses", "map_losses"]

IGNORED = -1
"""Label of pixels that are neither learnt from nor scored."""

STRIP_VALUES = 2**20
"""Enlarged logits that are in memory at a time; 4 MiB in float32, and some copies."""

_LEAST = 1e-6


class MapLosses(NamedTuple):
    """Losses of each image; 0 for one whose pixels are all ignored.

    Attributes:
        cross_entropy: Mean over the pixels, weighted by class where weights are given.
        dice: 1 - the Dice coefficient, mean over the classes that are in the image.
    """

    cross_entropy: Float[Tensor, " B"]
    dice: Float[Tensor, " B"]


def map_losses(
    logits: Float[Tensor, "B K h w"],
    labels: Int[Tensor, "B H W"],
    *,
    class_weights: Float[Tensor, " K"] | None = None,
    smoothing: float = 0.0,
    strip_values: int = STRIP_VALUES,
) -> MapLosses:
    """Compare logits, enlarged bilinearly to the size of the labels, with the labels.

    Args:
        logits: Of cells.
        labels: Class numbers of pixels; `IGNORED` where there is none.
        class_weights: Factor on the cross-entropy of the pixels of each class.
        smoothing: Part of the target that is spread over all classes.
        strip_values: Enlarged logits in memory at a time; it changes the memory, not the losses.

    Returns:
        Both losses. The gradient of one that is not used costs nothing; a second derivative there
        is not.

    Source:
        Dice: Milletari et al. 2016 (arXiv 1606.04797), with plain sums in the denominator.
    """
    classes = logits.shape[1]
    weights = torch.ones(classes, device=logits.device) if class_weights is None else class_weights
    cross_entropy, dice = _MapLosses.apply(logits, labels, weights.float(), smoothing, strip_values)
    return MapLosses(cross_entropy, dice)


class _Strip(NamedTuple):
    """Some rows of pixels.

    Attributes:
        cells: The first and the last row of cells that they are made of, the latter excluded.
        rows: How these make the rows of pixels.
        logits: Of every pixel: B, K, rows, W.
        target: Class of each pixel, any where there is none: B, 1, rows, W.
        known: Whether there is one: B, rows, W.
    """

    cells: slice
    rows: Tensor
    logits: Tensor
    target: Tensor
    known: Tensor


def _strips(logits: Tensor, labels: Tensor, strip_values: int) -> Iterator[_Strip]:
    height, width = labels.shape[1:]
    batch, classes, high, wide = logits.shape
    rows = bilinear_matrix(height, high, device=logits.device)
    columns = bilinear_matrix(width, wide, device=logits.device)
    step = max(1, strip_values // (batch * classes * width))
    for start in range(0, height, step):
        # Each row of pixels mixes two rows of cells, so a strip needs few of them.
        part = rows[start : start + step]
        touched = torch.where(part.any(dim=0))[0]
        cells = slice(int(touched[0]), int(touched[-1]) + 1)
        found = labels[:, start : start + step]
        known = found != IGNORED
        yield _Strip(
            cells=cells,
            rows=part[:, cells],
            # Separable: columns first, then rows; B, K, rows, W.
            logits=part[:, cells] @ (logits[:, :, cells].float() @ columns.T),
            target=torch.where(known, found, 0).long()[:, None],
            known=known,
        )


class _MapLosses(torch.autograd.Function):
    """Sums over strips, and their gradient."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (autograd's own)
        logits: Tensor,
        labels: Tensor,
        weights: Tensor,
        smoothing: float,
        strip_values: int,
    ) -> tuple[Tensor, Tensor]:
        # Sums over many pixels are not for half precision.
        with torch.autocast(logits.device.type, enabled=False):
            totals: list[Tensor] | None = None
            for strip in _strips(logits, labels, strip_values):
                sums = _strip_sums(strip, weights, smoothing)
                totals = (
                    sums if totals is None else [a + b for a, b in zip(totals, sums, strict=True)]
                )
        assert totals is not None, "labels have at least one row"
        wrong, weight, shared, said, there = totals
        # Only the coarse logits and sums per image are stored, never a strip.
        ctx.save_for_backward(logits, labels, weights, *totals[1:])
        ctx.smoothing, ctx.strip_values = smoothing, strip_values
        ctx.set_materialize_grads(False)
        dice = 1 - 2 * shared / (said + there).clamp(min=_LEAST)
        present = there > 0
        return (
            wrong / weight.clamp(min=_LEAST),
            (dice * present).sum(dim=1) / present.sum(dim=1).clamp(min=1),
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:  # noqa: ANN401 (autograd's own)
        logits, labels, weights, weight, shared, said, there = ctx.saved_tensors
        for_entropy, for_dice = gradients
        classes = len(weights)
        columns = bilinear_matrix(labels.shape[2], logits.shape[3], device=logits.device)
        with torch.autocast(logits.device.type, enabled=False):
            scale = torch.zeros_like(weight) if for_entropy is None else for_entropy
            scale = scale / weight.clamp(min=_LEAST)
            # d CE / d logits = softmax - target, with the label-smoothed target.
            spread = ctx.smoothing / classes
            total = (there > 0).sum(dim=1, keepdim=True).clamp(min=1)
            parts = (said + there).clamp(min=_LEAST)
            if for_dice is not None:
                # Of the Dice loss by the score of a class, at pixels of others, and of its own.
                share = for_dice[:, None] * (there > 0) / total
                others, own = share * 2 * shared / parts**2, -2 * share / parts
            result = logits.new_zeros(logits.shape, dtype=torch.float32)
            for strip in _strips(logits, labels, ctx.strip_values):
                scores = strip.logits.softmax(dim=1)
                factor = scale[:, None, None] * strip.known  # B, rows, W
                own_weight = (1 - ctx.smoothing) * weights[strip.target[:, 0]] * factor
                slope = scores * (own_weight + spread * weights.sum() * factor)[:, None]
                slope.scatter_add_(1, strip.target, -own_weight[:, None])
                if ctx.smoothing:
                    slope -= spread * weights[:, None, None] * factor[:, None]
                if for_dice is not None:
                    # d Dice / d softmax, then through the softmax: p * (g - sum(p * g)).
                    by_score = others[:, :, None, None].expand_as(scores).clone()
                    chosen = own[:, :, None, None].expand_as(scores).gather(1, strip.target)
                    by_score.scatter_add_(1, strip.target, chosen)
                    mean = (scores * by_score).sum(dim=1, keepdim=True)
                    slope += scores * (by_score - mean) * strip.known[:, None]
                # Transpose of the bilinear enlargement; strips overlap by a row of cells.
                result[:, :, strip.cells] += strip.rows.T @ slope @ columns
        return result.to(logits.dtype), None, None, None, None


def _strip_sums(strip: _Strip, weights: Tensor, smoothing: float) -> list[Tensor]:
    """What both losses need of a strip: sums over its pixels, of each image (and class)."""
    log_scores = strip.logits.log_softmax(dim=1)
    loss = -log_scores.gather(1, strip.target)[:, 0]
    weight = weights[strip.target[:, 0]] * strip.known
    wrong = loss * weight * (1 - smoothing)
    if smoothing:
        spread = -(log_scores * weights[:, None, None]).mean(dim=1)
        wrong += smoothing * spread * strip.known
    scores = log_scores.exp_() * strip.known[:, None]
    shared = scores.gather(1, strip.target)[:, 0]
    zeros = scores.new_zeros(scores.shape[:2])
    flat = strip.target.flatten(1)
    return [
        wrong.sum(dim=(1, 2)),
        weight.sum(dim=(1, 2)),
        zeros.scatter_add(1, flat, shared.flatten(1)),
        scores.sum(dim=(2, 3)),
        zeros.scatter_add(1, flat, strip.known.float().flatten(1)),
    ]
