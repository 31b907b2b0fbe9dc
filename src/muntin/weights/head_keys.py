# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Key mappings of necks and heads, which are added to those of a backbone.

Source:
    For detectors see `detector_keys`. UPerNet: microsoft/Swin-Transformer-Semantic-Segmentation and
    mmsegmentation 0.x and 1.x, which name the decoder alike; transformers 5.23, compared live in
    tests/heads/test_semantic.py. Pose: ViTAE-Transformer/ViTPose@c050ed2 and mmpose 0.x
    ("keypoint_head."), mmpose@759b39c 1.x ("head."), where an index counts convolution, norm and
    activation of the decoder; transformers 5.23, compared live in tests/heads/test_pose_parity.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from muntin.heads.decoders import UPerNet
from muntin.heads.pose_head import PoseHead
from muntin.heads.rcnn import RCNN
from muntin.heads.rcnn_config import CONVENTIONS
from muntin.heads.semantic_head import SemanticHead
from muntin.weights import detector_keys
from muntin.weights.key_maps import HeadMap, KeyMap, Row
from muntin.weights.shared_keys import (
    DENSE_TASKS,
    DETECTRON2_DETECTOR,
    TORCHVISION_DETECTOR,
    layer_rows,
    norm_rows,
)

__all__ = ["add_head_keys", "adopt_conventions"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _HeadNames:
    """Names of necks and heads in one ecosystem.

    `head_pattern` finds keys of neck and heads, `unused` those among them that no head uses.
    """

    rows: tuple[Row, ...] | Callable[[Any], tuple[Row, ...]]
    body_prefix: str = "backbone."
    head_pattern: str = DENSE_TASKS
    unused: str = r"^data_preprocessor\."


def add_head_keys(body: KeyMap, dialect: str, head: nn.Module | None) -> KeyMap:
    """Add the names of neck and heads to those of a backbone, where the dialect has such heads."""
    kind = next((kind for kind, fits in _FITS.items() if fits(head)), "")
    names = _NAMES.get(kind, {}).get(dialect)
    if names is None:
        return body
    return HeadMap(
        names.rows(head) if callable(names.rows) else names.rows,
        unused=names.unused,
        body=body,
        body_prefix=names.body_prefix,
        head_pattern=names.head_pattern,
        obstacle=_find_obstacle(head, dialect),
    )


def _origin(dialect: str) -> str:
    """Row of `CONVENTIONS` that the detectors of a dialect follow; empty without detectors."""
    origin = "openmmlab" if dialect == "microsoft" else dialect
    return origin if origin in CONVENTIONS else ""


def _find_obstacle(head: nn.Module | None, dialect: str) -> str:
    if not isinstance(head, RCNN):
        return ""
    origin = _origin(dialect)
    wanted = CONVENTIONS[origin]["rcnn"].background
    if head.config.background == wanted:
        return ""
    return (
        f"background must be {wanted!r} in the head's config for weights of the dialect "
        f"{dialect!r}, got {head.config.background!r}. Build the detector with "
        f"conventions={origin!r}. The model is unchanged."
    )


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


def _segmenter_rows(norm: str, classifier: str) -> tuple[Row, ...]:
    def conv(theirs: str, ours: str) -> tuple[Row, ...]:
        return (
            *layer_rows(f"{theirs}.conv", f"{ours}.conv"),
            *norm_rows(f"{theirs}.{norm}", f"{ours}.norm"),
        )

    theirs, ours = "decode_head.", "head.decoder."
    return (
        *conv(theirs + "psp_modules.{i}.1", ours + "pooled.{i}"),
        *conv(theirs + "bottleneck", ours + "top"),
        *conv(theirs + "lateral_convs.{i}", ours + "lateral.{i}"),
        *conv(theirs + "fpn_convs.{i}", ours + "output.{i}"),
        *conv(theirs + "fpn_bottleneck", ours + "join"),
        *layer_rows(theirs + classifier, "head.classifier"),
        *conv("auxiliary_head.convs.0", "head.aux.0"),
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
}
"""Which heads other ecosystems have too."""

_POSE = r"^(keypoint_head|head|data_preprocessor|associate_keypoint_heads)\."
_OPENMMLAB_DETECTOR = _HeadNames(rows=detector_keys.openmmlab)
_OPENMMLAB_SEGMENTER = _HeadNames(rows=_segmenter_rows("bn", "conv_seg"))

_NAMES: dict[str, dict[str, _HeadNames]] = {
    "detector": {
        "microsoft": _OPENMMLAB_DETECTOR,
        "openmmlab": _OPENMMLAB_DETECTOR,
        "torchvision": _HeadNames(
            rows=detector_keys.torchvision,
            body_prefix="backbone.body.",
            head_pattern=TORCHVISION_DETECTOR,
            unused="",
        ),
        "detectron2": _HeadNames(
            rows=detector_keys.detectron2,
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
}
"""Names by kind of head and dialect."""
