# SPDX-License-Identifier: Apache-2.0
"""The interface of a task: its data, head, losses, decoding and metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from muntin.data.checking import Report
from muntin.data.data_config import DataConfig
from muntin.data.transforms import Preprocessing, normalise
from muntin.errors import ConfigError
from muntin.features import Backbone, Features
from muntin.heads.extended_head import extend_head
from muntin.heads.network import Head, HeadConfig
from muntin.samples import Classes, DataSets, Entry, Listing, TaskKind
from muntin.shapes import Float, Int, Real, Size
from muntin.targets import Target


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageMeta:
    """Where one input of a network comes from.

    Attributes:
        size: (height, width) of the original in pixels.
        input_size: (height, width) of the network input in pixels, without padding.
        box: Of a cropped instance, in pixels of the original; None for a whole image.
    """

    path: str
    size: Size
    input_size: Size
    box: tuple[float, float, float, float] | None = None


class PredictOptions(NamedTuple):
    """Options of a prediction.

    Attributes:
        tta: Whether to average with the output for the mirrored image, for tasks that can.
        tile: Side in pixels of the sliding window, or of tiles; None chooses.
        scales: Factors on the input size; outputs of all scales are averaged.
    """

    tta: bool = False
    tile: int | Literal["auto"] | None = None
    scales: tuple[float, ...] = (1.0,)


DEFAULT_OPTIONS = PredictOptions()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class InferenceBatch:
    """One batch of inference input with its settings.

    Images are resized and padded to one size, but not normalised; the network is in evaluation
    mode, on `device`.
    """

    network: nn.Module
    images: Real[Tensor, "B C H W"]
    metas: Sequence[ImageMeta]
    pre: Preprocessing
    classes: Classes
    device: torch.device
    options: PredictOptions = DEFAULT_OPTIONS

    def forward(
        self, images: Real[Tensor, "B C H W"], sizes: Int[Tensor, "B 2"] | None = None
    ) -> Any:  # noqa: ANN401 (each head has its own)
        """Run the network; arguments as in `run_forward`."""
        return run_forward(self.network, images.to(self.device), self.pre, sizes)

    @property
    def canvas(self) -> Size | None:
        """(height, width) of the largest image that the network takes; None for any."""
        canvases: Sequence[Size] | None = getattr(self.network, "canvases", None)
        return None if canvases is None else max(canvases)

    @property
    def sizes(self) -> Int[Tensor, "B 2"]:
        """(height, width) of the image inside each image."""
        return torch.tensor([meta.input_size for meta in self.metas], device=self.device)


def run_forward(
    network: nn.Module,
    images: Real[Tensor, "B C H W"],
    pre: Preprocessing,
    sizes: Int[Tensor, "B 2"] | None,
) -> Any:  # noqa: ANN401 (each head has its own)
    """Run a network on normalised images, or on pixels where its graph normalises them.

    `sizes` are (height, width) of the image inside each padded one; None if not padded.
    """
    if not getattr(network, "reads_pixels", False):
        images = normalise(images, pre, sizes)
    return network(images, sizes)


class TrainBatch(NamedTuple):
    """Input of one training step; a tuple, so that wrappers such as DDP pass it on unchanged.

    Images are normalised and padded; `sizes` are (height, width) inside the padding. `labels` are
    rows of `Task.ground_truth`; dense tasks have `targets` instead. `class_weights` are factors on
    the loss of each class; `label_smoothing` is the share of the target spread over all classes.
    """

    images: Float[Tensor, "B C H W"]
    sizes: Int[Tensor, "B 2"]
    labels: Tensor | None = None
    targets: tuple[Target, ...] | None = None
    class_weights: Tensor | None = None
    label_smoothing: float = 0.0


@runtime_checkable
class Metric(Protocol):
    """Accumulates predictions and ground truth, and computes named figures."""

    @property
    def num_images(self) -> int:
        """Number of images added."""

    def update(self, answers: Any, truth: Any) -> None:  # noqa: ANN401 (each task has its own)
        """Add the predictions and the ground truth of a batch."""

    def compute(self) -> dict[str, Any]:
        """Compute the figures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseTask:
    """What only dense tasks (boxes, masks, keypoints) need.

    Attributes:
        heads: Their heads by name.
        default_head: Default for small and for large networks.
        merges: Whether detections of several views of an image (tiles, mirrored) can be merged.
        whole: Head of models that cannot be divided into backbone and head; None if there are none.
    """

    heads: Mapping[str, HeadConfig]
    default_head: Mapping[Literal["small", "large"], str]
    merges: bool = False
    whole: HeadConfig | None = None


class LazyTruth:
    """Ground truth of a listing, indexed by entries and read on access."""

    def __init__(self, listing: Listing, read: Callable[[Listing, Entry], Any]) -> None:
        self._listing, self._read = listing, read

    def __getitem__(self, places: Tensor) -> list[Any]:
        entries = self._listing.entries
        return [self._read(self._listing, entries[place]) for place in places.tolist()]


def count_images(listing: Listing) -> Tensor:
    """Count the images of each class."""
    return torch.tensor(listing.class_counts, dtype=torch.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One row of the task table: everything the other packages need to know about a task.

    Attributes:
        list_data: Lists a data set; class numbers follow the given classes of a trained run.
        check_data: Reads every file and reports all faults.
        make_head: Builds the head for a backbone, from its config if the task has several heads.
        ground_truth: Annotations of a listing, indexed by entry: labels for the loss, or ground
            truth for the metric; None where it is the label maps of the batches.
        losses: From head, features and batch to the loss of each image, by name.
        predict: Runs a network on a batch, in evaluation and prediction; returns raw output.
        goals: Figures that select the best epoch: the first of them that the metric computes.
        make_answers: From raw output to predictions that the metric takes, unless it takes results.
        compare: Loss of each image from answers and ground truth; None if only training has one.
        class_counts: Frequency of each class in a listing.
        top_down: Whether the network input is the crop of one instance; otherwise whole images.
        outputs: Names of the raw output in an exported graph.
        finish: Name and function of one more output of such a graph, for use without muntin: from
            raw output, image size, head and classes. None if the raw output needs no decoding.
    """

    name: str
    list_data: Callable[[Path | str, Classes | None, DataConfig], DataSets]
    check_data: Callable[[Path | str, DataConfig], Report]
    make_head: Callable[[Backbone, Classes, Any], nn.Module]
    ground_truth: Callable[[Listing, Classes], Any]
    losses: Callable[[Head, Features, TrainBatch, Classes], dict[str, Float[Tensor, " B"]]]
    predict: Callable[[InferenceBatch], Any]
    decode: Callable[[Any, Sequence[ImageMeta], Classes], list[Any]]
    metric: Callable[[Classes], Metric]
    goals: tuple[str, ...]
    kind: TaskKind
    make_answers: Callable[[Any, Sequence[ImageMeta], Classes], Any] | None = None
    # Most tasks have none: predictions are not what their losses compare.
    compare: Callable[[Any, Any, Classes], Tensor | None] = lambda answers, truth, classes: None
    class_counts: Callable[[Listing], Tensor] = count_images
    top_down: bool = False
    dense: DenseTask | None = None
    outputs: tuple[str, ...] = ("logits",)
    finish: tuple[str, Callable[[Tensor, Size, Any, Classes], Tensor]] | None = None

    @property
    def detects(self) -> bool:
        """Whether the head is a detector: any number of instances in whole, padded images."""
        return self.kind == "detection" or (self.kind == "keypoints" and not self.top_down)

    @property
    def command(self) -> str:
        """What begins the command that trains for it."""
        return f"muntin {self.name if self.kind == 'pretraining' else f'train {self.name}'}"

    @property
    def recipe_kind(self) -> TaskKind:
        """Kind of task whose recipes and augmentation suit this one."""
        return "detection" if self.detects else self.kind

    def answers(self, raw: Any, metas: Sequence[ImageMeta], classes: Classes) -> Any:  # noqa: ANN401 (each task has its own)
        """Predictions that the metric takes, from raw output."""
        return (self.make_answers or self.decode)(raw, metas, classes)

    def build_head(
        self,
        backbone: Backbone,
        classes: Classes,
        config: HeadConfig | None,
        *,
        old: tuple[int, ...] = (),
    ) -> nn.Module:
        """Build the head for a backbone; its config must belong to a head of this task.

        `old` counts the classes of each part but the last, see `muntin.heads.extended_head`.
        """
        heads = (*self.dense.heads.values(), self.dense.whole) if self.dense else ()
        if heads and not isinstance(config, tuple(type(head) for head in heads if head)):
            message = (
                f"{self.name} needs the config of one of its heads, got {type(config).__name__}. "
                f"Restore the config.json of the run."
            )
            raise ConfigError(message)
        if not old:
            return self.make_head(backbone, classes, config)
        counts = (*old, len(classes.names) - sum(old))
        if min(counts) < 1:
            message = (
                f"a run with added classes must have more than the {sum(old)} before, got "
                f"{len(classes.names)}. Restore its classes.json."
            )
            raise ConfigError(message)
        parts = []
        for number, count in enumerate(counts):
            names = classes.names[sum(counts[:number]) :][:count]
            parts.append(self.make_head(backbone, replace(classes, names=names), config))
        return extend_head(parts)

    def classes(self, listing: Listing) -> Classes:
        """Classes of a listing, with what this kind of task stores beside their names."""
        return Classes(
            names=listing.class_names,
            multi_label=listing.multi_label and self.kind == "classification",
            encoding=listing.encoding if self.kind == "segmentation" else None,
            skeleton=listing.skeleton if self.kind == "keypoints" else None,
        )

    def goal(self, figures: Mapping[str, Any]) -> tuple[str, float]:
        """Name and value of the figure by which epochs are compared; ("", 0.0) without one."""
        name = next((name for name in self.goals if figures.get(name) is not None), "")
        return name, float(figures[name]) if name else 0.0
