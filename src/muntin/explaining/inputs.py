# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Open the model and the images to explain."""

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
from muntin.explaining.target_selection import find_target, predict
from muntin.heads.classification_head import DistilledHead, LinearHead
from muntin.heads.network import Network
from muntin.models.timm_backbone import TimmConfig
from muntin.prediction.predictor import Predictor
from muntin.prediction.sources import ImageLike
from muntin.runs import Run
from muntin.samples import Classes
from muntin.shapes import Size, UInt8
from muntin.tasks.task import Task
from muntin.tasks.task_table import find_task
from muntin.zoo.model_building import create_model, find_model

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
"""A run (or its folder), an exported file, the name of a classifier in the zoo, or a model."""

MAX_WINDOW = 2
"""Largest explained window, as a multiple of the training image size; as in prediction."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OpenedModel:
    """The model to explain.

    Attributes:
        name: Display name.
        network: Backbone and head, or the engine of an exported file.
        task: Task of the model.
        classes: Classes of the model.
        pre: Preprocessing of the images.
        in_chans: Input channels of the network; `pre` supports only 1 and 3.
        trained: False if the weights are freshly initialised.
        origin: Short description of where the weights come from.
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
        """Whether preprocessed images have the number of channels that the network expects."""
        return self.in_chans == self.pre.in_chans


def open_model(
    source: Source, *, weights: str | Path | None = None, img_size: Size | None = None
) -> OpenedModel:
    """Open the model to explain.

    Args:
        source: A run, the name of a classifier in the zoo, or the result of `muntin.load` or
            `muntin.create_model`.
        weights: For a zoo name only: `weights` of `create_model`. Default: fresh initialisation.
        img_size: (height, width) in pixels to which images are resized. Default: the model's own.

    Returns:
        The model; its network is a copy unless it already is on the CPU in float32.

    Raises:
        ConfigError: The name is unknown, or weights are given for a source that has its own.
        RunError: The run is incomplete.
        WeightError: The weights cannot be read or do not match the network.
        MissingExtra: The engine of the exported file is not installed.
    """
    if weights is not None and not _is_name(source):
        message = (
            f"weights require the name of a zoo model, got {source}, which has its own weights. "
            f"Omit weights."
        )
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
    """Whether a string is a zoo name: it contains no slash and no such path exists."""
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
    # Our models accept any size; many timm models are built for one.
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
        origin="freshly initialised, untrained" if fresh else f"from {weights}",
    )


def _open_network(network: nn.Module) -> OpenedModel:
    head: Any = getattr(network, "head", None)
    if not isinstance(head, LinearHead | DistilledHead) or not head.num_classes:
        got = f"a network with the head {type(head).__name__}"
        if head is None:
            got = "a network without a head"
        elif isinstance(head, LinearHead | DistilledHead):
            got = "one with num_classes=0"
        message = (
            f"network must be a classifier with num_classes > 0, as muntin.create_model returns, "
            f"got {got}. For other tasks, pass the run or the result of muntin.load."
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
    """Whether a network is untrained: no weights were loaded and no optimizer step was taken.

    Scale and shift of a norm are initialised to the same value for all channels; loaded weights
    or the first optimizer step make them differ. A network without such norms, or an exported
    file, counts as trained.
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
    """Switch a network to evaluation mode, and restore the mode of every module afterwards."""
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
    """Preprocess an image as prediction does, and resolve the target.

    Args:
        model: The opened model.
        image: A path, a PIL image or an (H, W, 3) uint8 RGB array.
        point: (x, y), both in [0, 1], relative to the image: the query of attention figures.
        target: Output to explain: name or number of a class or keypoint, or number of a box.

    Returns:
        The context. With sliding windows, `pixels` are one window: around the point, or in the
        centre.

    Raises:
        DataError: The image cannot be read.
        ConfigError: The point is outside the image, or the class or keypoint is unknown.
        TargetNotFound: There is no such box in this image.
    """
    check_point(point)
    pixels = open_image(image)
    shown, region = _prepare(pixels, model, point)
    pre = model.pre
    part = pixels[region[1] : region[3], region[0] : region[2]]
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
        point=None if point is None else _to_region(point, region, pixels),
    )
    return replace(context, target=find_target(context, target))


Region = tuple[int, int, int, int]
"""Left, top, right and bottom edge of an image region in pixels."""


def _prepare(
    pixels: NDArray[np.uint8], model: OpenedModel, point: tuple[float, float] | None
) -> tuple[UInt8[Tensor, "C h w"], Region]:
    """The network input that prediction would prepare, and the image region that it covers."""
    pre = model.pre
    high, wide = pixels.shape[:2]
    whole: Region = (0, 0, wide, high)
    with evaluating(model.network):  # Predictor switches the mode of its network
        predictor = Predictor(model.network, model.task, model.classes, pre, device="cpu")
    # Top-down: the whole image counts as one instance; no detector runs here.
    batch = predictor.prepare(pixels, boxes=[whole] if model.task.top_down else None)
    (part,) = batch.parts
    shown = part.images[
        0, :, : part.metas[0].input_size[0], : part.metas[0].input_size[1]
    ].contiguous()
    largest = (MAX_WINDOW * pre.img_size[0], MAX_WINDOW * pre.img_size[1])
    if pre.fit == "sliding_window" and shown.shape[1] * shown.shape[2] > largest[0] * largest[1]:
        scale = shown.shape[1] / high
        sides = min(pre.img_size[0], shown.shape[1]), min(pre.img_size[1], shown.shape[2])
        left, top, *_ = _window_around(sides, (shown.shape[1], shown.shape[2]), point or (0.5, 0.5))
        shown = shown[:, top : top + sides[0], left : left + sides[1]].contiguous()
        edges = (left / scale, top / scale, (left + sides[1]) / scale, (top + sides[0]) / scale)
        return shown, _clip_region(edges, (high, wide))
    return shown, whole


def _window_around(sides: tuple[float, float], size: Size, middle: tuple[float, float]) -> Region:
    """A region of these sides (height, width) around a point, shifted to lie inside the image."""
    high, wide = min(sides[0], size[0]), min(sides[1], size[1])
    left = min(max(middle[0] * size[1] - wide / 2, 0.0), size[1] - wide)
    top = min(max(middle[1] * size[0] - high / 2, 0.0), size[0] - high)
    return _clip_region((left, top, left + wide, top + high), size)


def _clip_region(edges: tuple[float, float, float, float], size: Size) -> Region:
    left, top = min(round(edges[0]), size[1] - 1), min(round(edges[1]), size[0] - 1)
    right, bottom = min(round(edges[2]), size[1]), min(round(edges[3]), size[0])
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _to_region(
    point: tuple[float, float], region: Region, pixels: NDArray[np.uint8]
) -> tuple[float, float]:
    """Convert a point relative to the image to one relative to the explained region, clamped."""
    left, top, right, bottom = region
    x = (point[0] * pixels.shape[1] - left) / (right - left)
    y = (point[1] * pixels.shape[0] - top) / (bottom - top)
    return min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)


def try_predict(model: OpenedModel, context: Context) -> tuple[Any, str]:
    """Predict the image; returns None and the reason if the model cannot process it."""
    if not model.reads_images:
        return None, (
            f"The model expects {model.in_chans} channels and an image has {model.pre.in_chans}, "
            f"so predictions are not available."
        )
    try:
        return predict(context), ""
    except MuntinError as error:
        return None, f"The model cannot process this image: {error}"


def model_facts(
    model: OpenedModel, context: Context, other: OpenedModel | None = None
) -> dict[str, str]:
    """Collect the facts about a model, and a second one to compare with, for the page header."""
    count = sum(parameter.numel() for parameter in model.network.parameters())
    high, wide = context.shown_size
    inner = type(context.backbone).__name__ if context.backbone is not None else "an exported file"
    facts = {
        "Model": f"{model.name}, {inner}",
        "Weights": model.origin,
        "Task": model.task.name,
        "Input size": f"{high} x {wide} pixels (height x width), {model.in_chans} channels",
    }
    if count:
        facts["Parameters"] = f"{count / 1e6:.2f} million"
    if other is not None:
        facts["Compared with"] = f"{other.name}, weights {other.origin}"
    return facts


def model_notes(model: OpenedModel) -> tuple[str, ...]:
    """Notes for the top of the page."""
    if model.trained:
        return ()
    return (
        "The weights are freshly initialised: the figures show the architecture, not anything "
        "learned. Pass a run or weights to explain a trained model.",
    )
