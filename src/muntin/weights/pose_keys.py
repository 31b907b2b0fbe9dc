# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Key mappings of pose heads.

Source:
    ViTAE-Transformer/ViTPose@c050ed2 and mmpose 0.x ("keypoint_head."), mmpose@759b39c 1.x
    ("head."): an index counts convolution, norm and activation of the decoder. transformers 5.23,
    models/vitpose, compared live in tests/heads/test_pose_parity.py.
"""

from __future__ import annotations

from torch import nn

from muntin.heads.pose_head import PoseHead
from muntin.weights.key_maps import HeadMap, KeyMap, Row
from muntin.weights.shared_keys import NORM_BUFFERS

__all__ = ["add_pose_keys"]

_ZONE = r"^(keypoint_head|head|data_preprocessor|associate_keypoint_heads)\."


def add_pose_keys(body: KeyMap, dialect: str, head: nn.Module | None) -> KeyMap:
    """Add the names of a pose head to those of a backbone, if the model has one.

    Args:
        body: Names of the backbone.
        dialect: Name of the dialect.
        head: The model's head, if any.
    """
    published = isinstance(head, PoseHead) and head.config.decoder != "light"
    if not published or dialect not in ("openmmlab", "transformers"):
        return body
    assert isinstance(head, PoseHead), "checked above"
    num_deconvs = len(getattr(head.decoder, "deconv", ()))
    rows = _openmmlab(num_deconvs) if dialect == "openmmlab" else _transformers(num_deconvs)
    return HeadMap(
        rows, unused=r"^data_preprocessor\.", body=body, body_prefix="backbone.", head_pattern=_ZONE
    )


def _openmmlab(num_deconvs: int) -> tuple[Row, ...]:
    rows: list[Row] = []
    for before in ("head.", "keypoint_head."):  # the first is used for writing
        layers = f"{before}deconv_layers."
        for number in range(num_deconvs):
            conv, norm = f"{layers}{3 * number}.", f"{layers}{3 * number + 1}."
            rows.append(Row((conv + "weight",), f"head.decoder.deconv.{number}.weight"))
            rows += _norm(norm, number)
        rows.append(Row((before + "final_layer.{p}",), "head.classifier.{p}"))
    return tuple(rows)


def _transformers(num_deconvs: int) -> tuple[Row, ...]:
    rows: list[Row] = []
    for number in range(num_deconvs):
        theirs = f"head.deconv{number + 1}.weight"
        rows.append(Row((theirs,), f"head.decoder.deconv.{number}.weight"))
        rows += _norm(f"head.batchnorm{number + 1}.", number)
    return (*rows, Row(("head.conv.{p}",), "head.classifier.{p}"))


def _norm(theirs: str, number: int) -> list[Row]:
    ours = f"head.decoder.norm.{number}."
    return [
        Row((theirs + "{p}",), ours + "{p}"),
        *(Row((theirs + buffer,), ours + buffer) for buffer in NORM_BUFFERS),
    ]
