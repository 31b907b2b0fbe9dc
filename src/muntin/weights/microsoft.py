# SPDX-License-Identifier: Apache-2.0
"""Key mappings of microsoft/Swin-Transformer and of detectron2, whose Swin has the same names.

Source:
    microsoft/Swin-Transformer@f82860b, models/swin_transformer.py and swin_transformer_v2.py. Its
    files also hold the attention masks and relative position indices for one image size, which
    are ignored. microsoft/SimMIM@d3e29bc adds the prefix "encoder." and a decoder. The forks for
    detection (@c7b2011) and segmentation (@87e6f90) add the prefix "backbone." and a norm for each
    map, and never shrink a window.
    detectron2@02b5c4e, modeling/backbone/swin.py and vit.py: the prefix "backbone.bottom_up.", and
    a norm for each map; or, for a ViTDet, "backbone.net."; for necks and heads see `head_keys`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from muntin.models.swin import SwinConfig
from muntin.models.swin_v2 import SwinV2Config
from muntin.models.vit_det import ViTDetConfig
from muntin.ops.positions import SizeRuleName
from muntin.weights.key_maps import (
    DENSE_TASKS,
    DETECTRON2_DETECTOR,
    SWIN_BLOCK,
    SWIN_V2_BLOCK,
    KeyMap,
    KeyMaps,
    Row,
    Transform,
    block_rows,
    same_names,
    square_index,
)

_BLOCK = "layers.{i}.blocks.{j}."

_AROUND = same_names(
    "patch_embed.proj.{p}",
    "patch_embed.norm.{p}",
    "absolute_pos_embed",
    "layers.{i}.downsample.norm.{p}",
    "layers.{i}.downsample.reduction.{p}",
    "norm{i}.{p}",
)
_SWIN = (
    *SWIN_BLOCK,
    Row(
        (_BLOCK + "attn.relative_position_index",),
        _BLOCK + "attn.relative_position_bias_table",
        derive=square_index,
    ),
    *_AROUND,
)
_CLASSIFIER = (
    *same_names("norm.{p}"),
    Row(("head.{p}",), "head.fc.{p}"),
    Row(("mask_token",), ""),
    Row((_BLOCK + "attn_mask",), ""),
)

_WRAPPERS = ("encoder.", "backbone.")
_UNUSED = rf"{DENSE_TASKS}|^decoder\."

KEY_MAPS: KeyMaps = {
    SwinConfig: KeyMap((*_SWIN, *_CLASSIFIER), wrappers=_WRAPPERS, unused=_UNUSED),
    SwinV2Config: KeyMap(
        (
            *SWIN_V2_BLOCK,
            Row((_BLOCK + "attn.relative_position_index",), ""),
            Row((_BLOCK + "attn.relative_coords_table",), ""),
            *_AROUND,
            *_CLASSIFIER,
        ),
        wrappers=_WRAPPERS,
        unused=_UNUSED,
    ),
}
_NET, _ATTENTION = "backbone.net.", "blocks.{j}.attn."


def _drop_class(parts: Sequence[Tensor]) -> Tensor:
    count = parts[0].shape[1] - 1
    return parts[0][:, 1:] if math.isqrt(count) ** 2 == count else parts[0]


# The first position belongs to the class token of pre-training; no block reads it.
_WITHOUT_CLASS = Transform(join=_drop_class, split=lambda x, _: (F.pad(x, (0, 0, 1, 0)),))

DETECTRON2_KEY_MAPS: KeyMaps = {
    SwinConfig: KeyMap(
        tuple(replace(row, theirs=(f"backbone.bottom_up.{row.theirs[0]}",)) for row in _SWIN),
        # FPN, RPN and heads, ignored if the model is only a backbone.
        unused=DETECTRON2_DETECTOR,
    ),
    ViTDetConfig: KeyMap(
        (
            Row((_NET + "pos_embed",), "pos_embed", _WITHOUT_CLASS),
            Row((_NET + "patch_embed.proj.{p}",), "patch_embed.proj.{p}"),
            *block_rows(_NET + "blocks.{j}.", "blocks.{j}."),
            *same_names("rel_pos_h", "rel_pos_w", theirs=_NET + _ATTENTION, ours=_ATTENTION),
        ),
        unused=DETECTRON2_DETECTOR,
    ),
}


# The forks for detection and segmentation pad as OpenMMLab does.
SIZE_EVIDENCE: tuple[tuple[str, SizeRuleName], ...] = (
    (r"^(backbone\.)?norm\d\.", "openmmlab"),
    (DENSE_TASKS, "openmmlab"),
)
