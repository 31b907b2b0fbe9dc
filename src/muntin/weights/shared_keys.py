# SPDX-License-Identifier: Apache-2.0
"""Key patterns and rows that several dialects share; they depend on no model and no head."""

from __future__ import annotations

from muntin.weights.key_maps import STACKED, Row, block_rows, same_names

DENSE_TASKS = (
    r"^(neck|rpn_head|roi_head|bbox_head|mask_head|decode_head|auxiliary_head|keypoint_head"
    r"|proposal_generator|roi_heads|sem_seg_head|data_preprocessor)\."
)
"""Keys of necks and heads of detectors, segmenters and pose estimators (OpenMMLab, Microsoft)."""

TORCHVISION_DETECTOR = r"^(backbone\.fpn|rpn|roi_heads|head\.(classification|regression)_head)\."
"""Keys of necks and heads of torchvision's detectors."""

DETECTRON2_DETECTOR = (
    r"^backbone\.(fpn|simfp)_|^(proposal_generator|roi_heads|sem_seg_head|pixel_\w+)\b"
)
"""Keys of necks and heads of detectron2's detectors."""


def layer_rows(theirs: str, ours: str) -> tuple[Row, ...]:
    """Rows of weight and bias of a layer."""
    return (Row((theirs + ".{p}",), ours + ".{p}"),)


def norm_rows(theirs: str, ours: str) -> tuple[Row, ...]:
    """Rows of a norm, with the buffers that a batch norm has."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return (
        *layer_rows(theirs, ours),
        *(Row((f"{theirs}.{name}",), f"{ours}.{name}") for name in buffers),
    )


_BLOCK = "layers.{i}.blocks.{j}."


# Microsoft, timm and detectron2 name the parts of a Swin block alike.
SWIN_BLOCK = (
    *block_rows(_BLOCK, _BLOCK),
    *same_names(_BLOCK + "attn.relative_position_bias_table"),
)
SWIN_V2_BLOCK = (
    *block_rows(_BLOCK, _BLOCK),
    *same_names(_BLOCK + "attn.logit_scale", _BLOCK + "attn.cpb_mlp.{k}.{p}"),
    Row((_BLOCK + "attn.q_bias", _BLOCK + "attn.v_bias"), _BLOCK + "attn.qv_bias", STACKED),
    # SimMIM's earliest checkpoints call the bias MLP `rpe_mlp`.
    Row((_BLOCK + "attn.rpe_mlp.{k}.{p}",), _BLOCK + "attn.cpb_mlp.{k}.{p}"),
)
