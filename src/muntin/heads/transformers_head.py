# SPDX-License-Identifier: Apache-2.0
"""Heads that are whole models of the transformers library, losses and matching included.

Letters: B images, Q queries, K classes, H, W pixels, h, w cells.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from muntin.errors import ConfigError, ShapeError
from muntin.features import Backbone, Features
from muntin.heads.detector import Candidates, Detector, Instances, SelectConfig
from muntin.heads.network import Head, HeadConfig
from muntin.heads.transformers_masks import inside, mask_boxes, mask_logits
from muntin.heads.transformers_model import (
    ARCHITECTURES,
    TRANSFORMERS,
    TransformersModel,
    build_model,
    class_rows,
    find_architecture,
)
from muntin.ops.boxes import box_iou
from muntin.ops.torchvision_operators import roi_align
from muntin.shapes import Float, Int
from muntin.targets import BoxTargets

_OF_SIZES = re.compile(r"size of tensor|is invalid for input of size|must match|out of range")
_GRID = 112
"""Cells along each side of the mask of an instance: half a pixel of a box of 56 pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformersHeadConfig(HeadConfig):
    """Config of a whole model of the library; what it computes is in the config of the model.

    Attributes:
        select: Of a detector: which of its queries are returned.
    """

    kind: ClassVar[str] = "hf"

    select: SelectConfig = field(
        default_factory=lambda: SelectConfig(
            suppression="none", score_threshold=0.01, max_detections=300
        )
    )

    @property
    def finest(self) -> int:
        """It reads pixels."""
        return 1


class _TransformersHead(Head):
    """The model, and what all tasks do with it."""

    def __init__(
        self, backbone: Backbone, num_classes: int, config: TransformersHeadConfig
    ) -> None:
        super().__init__()
        model: Any = backbone.config
        self.config, self.num_classes = config, num_classes
        self.row: TransformersModel = find_architecture(model.name)
        self._made_with = (model.name, model.settings, num_classes)
        self.stride = self.row.stride
        self.window = model.img_size if model.fixed_size else None
        """(height, width) in pixels of the only images it takes; None for any."""
        self._padding: tuple[float, ...] = model.padding
        self.net: Any = build_model(*self._made_with)

    def class_layers(self) -> dict[str, tuple[int, int]]:
        """The layers of the library's model whose size depends on the number of classes."""
        return {
            f"net.{path}": rows for path, rows in class_rows(self.net, *self._made_with).items()
        }

    def may_lack(self, name: str) -> bool:
        """Every weight is needed."""
        return False

    def _run(self, features: Features, **labels: Any) -> Any:  # noqa: ANN401 (of the library)
        images = features.maps[0]
        if self.row.reads_mask:
            labels["pixel_mask"] = inside(features, 1).long()
        if self._padding:
            value = images.new_tensor(self._padding)[:, None, None]
            images = torch.where(inside(features, 1)[:, None], images, value)
        if self.window not in (None, tuple(images.shape[2:])):
            raise self._size_error(images, "it has a position for each patch of that size alone")
        try:
            return self.net(images, **labels)
        except (ValueError, RuntimeError) as error:
            # The library checks few sizes, and fails where it adds positions or cuts windows.
            if isinstance(error, RuntimeError) and not _OF_SIZES.search(str(error)):
                raise
            raise self._size_error(images, str(error)) from error

    def _size_error(self, images: Tensor, cause: str) -> ShapeError:
        high, wide = images.shape[2:]
        wanted = f"{self.window[0]} x {self.window[1]} pixels" if self.window else "larger"
        message = (
            f"images for {TRANSFORMERS}{self._made_with[0]} must be {wanted}, got {high} x {wide}: "
            f"{cause.rstrip('.')}. Set --img-size to that of the model, or larger: small images "
            f"have fewer cells than some models have queries."
        )
        return ShapeError(message)

    def _extent(self, features: Features) -> Float[Tensor, "B 1 4"]:
        """Width and height, twice, that boxes are relative to."""
        images = features.maps[0]
        sizes = features.sizes.to(images.device)
        if not self.row.reads_mask:
            sizes = torch.tensor(images.shape[2:], device=images.device).expand(images.shape[0], 2)
        return sizes.flip(1).repeat(1, 2)[:, None].float()

    def _objects(
        self, features: Features, targets: Sequence[BoxTargets]
    ) -> list[dict[str, Tensor]]:
        """Classes and boxes in the form of the library."""
        extents = self._extent(features)
        return [
            {"class_labels": one.class_ids.long(), "boxes": _to_centre(one.boxes / extent)}
            for one, extent in zip(targets, extents, strict=True)
        ]

    def _losses(self, features: Features, name: str, **labels: Any) -> dict[str, Tensor]:
        loss = self._run(features, **labels).loss
        return {name: loss.reshape(1).expand(features.maps[0].shape[0])}


class TransformersDetector(_TransformersHead, Detector):
    """A model that predicts boxes of queries."""

    @property
    def select(self) -> SelectConfig:
        """As configured, and as many as the library gives at most."""
        chosen = self.config.select
        queries = getattr(self.net.config, "num_queries", chosen.max_detections)
        limit = min(chosen.max_detections, self.row.limit or queries)
        return replace(chosen, max_detections=limit)

    def forward(self, features: Features) -> Candidates:
        """Compute one candidate a query."""
        raw = self._run(features)
        # Boxes come as centre and extent, relative to the image.
        boxes = _to_edges(raw.pred_boxes.float()) * self._extent(features)
        scores = _scores(raw.logits.float(), self.row)
        return Candidates([], boxes[:, :, None], scores, self.decode)

    def losses(
        self, features: Features, targets: Sequence[BoxTargets]
    ) -> dict[str, Float[Tensor, " B"]]:
        """Give the loss of the library, which is that of the whole batch."""
        return self._losses(features, "objects", labels=self._objects(features, targets))

    def score_of(
        self, features: Features, box: Float[Tensor, "4"], class_id: int
    ) -> Callable[[Features], Float[Tensor, " B"]]:
        """Hold the place: which query answers for it may change with the image."""

        def score(others: Features) -> Tensor:
            raw = self(others)
            # Overlap only says which query it is: gradients are those of scores.
            flat = raw.boxes[:, :, 0].detach()
            overlap = box_iou(flat.flatten(0, 1), box[None].to(flat)).view(flat.shape[:2])
            return (raw.scores[:, :, class_id] * overlap).amax(dim=1)

        return score


def _to_edges(boxes: Float[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    centres, sides = boxes.split(2, dim=-1)
    return torch.cat([centres - 0.5 * sides, centres + 0.5 * sides], dim=-1)


def _to_centre(boxes: Float[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    low, high = boxes.split(2, dim=-1)
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def _scores(logits: Float[Tensor, "B Q k"], row: TransformersModel) -> Float[Tensor, "B Q K"]:
    if not row.softmax and row.answers.startswith("boxes"):
        return logits.sigmoid()
    # The last class is "no object".
    scores = logits.softmax(-1)[..., :-1]
    # The library answers with the best class of each query alone.
    return scores * (scores == scores.amax(-1, keepdim=True)) if row.softmax else scores


class TransformersSegmenter(_TransformersHead):
    """A model of semantic segmentation, whose maps of classes have cells of `stride` pixels."""

    def forward(self, features: Features) -> Float[Tensor, "B K h w"]:
        """Compute a value of each class for every cell: logits, or sums of masks of queries."""
        images = features.maps[0]
        cells = [-(-side // self.stride) for side in images.shape[2:]]
        if self.window is not None:  # the last windows of an image may be smaller
            rest = (self.window[1] - images.shape[3], self.window[0] - images.shape[2])
            images = F.pad(images, (0, max(0, rest[0]), 0, max(0, rest[1])))
            features = Features(images, maps=lambda: [images], vector=lambda: images)
        return self._maps(features)[:, :, : cells[0], : cells[1]]

    def _maps(self, features: Features) -> Float[Tensor, "B K h w"]:
        raw = self._run(features)
        if self.row.answers == "maps":
            return raw.logits
        scores = raw.class_queries_logits.softmax(-1)[..., :-1]
        masks = mask_logits(raw.masks_queries_logits, features, self.stride).sigmoid()
        return torch.einsum("bqk,bqhw->bkhw", scores.float(), masks)

    def losses(
        self,
        features: Features,
        labels: Int[Tensor, "B H W"],
        *,
        class_weights: Float[Tensor, " K"] | None = None,
        label_smoothing: float = 0.0,
    ) -> dict[str, Float[Tensor, " B"]]:
        """Give the loss of the library, which is that of the whole batch."""
        if class_weights is not None or label_smoothing:
            message = (
                f"train.class_weights and train.label_smoothing must be off for models of the "
                f"transformers library, whose losses have neither, got {class_weights} and "
                f"{label_smoothing}. Leave them out."
            )
            raise ConfigError(message)
        labels = labels.long()
        if self.row.answers == "maps":
            ignored = getattr(self.net.config, "semantic_loss_ignore_index", None)
            ignored = self.net.config.loss_ignore_index if ignored is None else ignored
            kept = torch.where(labels < 0, ignored, labels)
            return self._losses(features, "pixels", labels=kept)
        classes = [one[one >= 0].unique() for one in labels]
        # One mask for each class that an image has; ignored pixels are in none.
        masks = [
            (one[None] == ids[:, None, None]).float()
            for one, ids in zip(labels, classes, strict=True)
        ]
        return self._losses(features, "masks", mask_labels=masks, class_labels=classes)


class TransformersInstances(_TransformersHead, Detector):
    """A model of instance segmentation by masks of queries; boxes are those of the masks."""

    def forward(self, features: Features) -> Candidates:
        """Compute one candidate a query; without boxes its score is also that of its mask."""
        raw = self._run(features)
        boxed = self.row.answers == "boxes and masks"
        masks = raw.pred_masks if boxed else raw.masks_queries_logits
        logits = mask_logits(masks, features, self.stride)
        scores = _scores((raw.logits if boxed else raw.class_queries_logits).float(), self.row)
        # The library takes as many pairs of query and class as it has queries, before their masks.
        least = scores.flatten(1).topk(scores.shape[1], dim=1).values[:, -1, None, None]
        scores = torch.where(scores >= least, scores, 0.0)
        if not boxed:
            drawn = logits > 0
            if self._padding:
                drawn &= inside(features, self.stride)[:, None]
            quality = (logits.sigmoid() * drawn).sum((2, 3)) / (drawn.sum((2, 3)) + 1e-6)
            scores = scores * quality[..., None]
        high, wide = features.maps[0].shape[2:]
        scale = logits.new_tensor([wide / logits.shape[3], high / logits.shape[2]]).repeat(2)
        edge = features.sizes.to(logits.device).flip(1).repeat(1, 2)[:, None]
        # Cells of a mask are those of its box, so that must not go on into the padding.
        boxes = torch.minimum(mask_boxes(logits) * scale, edge)
        return Candidates([logits], boxes[:, :, None], scores, self.decode)

    def decode(self, raw: Candidates) -> list[Instances]:
        """Select the best pairs of query and class of each image."""
        least = self.select.score_threshold
        found = []
        for boxes, scores, ids, masks in zip(*self._select(raw), strict=True):
            kept = scores > least
            found.append(Instances(boxes[kept], scores[kept], ids[kept], masks[kept]))
        return found

    def decode_fixed(self, raw: Candidates) -> tuple[Tensor, ...]:
        """Like `decode`, with a fixed number of instances per image, for exported graphs."""
        boxes, scores, ids, masks = self._select(raw)
        kept = scores > self.select.score_threshold
        return boxes, torch.where(kept, scores, 0.0), ids, masks

    def _select(self, raw: Candidates) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes, scores, class numbers and masks of each image, best first."""
        images, queries, classes = raw.scores.shape
        # A query whose mask is empty answers nothing.
        empty = raw.boxes[:, :, 0, 2] <= raw.boxes[:, :, 0, 0]
        flat = torch.where(empty[..., None], 0.0, raw.scores).flatten(1)
        scores, places = flat.topk(min(self.select.max_detections, queries * classes), dim=1)
        rows, ids = places // classes, places % classes
        boxes = raw.boxes[:, :, 0].gather(1, rows[..., None].expand(-1, -1, 4))
        maps = raw.levels[0]
        whole = rows + queries * torch.arange(images, device=rows.device)[:, None]
        masks = maps.flatten(0, 1).index_select(0, whole.flatten())[:, None]  # B * D, 1, h, w
        numbers = torch.arange(masks.shape[0], device=masks.device, dtype=masks.dtype)[:, None]
        cells = boxes.flatten(0, 1) / self.stride
        rows = torch.cat([numbers, cells], 1)
        grids = roi_align(masks, rows, _GRID, scale=1.0, sampling=1, aligned=True)
        return boxes, scores, ids, grids.sigmoid().view(images, -1, _GRID, _GRID)

    def losses(
        self, features: Features, targets: Sequence[BoxTargets]
    ) -> dict[str, Float[Tensor, " B"]]:
        """Give the loss of the library, which is that of the whole batch."""
        high, wide = features.maps[0].shape[2:]
        masks, kept = [], []
        for one in targets:
            rows = torch.where(one.layer_of >= 0)[0]  # objects without a mask teach nothing
            drawn = one.layers[one.layer_of[rows]] == rows[:, None, None] + 1
            # The batch is padded to the size of its largest image.
            mask = drawn.new_zeros(len(rows), high, wide, dtype=torch.float32)
            mask[:, : drawn.shape[1], : drawn.shape[2]] = drawn
            masks.append(mask)
            kept.append(rows)
        labels = [
            {name: values[rows] for name, values in one.items()} | {"masks": mask}
            for one, rows, mask in zip(self._objects(features, targets), kept, masks, strict=True)
        ]
        if self.row.answers == "boxes and masks":
            return self._losses(features, "masks", labels=labels)
        classes = [one["class_labels"] for one in labels]
        return self._losses(features, "masks", mask_labels=masks, class_labels=classes)


_HEADS: dict[str, tuple[tuple[str, ...], type[_TransformersHead]]] = {
    "detect": (("boxes",), TransformersDetector),
    "instance": (("masks", "boxes and masks"), TransformersInstances),
    "semantic": (("maps", "masks"), TransformersSegmenter),
}
"""What a model must answer for a task, and the head that it becomes."""


def tasks_of(name: str) -> tuple[str, ...]:
    """Tasks that a model of the library can do."""
    row = find_architecture(name)
    return tuple(task for task, (answers, _) in _HEADS.items() if row.answers in answers)


def reads_windows(task: str) -> bool:
    """Whether a large image is read window by window, as maps are; otherwise at once."""
    return not issubclass(_HEADS[task][1], Detector)


def build_whole_model(
    backbone: Backbone, num_classes: int, config: TransformersHeadConfig, task: str
) -> Head:
    """Build the model of the backbone's config as the head of a task.

    Raises:
        ConfigError: The model cannot do the task, or the backbone is another one.
        MissingExtra: The library is not installed.
    """
    model: Any = getattr(backbone, "config", None)
    if not hasattr(model, "settings"):
        message = (
            f"the head hf must be over a model named {TRANSFORMERS}..., got "
            f"{type(backbone).__name__}. Choose another head."
        )
        raise ConfigError(message)
    answers, head = _HEADS[task]
    if find_architecture(model.name).answers not in answers:
        able = [name for name, row in ARCHITECTURES.items() if row.answers in answers]
        message = (
            f"{task} needs one of {', '.join(TRANSFORMERS + name for name in able)}, got "
            f"{TRANSFORMERS}{model.name}, which is for {' or '.join(tasks_of(model.name))}. "
            f"Choose one of them."
        )
        raise ConfigError(message)
    return head(backbone, num_classes, config)
