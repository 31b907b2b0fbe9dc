# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Open what a user gives, a model and images, for explanations."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from muntin.data.decoding import open_image
from muntin.data.transforms import Preprocessing, normalise
from muntin.errors import ConfigError, MuntinError
from muntin.explaining.arguments import check_point
from muntin.explaining.context import Context, pad_image
from muntin.explaining.target_selection import find_target, look
from muntin.heads.linear import DistilledHead, LinearHead
from muntin.heads.network import Network
from muntin.models.timm_backbone import TimmConfig
from muntin.prediction.predictor import Predictor
from muntin.prediction.sources import ImageLike
from muntin.runs import Run
from muntin.samples import Classes
from muntin.shapes import Size, UInt8
from muntin.tasks.table import find_task
from muntin.tasks.task import Task
from muntin.zoo.building import create_model, find_model

__all__ = [
    "OpenedModel",
    "Source",
    "evaluating",
    "is_fresh",
    "model_facts",
    "model_notes",
    "open_context",
    "open_model",
    "try_predict",
]

Source = Run | Predictor | Network | Path | str
"""A run (its folder, a file exported from it), the name of a classifier of the zoo, or a model."""

MAX_WINDOW = 2
"""Sides of the largest window that is explained at a time, in those of the training images: as in
prediction."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OpenedModel:
    """A model that is explained.

    Attributes:
        name: For headings.
        network: Backbone and head, or an exported file's engine.
        task: What its output means.
        classes: What it tells apart.
        pre: What happens to an image first.
        in_chans: Channels that it reads; `pre` knows images of 1 and 3 only.
        trained: Whether the weights are more than fresh ones.
        origin: Where the weights are from, in a few words.
    """

    name: str
    network: nn.Module
    task: Task
    classes: Classes
    pre: Preprocessing
    in_chans: int
    trained: bool
    origin: str

    @property
    def reads_images(self) -> bool:
        """Whether an image has the channels that the model reads."""
        return self.in_chans == self.pre.in_chans


def open_model(
    source: Source, *, weights: str | Path | None = None, img_size: Size | None = None
) -> OpenedModel:
    """Open what is to be explained.

    Args:
        source: A run, or the name of a classifier in the zoo, or what `muntin.load` and
            `muntin.create_model` gave.
        weights: For a name of the zoo: what `create_model` takes. Fresh ones when left out.
        img_size: (height, width) in pixels at which images are seen; what the model is meant for
            when left out.

    Returns:
        The model. A network that is not on the CPU in float32 is copied.

    Raises:
        ConfigError: There is no such model, or weights are given for something that has its own.
        RunError: The run is incomplete.
        WeightError: The weights cannot be read or do not fit.
        MissingExtra: What runs the file is not installed.
    """
    if weights is not None and not _is_name(source):
        message = f"weights are for a model of the zoo, got them for {source}. Leave them out."
        raise ConfigError(message)
    if isinstance(source, Predictor):
        opened = OpenedModel(
            name=type(getattr(source.network, "backbone", source.network)).__name__,
            network=_on_cpu(source.network),
            task=source.task,
            classes=source.classes,
            pre=source.preprocessing,
            in_chans=source.preprocessing.in_chans,
            trained=not is_fresh(source.network),
            origin="of the predictor",
        )
    elif isinstance(source, nn.Module):
        opened = _open_network(source)
    elif isinstance(source, Run) or not _is_name(source):
        opened = _open_run(source if isinstance(source, Run) else Run.open(source))
    else:
        opened = _open_name(str(source), weights, img_size)
    if img_size is not None:
        opened = replace(opened, pre=replace(opened.pre, img_size=img_size))
    return opened


def _is_name(source: Source) -> bool:
    """Whether a text is to be looked up in the zoo: not what exists or looks like a path."""
    return isinstance(source, str) and not Path(source).exists() and "/" not in source


def _open_run(run: Run) -> OpenedModel:
    return OpenedModel(
        name=f"{run.path.name} ({run.config.model_name})",
        network=run.load_network(),
        task=run.task,
        classes=run.classes,
        pre=run.preprocessing,
        in_chans=run.preprocessing.in_chans,
        trained=True,
        origin=f"of the run {run.path.name}",
    )


def _open_name(name: str, weights: str | Path | None, img_size: Size | None) -> OpenedModel:
    entry = find_model(name)
    # Ours see images of any size as they are; many of timm are made for one.
    fixed = img_size is not None and isinstance(entry.config, TimmConfig)
    made_for: dict[str, Any] = {"img_size": img_size} if fixed else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = create_model(name, weights=weights, **made_for)
    opened = _open_network(network)
    pre = replace(opened.pre, mean=entry.mean, std=entry.std)
    fresh = weights is None
    return replace(
        opened,
        name=name,
        pre=pre,
        trained=not fresh,
        origin="fresh: drawn at random, nothing was learned" if fresh else f"from {weights}",
    )


def _open_network(network: nn.Module) -> OpenedModel:
    head: Any = getattr(network, "head", None)
    if not isinstance(head, LinearHead | DistilledHead) or not head.num_classes:
        got = "a network whose head is not a classifier's"
        if head is None:
            got = "one without a head"
        elif isinstance(head, LinearHead | DistilledHead):
            got = "one with num_classes=0"
        message = (
            f"a network must be a classifier with classes, such as muntin.create_model gives, got "
            f"{got}. For other tasks give the run, or what muntin.load made of it."
        )
        raise ConfigError(message)
    backbone: Any = network.backbone
    config = backbone.config
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    if config.in_chans == 1:
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)  # type: ignore[assignment]
    pre = Preprocessing(
        img_size=config.img_size, mean=mean, std=std, in_chans=1 if config.in_chans == 1 else 3
    )
    return OpenedModel(
        name=type(backbone).__name__,
        network=_on_cpu(network),
        task=find_task("classify"),
        classes=Classes(names=tuple(f"class {number}" for number in range(head.num_classes))),
        pre=pre,
        in_chans=config.in_chans,
        trained=not is_fresh(network),
        origin="as given",
    )


def _on_cpu(network: nn.Module) -> nn.Module:
    kinds = {(p.device.type, p.dtype) for p in network.parameters()}
    if kinds <= {("cpu", torch.float32)}:
        return network
    return copy.deepcopy(network).to("cpu", torch.float32)


def is_fresh(network: nn.Module) -> bool:
    """Whether nothing was learned yet: no weights were loaded, no step was taken.

    The scale and the shift of each norm start as one number for all channels. Loaded weights and
    the first step of an optimiser give every channel its own. A network without such norms, or an
    exported file, is taken for a trained one.
    """
    found = [
        parameter
        for module in network.modules()
        if "norm" in type(module).__name__.lower()
        for parameter in module.parameters(recurse=False)
        if parameter.ndim == 1
    ]
    return bool(found) and all(bool((one == one.flatten()[0]).all()) for one in found)


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and every module of it back into its own afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def open_context(
    model: OpenedModel,
    image: ImageLike,
    *,
    point: tuple[float, float] | None = None,
    target: str | int | None = None,
) -> Context:
    """Fit an image as prediction does, and resolve what is asked about it.

    Args:
        model: Sees it.
        image: A path, a PIL image or an (H, W, 3) uint8 RGB array.
        point: (x, y) from 0 to 1 in the image, that is looked from.
        target: Name or number of a class or keypoint, or number of a box, that is asked about.

    Returns:
        The context. Of an image that is seen in windows its `pixels` are one of them: that around
        the point, or in the middle.

    Raises:
        DataError: The image cannot be read.
        ConfigError: The point is outside, or there is no such class or keypoint.
        TargetNotFound: There is no such box in this image.
    """
    check_point(point)
    pixels = open_image(image)
    shown, seen = _show(pixels, model, point)
    pre = model.pre
    part = pixels[seen[1] : seen[3], seen[0] : seen[2]]
    padded = pad_image(shown, pre)
    images = normalise(padded, pre, torch.tensor([shown.shape[1:]]))
    if not model.reads_images:
        images = images[:, [channel % 3 for channel in range(model.in_chans)]]
    context = Context(
        name=model.name,
        network=model.network,
        task=model.task,
        classes=model.classes,
        pre=pre,
        pixels=np.ascontiguousarray(part),
        shown=shown,
        images=images,
        path=str(image) if isinstance(image, str | Path) else "",
        trained=model.trained,
        point=None if point is None else _move_point(point, seen, pixels),
    )
    return replace(context, target=find_target(context, target))


Part = tuple[int, int, int, int]
"""Left, top, right and bottom edge of a part of an image in pixels."""


def _show(
    pixels: NDArray[np.uint8], model: OpenedModel, point: tuple[float, float] | None
) -> tuple[UInt8[Tensor, "C h w"], Part]:
    """What prediction would give the network of an image, and which part of the image that is."""
    pre = model.pre
    high, wide = pixels.shape[:2]
    whole: Part = (0, 0, wide, high)
    with evaluating(model.network):  # a predictor switches the mode of its network
        predictor = Predictor(model.network, model.task, model.classes, pre, device="cpu")
    # An explanation is about one instance: the whole image, whatever a detector would find.
    batch = predictor.prepare(pixels, boxes=[whole] if model.task.top_down else None)
    (part,) = batch.parts
    shown = part.images[0, :, : part.metas[0].shown[0], : part.metas[0].shown[1]].contiguous()
    largest = (MAX_WINDOW * pre.img_size[0], MAX_WINDOW * pre.img_size[1])
    if pre.fit == "sliding_window" and shown.shape[1] * shown.shape[2] > largest[0] * largest[1]:
        scale = shown.shape[1] / high
        sides = min(pre.img_size[0], shown.shape[1]), min(pre.img_size[1], shown.shape[2])
        left, top, *_ = _place(sides, (shown.shape[1], shown.shape[2]), point or (0.5, 0.5))
        shown = shown[:, top : top + sides[0], left : left + sides[1]].contiguous()
        edges = (left / scale, top / scale, (left + sides[1]) / scale, (top + sides[0]) / scale)
        return shown, _inside(edges, (high, wide))
    return shown, whole


def _place(sides: tuple[float, float], size: Size, middle: tuple[float, float]) -> Part:
    """A part with these sides (height, width) around a point, moved until it is inside."""
    high, wide = min(sides[0], size[0]), min(sides[1], size[1])
    left = min(max(middle[0] * size[1] - wide / 2, 0.0), size[1] - wide)
    top = min(max(middle[1] * size[0] - high / 2, 0.0), size[0] - high)
    return _inside((left, top, left + wide, top + high), size)


def _inside(edges: tuple[float, float, float, float], size: Size) -> Part:
    left, top = min(round(edges[0]), size[1] - 1), min(round(edges[1]), size[0] - 1)
    right, bottom = min(round(edges[2]), size[1]), min(round(edges[3]), size[0])
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _move_point(
    point: tuple[float, float], seen: Part, pixels: NDArray[np.uint8]
) -> tuple[float, float]:
    """Bring a point of the image to the part of it that is explained."""
    left, top, right, bottom = seen
    x = (point[0] * pixels.shape[1] - left) / (right - left)
    y = (point[1] * pixels.shape[0] - top) / (bottom - top)
    return min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)


def try_predict(model: OpenedModel, context: Context) -> tuple[Any, str]:
    """Give what the model says of the image, or None and the reason why it cannot see it."""
    if not model.reads_images:
        return None, (
            f"The model reads {model.in_chans} channels and an image has {model.pre.in_chans}, so "
            f"nothing can be said of what it sees."
        )
    try:
        return look(context), ""
    except MuntinError as error:
        return None, f"The model cannot see this image: {error}"


def model_facts(
    model: OpenedModel, context: Context, other: OpenedModel | None = None
) -> dict[str, str]:
    """Give what is known of a model, by name, and of another that it is compared with."""
    count = sum(parameter.numel() for parameter in model.network.parameters())
    high, wide = context.shown_size
    inner = type(context.backbone).__name__ if context.backbone is not None else "an exported file"
    facts = {
        "Model": f"{model.name}, {inner}",
        "Weights": model.origin,
        "Task": model.task.name,
        "Seen at": f"{high} x {wide} pixels (height x width), {model.in_chans} channels",
    }
    if count:
        facts["Parameters"] = f"{count / 1e6:.2f} million"
    if other is not None:
        facts["Compared with"] = f"{other.name}, weights {other.origin}"
    return facts


def model_notes(model: OpenedModel) -> tuple[str, ...]:
    """Give what a reader must know first."""
    if model.trained:
        return ()
    return (
        "These weights are fresh: nothing was learned yet. What follows shows how the model is "
        "built, not what it knows. Give a run, or weights, to see that.",
    )
