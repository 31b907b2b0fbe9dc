# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Key mappings of detectron2's backbones; for necks and heads see `detector_keys`.

Source:
    detectron2@02b5c4e, modeling/backbone/swin.py and vit.py. A Swin has the names of
    microsoft/Swin-Transformer with the prefix "backbone.bottom_up.", and a norm for each map. The
    ViT of ViTDet uses window attention with decomposed relative positions, which is another model
    and rejected.
"""

from __future__ import annotations

from collections.abc import Collection

from muntin.models.swin import SwinConfig
from muntin.weights.key_maps import KeyMap, KeyMaps, Row, first_key, square_index
from muntin.weights.shared_keys import DETECTRON2_DETECTOR, SWIN_BLOCK

__all__ = ["KEY_MAPS", "recognise"]

_BODY = "backbone.bottom_up."
_TABLE = "layers.{i}.blocks.{j}.attn.relative_position_bias_table"
_NAMES = (
    *(row.ours for row in SWIN_BLOCK),
    "patch_embed.proj.{p}",
    "patch_embed.norm.{p}",
    "absolute_pos_embed",
    "layers.{i}.downsample.norm.{p}",
    "layers.{i}.downsample.reduction.{p}",
    "norm{i}.{p}",
)

KEY_MAPS: KeyMaps = {
    SwinConfig: KeyMap(
        (
            *(Row((_BODY + name,), name) for name in _NAMES),
            Row(
                (_BODY + "layers.{i}.blocks.{j}.attn.relative_position_index",),
                _TABLE,
                derive=square_index,
            ),
        ),
        # FPN, RPN and heads, ignored if the model is only a backbone.
        unused=DETECTRON2_DETECTOR,
    ),
}


def recognise(keys: Collection[str]) -> str:
    """Return a key that only this dialect has, or an empty string."""
    return first_key(keys, r"^backbone\.(bottom_up|net)\.")
