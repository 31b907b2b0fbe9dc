# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What a task is to the rest: which data, which head, which loss, what output means, its score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from muntin.data.checking import Report
from muntin.features import Backbone
from muntin.samples import DataSets, Listing
from muntin.shapes import Size

__all__ = ["Classes", "Metric", "Task"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Classes:
    """What a data set asks for: ``classes.json`` of a run folder.

    Attributes:
        names: Class names in the order of the class numbers.
        multi_label: Whether a picture may have any number of them.
    """

    names: tuple[str, ...]
    multi_label: bool = False


@runtime_checkable
class Metric(Protocol):
    """Collects raw outputs and targets, gives named figures."""

    num_images: int

    def update(self, logits: Any, targets: Any) -> None:  # noqa: ANN401 (each task has its own)
        """Add a batch."""

    def compute(self) -> dict[str, Any]:
        """Give the figures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """Five questions and their answers.

    Attributes:
        name: As typed on the command line.
        list_data: Reads what a user calls DATA; with class names, numbers follow them.
        check_data: Reads every file and reports what is wrong.
        classes: What a listing asks for.
        build_head: Makes the head for a backbone.
        targets: What a listing's annotations mean to the loss; one row a picture.
        loss: Loss of each picture, from raw output, targets, classes, class weights
            and label smoothing.
        decode: From raw output to results, given file and original size of each picture.
        metric: A fresh collector.
        goals: Figures by which the best epoch is chosen: the first one that the metric gives.
    """

    name: str
    list_data: Callable[[Path | str, Sequence[str] | None], DataSets]
    check_data: Callable[[Path | str], Report]
    classes: Callable[[Listing], Classes]
    build_head: Callable[[Backbone, Classes], nn.Module]
    targets: Callable[[Listing, Classes], Tensor]
    loss: Callable[[Any, Tensor, Classes, Tensor | None, float], Tensor]
    decode: Callable[[Any, Sequence[tuple[str, Size]], Classes], list[Any]]
    metric: Callable[[Classes], Metric]
    goals: tuple[str, ...]

    def goal(self, figures: Mapping[str, Any]) -> tuple[str, float]:
        """Name and value of the figure by which epochs are compared."""
        name = next((name for name in self.goals if figures.get(name) is not None), "")
        return name, float(figures[name]) if name else 0.0
