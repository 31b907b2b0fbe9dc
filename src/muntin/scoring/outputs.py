# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The outputs of a network for a listing, and the figures computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from muntin.samples import Listing
from muntin.tasks.task import Metric

__all__ = ["Outputs", "Scored", "join_outputs", "join_rows"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """Predictions for the readable images of a listing, with the ground truth.

    Answers and truth have one row per image: tensors or lists. `losses` holds the loss of each
    image, none if the task has none; `indices` the image's index in the listing.
    """

    answers: Any
    truth: Any
    losses: Tensor
    indices: Tensor

    @property
    def mean_loss(self) -> dict[str, float]:
        """The mean `loss`; empty if the task has none."""
        return {"loss": self.losses.mean().item()} if len(self.losses) else {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """Figures, with the metric and the outputs they were computed from.

    Figures of classes are lists in the order of the classes.
    """

    figures: dict[str, Any]
    metric: Metric
    outputs: Outputs
    listing: Listing


def join_rows(parts: Sequence[Any]) -> Any:  # noqa: ANN401 (tensors or lists)
    """Concatenate the rows of batches: tensors, or lists."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    return [row for part in parts for row in part]


def join_outputs(parts: Sequence[Outputs]) -> Outputs:
    """Concatenate the outputs of several processes, about disjoint images."""
    full = [part for part in parts if len(part.indices)] or list(parts[:1])
    return Outputs(
        answers=join_rows([part.answers for part in full]),
        truth=join_rows([part.truth for part in full]),
        losses=torch.cat([part.losses for part in full]),
        indices=torch.cat([part.indices for part in full]),
    )
