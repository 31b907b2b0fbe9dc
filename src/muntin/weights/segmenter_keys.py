# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Key mappings of UPerNet.

Source:
    microsoft/Swin-Transformer-Semantic-Segmentation and mmsegmentation 0.x and 1.x, which name the
    decoder alike; transformers 5.23, models/upernet, compared live in tests/heads/test_semantic.py.
"""

from __future__ import annotations

from torch import nn

from muntin.heads.decoders import UPerNet
from muntin.heads.semantic_head import SemanticHead
from muntin.weights.key_maps import HeadMap, KeyMap, Row
from muntin.weights.shared_keys import DENSE_TASKS, NORM_BUFFERS

__all__ = ["add_segmenter_keys"]


# By dialect: names of a norm and of the classifier.
_NAMES = {
    "microsoft": ("bn", "conv_seg"),
    "openmmlab": ("bn", "conv_seg"),
    "transformers": ("batch_norm", "classifier"),
}


def add_segmenter_keys(body: KeyMap, dialect: str, head: nn.Module | None) -> KeyMap:
    """Add the names of UPerNet to those of a backbone, if the model has one.

    Args:
        body: Names of the backbone.
        dialect: Name of the dialect.
        head: The model's head, if any.
    """
    is_upernet = isinstance(head, SemanticHead) and isinstance(head.decoder, UPerNet)
    if not is_upernet or dialect not in _NAMES:
        return body
    norm, classifier = _NAMES[dialect]
    return HeadMap(
        _rows(norm, classifier),
        unused=r"^data_preprocessor\.",
        body=body,
        body_prefix="backbone.",
        head_pattern=DENSE_TASKS,
    )


def _rows(norm: str, classifier: str) -> tuple[Row, ...]:
    def conv(theirs: str, ours: str) -> tuple[Row, ...]:
        return (
            Row((f"{theirs}.conv.{{p}}",), f"{ours}.conv.{{p}}"),
            Row((f"{theirs}.{norm}.{{p}}",), f"{ours}.norm.{{p}}"),
            *(Row((f"{theirs}.{norm}.{b}",), f"{ours}.norm.{b}") for b in NORM_BUFFERS),
        )

    theirs, ours = "decode_head.", "head.decoder."
    return (
        *conv(theirs + "psp_modules.{i}.1", ours + "pooled.{i}"),
        *conv(theirs + "bottleneck", ours + "top"),
        *conv(theirs + "lateral_convs.{i}", ours + "lateral.{i}"),
        *conv(theirs + "fpn_convs.{i}", ours + "output.{i}"),
        *conv(theirs + "fpn_bottleneck", ours + "join"),
        Row((f"{theirs}{classifier}.{{p}}",), "head.classifier.{p}"),
        *conv("auxiliary_head.convs.0", "head.aux.0"),
        Row((f"auxiliary_head.{classifier}.{{p}}",), "head.aux.2.{p}"),
    )
