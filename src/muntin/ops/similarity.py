# SPDX-License-Identifier: Apache-2.0
"""Similarity of features: of two sets for the same examples (linear CKA), and of neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from muntin.errors import ShapeError
from muntin.shapes import Float, Int

MIN_EXAMPLES = 4
"""The unbiased estimate divides by n (n - 3)."""


def centred_gram(features: Float[Tensor, "N C"]) -> Float[Tensor, "N N"]:
    """Compute the U-centred Gram matrix, with a zero diagonal."""
    count = len(features)
    if count < MIN_EXAMPLES:
        message = (
            f"features must have at least {MIN_EXAMPLES} examples, got {count}. Compare more or "
            f"larger images."
        )
        raise ShapeError(message)
    values = features.double() - features.double().mean(
        dim=0
    )  # avoids cancellation; centring is below
    # Zero diagonal: a sample paired with itself biases HSIC (Song et al. 2012).
    gram = (values @ values.T).fill_diagonal_(0)
    sums = gram.sum(dim=0)
    centred = (
        gram - (sums[:, None] + sums[None]) / (count - 2) + sums.sum() / ((count - 1) * (count - 2))
    )
    return centred.fill_diagonal_(0)


def compare_grams(first: Float[Tensor, "N N"], second: Float[Tensor, "N N"]) -> float:
    """Compute the linear CKA (centred kernel alignment) from two results of `centred_gram`.

    1 if the features differ by a rotation and a factor only; about 0 if they are unrelated, even
    with few examples and many channels; 0 if one of them is constant. The unbiased estimate may be
    slightly negative.

    Kornblith et al. 2019 (arXiv 1905.00414), equation 5, with the unbiased estimate of HSIC of Song
    et al. 2012 as in Nguyen et al. 2021 (arXiv 2010.15327), equation 3. The biased estimate is near
    1 for any features with more channels than examples.
    """
    norms = torch.sqrt((first * first).sum() * (second * second).sum())
    return float((first * second).sum() / norms) if norms > 0 else 0.0


def classify_by_neighbours(
    queries: Float[Tensor, "Q C"],
    examples: Float[Tensor, "N C"],
    labels: Int[Tensor, " N"],
    num_classes: int,
    *,
    count: int = 20,
    temperature: float = 0.07,
) -> Int[Tensor, " Q"]:
    """Classify features by a vote of their `count` nearest examples; all vectors have length 1.

    A vote counts exp(cosine / temperature), as in Wu et al. 2018 (arXiv 1805.01978), section 3.4.
    """
    best, places = (queries @ examples.T).topk(min(count, len(examples)), dim=1)
    votes = best.new_zeros(len(queries), num_classes)
    # Relative to the nearest, which changes no order and does not overflow.
    weights = ((best - best[:, :1]) / temperature).exp()
    return votes.scatter_add_(1, labels[places], weights).argmax(dim=1)
