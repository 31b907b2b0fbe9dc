# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What a task is to the rest: which data, which head, which loss, what output means, its score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from muntin.data.data_config import DataConfig
from muntin.data.report import Report
from muntin.data.transforms import Preprocessing, normalise
from muntin.features import Backbone, Features
from muntin.heads.head import Head, HeadConfig
from muntin.samples import Classes, DataSets, Listing, TaskKind
from muntin.shapes import Float, Int, Size, UInt8
from muntin.targets import Target

__all__ = [
    "DenseTask",
    "ImageMeta",
    "InferenceBatch",
    "Metric",
    "Task",
    "TrainBatch",
    "count_images",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageMeta:
    """An image that a network saw.

    Attributes:
        path: The file; empty when it came as an array.
        size: (height, width) of the original in pixels.
        input_size: (height, width) at which the network saw it, without padding.
        box: Edges of the subject in pixels of the original, where one was cut out of it; None where
            the whole image was taken for one.
    """

    path: str
    size: Size
    input_size: Size
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class InferenceBatch:
    """Images that a network is to look at.

    Attributes:
        network: In evaluation mode.
        images: As `Preprocessing` fits them; of several sizes, padded.
        metas: The image inside each.
        pre: How they are normalised.
        classes: What the network tells apart.
        device: Where the network is.
        tta: Whether the mirrored image is seen too, where one answer can be made of both.
        tile: Side in pixels of the windows in which an image is seen; None chooses.
        scales: Factors of the size at which an image is seen, all of which make the answer.
    """

    network: nn.Module
    images: UInt8[Tensor, "B C H W"]
    metas: Sequence[ImageMeta]
    pre: Preprocessing
    classes: Classes
    device: torch.device
    tta: bool = False
    tile: int | None = None
    scales: tuple[float, ...] = (1.0,)

    def forward(
        self, images: UInt8[Tensor, "B C H W"], sizes: Int[Tensor, "B 2"] | None = None
    ) -> Any:  # noqa: ANN401 (each head has its own)
        """Show images to the network, normalised unless it reads pixels.

        Args:
            images: Perhaps padded.
            sizes: Of the images inside, where the network takes them.
        """
        images = images.to(self.device)
        if not getattr(self.network, "reads_pixels", False):
            images = normalise(images, self.pre, sizes)
        return self.network(images, sizes)

    @property
    def canvas(self) -> Size | None:
        """(height, width) of the largest image that the network takes; None for any."""
        canvases: Sequence[Size] | None = getattr(self.network, "canvases", None)
        return None if canvases is None else max(canvases)

    @property
    def sizes(self) -> Int[Tensor, "B 2"]:
        """(height, width) of the image inside each image."""
        return torch.tensor([meta.input_size for meta in self.metas], device=self.device)


class TrainBatch(NamedTuple):
    """What a step of training learns from; a tuple, so that wrappers of networks pass it on.

    Attributes:
        images: Normalised and padded.
        sizes: (height, width) of the image inside each image.
        labels: Rows of what `Task.ground_truth` gave, where the task has labels.
        targets: What is known of each image otherwise: its objects, or the classes of its pixels.
        class_weights: Factor on the loss of each class.
        label_smoothing: Part of the target spread over all classes.
    """

    images: Float[Tensor, "B C H W"]
    sizes: Int[Tensor, "B 2"]
    labels: Tensor | None = None
    targets: tuple[Target, ...] | None = None
    class_weights: Tensor | None = None
    label_smoothing: float = 0.0


@runtime_checkable
class Metric(Protocol):
    """Collects answers and the truth, gives named figures."""

    @property
    def num_images(self) -> int:
        """Images that were added."""

    def update(self, answers: Any, truth: Any) -> None:  # noqa: ANN401 (each task has its own)
        """Add a batch."""

    def compute(self) -> dict[str, Any]:
        """Give the figures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseTask:
    """What tasks need that speak of places in the image.

    Attributes:
        heads: Their heads by name.
        default_head: Which of them suits a small network and a large one.
        merges: Whether answers of several metas of an image, tiles of it say, become one.
        example: What the head's losses take beside the features of an image of a size (height,
            width), of the kind that takes most memory. Empty where the loss takes none to speak of.
    """

    heads: Mapping[str, HeadConfig]
    default_head: Mapping[Literal["small", "large"], str]
    example: Callable[[Size], dict[str, Any]]
    merges: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """The questions that the other rooms ask, and their answers.

    Attributes:
        name: As typed on the command line.
        list_data: Reads what a user calls DATA; class numbers follow those of a trained run.
        check_data: Reads every file and reports what is wrong.
        classes: What a listing asks for.
        build_head: Makes the head for a backbone, from its config where the task has several.
        ground_truth: What is known of the images of a listing, by place: labels for the loss, or the
            truth for the metric.
        losses: From the head, the features and what is known of a batch to the loss of each image,
            by name.
        predict: Raw output of a network for images, in evaluation and prediction.
        answers: From raw output to what the metric takes.
        decode: From raw output to results.
        compare: Loss of each image from answers and truth; None where only training has one.
        metric: A fresh collector.
        class_counts: How often each class is there in a listing.
        goals: Figures by which the best epoch is chosen: the first one that the metric gives.
        kind: What is predicted.
        top_down: Whether keypoints are found in one instance at a time, cropped out of its image;
            otherwise networks see whole images.
        dense: What tasks need that speak of places in the image; None for the others.
        outputs: Names of the raw output in an exported graph.
        finish: Name and maker of one more output of such a graph, for those who read it without
            muntin: from raw output, size of the images, head and classes. None where the raw
            output is all there is to say.
    """

    name: str
    list_data: Callable[[Path | str, Classes | None, DataConfig], DataSets]
    check_data: Callable[[Path | str, DataConfig], Report]
    classes: Callable[[Listing], Classes]
    build_head: Callable[[Backbone, Classes, HeadConfig | None], nn.Module]
    ground_truth: Callable[[Listing, Classes], Any]
    losses: Callable[[Head, Features, TrainBatch, Classes], dict[str, Float[Tensor, " B"]]]
    predict: Callable[[InferenceBatch], Any]
    answers: Callable[[Any, Sequence[ImageMeta], Classes], Any]
    decode: Callable[[Any, Sequence[ImageMeta], Classes], list[Any]]
    compare: Callable[[Any, Any, Classes], Tensor | None]
    metric: Callable[[Classes], Metric]
    class_counts: Callable[[Listing], Tensor]
    goals: tuple[str, ...]
    kind: TaskKind
    top_down: bool = False
    dense: DenseTask | None = None
    outputs: tuple[str, ...] = ("logits",)
    finish: tuple[str, Callable[[Tensor, Size, Any, Classes], Tensor]] | None = None

    @property
    def detects(self) -> bool:
        """Whether the head is a detector: any number of instances in whole, padded images."""
        return self.kind == "detection" or (self.kind == "keypoints" and not self.top_down)

    @property
    def recipe_kind(self) -> TaskKind:
        """Kind of task whose recipes and augmentation suit this one."""
        return "detection" if self.detects else self.kind

    def goal(self, figures: Mapping[str, Any]) -> tuple[str, float]:
        """Name and value of the figure by which epochs are compared."""
        name = next((name for name in self.goals if figures.get(name) is not None), "")
        return name, float(figures[name]) if name else 0.0


def count_images(listing: Listing) -> Tensor:
    """Images of each class."""
    return torch.tensor(listing.class_counts, dtype=torch.float32)
