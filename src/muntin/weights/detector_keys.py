# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Rows of the key maps of two-stage detectors.

Names depend on the detector: a cascade numbers its heads, and norms are named after their type.

Source:
    microsoft/Swin-Transformer-Object-Detection@c7b2011 and mmdetection 2.x and 3.x, which name
    neck and heads alike; torchvision 0.29.2, and its names from before 0.13, compared live in
    tests/heads/test_rcnn_parity.py; detectron2@02b5c4e. Documented lists of keys are in
    tests/weights/test_detector_keys.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

from torch import nn

from muntin.heads.necks import SimplePyramid
from muntin.heads.rcnn import RCNN
from muntin.weights.key_maps import Row
from muntin.weights.shared_keys import layer_rows, norm_rows

__all__ = ["detectron2", "openmmlab", "torchvision"]


# Where a convolution and a norm of each type lie in a block.
_OPENMMLAB = {"conv": ".conv", "batch": ".bn", "group": ".gn", "layer": ".ln"}
_TORCHVISION = {"conv": ".0", "batch": ".1", "group": ".1", "layer": ".1"}
_DETECTRON2 = {"conv": "", "batch": ".norm", "group": ".norm", "layer": ".norm"}


def _conv(places: Mapping[str, str], theirs: str, norm: str, ours: str) -> tuple[Row, ...]:
    """Rows of a convolution and its norm, if any."""
    rows = layer_rows(theirs + places["conv"], ours + ".conv")
    return rows if norm == "none" else (*rows, *norm_rows(theirs + places[norm], ours + ".norm"))


def _stages(head: RCNN) -> tuple[str, str]:
    """Prefixes, theirs and ours, that number the box heads of a cascade."""
    return ("{s}.", "head.box_heads.{s}.") if len(head.box_heads) > 1 else ("", "head.box_heads.0.")


def openmmlab(head: RCNN) -> tuple[Row, ...]:
    """Names of a norm follow its type."""
    config, conv = head.config, partial(_conv, _OPENMMLAB)
    several = len(head.rpn.convs) > 1
    number, boxes = _stages(head)
    theirs = f"roi_head.bbox_head.{number}"
    rows = (
        *conv("neck.lateral_convs.{i}", config.neck.norm, "head.neck.lateral.{i}"),
        *conv("neck.fpn_convs.{i}", config.neck.norm, "head.neck.output.{i}"),
        *(
            conv("rpn_head.rpn_conv.{k}", "none", "head.rpn.convs.{k}")
            if several
            else layer_rows("rpn_head.rpn_conv", "head.rpn.convs.0.conv")
        ),
        *layer_rows("rpn_head.rpn_cls", "head.rpn.objectness"),
        *layer_rows("rpn_head.rpn_reg", "head.rpn.offsets"),
        *conv(f"{theirs}shared_convs.{{k}}", config.box_norm, f"{boxes}convs.{{k}}"),
        *layer_rows(f"{theirs}shared_fcs.{{k}}", f"{boxes}linears.{{k}}"),
        *layer_rows(f"{theirs}fc_cls", f"{boxes}fc_cls"),
        *layer_rows(f"{theirs}fc_reg", f"{boxes}fc_reg"),
    )
    # Their cascades have a mask head per stage; one shared mask head has no counterpart.
    if number and head.mask_heads and config.mask_heads == "one":
        return rows
    theirs, masks = f"roi_head.mask_head.{number}", boxes.replace("box_heads", "mask_heads")
    return (
        *rows,
        *conv(f"{theirs}convs.{{k}}", config.mask_norm, f"{masks}convs.{{k}}"),
        *layer_rows(f"{theirs}upsample", f"{masks}upsample"),
        *layer_rows(f"{theirs}conv_logits", f"{masks}logits"),
    )


def torchvision(head: RCNN) -> tuple[Row, ...]:
    """A convolution is item 0 of a sequence, its norm item 1; older names are read too."""
    config, conv = head.config, partial(_conv, _TORCHVISION)
    fpn, boxes, masks = "backbone.fpn.", "roi_heads.box_head.", "roi_heads.mask_head."
    linears = (
        # One sequence: convolutions, flatten, then a ReLU after each linear layer.
        layer_rows(f"{boxes}{{2k+{config.box_convs + 1}}}", "head.box_heads.0.linears.{k}")
        if config.box_convs
        else layer_rows(f"{boxes}fc{{k+6}}", "head.box_heads.0.linears.{k}")
    )
    return (
        *conv(fpn + "inner_blocks.{i}", config.neck.norm, "head.neck.lateral.{i}"),
        *conv(fpn + "layer_blocks.{i}", config.neck.norm, "head.neck.output.{i}"),
        *conv("rpn.head.conv.{k}", "none", "head.rpn.convs.{k}"),
        *layer_rows("rpn.head.cls_logits", "head.rpn.objectness"),
        *layer_rows("rpn.head.bbox_pred", "head.rpn.offsets"),
        *conv(boxes + "{k}", config.box_norm, "head.box_heads.0.convs.{k}"),
        *linears,
        *layer_rows("roi_heads.box_predictor.cls_score", "head.box_heads.0.fc_cls"),
        *layer_rows("roi_heads.box_predictor.bbox_pred", "head.box_heads.0.fc_reg"),
        *conv(masks + "{k}", config.mask_norm, "head.mask_heads.0.convs.{k}"),
        *layer_rows("roi_heads.mask_predictor.conv5_mask", "head.mask_heads.0.upsample"),
        *layer_rows("roi_heads.mask_predictor.mask_fcn_logits", "head.mask_heads.0.logits"),
        # Files saved before torchvision 0.13.
        *layer_rows(fpn + "inner_blocks.{i}", "head.neck.lateral.{i}.conv"),
        *layer_rows(fpn + "layer_blocks.{i}", "head.neck.output.{i}.conv"),
        *layer_rows("rpn.head.conv", "head.rpn.convs.0.conv"),
        *layer_rows(masks + "mask_fcn{k+1}", "head.mask_heads.0.convs.{k}.conv"),
    )


def _detectron2_neck(head: RCNN) -> tuple[Row, ...]:
    """Levels are numbered by the binary logarithm of their stride."""
    first = round(math.log2(head.strides[0]))
    norm, conv = head.config.neck.norm, partial(_conv, _DETECTRON2)
    if not isinstance(head.neck, SimplePyramid):
        return (
            *conv(f"backbone.fpn_lateral{{i+{first}}}", norm, "head.neck.lateral.{i}"),
            *conv(f"backbone.fpn_output{{i+{first}}}", norm, "head.neck.output.{i}"),
        )
    rows: list[Row] = []
    for number, scaling in enumerate(head.neck.scaling):
        theirs, ours = f"backbone.simfp_{first + number}.", f"head.neck.scaling.{number}."
        # One sequence: the layers that scale the map, then the two convolutions.
        length = 0 if isinstance(scaling, nn.Identity) else len(list(scaling.children())) or 1
        rows += layer_rows(theirs + "{k}", ours + "{k}") if list(scaling.children()) else ()
        rows[:0] = (
            *conv(f"{theirs}{length}", norm, f"head.neck.lateral.{number}"),
            *conv(f"{theirs}{length + 1}", norm, f"head.neck.output.{number}"),
        )
    return tuple(rows)


def detectron2(head: RCNN) -> tuple[Row, ...]:
    """Names of layers are counted from 1."""
    config, conv = head.config, partial(_conv, _DETECTRON2)
    rpn, masks = "proposal_generator.rpn_head.", "roi_heads.mask_head."
    several = len(head.rpn.convs) > 1
    number, boxes = _stages(head)
    theirs = f"roi_heads.box_head.{number}"
    predictor = f"roi_heads.box_predictor.{number}"
    rows = (
        *_detectron2_neck(head),
        *layer_rows(
            rpn + ("conv.conv{k}" if several else "conv"),
            f"head.rpn.convs.{'{k}' if several else '0'}.conv",
        ),
        *layer_rows(rpn + "objectness_logits", "head.rpn.objectness"),
        *layer_rows(rpn + "anchor_deltas", "head.rpn.offsets"),
        *conv(theirs + "conv{k+1}", config.box_norm, boxes + "convs.{k}"),
        *layer_rows(theirs + "fc{k+1}", boxes + "linears.{k}"),
        *layer_rows(predictor + "cls_score", boxes + "fc_cls"),
        *layer_rows(predictor + "bbox_pred", boxes + "fc_reg"),
    )
    # Their cascades have one mask head; one per stage has no counterpart.
    if number and head.mask_heads and config.mask_heads == "each":
        return rows
    return (
        *rows,
        *conv(masks + "mask_fcn{k+1}", config.mask_norm, "head.mask_heads.0.convs.{k}"),
        *layer_rows(masks + "deconv", "head.mask_heads.0.upsample"),
        *layer_rows(masks + "predictor", "head.mask_heads.0.logits"),
    )
