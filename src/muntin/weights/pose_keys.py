# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Heads of keypoints under the names of each ecosystem.

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

__all__ = ["pose_rows", "with_poses"]

_ZONE = r"^(keypoint_head|head|data_preprocessor|associate_keypoint_heads)\."


def with_poses(body: KeyMap, dialect: str, head: nn.Module | None) -> KeyMap:
    """Add the names of a head of keypoints to those of a backbone, where the model has one.

    Args:
        body: Names of the backbone.
        dialect: Of the names.
        head: Of the model, if it has one.
    """
    published = isinstance(head, PoseHead) and head.config.decoder != "light"
    if not published or dialect not in ("openmmlab", "transformers"):
        return body
    assert isinstance(head, PoseHead), "asked before"
    times = len(getattr(head.decoder, "deconv", ()))
    rows = _openmmlab(times) if dialect == "openmmlab" else _transformers(times)
    return HeadMap(rows, unused=r"^data_preprocessor\.", body=body, before="backbone.", zone=_ZONE)


def pose_rows(head: nn.Module | None, name: str, num_keypoints: int) -> int | None:
    """How many rows a tensor of a head has when there are so many keypoints.

    Args:
        head: Of the model.
        name: Our name of the tensor.
        num_keypoints: Keypoints.

    Returns:
        The rows; 0 where they do not depend on keypoints; None where it is another head.
    """
    if not isinstance(head, PoseHead):
        return None
    return num_keypoints if name.startswith("head.classifier.") else 0


def _openmmlab(times: int) -> tuple[Row, ...]:
    rows: list[Row] = []
    for before in ("head.", "keypoint_head."):  # the first is written
        layers = f"{before}deconv_layers."
        for number in range(times):
            conv, norm = f"{layers}{3 * number}.", f"{layers}{3 * number + 1}."
            rows.append(Row((conv + "weight",), f"head.decoder.deconv.{number}.weight"))
            rows += _norm(norm, number)
        rows.append(Row((before + "final_layer.{p}",), "head.classifier.{p}"))
    return tuple(rows)


def _transformers(times: int) -> tuple[Row, ...]:
    rows: list[Row] = []
    for number in range(times):
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
