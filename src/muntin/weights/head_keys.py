# SPDX-License-Identifier: Apache-2.0
"""Key mappings of necks and heads, which are added to those of a backbone.

Detectors: microsoft/Swin-Transformer-Object-Detection@c7b2011 and mmdetection 2.x and 3.x, which
name neck and heads alike; torchvision 0.29.2, and its names from before 0.13, compared live in
tests/heads/test_rcnn_parity.py; detectron2@02b5c4e. Documented lists of their keys are in
tests/weights/test_detector_keys.py.

UPerNet: microsoft/Swin-Transformer-Semantic-Segmentation and mmsegmentation 0.x and 1.x, which name
the decoder alike; transformers 5.23, compared live in tests/heads/test_semantic.py.

Pose: ViTAE-Transformer/ViTPose@c050ed2 and mmpose 0.x ("keypoint_head."), mmpose@759b39c 1.x
("head."), where an index counts convolution, norm and activation of the decoder; transformers 5.23,
compared live in tests/heads/test_pose_parity.py.

Decoders of masked pretraining: `decoder_keys`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from muntin.heads.mae_head import HieraMAEHead, MAEHead
from muntin.heads.necks import SimplePyramid, UPerNet
from muntin.heads.pose_head import PoseHead
from muntin.heads.rcnn import RCNN
from muntin.heads.rcnn_config import CONVENTIONS
from muntin.heads.semantic_head import SemanticHead
from muntin.heads.simmim_head import SimMIMHead
from muntin.weights.decoder_keys import (
    BODY,
    DECODERS,
    HIERA_TIMM,
    HIERA_TRANSFORMERS,
    MAE_TIMM,
    MAE_TRANSFORMERS,
    SIMMIM,
    SIMMIM_TRANSFORMERS,
)
from muntin.weights.key_maps import (
    DENSE_TASKS,
    DETECTRON2_DETECTOR,
    TORCHVISION_DETECTOR,
    HeadMap,
    KeyMap,
    Row,
    layer_rows,
    norm_rows,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _HeadNames:
    """Names of necks and heads in one ecosystem.

    `head_pattern` finds keys of neck and heads, `unused` those among them that no head uses;
    `body_prefix` None is that of classifiers.
    """

    rows: tuple[Row, ...] | Callable[[Any], tuple[Row, ...]]
    body_prefix: str | None = "backbone."
    head_pattern: str = DENSE_TASKS
    unused: str = r"^data_preprocessor\."


def add_head_keys(body: KeyMap, dialect: str, head: nn.Module | None) -> KeyMap:
    """Add the names of neck and heads to those of a backbone, where the dialect has such heads."""
    kind = next((kind for kind, fits in _FITS.items() if fits(head)), "")
    names = _NAMES.get(kind, {}).get(dialect)
    if names is None:
        return body
    prefix = body.prefix if names.body_prefix is None else names.body_prefix
    rows = names.rows(head) if callable(names.rows) else names.rows
    obstacle, origin = "", _origin(dialect)
    if isinstance(head, RCNN):
        wanted, has = CONVENTIONS[origin]["rcnn"].background, head.config.background
        if has != wanted:
            obstacle = (
                f"background must be {wanted!r} in the head's config for weights of the dialect "
                f"{dialect!r}, got {has!r}. Build the detector with conventions={origin!r}. The "
                f"model is unchanged."
            )
    return HeadMap(
        tuple(
            replace(row, theirs=tuple(name.replace(BODY, prefix) for name in row.theirs))
            for row in rows
        ),
        unused=names.unused,
        body=body,
        body_prefix=prefix,
        head_pattern=names.head_pattern,
        obstacle=obstacle,
    )


def _origin(dialect: str) -> str:
    """Row of `CONVENTIONS` that the detectors of a dialect follow; empty without detectors."""
    origin = "openmmlab" if dialect == "microsoft" else dialect
    return origin if origin in CONVENTIONS else ""


_ADOPTED = ("rounded_anchors", "aligned", "sampling", "stage_average")


def adopt_conventions(head: nn.Module | None, dialect: str) -> str:
    """Make a detector interpret its weights as the ecosystem that they came from does.

    Returns the changed fields of the head's config as text; empty if none changed.
    """
    origin = _origin(dialect)
    if not origin or not isinstance(head, RCNN):
        return ""
    stages = len(head.config.stage_ious)
    theirs = CONVENTIONS[origin]["cascade" if stages > 1 else "rcnn"]
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


def _openmmlab_detector(head: RCNN) -> tuple[Row, ...]:
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


_KEYPOINTS = "keypoint_predictor.kps_score_lowres"


def _torchvision_detector(head: RCNN) -> tuple[Row, ...]:
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
        *layer_rows("roi_heads.keypoint_head.{k}", "head.keypoint_head.{k}"),
        *layer_rows(f"roi_heads.{_KEYPOINTS}", f"head.{_KEYPOINTS}"),
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


def detectron2_detector(head: RCNN) -> tuple[Row, ...]:
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


def _segmenter_rows(norm: str, classifier: str) -> tuple[Row, ...]:
    conv = partial(_conv, {"conv": ".conv", "batch": f".{norm}"})
    theirs, ours = "decode_head.", "head.decoder."
    return (
        *conv(theirs + "psp_modules.{i}.1", "batch", ours + "pooled.{i}"),
        *conv(theirs + "bottleneck", "batch", ours + "top"),
        *conv(theirs + "lateral_convs.{i}", "batch", ours + "lateral.{i}"),
        *conv(theirs + "fpn_convs.{i}", "batch", ours + "output.{i}"),
        *conv(theirs + "fpn_bottleneck", "batch", ours + "join"),
        *layer_rows(theirs + classifier, "head.classifier"),
        *conv("auxiliary_head.convs.0", "batch", "head.aux.0"),
        *layer_rows("auxiliary_head." + classifier, "head.aux.2"),
    )


_POSE_OPENMMLAB = tuple(
    row
    for before in ("head.", "keypoint_head.")  # the first is used for writing
    for row in (
        Row((before + "deconv_layers.{3i}.weight",), "head.decoder.deconv.{i}.weight"),
        *norm_rows(before + "deconv_layers.{3i+1}", "head.decoder.norm.{i}"),
        *layer_rows(before + "final_layer", "head.classifier"),
    )
)
_POSE_TRANSFORMERS = (
    Row(("head.deconv{i+1}.weight",), "head.decoder.deconv.{i}.weight"),
    *norm_rows("head.batchnorm{i+1}", "head.decoder.norm.{i}"),
    *layer_rows("head.conv", "head.classifier"),
)

_FITS: dict[str, Callable[[Any], bool]] = {
    "detector": lambda head: isinstance(head, RCNN),
    "segmenter": lambda head: isinstance(head, SemanticHead) and isinstance(head.decoder, UPerNet),
    "pose": lambda head: isinstance(head, PoseHead) and head.config.decoder != "light",
    "mae": lambda head: isinstance(head, MAEHead),
    "hiera_mae": lambda head: isinstance(head, HieraMAEHead),
    "simmim": lambda head: isinstance(head, SimMIMHead),
}
"""Which heads other ecosystems have too."""

_POSE = r"^(keypoint_head|head|data_preprocessor|associate_keypoint_heads)\."
_OPENMMLAB_DETECTOR = _HeadNames(rows=_openmmlab_detector)
_OPENMMLAB_SEGMENTER = _HeadNames(rows=_segmenter_rows("bn", "conv_seg"))


def _decoder(rows: tuple[Row, ...], body_prefix: str | None = None) -> _HeadNames:
    return _HeadNames(rows=rows, body_prefix=body_prefix, head_pattern=DECODERS, unused="")


_NAMES: dict[str, dict[str, _HeadNames]] = {
    "detector": {
        "microsoft": _OPENMMLAB_DETECTOR,
        "openmmlab": _OPENMMLAB_DETECTOR,
        "torchvision": _HeadNames(
            rows=_torchvision_detector,
            body_prefix="backbone.body.",
            head_pattern=TORCHVISION_DETECTOR,
            unused="",
        ),
        "detectron2": _HeadNames(
            rows=detectron2_detector,
            body_prefix="",
            head_pattern=DETECTRON2_DETECTOR,
            # Buffers in files saved before detectron2 0.5.
            unused=r"^pixel_(mean|std)$|^proposal_generator\.anchor_generator\.",
        ),
    },
    "segmenter": {
        "microsoft": _OPENMMLAB_SEGMENTER,
        "openmmlab": _OPENMMLAB_SEGMENTER,
        "transformers": _HeadNames(rows=_segmenter_rows("batch_norm", "classifier")),
    },
    "pose": {
        "openmmlab": _HeadNames(rows=_POSE_OPENMMLAB, head_pattern=_POSE),
        "transformers": _HeadNames(rows=_POSE_TRANSFORMERS, head_pattern=_POSE),
    },
    "mae": {"timm": _decoder(MAE_TIMM), "transformers": _decoder(MAE_TRANSFORMERS)},
    "hiera_mae": {"timm": _decoder(HIERA_TIMM), "transformers": _decoder(HIERA_TRANSFORMERS)},
    "simmim": {
        "microsoft": _decoder(SIMMIM, "encoder."),
        "timm": _decoder(SIMMIM, "encoder."),
        "transformers": _decoder(SIMMIM_TRANSFORMERS),
    },
}
"""Names by kind of head and dialect."""
