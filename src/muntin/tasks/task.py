# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What a task is to the rest: which data, which head, which loss, what output means, its score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from muntin.data.checking import Report
from muntin.features import Backbone
from muntin.heads.detectors import HeadConfig
from muntin.samples import Classes, DataSets, Listing
from muntin.shapes import Float, Int, Size
from muntin.targets import BoxTargets

__all__ = ["Dense", "Lesson", "Metric", "Task", "View"]


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """A picture that a network saw.

    Attributes:
        path: The file; empty when it came as an array.
        size: (height, width) of the original in pixels.
        shown: (height, width) at which the network saw it, without padding.
    """

    path: str
    size: Size
    shown: Size


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lesson:
    """What a step of training learns from.

    Attributes:
        model: The network, perhaps wrapped.
        images: Normalised and padded.
        sizes: (height, width) of the picture inside each image.
        labels: Rows of what `Task.table` gave, where the task has labels.
        objects: Objects of each picture, where the task has objects.
        classes: What the network tells apart.
        class_weights: Factor on the loss of each class.
        label_smoothing: Part of the target spread over all classes.
    """

    model: Callable[..., Any]
    images: Float[Tensor, "B C H W"]
    sizes: Int[Tensor, "B 2"]
    labels: Tensor | None
    objects: tuple[BoxTargets, ...] | None
    classes: Classes
    class_weights: Tensor | None = None
    label_smoothing: float = 0.0


@runtime_checkable
class Metric(Protocol):
    """Collects answers and the truth, gives named figures."""

    @property
    def num_images(self) -> int:
        """Pictures that were added."""

    def update(self, answers: Any, truth: Any) -> None:  # noqa: ANN401 (each task has its own)
        """Add a batch."""

    def compute(self) -> dict[str, Any]:
        """Give the figures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dense:
    """What tasks need that speak of places in the picture.

    Attributes:
        heads: Their heads by name.
        default_head: Which of them suits a small network and a large one.
    """

    heads: Mapping[str, HeadConfig]
    default_head: Mapping[Literal["small", "large"], str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """The questions that the other rooms ask, and their answers.

    Attributes:
        name: As typed on the command line.
        list_data: Reads what a user calls DATA; with class names, numbers follow them.
        check_data: Reads every file and reports what is wrong.
        classes: What a listing asks for.
        build_head: Makes the head for a backbone, from its config where the task has several.
        table: What is known of the pictures of a listing, by place: labels for the loss, or the
            truth for the metric.
        losses: Loss of each picture of a lesson, by name.
        answers: From raw output to what the metric takes.
        decode: From raw output to results.
        compare: Loss of each picture from answers and truth; None where only training has one.
        metric: A fresh collector.
        goals: Figures by which the best epoch is chosen: the first one that the metric gives.
        recipes: Group of recipes that suit the task.
        dense: What tasks need that speak of places in the picture; None for the others.
    """

    name: str
    list_data: Callable[[Path | str, Sequence[str] | None], DataSets]
    check_data: Callable[[Path | str], Report]
    classes: Callable[[Listing], Classes]
    build_head: Callable[[Backbone, Classes, HeadConfig | None], nn.Module]
    table: Callable[[Listing, Classes], Any]
    losses: Callable[[Lesson], dict[str, Float[Tensor, " B"]]]
    answers: Callable[[Any, Sequence[View], Classes], Any]
    decode: Callable[[Any, Sequence[View], Classes], list[Any]]
    compare: Callable[[Any, Any, Classes], Tensor | None]
    metric: Callable[[Classes], Metric]
    goals: tuple[str, ...]
    recipes: Literal["pictures", "objects"]
    dense: Dense | None = None

    def goal(self, figures: Mapping[str, Any]) -> tuple[str, float]:
        """Name and value of the figure by which epochs are compared."""
        name = next((name for name in self.goals if figures.get(name) is not None), "")
        return name, float(figures[name]) if name else 0.0
