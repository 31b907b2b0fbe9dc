# SPDX-License-Identifier: Apache-2.0
"""Key mappings of OpenMMLab: mmpretrain, mmdetection, mmsegmentation and mmpose.

Source:
    mmpretrain@ee7f2e8 and mmpose@759b39c, backbones and their converters. Patch merging
    concatenates channels in the order of `nn.Unfold`: channel by channel, row by row, whereas all
    others go neighbor by neighbor, column by column. Files do not record it. A Swin downsamples at
    the end of a stage, a Swin V2 at the start of the next.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from muntin.models.swin import SwinConfig
from muntin.models.swin_v2 import SwinV2Config
from muntin.models.vit import ViTConfig
from muntin.ops.positions import SizeRuleName
from muntin.weights.key_maps import (
    AS_IS,
    DENSE_TASKS,
    STACKED,
    KeyMap,
    KeyMaps,
    Row,
    Transform,
    block_rows,
    same_names,
    square_index,
)
from muntin.weights.window_buffers import shrink_windows, window_rows

_ORDER = (0, 2, 1, 3)


# Channels of merged patches in unfold order (theirs: C, 4), and in ours (4, C).
UNFOLDED = Transform(
    join=lambda parts: parts[0].unflatten(-1, (-1, 4))[..., _ORDER].mT.flatten(-2),
    split=lambda whole, _: [whole.unflatten(-1, (4, -1))[..., _ORDER, :].mT.flatten(-2)],
)

_THEIRS, _OURS = "stages.{i}.blocks.{j}.", "layers.{i}.blocks.{j}."
_MERGING = "layers.{i}.downsample."
_MLP = ("ffn.layers.0.0", "ffn.layers.1")
# Heads of mmpose; those of mmpretrain's classifiers are "head.fc." and "head.layers.".
_DENSE_TASKS = rf"(?!^data_preprocessor\.){DENSE_TASKS}|^head\.(?!fc\.|layers\.)"
_UNUSED = rf"{_DENSE_TASKS}|^data_preprocessor\.|attn_mask$|^backbone\.norm\d"


def _around(config: SwinConfig) -> tuple[Row, ...]:
    last = f"norm{config.out_indices[-1]}.{{p}}"
    norms = Row(("norm{i}.{p}",), "norm{i}.{p}")
    return (
        Row(("patch_embed.projection.{p}",), "patch_embed.proj.{p}"),
        *same_names("patch_embed.norm.{p}", "absolute_pos_embed"),
        Row(("mask_token",), ""),
        *block_rows(_THEIRS, _OURS, ("norm1", "attn.w_msa.qkv", "attn.w_msa.proj", "norm2", *_MLP)),
        norms if config.out_norm == "each" else Row((last,), "norm.{p}"),
        Row(("head.fc.{p}",), "head.fc.{p}"),
    )


def _swin(config: SwinConfig) -> KeyMap:
    table = _OURS + "attn.relative_position_bias_table"
    return KeyMap(
        (
            Row((_THEIRS + "attn.w_msa.relative_position_bias_table",), table),
            Row((_THEIRS + "attn.w_msa.relative_position_index",), table, derive=square_index),
            Row(("stages.{i}.downsample.norm.{p}",), _MERGING + "norm.{p}", UNFOLDED),
            Row(("stages.{i}.downsample.reduction.{p}",), _MERGING + "reduction.{p}", UNFOLDED),
            *_around(config),
        ),
        prefix="backbone.",
        unused=_UNUSED,
    )


def _swin_v2(config: SwinV2Config) -> KeyMap:
    theirs = _THEIRS + "attn.w_msa."
    # Windows of classifiers never shrink; the published ones have smaller ones in late stages.
    windows = config if config.out_norm == "each" else shrink_windows(config)
    return KeyMap(
        (
            Row((theirs + "q_bias", theirs + "v_bias"), _OURS + "attn.qv_bias", STACKED),
            *same_names("logit_scale", "cpb_mlp.{k}.{p}", theirs=theirs, ours=_OURS + "attn."),
            *window_rows(theirs, windows),
            # The norm follows the reduction, so its channels are not in unfold order.
            Row(("stages.{i+1}.downsample.norm.{p}",), _MERGING + "norm.{p}"),
            Row(("stages.{i+1}.downsample.reduction.{p}",), _MERGING + "reduction.{p}", UNFOLDED),
            *_around(config),
        ),
        prefix="backbone.",
        unused=_UNUSED,
    )


_LAYER = "layers.{j}."


def _with_shared(config: ViTConfig) -> Transform:
    """In mmpose 1.x, position embeddings have no shared (class token) part; it becomes 0."""
    patches = config.grid[0] * config.grid[1]

    def join(parts: Sequence[Tensor]) -> Tensor:
        positions = parts[0]
        bare = positions.ndim == 3 and positions.shape[1] == patches
        return F.pad(positions, (0, 0, 1, 0)) if bare else positions

    def split(whole: Tensor, _: int) -> Sequence[Tensor]:
        return (whole if whole[:, 0].any() else whole[:, 1:],)

    return Transform(join=join, split=split)


def _vit(config: ViTConfig) -> KeyMap:
    """Names of mmpretrain; those of ViTPose's repository are read too."""
    positions = _with_shared(config) if config.shared_position else AS_IS
    return KeyMap(
        (
            Row(("cls_token",), "cls_token" if config.class_token else ""),
            Row(("dist_token",), "dist_token"),
            Row(("mask_token",), ""),
            Row(("pos_embed",), "pos_embed", positions),
            Row(("patch_embed.projection.{p}",), "patch_embed.proj.{p}"),
            *_VIT_BLOCK,
            Row(("ln1.{p}",), "norm.{p}"),
            Row(("ln2.{p}",), "fc_norm.{p}"),
            Row(("head.layers.head.{p}",), "head.fc.{p}"),
            Row(("head.layers.head_dist.{p}",), "head.fc_dist.{p}"),
            *_VITPOSE,
        ),
        prefix="backbone.",
        unused=rf"{_DENSE_TASKS}|^data_preprocessor\.",
    )


_VIT_BLOCK = (
    *block_rows(_LAYER, "blocks.{j}.", ("ln1", "attn.qkv", "attn.proj", "ln2", *_MLP)),
    Row((_LAYER + "attn.gamma1.weight",), "blocks.{j}.ls1.gamma"),
    Row((_LAYER + "ffn.gamma2.weight",), "blocks.{j}.ls2.gamma"),
    # mmsegmentation and mmdetection.
    *block_rows(
        _LAYER, "blocks.{j}.", ("", "attn.attn.in_proj_", "attn.attn.out_proj", "", "", "")
    ),
)
_VITPOSE = (
    *block_rows("blocks.{j}.", "blocks.{j}."),
    Row(("patch_embed.proj.{p}",), "patch_embed.proj.{p}"),
    Row(("last_norm.{p}",), "norm.{p}"),
)

KEY_MAPS: KeyMaps = {
    SwinConfig: _swin,
    SwinV2Config: _swin_v2,
    ViTConfig: _vit,
}


# Classifiers (mmpretrain) leave the shift out on maps no larger than a window; detectors,
# segmenters and pose estimators never do.
SIZE_EVIDENCE: tuple[tuple[str, SizeRuleName], ...] = (
    # Pre-training of a classifier: SimMIM in mmselfsup and mmpretrain.
    (r"^neck\.decoder\.|(^|\.)mask_token$", "mmpretrain"),
    # Norms of several maps.
    (r"^(backbone\.)?norm[01]\.", "openmmlab"),
    (_DENSE_TASKS, "openmmlab"),
)
