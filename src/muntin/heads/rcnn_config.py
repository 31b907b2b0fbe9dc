# SPDX-License-Identifier: Apache-2.0
"""Config of R-CNN detectors, and the conventions of published ones.

Two networks of the same shape read the same weights differently: anchors rounded or not, regions
half a pixel aside, the background class first or last. These conventions are fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

from muntin.configs import Range, check_ranges
from muntin.errors import ConfigError
from muntin.heads.detector import SelectConfig
from muntin.heads.necks import NeckConfig
from muntin.heads.network import HeadConfig
from muntin.nn.conv_norm import NormName

# Offsets shrink from stage to stage; dividing by these keeps their scale near 1 (detectron2).
_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))


@dataclass(frozen=True, kw_only=True, slots=True)
class RCNNConfig(HeadConfig):
    """A two-stage detector: proposals, then boxes (and masks) of what is in them.

    Attributes:
        neck: The pyramid.
        anchor_scale: Side of the square anchor as a multiple of the level's stride.
        anchor_ratios: Height over width of the anchors.
        rounded_anchors: Whether their edges are rounded to pixels, and their steps to whole parts
            of the image, which differ from the stride where a level has half a cell too much.
        rpn_convs: Convolutions before the proposals' classifier.
        rpn_batch: Anchors sampled per image for the loss, at most half of them positive.
        rpn_iou: Overlap with an object above which an anchor is positive, below which negative.
        pre_nms: Proposals a level before suppression, in training and afterwards.
        proposals: Proposals an image, in training and afterwards.
        proposal_iou: Overlap from which two proposals are duplicates.
        stage_ious: Overlap with an object above which a region is positive, for each stage; three
            of them make a Cascade R-CNN.
        stage_stds: What box offsets are divided by, for each stage.
        stage_weights: Factor on the losses of each stage.
        stage_average: What of the stages is averaged for the answer: "scores" (detectron2), or the
            "logits" that they are made from (OpenMMLab).
        roi_batch: Regions sampled per image for the loss.
        roi_positive: Part of them that is positive at most.
        aligned: Whether RoIAlign samples at pixel centres (`aligned=True` of torchvision).
        sampling: Samples along each side of a cell of a region; 0 = as many as it has pixels.
        roi_size: Cells along each side of a region for boxes; masks have twice as many.
        box_convs: Convolutions before the linear layers.
        box_linears: Linear layers.
        box_dim: Their width.
        box_norm: Norm of these convolutions.
        class_agnostic: Whether all classes share one box.
        background: Index of the background class; if first, it also has an unused box and mask.
        box_loss: "giou" compares boxes, the others their offsets.
        box_loss_weight: Factor on it.
        mask_heads: "one", or one for each stage.
        mask_convs: Convolutions before the mask is enlarged.
        mask_dim: Their width.
        mask_norm: Their norm.
        select: Which boxes are returned (score threshold, NMS, limit).
    """

    kind: ClassVar[str] = "rcnn"

    neck: NeckConfig = field(default_factory=NeckConfig)
    anchor_scale: float = 8.0
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    rounded_anchors: bool = False
    rpn_convs: int = 1
    rpn_batch: Annotated[int, Range(1, 10**6)] = 256
    rpn_iou: Annotated[tuple[float, float], Range(0, 1)] = (0.7, 0.3)
    pre_nms: Annotated[tuple[int, int], Range(1, 10**6)] = (2000, 1000)
    proposals: Annotated[tuple[int, int], Range(1, 10**6)] = (1000, 1000)
    proposal_iou: Annotated[float, Range(0, 1)] = 0.7
    stage_ious: Annotated[tuple[float, ...], Range(0, 1)] = (0.5,)
    stage_stds: tuple[tuple[float, ...], ...] = _STDS
    stage_weights: tuple[float, ...] = (1.0, 0.5, 0.25)
    stage_average: Literal["scores", "logits"] = "scores"
    roi_batch: Annotated[int, Range(1, 10**6)] = 512
    roi_positive: Annotated[float, Range(0, 1)] = 0.25
    aligned: bool = True
    sampling: int = 0
    roi_size: Annotated[int, Range(1, 64)] = 7
    box_convs: int = 0
    box_linears: Annotated[int, Range(1, 8)] = 2
    box_dim: int = 1024
    box_norm: NormName = "none"
    class_agnostic: bool = False
    background: Literal["first", "last"] = "last"
    box_loss: Literal["l1", "smooth_l1", "giou"] = "l1"
    box_loss_weight: float = 1.0
    mask_heads: Literal["one", "each"] = "one"
    mask_convs: int = 4
    mask_dim: int = 256
    mask_norm: NormName = "none"
    select: SelectConfig = field(default_factory=SelectConfig)

    @property
    def finest(self) -> int:
        """Stride in pixels of the finest map that is read."""
        return self.neck.finest

    def __post_init__(self) -> None:
        """Validate ranges and lengths."""
        stages = len(self.stage_ious)
        if not 0 < stages <= min(len(self.stage_stds), len(self.stage_weights)):
            message = (
                f"every stage needs its stage_stds and stage_weights, got {stages} stages, "
                f"{len(self.stage_stds)} stage_stds and {len(self.stage_weights)} stage_weights."
            )
            raise ConfigError(message)
        if any(len(stds) != 4 or min(stds) <= 0 for stds in self.stage_stds):
            message = f"each of stage_stds must be 4 numbers above 0, got {self.stage_stds}."
            raise ConfigError(message)
        check_ranges("head", self)


MASK_RCNN = RCNNConfig()

CASCADE = RCNNConfig(
    stage_ious=(0.5, 0.6, 0.7),
    stage_average="logits",
    box_convs=4,
    box_linears=1,
    box_norm="batch",
    box_loss="giou",
    box_loss_weight=10.0,
    mask_heads="each",
)

SMALL_RCNN = RCNNConfig(
    # Group norm: batches of a small machine are too small for batch norm.
    neck=NeckConfig(channels=96, norm="group"),
    anchor_scale=6.0,
    rpn_batch=128,
    pre_nms=(500, 500),
    proposals=(400, 500),
    roi_batch=96,
    sampling=2,
    box_dim=256,
    class_agnostic=True,
    mask_convs=2,
    mask_dim=64,
    mask_norm="group",
)
"""For a small machine: narrow, one box for all classes."""

VITDET = replace(
    MASK_RCNN,
    neck=NeckConfig(norm="layer"),
    rpn_convs=2,
    box_convs=4,
    box_linears=1,
    box_norm="layer",
    mask_norm="layer",
)
"""Heads of detectron2's project ViTDet (Li et al. 2022, arXiv 2203.16527, appendix)."""

_DETECTRON2_CASCADE = replace(
    MASK_RCNN,
    stage_ious=CASCADE.stage_ious,
    stage_stds=(*_STDS[:2], (1 / 30, 1 / 30, 1 / 15, 1 / 15)),
    class_agnostic=True,
)
CASCADE_VITDET = replace(
    VITDET,
    stage_ious=_DETECTRON2_CASCADE.stage_ious,
    stage_stds=_DETECTRON2_CASCADE.stage_stds,
    class_agnostic=True,
)

CONVENTIONS: dict[str, dict[str, RCNNConfig]] = {
    "openmmlab": {"rcnn": MASK_RCNN, "cascade": CASCADE},
    "detectron2": {
        "rcnn": MASK_RCNN,
        "cascade": _DETECTRON2_CASCADE,
    },
    "torchvision": {
        "rcnn": replace(
            MASK_RCNN,
            rounded_anchors=True,
            proposals=(2000, 1000),
            # The first RoIAlign, half a pixel off; its weights were trained with that offset.
            aligned=False,
            sampling=2,
            background="first",
            box_loss="smooth_l1",
        ),
    },
}
"""Origin of the weights, and the kind of detector, to what its detectors agree on."""
