# SPDX-License-Identifier: Apache-2.0
"""Base class of detectors: candidates from features, and the instances selected from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple, overload

import torch
from torch import Tensor, nn

from muntin.batch_rows import count_real
from muntin.collectives import sum_all
from muntin.configs import Range, check_ranges
from muntin.errors import ConfigError
from muntin.features import Features
from muntin.heads.network import Head
from muntin.ops.boxes import Suppression, suppress, survives
from muntin.shapes import Float, Int, Real


class Instances(NamedTuple):
    """Boxes of one image, best first, in pixels of the network input.

    Attributes:
        boxes: Left, top, right and bottom edge.
        scores: In [0, 1].
        class_ids: Class numbers.
        masks: Scores in [0, 1] on a grid over each box; None where the head has no masks.
        points: x, y and score of each keypoint, (N, P, 3); None for heads without keypoints.
    """

    boxes: Float[Tensor, "N 4"]
    scores: Float[Tensor, " N"]
    class_ids: Int[Tensor, " N"]
    masks: Tensor | None = None
    points: Tensor | None = None


if TYPE_CHECKING:
    _Instances = Sequence[Instances]
else:
    # Checkers of types at runtime read an item of every argument that is a generic sequence. Here
    # reading decodes, and decoding takes the candidates as its argument: a check without an end.
    _Instances = Sequence


class Candidates(_Instances):
    """Raw output of a detector for a batch. As a sequence: the instances of each image.

    Boxes, of each class or one for all (S = 1), are in pixels of the images as the network got
    them, scores in [0, 1]. `levels` are maps for masks and keypoints; `decode` is called once, on
    first access.
    """

    def __init__(
        self,
        levels: list[Tensor],
        boxes: Float[Tensor, "B Q S 4"],
        scores: Float[Tensor, "B Q K"],
        decode: Callable[[Candidates], list[Instances]],
    ) -> None:
        self.levels, self.boxes, self.scores = levels, boxes, scores
        self._decode = decode
        self._found: list[Instances] | None = None
        # Decoding is lazy and may run outside the no_grad or autocast context of this call.
        self._grad, kind = torch.is_grad_enabled(), boxes.device.type
        self._half = torch.is_autocast_enabled(kind)
        self._dtype = torch.get_autocast_dtype(kind)

    @property
    def found(self) -> list[Instances]:
        """Instances of each image."""
        if self._found is None:
            with (
                torch.set_grad_enabled(self._grad),
                torch.autocast(self.boxes.device.type, self._dtype, enabled=self._half),
            ):
                self._found = self._decode(self)
        return self._found

    def __len__(self) -> int:
        """Number of images."""
        return self.boxes.shape[0]

    @overload
    def __getitem__(self, index: int) -> Instances: ...

    @overload
    def __getitem__(self, index: slice) -> list[Instances]: ...

    def __getitem__(self, index: int | slice) -> Instances | list[Instances]:
        """Instances of an image."""
        return self.found[index]


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectConfig:
    """Selection of boxes among the candidates.

    Attributes:
        score_threshold: Minimum score.
        iou: Overlap from which two boxes of a class are duplicates.
        suppression: "hard" drops the worse of the two; "soft" lowers its score by the overlap
            (linear Soft-NMS, Bodla et al. 2017, who used it with an `iou` of 0.3); "none" keeps
            both, for heads trained to predict each object once (Carion et al. 2020, DETR).
        class_agnostic: Whether boxes of different classes suppress each other.
        max_detections: Maximum boxes per image.
    """

    score_threshold: Annotated[float, Range(0, 1)] = 0.05
    iou: Annotated[float, Range(0, 1)] = 0.5
    suppression: Suppression = "hard"
    class_agnostic: bool = False
    max_detections: Annotated[int, Range(1, 100_000)] = 100

    def __post_init__(self) -> None:
        """Validate the ranges."""
        check_ranges("select", self)


class Selected(NamedTuple):
    """What is selected among the candidates of an image, or of each image (B, D), best first.

    Attributes:
        rows: Numbers of the candidates.
        boxes: Left, top, right and bottom edge.
        scores: In [0, 1].
        class_ids: Class numbers.
    """

    rows: Tensor
    boxes: Tensor
    scores: Tensor
    class_ids: Tensor


def select_rows(
    boxes: Float[Tensor, "Q S 4"], scores: Float[Tensor, "Q K"], config: SelectConfig
) -> Selected:
    """Select the instances of one image: threshold, NMS, limit. S = 1: one box for all classes."""
    rows, class_ids = torch.where(scores > config.score_threshold)
    values = scores[rows, class_ids]
    places = boxes[rows, class_ids if boxes.shape[1] > 1 else 0]
    # Boxes clipped to nothing have no mask and no IoU.
    whole = ((places[:, 2:] - places[:, :2]) >= 1e-2).all(dim=1)
    rows, places, values, class_ids = (part[whole] for part in (rows, places, values, class_ids))
    kept, values = suppress(
        places,
        values,
        class_ids * (not config.class_agnostic),
        iou=config.iou,
        kind=config.suppression,
        limit=config.max_detections,
        min_score=config.score_threshold,
    )
    return Selected(rows[kept], places[kept], values, class_ids[kept])


def select_fixed(
    boxes: Float[Tensor, "B Q S 4"], scores: Float[Tensor, "B Q K"], config: SelectConfig
) -> Selected:
    """Select a fixed number of instances per image, best first, for exported graphs.

    D is `max_detections` if there are as many candidates. Padding has score 0. Soft suppression,
    which takes a variable number of steps, is a `ConfigError`.
    """
    if config.suppression == "soft":
        message = (
            f'select.suppression must be "hard" or "none" in an exported detector, got '
            f"{config.suppression!r}. Set it before exporting."
        )
        raise ConfigError(message)
    classes = scores.shape[2]
    slots = boxes.shape[2]
    flat = scores.flatten(1)
    # NMS compares all pairs, so only the best candidates enter; with 5 times as many as are
    # returned, what is cut off would hardly have survived.
    count = min(flat.shape[1], max(1000, 5 * config.max_detections))
    best, places = flat.topk(count, dim=1)
    rows, class_ids = places // classes, places % classes
    at = rows * slots + (class_ids if slots > 1 else 0)
    chosen = boxes.flatten(1, 2).gather(1, at[..., None].expand(-1, -1, 4))  # B, count, 4
    whole = ((chosen[..., 2:] - chosen[..., :2]) >= 1e-2).all(dim=2)
    valid = whole & (best > config.score_threshold)
    alive = valid
    if config.suppression == "hard":
        groups, num_groups = class_ids, classes
        if config.class_agnostic:
            groups, num_groups = torch.zeros_like(class_ids), 1
        # Rejected candidates rank last: filtering them would make shapes depend on the data.
        ranked = torch.where(valid, best, best - 2)
        alive = survives(chosen, ranked, groups, num_groups, config.iou) & valid
    values, order = torch.where(alive, best, 0.0).topk(min(config.max_detections, count), dim=1)
    return Selected(
        rows.gather(1, order),
        chosen.gather(1, order[..., None].expand(-1, -1, 4)),
        values,
        class_ids.gather(1, order),
    )


class Detector(Head):
    """A head that detects objects.

    Subclasses implement `candidates` and `losses`, or `forward` if candidates do not come
    from feature maps; and `with_masks` if they predict more than boxes.
    """

    score_name: ClassVar[str] = "score"
    """What `score_of` gives, for readers of explanations."""

    neck: nn.Module | None
    """Builds the pyramid from the maps of the backbone; None reads the maps as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.neck = None

    @property
    def select(self) -> SelectConfig:
        """Which candidates are returned (score threshold, NMS, limit)."""
        config: Any = self.config
        chosen: SelectConfig = config.select
        return chosen

    def read_levels(self, features: Features) -> list[Tensor]:
        """Give the maps that candidates are computed from, finest first."""
        if self.neck is None:
            return features.maps
        levels: list[Tensor] = self.neck(features.maps)
        return levels

    def candidates(
        self, levels: list[Tensor], sizes: Int[Tensor, "B 2"]
    ) -> tuple[Float[Tensor, "B Q S 4"], Float[Tensor, "B Q K"]]:
        """Give boxes (of each class, or one for all) and scores, equally many in each image."""
        raise NotImplementedError

    def forward(self, features: Features) -> Candidates:
        """Compute the candidates; `decode` selects instances from them."""
        # Selection is deferred: losses and exported graphs need the candidates, not the instances.
        levels = self.read_levels(features)
        boxes, scores = self.candidates(levels, features.sizes)
        return Candidates(levels, boxes, scores, self.decode)

    def decode(self, raw: Candidates) -> list[Instances]:
        """Select the instances of each image, and add masks or keypoints."""
        chosen = [
            select_rows(boxes, scores, self.select)
            for boxes, scores in zip(raw.boxes, raw.scores, strict=True)
        ]
        return self.with_masks(raw.levels, [Instances(*one[1:]) for one in chosen])

    def score_of(
        self, features: Features, box: Float[Tensor, "4"], class_id: int
    ) -> Callable[[Features], Float[Tensor, " B"]]:
        """Give a function that scores a detection of `decode` in other images, differentiably.

        Here it is the score of the candidate of the same row, which is right where rows keep their
        meaning: queries, or all cells. Heads that choose rows by score hold the place instead.
        """
        raw = self(features)
        row = find_candidate(raw.boxes[0], raw.scores[0], box, class_id)
        return lambda others: self(others).scores[:, row, class_id]

    def decode_fixed(self, raw: Candidates) -> tuple[Tensor, ...]:
        """Like `decode`, with a fixed number of instances per image, for exported graphs.

        Gives boxes, scores, class numbers and, where there are any, masks. Padding has score 0.
        """
        _, *chosen = select_fixed(raw.boxes, raw.scores, self.select)
        return self.with_fixed_masks(raw.levels, *chosen)

    def with_masks(self, levels: list[Tensor], found: list[Instances]) -> list[Instances]:
        """Add masks or keypoints; for subclasses."""
        return found

    def with_fixed_masks(
        self, levels: list[Tensor], boxes: Tensor, scores: Tensor, class_ids: Tensor
    ) -> tuple[Tensor, ...]:
        """Like `with_masks`, for the output of `select_fixed`."""
        return boxes, scores, class_ids


def flatten_cells(maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H*W C"]:
    """Give the values of each cell, in full precision."""
    return maps.flatten(2).transpose(1, 2).float()


def batch_share(amounts: Real[Tensor, " B"], least: int = 1) -> Float[Tensor, ""]:
    """Images of the whole batch per amount in it, which counts as `least` an image at least.

    One normaliser, in whatever processes the images are, so that each object weighs the same.
    """
    real = amounts[: count_real(len(amounts))].detach().float()
    total, images = sum_all(torch.stack([real.sum(), real.new_tensor(float(len(real)))]))
    return images / torch.maximum(total, least * images)


def find_candidate(
    boxes: Float[Tensor, "Q S 4"],
    scores: Float[Tensor, "Q K"],
    box: Float[Tensor, "4"],
    class_id: int,
) -> int:
    """Find the row of the candidate that a detection came from: the best score at its place."""
    slot = class_id if boxes.shape[1] > 1 else 0
    away = (boxes[:, slot] - box).abs().amax(dim=1)
    # Candidates may share a box, clipped at the same edges; then the best one was selected.
    near = away <= away.min() + 1e-3
    return int(torch.where(near, scores[:, class_id], -1.0).argmax())


class FixedDetector(nn.Module):
    """A detector for export: images and sizes in, tensors of fixed shapes out."""

    def __init__(self, network: nn.Module, head: Detector) -> None:
        super().__init__()
        self.network, self.decode_fixed = network, head.decode_fixed

    def forward(
        self, images: Tensor, sizes: Int[Tensor, "B 2"] | None = None
    ) -> tuple[Tensor, ...]:
        """Give boxes, scores, class numbers and perhaps masks; see `Detector.decode_fixed`."""
        return self.decode_fixed(self.network(images, sizes))
