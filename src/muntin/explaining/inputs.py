# SPDX-License-Identifier: Apache-2.0
"""Check the arguments of `explain`, and open the model and the images."""

from __future__ import annotations

import contextlib
import copy
import math
import operator
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from muntin.data.batches import stack_images
from muntin.data.decoding import open_image
from muntin.data.transforms import Preprocessing, normalise
from muntin.errors import ConfigError, DataError, MuntinWarning, WeightError
from muntin.explaining.context import Context
from muntin.explaining.output_target import find_target
from muntin.heads.classification_head import DistilledHead, LinearHead
from muntin.heads.network import Network
from muntin.models.timm_backbone import TimmConfig
from muntin.prediction.batch import ImageLike
from muntin.prediction.from_run import find_threshold
from muntin.prediction.predictor import Predictor
from muntin.published import find_published, open_named
from muntin.runs import Run
from muntin.samples import Classes
from muntin.shapes import Size
from muntin.tasks.task import Task
from muntin.tasks.task_table import find_task
from muntin.training.defaults import normalise_as
from muntin.training.initial_weights import FRESH_WEIGHTS
from muntin.zoo.model_building import canonical_name, create_model, find_model
from muntin.zoo.model_zoo import ModelEntry

Source = Run | Predictor | Network | Path | str
"""A run (or its folder), an exported file, the name of a classifier in the zoo, or a model."""

MAX_WINDOW = 2
"""Largest explained window, as a multiple of the training image size; as in prediction."""


def check_point(point: Any) -> None:  # noqa: ANN401 (whatever a user gives)
    """Check that a point is None or (x, y), both in [0, 1]."""
    if point is None:
        return
    try:
        x, y = (float(value) for value in point)
    except (TypeError, ValueError):
        x = y = math.nan
    if not (0 <= x <= 1 and 0 <= y <= 1):
        got = repr(point) if math.isnan(x) else f"{x:g},{y:g}"
        message = (
            f"point must be x,y with both in [0, 1], relative to the image, got {got}. "
            f"Omit it to use the centre."
        )
        raise ConfigError(message)


def check_target(target: Any) -> None:  # noqa: ANN401 (whatever a user gives)
    """Check that a target is None, a name or an integer."""
    if target is None or isinstance(target, str):
        return
    try:
        is_integer = not isinstance(target, bool) and operator.index(target) is not None
    except TypeError:
        is_integer = False
    if not is_integer:
        message = (
            f"target must be the name of a class or keypoint, or an integer, got {target!r}. "
            f"Omit it to use the highest-scoring prediction."
        )
        raise ConfigError(message)


def list_images(images: Any) -> list[Any]:  # noqa: ANN401 (whatever a user gives)
    """Normalise one image or an iterable of images to a list, which must not be empty."""
    kinds = str | Path | Image.Image | np.ndarray
    single = hasattr(images, "shape") or not isinstance(images, Iterable)
    found = [images] if single or isinstance(images, kinds) else list(images)
    if not found:
        message = "images must not be empty, got none. Pass one or more images to explain."
        raise DataError(message)
    for image in found:
        if not isinstance(image, kinds):
            shape = f" of shape {tuple(image.shape)}" if hasattr(image, "shape") else ""
            message = (
                f"images must be paths, PIL images or (H, W, 3) uint8 RGB arrays, got "
                f"{type(image).__name__}{shape}. For a (3, H, W) uint8 tensor, pass "
                f"tensor.permute(1, 2, 0).numpy()."
            )
            raise DataError(message)
    return found


def name_images(images: Sequence[Any]) -> list[str]:
    """Give each image a display name: the file name, with parent folders where it is ambiguous.

    Examples:
        >>> name_images(["a/ring/0.png", "a/disc/0.png", "b/1.png"])
        ['ring/0.png', 'disc/0.png', '1.png']
    """
    parts = [Path(one).parts if isinstance(one, str | Path) else () for one in images]
    names = [own[-1] if own else f"image {number}" for number, own in enumerate(parts, 1)]
    for depth in range(2, max(map(len, parts), default=0) + 1):
        ambiguous = [name for name in names if names.count(name) > 1]
        names = [
            "/".join(own[-depth:]) if name in ambiguous else name
            for name, own in zip(names, parts, strict=True)
        ]
    return names


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OpenedModel:
    """The model to explain.

    Its network (backbone and head, or the engine of an exported file) is on the CPU in float32.
    `in_chans` are those of the network, as preprocessing supports only 1 and 3; `origin` says in a
    few words where the weights come from.
    """

    name: str
    predictor: Predictor
    in_chans: int
    trained: bool
    origin: str

    @property
    def network(self) -> nn.Module:
        """Of the predictor."""
        return self.predictor.network


def open_model(
    source: Source, *, weights: str | Path | None = None, img_size: Size | None = None
) -> OpenedModel:
    """Open the model to explain, with the arguments of `explain`.

    The network is copied unless it already is on the CPU in float32.
    """
    # A name contains no slash, and no such path exists.
    named = isinstance(source, str) and not Path(source).exists() and "/" not in source
    if weights is not None and not named:
        message = (
            f"weights require the name of a zoo model, got {source}, which has its own weights. "
            f"Omit weights."
        )
        raise ConfigError(message)
    if isinstance(source, Predictor):
        name = type(getattr(source.network, "backbone", source.network)).__name__
        parts = (source.network, source.task, source.classes)
        origin = "of the predictor"
        opened = _wrap(*parts, source.preprocessing, img_size, name=name, origin=origin)
        opened.predictor.threshold = source.threshold
        return opened
    if isinstance(source, nn.Module):
        return _open_network(source, img_size)
    if named:
        return _open_name(str(source), weights, img_size)
    run = source if isinstance(source, Run) else Run.open(source)
    opened = _wrap(
        run.load_network(), run.task, run.classes, run.preprocessing, img_size, trained=True,
        name=f"{run.path.name} ({run.config.model_name})", origin=f"of the run {run.path.name}",
    )  # fmt: skip
    if run.task.detects:
        opened.predictor.threshold = find_threshold(run).score
    return opened


def _wrap(
    network: nn.Module,
    task: Task,
    classes: Classes,
    pre: Preprocessing,
    img_size: Size | None,
    **facts: Any,
) -> OpenedModel:
    """Open a network on the CPU, without changing the one that is given."""
    kinds = {(p.device.type, p.dtype) for p in network.parameters()}
    if not kinds <= {("cpu", torch.float32)}:
        network = copy.deepcopy(network).to("cpu", torch.float32)
    pre = pre if img_size is None else replace(pre, img_size=img_size)
    with evaluating(network):  # Predictor switches the mode of its network
        predictor = Predictor(network, task, classes, pre, device="cpu")
    known = {"in_chans": pre.in_chans, "trained": not is_fresh(network), **facts}
    return OpenedModel(predictor=predictor, **known)


def _open_name(name: str, weights: str | Path | None, img_size: Size | None) -> OpenedModel:
    entry = normalise_as(find_model(name), weights).value
    # Our models accept any size; many timm models are built for one.
    fixed = img_size is not None and isinstance(entry.config, TimmConfig)
    made_for: dict[str, Any] = {"img_size": img_size} if fixed else {}
    weights = _find_weights(name, entry) if weights is None else weights
    if weights is not None:
        texts = {"img_size": ",".join(map(str, img_size))} if fixed and img_size else {}
        with contextlib.suppress(ConfigError):  # without a classifier of ImageNet, as DINOv2
            run = open_named(canonical_name(name), weights, settings=texts)
            return _wrap(
                run.network, run.task, run.classes, run.preprocessing, img_size, trained=True,
                name=name, origin=f"from {weights}",
            )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = create_model(name, weights=weights, **made_for)
    fresh = weights is None
    origin = "freshly initialised, untrained" if fresh else f"from {weights}"
    colours = {"mean": entry.mean, "std": entry.std}
    return _open_network(network, img_size, colours, name=name, trained=not fresh, origin=origin)


def _find_weights(name: str, entry: ModelEntry) -> str | None:
    """Published weights of a model; None, with a warning where some are known, without them."""
    try:
        return find_published(name)
    except WeightError as error:
        if entry.weights:
            warnings.warn(f"{FRESH_WEIGHTS}: {error}", MuntinWarning, stacklevel=5)
        return None


def _open_network(
    network: nn.Module,
    img_size: Size | None,
    colours: dict[str, Any] | None = None,
    **facts: Any,
) -> OpenedModel:
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
    usual: dict[str, Any] = {"in_chans": 3, "mean": mean, "std": std}
    if config.in_chans == 1:
        usual = {"in_chans": 1, "mean": (sum(mean) / 3,), "std": (sum(std) / 3,)}
    pre = Preprocessing(img_size=config.img_size, **{**usual, **(colours or {})})
    classes = Classes(names=tuple(f"class {number}" for number in range(head.num_classes)))
    known = {"name": type(backbone).__name__, "in_chans": config.in_chans, "origin": "as given"}
    return _wrap(network, find_task("classify"), classes, pre, img_size, **{**known, **facts})


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
    """Preprocess an image as prediction does, and resolve the target (see `find_target`).

    With sliding windows, the context of a large image is a window: around the point, or in the
    centre.
    """
    check_point(point)
    predictor, pre = model.predictor, model.predictor.preprocessing
    pixels = open_image(image, pre.value_range)  # as RGB of 8 bits, for drawings
    size = (pixels.shape[0], pixels.shape[1])
    given = pixels if pre.has_colors else image
    region = (0, 0, size[1], size[0])
    # Top-down: the whole image counts as one instance; no detector runs here.
    batch = predictor.prepare(given, boxes=[region] if predictor.task.top_down else None)
    padded, (high, wide) = batch.parts[0].images, batch.parts[0].metas[0].input_size
    shown = padded[0, :, :high, :wide].contiguous()
    if pre.fit == "sliding_window" and high * wide > MAX_WINDOW**2 * math.prod(pre.img_size):
        shown, region = _cut_window(shown, size, pre.img_size, point or (0.5, 0.5))
        padded = stack_images([shown], pre)
    left, top, right, bottom = region
    if point is not None:  # relative to the window
        x = (point[0] * size[1] - left) / (right - left)
        y = (point[1] * size[0] - top) / (bottom - top)
        point = (min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0))
    images = normalise(padded, pre, torch.tensor([shown.shape[1:]]))
    if model.in_chans != pre.in_chans:
        images = images[:, [channel % 3 for channel in range(model.in_chans)]]
    context = Context(
        name=model.name,
        network=model.network,
        task=predictor.task,
        classes=predictor.classes,
        pre=pre,
        pixels=np.ascontiguousarray(pixels[top:bottom, left:right]),
        shown=shown,
        images=images,
        path=str(image) if isinstance(image, str | Path) else "",
        trained=model.trained,
        point=point,
        threshold=predictor.threshold,
    )
    return context if target is None else replace(context, target=find_target(context, target))


def _cut_window(
    shown: Tensor, original: Size, size: Size, middle: tuple[float, float]
) -> tuple[Tensor, tuple[int, int, int, int]]:
    """Cut a window of a size out of a resized image, around (x, y) from 0 to 1 but inside.

    Returns it with its left, top, right and bottom edge in pixels of the original.
    """
    scale = shown.shape[1] / original[0]
    spans, edges = [], []
    for length, whole, side, centre in zip(
        shown.shape[1:], original, size, middle[::-1], strict=True
    ):
        side = min(side, length)
        start = round(min(max(centre * length - side / 2, 0.0), length - side))
        spans.append(slice(start, start + side))
        first = min(round(start / scale), whole - 1)
        edges.append((first, max(min(round((start + side) / scale), whole), first + 1)))
    (top, bottom), (left, right) = edges
    return shown[:, spans[0], spans[1]].contiguous(), (left, top, right, bottom)
