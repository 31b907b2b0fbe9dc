# SPDX-License-Identifier: Apache-2.0
"""Per-pixel losses from low-resolution logits, without full-resolution logits in memory.

With many classes, upsampled logits are by far the largest tensor of a training step. Here they are
upsampled and reduced in strips of rows, once for the losses and once for the explicit gradient.

Letters: B images, K classes, h and w cells, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from muntin.ops.sliding_windows import bilinear_matrix
from muntin.shapes import Float, Int
from muntin.targets import IGNORED

STRIP_VALUES = 2**20
"""Upsampled logits in memory at a time; 4 MiB in float32, plus a few copies."""

_LEAST = 1e-6


class MapLosses(NamedTuple):
    """Losses of each image; 0 if all its pixels are ignored.

    Cross-entropy is the mean over pixels, weighted by class if weights are given; `dice` is 1 -
    Dice coefficient, averaged over the classes present in the image.
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
    """Compute cross-entropy and Dice loss of logits, upsampled bilinearly to the labels.

    `smoothing` is the fraction of the target spread over all classes; `strip_values` affects
    memory, not the losses. The gradient of an unused loss costs nothing; there are no second
    derivatives. Dice: Milletari et al. 2016 (arXiv 1606.04797), with plain sums in the denominator.
    """
    classes = logits.shape[1]
    weights = torch.ones(classes, device=logits.device) if class_weights is None else class_weights
    cross_entropy, dice = _MapLosses.apply(logits, labels, weights.float(), smoothing, strip_values)
    return MapLosses(cross_entropy, dice)


class _Strip(NamedTuple):
    """A strip of rows of pixels.

    `cells` are the rows of cells that it depends on, `rows` the weights from these to its pixels.
    Logits are B, K, rows, W; `target`, 0 if ignored, is B, 1, rows, W; `known` B, rows, W.
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
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (autograd's own)
        logits: Tensor,
        labels: Tensor,
        weights: Tensor,
        smoothing: float,
        strip_values: int,
    ) -> tuple[Tensor, Tensor]:
        # Sums over many pixels overflow or lose bits in half precision.
        with torch.autocast(logits.device.type, enabled=False):
            sums = (
                _strip_sums(strip, weights, smoothing)
                for strip in _strips(logits, labels, strip_values)
            )
            totals = [reduce(torch.add, parts) for parts in zip(*sums, strict=True)]
        wrong, weight, shared, predicted, present_px = totals
        # Only the coarse logits and sums per image are stored, never a strip.
        ctx.save_for_backward(logits, labels, weights, *totals[1:])
        ctx.smoothing, ctx.strip_values = smoothing, strip_values
        ctx.set_materialize_grads(False)
        dice = 1 - 2 * shared / (predicted + present_px).clamp(min=_LEAST)
        present = present_px > 0
        return (
            wrong / weight.clamp(min=_LEAST),
            (dice * present).sum(dim=1) / present.sum(dim=1).clamp(min=1),
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:  # noqa: ANN401 (autograd's own)
        logits, labels, weights, weight, shared, predicted, present_px = ctx.saved_tensors
        for_entropy, for_dice = gradients
        classes = len(weights)
        columns = bilinear_matrix(labels.shape[2], logits.shape[3], device=logits.device)
        with torch.autocast(logits.device.type, enabled=False):
            scale = torch.zeros_like(weight) if for_entropy is None else for_entropy
            scale = scale / weight.clamp(min=_LEAST)
            # d CE / d logits = softmax - target, with the label-smoothed target.
            spread = ctx.smoothing / classes
            total = (present_px > 0).sum(dim=1, keepdim=True).clamp(min=1)
            parts = (predicted + present_px).clamp(min=_LEAST)
            if for_dice is not None:
                # Of the Dice loss by the score of a class, at pixels of others, and of its own.
                share = for_dice[:, None] * (present_px > 0) / total
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
    """Sums of a strip that both losses need, per image (and class)."""
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
