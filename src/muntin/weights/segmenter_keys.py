# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""UPerNet under the names of each ecosystem.

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

__all__ = ["map_rows", "with_maps"]


# Dialect to its names of a norm and of a classifier.
_NAMES = {
    "microsoft": ("bn", "conv_seg"),
    "openmmlab": ("bn", "conv_seg"),
    "transformers": ("batch_norm", "classifier"),
}


def with_maps(body: KeyMap, dialect: str, head: nn.Module | None) -> KeyMap:
    """Add the names of UPerNet to those of a backbone, where the model is one.

    Args:
        body: Names of the backbone.
        dialect: Of the names.
        head: Of the model, if it has one.
    """
    is_upernet = isinstance(head, SemanticHead) and isinstance(head.decoder, UPerNet)
    if not is_upernet or dialect not in _NAMES:
        return body
    norm, classifier = _NAMES[dialect]
    return HeadMap(
        _rows(norm, classifier),
        unused=r"^data_preprocessor\.",
        body=body,
        before="backbone.",
        zone=DENSE_TASKS,
    )


def map_rows(head: nn.Module | None, name: str, num_classes: int) -> int | None:
    """How many rows a tensor of a segmenter has when there are so many classes.

    Args:
        head: Of the model.
        name: Our name of the tensor.
        num_classes: Classes.

    Returns:
        The rows; 0 where they do not depend on classes; None where the head is no segmenter.
    """
    if not isinstance(head, SemanticHead):
        return None
    return num_classes if name.startswith(("head.classifier.", "head.aux.2.")) else 0


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
