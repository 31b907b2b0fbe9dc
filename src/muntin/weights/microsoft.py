# SPDX-License-Identifier: Apache-2.0
"""Key mappings of microsoft/Swin-Transformer and of detectron2, whose Swin has the same names.

Source:
    microsoft/Swin-Transformer@f82860b, models/swin_transformer.py and swin_transformer_v2.py. Its
    files also hold the attention masks and relative position indices for one image size, which
    are ignored. microsoft/SimMIM@d3e29bc adds the prefix "encoder." and a decoder. The forks for
    detection (@c7b2011) and segmentation (@87e6f90) add the prefix "backbone." and a norm for each
    map, and never shrink a window.
    detectron2@02b5c4e, modeling/backbone/swin.py and vit.py: the prefix "backbone.bottom_up.", and
    a norm for each map; for necks and heads see `head_keys`. The ViT of ViTDet uses window
    attention with decomposed relative positions, which is another model and rejected.
"""

from __future__ import annotations

from dataclasses import replace

from muntin.models.swin import SwinConfig
from muntin.models.swin_v2 import SwinV2Config
from muntin.ops.positions import SizeRuleName
from muntin.weights.key_maps import (
    DENSE_TASKS,
    DETECTRON2_DETECTOR,
    SWIN_BLOCK,
    SWIN_V2_BLOCK,
    KeyMap,
    KeyMaps,
    Row,
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
DETECTRON2_KEY_MAPS: KeyMaps = {
    SwinConfig: KeyMap(
        tuple(replace(row, theirs=(f"backbone.bottom_up.{row.theirs[0]}",)) for row in _SWIN),
        # FPN, RPN and heads, ignored if the model is only a backbone.
        unused=DETECTRON2_DETECTOR,
    ),
}


# The forks for detection and segmentation pad as OpenMMLab does.
SIZE_EVIDENCE: tuple[tuple[str, SizeRuleName], ...] = (
    (r"^(backbone\.)?norm\d\.", "openmmlab"),
    (DENSE_TASKS, "openmmlab"),
)
