# SPDX-License-Identifier: Apache-2.0
"""Losses strip by strip against PyTorch's own on logits of every pixel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from muntin.ops.dense_losses import map_losses
from muntin.targets import IGNORED

CASES = {
    "four times": ((8, 10), (32, 40)),
    "odd": ((9, 13), (33, 50)),
    "smaller": ((20, 20), (10, 7)),
    "one cell": ((1, 1), (5, 6)),
    "same": ((6, 7), (6, 7)),
}


def draw(cells, pixels, classes=5, batch=3):
    torch.manual_seed(0)
    logits = (torch.randn(batch, classes, *cells) * 3).requires_grad_()
    labels = torch.randint(0, classes, (batch, *pixels)).to(torch.int16)
    labels[0, : pixels[0] // 2] = IGNORED
    return logits, labels


def plain_dice(logits, labels):
    scores = logits.softmax(dim=1)
    rows = []
    for score, label in zip(scores, labels, strict=True):
        known = label != IGNORED
        parts = []
        for number in range(logits.shape[1]):
            there = ((label == number) & known).float()
            if there.sum():
                said = score[number] * known
                parts.append(1 - 2 * (said * there).sum() / (said.sum() + there.sum()))
        rows.append(torch.stack(parts).mean() if parts else logits.sum() * 0)
    return torch.stack(rows)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("values", [1, 500, 10**9])
def test_values_and_gradients(case, weighted, smoothing, values):
    cells, pixels = CASES[case]
    logits, labels = draw(cells, pixels)
    weights = torch.tensor([1.0, 2.0, 0.5, 0.0, 3.0]) if weighted else None
    found = map_losses(
        logits, labels, class_weights=weights, smoothing=smoothing, strip_values=values
    )
    large = F.interpolate(logits, size=pixels, mode="bilinear", align_corners=False)
    options = {"weight": weights, "label_smoothing": smoothing, "ignore_index": IGNORED}
    for row in range(len(labels)):
        if not (labels[row] != IGNORED).any():
            assert found.cross_entropy[row] == 0
            continue
        wanted = F.cross_entropy(large[row : row + 1], labels[row : row + 1].long(), **options)
        torch.testing.assert_close(found.cross_entropy[row], wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.dice, plain_dice(large, labels), rtol=1e-5, atol=1e-6)
    factors = torch.tensor([0.3, 1.0, 2.0])
    (mine,) = torch.autograd.grad(
        ((found.cross_entropy + 0.5 * found.dice) * factors).sum(), logits
    )
    ce = torch.stack(
        [
            F.cross_entropy(large[row : row + 1], labels[row : row + 1].long(), **options)
            if (labels[row] != IGNORED).any()
            else large.sum() * 0
            for row in range(len(labels))
        ]
    )
    large = F.interpolate(logits, size=pixels, mode="bilinear", align_corners=False)
    (theirs,) = torch.autograd.grad(
        ((ce + 0.5 * plain_dice(large, labels)) * factors).sum(), logits
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_nothing_is_known():
    logits, labels = draw((4, 4), (16, 16))
    labels[:] = IGNORED
    found = map_losses(logits, labels)
    assert found.cross_entropy.tolist() == [0, 0, 0]
    assert found.dice.tolist() == [0, 0, 0]
    (gradient,) = torch.autograd.grad(sum(part.sum() for part in found), logits)
    assert (gradient == 0).all()


def test_half_precision_is_summed_in_full():
    logits, labels = draw((8, 8), (64, 64))
    whole = map_losses(logits, labels).cross_entropy
    half = map_losses(logits.bfloat16(), labels).cross_entropy
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole, rtol=2e-2, atol=2e-2)
