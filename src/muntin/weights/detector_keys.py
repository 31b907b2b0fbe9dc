# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Key mappings of necks and heads of two-stage detectors.

Names depend on the detector: a cascade numbers its heads, and norms are named after their type.
Names do not reveal how an ecosystem interprets its weights; that is in `muntin.heads.rcnn_config`.

Source:
    microsoft/Swin-Transformer-Object-Detection@c7b2011 and mmdetection 2.x and 3.x, which name
    neck and heads alike; torchvision 0.29.2, models/detection, and its names from before 0.13;
    detectron2@02b5c4e, modeling. torchvision's are compared live in
    tests/heads/test_rcnn_parity.py, the others with documented lists in
    tests/weights/test_detector_keys.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from muntin.heads.necks import SimplePyramid
from muntin.heads.rcnn import RCNN
from muntin.heads.rcnn_config import CONVENTIONS
from muntin.weights.key_maps import HeadMap, KeyMap, Row
from muntin.weights.shared_keys import (
    DENSE_TASKS,
    DETECTRON2_DETECTOR,
    NORM_BUFFERS,
    TORCHVISION_DETECTOR,
)

__all__ = [
    "DETECTOR_NAMES",
    "DetectorNames",
    "add_detector_keys",
    "adopt_conventions",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorNames:
    """Names of necks and heads in one ecosystem.

    Attributes:
        origin: Its row in `muntin.heads.rcnn_config.CONVENTIONS`.
        rows: Makes the rows for a detector.
        body_prefix: Prefix of the backbone's names.
        head_pattern: Pattern of names that belong to neck and heads.
        unused: Pattern of those among them that no detector uses.
    """

    origin: str
    rows: Callable[[RCNN], tuple[Row, ...]]
    body_prefix: str
    head_pattern: str
    unused: str = ""


def add_detector_keys(
    body: KeyMap, names: DetectorNames | None, head: nn.Module | None, *, dialect: str
) -> KeyMap:
    """Add the names of neck and heads to those of a backbone, if the model is a detector.

    Args:
        body: Names of the backbone.
        names: Names of the ecosystem; None if its detectors are not supported.
        head: The model's head, if any.
        dialect: Name of the dialect, for messages.
    """
    if names is None or not isinstance(head, RCNN):
        return body
    wanted = CONVENTIONS[names.origin]["rcnn"].background
    obstacle = ""
    if head.config.background != wanted:
        obstacle = (
            f"background must be {wanted!r} in the head's config for weights of the dialect "
            f"{dialect!r}, got {head.config.background!r}. Build the detector with "
            f"conventions={names.origin!r}. The model is unchanged."
        )
    return HeadMap(
        names.rows(head),
        unused=names.unused,
        body=body,
        body_prefix=names.body_prefix,
        head_pattern=names.head_pattern,
        obstacle=obstacle,
    )


_ADOPTED = ("rounded_anchors", "aligned", "sampling", "stage_average")


def adopt_conventions(head: nn.Module, names: DetectorNames | None) -> str:
    """Make a detector interpret its weights as the ecosystem that they came from does.

    Args:
        head: Modified if it is a two-stage detector.
        names: Names of the ecosystem.

    Returns:
        Changed fields of the head's config as text; empty if none changed.
    """
    if names is None or not isinstance(head, RCNN):
        return ""
    stages = len(head.config.stage_ious)
    theirs = CONVENTIONS[names.origin]["cascade" if stages > 1 else "rcnn"]
    changed = {
        name: getattr(theirs, name)
        for name in _ADOPTED
        if getattr(theirs, name) != getattr(head.config, name)
    }
    if theirs.stage_stds[:stages] != head.config.stage_stds[:stages]:
        changed["stage_stds"] = theirs.stage_stds
    if changed:
        head.set_config(replace(head.config, **changed))
    return ", ".join(f"{name}={value!r}" for name, value in changed.items())


# Rows of each ecosystem.


def _one(theirs: str, ours: str) -> tuple[Row, ...]:
    return (Row((theirs + ".{p}",), ours + ".{p}"),)


def _conv(theirs: str, norm: str, ours: str) -> tuple[Row, ...]:
    """Rows of a convolution and its norm, if any."""
    if not norm:
        return _one(theirs, ours + ".conv")
    return (
        *_one(theirs, ours + ".conv"),
        *_one(norm, ours + ".norm"),
        *(Row((f"{norm}.{buffer}",), f"{ours}.norm.{buffer}") for buffer in NORM_BUFFERS),
    )


def _stages(head: RCNN) -> tuple[str, str]:
    """Prefixes, theirs and ours, that number the box heads of a cascade."""
    return ("{s}.", "head.box_heads.{s}.") if len(head.box_heads) > 1 else ("", "head.box_heads.0.")


_OPENMMLAB_NORMS = {"batch": "bn", "group": "gn", "layer": "ln"}


def _openmmlab(head: RCNN) -> tuple[Row, ...]:
    config = head.config

    def conv(theirs: str, norm: str, ours: str) -> tuple[Row, ...]:
        kind = _OPENMMLAB_NORMS.get(norm)
        return _conv(f"{theirs}.conv", f"{theirs}.{kind}" if kind else "", ours)

    several = len(head.rpn.convs) > 1
    number, boxes = _stages(head)
    theirs = f"roi_head.bbox_head.{number}"
    rows = (
        *conv("neck.lateral_convs.{i}", config.neck.norm, "head.neck.lateral.{i}"),
        *conv("neck.fpn_convs.{i}", config.neck.norm, "head.neck.output.{i}"),
        *(
            conv("rpn_head.rpn_conv.{k}", "none", "head.rpn.convs.{k}")
            if several
            else _one("rpn_head.rpn_conv", "head.rpn.convs.0.conv")
        ),
        *_one("rpn_head.rpn_cls", "head.rpn.objectness"),
        *_one("rpn_head.rpn_reg", "head.rpn.offsets"),
        *conv(f"{theirs}shared_convs.{{k}}", config.box_norm, f"{boxes}convs.{{k}}"),
        *_one(f"{theirs}shared_fcs.{{k}}", f"{boxes}linears.{{k}}"),
        *_one(f"{theirs}fc_cls", f"{boxes}fc_cls"),
        *_one(f"{theirs}fc_reg", f"{boxes}fc_reg"),
    )
    # Their cascades have a mask head per stage; one shared mask head has no counterpart.
    if number and head.mask_heads and config.mask_heads == "one":
        return rows
    theirs, masks = f"roi_head.mask_head.{number}", boxes.replace("box_heads", "mask_heads")
    return (
        *rows,
        *conv(f"{theirs}convs.{{k}}", config.mask_norm, f"{masks}convs.{{k}}"),
        *_one(f"{theirs}upsample", f"{masks}upsample"),
        *_one(f"{theirs}conv_logits", f"{masks}logits"),
    )


def _torchvision(head: RCNN) -> tuple[Row, ...]:
    """A convolution is item 0 of a sequence, its norm item 1; older names are read too."""
    config = head.config

    def conv(theirs: str, norm: str, ours: str) -> tuple[Row, ...]:
        return _conv(f"{theirs}.0", "" if norm == "none" else f"{theirs}.1", ours)

    fpn, boxes, masks = "backbone.fpn.", "roi_heads.box_head.", "roi_heads.mask_head."
    linears = (
        # One sequence: convolutions, flatten, then a ReLU after each linear layer.
        _one(f"{boxes}{{2k+{config.box_convs + 1}}}", "head.box_heads.0.linears.{k}")
        if config.box_convs
        else _one(f"{boxes}fc{{k+6}}", "head.box_heads.0.linears.{k}")
    )
    return (
        *conv(fpn + "inner_blocks.{i}", config.neck.norm, "head.neck.lateral.{i}"),
        *conv(fpn + "layer_blocks.{i}", config.neck.norm, "head.neck.output.{i}"),
        *conv("rpn.head.conv.{k}", "none", "head.rpn.convs.{k}"),
        *_one("rpn.head.cls_logits", "head.rpn.objectness"),
        *_one("rpn.head.bbox_pred", "head.rpn.offsets"),
        *conv(boxes + "{k}", config.box_norm, "head.box_heads.0.convs.{k}"),
        *linears,
        *_one("roi_heads.box_predictor.cls_score", "head.box_heads.0.fc_cls"),
        *_one("roi_heads.box_predictor.bbox_pred", "head.box_heads.0.fc_reg"),
        *conv(masks + "{k}", config.mask_norm, "head.mask_heads.0.convs.{k}"),
        *_one("roi_heads.mask_predictor.conv5_mask", "head.mask_heads.0.upsample"),
        *_one("roi_heads.mask_predictor.mask_fcn_logits", "head.mask_heads.0.logits"),
        # Files saved before torchvision 0.13.
        *_one(fpn + "inner_blocks.{i}", "head.neck.lateral.{i}.conv"),
        *_one(fpn + "layer_blocks.{i}", "head.neck.output.{i}.conv"),
        *_one("rpn.head.conv", "head.rpn.convs.0.conv"),
        *_one(masks + "mask_fcn{k+1}", "head.mask_heads.0.convs.{k}.conv"),
    )


def _detectron2_neck(head: RCNN) -> tuple[Row, ...]:
    """Levels are numbered by the binary logarithm of their stride."""
    first = round(math.log2(head.strides[0]))
    norm = head.config.neck.norm != "none"

    def conv(theirs: str, ours: str) -> tuple[Row, ...]:
        return _conv(theirs, f"{theirs}.norm" if norm else "", ours)

    if not isinstance(head.neck, SimplePyramid):
        return (
            *conv(f"backbone.fpn_lateral{{i+{first}}}", "head.neck.lateral.{i}"),
            *conv(f"backbone.fpn_output{{i+{first}}}", "head.neck.output.{i}"),
        )
    rows: list[Row] = []
    for number, scaling in enumerate(head.neck.scaling):
        theirs, ours = f"backbone.simfp_{first + number}.", f"head.neck.scaling.{number}."
        # One sequence: the layers that scale the map, then the two convolutions.
        length = 0 if isinstance(scaling, nn.Identity) else len(list(scaling.children())) or 1
        rows += _one(theirs + "{k}", ours + "{k}") if list(scaling.children()) else ()
        rows[:0] = (
            *conv(f"{theirs}{length}", f"head.neck.lateral.{number}"),
            *conv(f"{theirs}{length + 1}", f"head.neck.output.{number}"),
        )
    return tuple(rows)


def _detectron2(head: RCNN) -> tuple[Row, ...]:
    config = head.config

    def conv(theirs: str, norm: str, ours: str) -> tuple[Row, ...]:
        return _conv(theirs, "" if norm == "none" else f"{theirs}.norm", ours)

    rpn, masks = "proposal_generator.rpn_head.", "roi_heads.mask_head."
    several = len(head.rpn.convs) > 1
    number, boxes = _stages(head)
    theirs = f"roi_heads.box_head.{number}"
    predictor = f"roi_heads.box_predictor.{number}"
    rows = (
        *_detectron2_neck(head),
        *_one(
            rpn + ("conv.conv{k}" if several else "conv"),
            f"head.rpn.convs.{'{k}' if several else '0'}.conv",
        ),
        *_one(rpn + "objectness_logits", "head.rpn.objectness"),
        *_one(rpn + "anchor_deltas", "head.rpn.offsets"),
        *conv(theirs + "conv{k+1}", config.box_norm, boxes + "convs.{k}"),
        *_one(theirs + "fc{k+1}", boxes + "linears.{k}"),
        *_one(predictor + "cls_score", boxes + "fc_cls"),
        *_one(predictor + "bbox_pred", boxes + "fc_reg"),
    )
    # Their cascades have one mask head; one per stage has no counterpart.
    if number and head.mask_heads and config.mask_heads == "each":
        return rows
    return (
        *rows,
        *conv(masks + "mask_fcn{k+1}", config.mask_norm, "head.mask_heads.0.convs.{k}"),
        *_one(masks + "deconv", "head.mask_heads.0.upsample"),
        *_one(masks + "predictor", "head.mask_heads.0.logits"),
    )


_OPENMMLAB = DetectorNames(
    origin="openmmlab",
    rows=_openmmlab,
    body_prefix="backbone.",
    head_pattern=DENSE_TASKS,
    unused=r"^data_preprocessor\.",
)

DETECTOR_NAMES: dict[str, DetectorNames] = {
    "microsoft": _OPENMMLAB,
    "openmmlab": _OPENMMLAB,
    "torchvision": DetectorNames(
        origin="torchvision",
        rows=_torchvision,
        body_prefix="backbone.body.",
        head_pattern=TORCHVISION_DETECTOR,
    ),
    "detectron2": DetectorNames(
        origin="detectron2",
        rows=_detectron2,
        body_prefix="",
        head_pattern=DETECTRON2_DETECTOR,
        # Buffers in files saved before detectron2 0.5.
        unused=r"^pixel_(mean|std)$|^proposal_generator\.anchor_generator\.",
    ),
}
"""Names of detectors by dialect."""
