# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The names of microsoft/Swin-Transformer, which are ours but for the classifier.

Source:
    microsoft/Swin-Transformer@f82860b, models/swin_transformer.py. Its files also hold the
    attention masks of the picture size that it was built for; they are ignored.
"""

from __future__ import annotations

from collections.abc import Collection

from muntin.models.swin import SwinConfig
from muntin.weights.renaming import KeyMap, Row, first_key, square_index

__all__ = ["KEY_MAPS", "recognise"]

_BLOCK = "layers.{i}.blocks.{j}."

# The parts of a block have the same names in every plain dialect.
PLAIN_BLOCK = tuple(
    Row((name,), name)
    for name in (
        _BLOCK + "norm1.{p}",
        _BLOCK + "attn.relative_position_bias_table",
        _BLOCK + "attn.qkv.{p}",
        _BLOCK + "attn.proj.{p}",
        _BLOCK + "norm2.{p}",
        _BLOCK + "mlp.fc1.{p}",
        _BLOCK + "mlp.fc2.{p}",
    )
)

KEY_MAPS: dict[type, KeyMap] = {
    SwinConfig: KeyMap(
        (
            Row(("patch_embed.proj.{p}",), "patch_embed.proj.{p}"),
            Row(("patch_embed.norm.{p}",), "patch_embed.norm.{p}"),
            Row(("absolute_pos_embed",), "absolute_pos_embed"),
            *PLAIN_BLOCK,
            Row(
                (_BLOCK + "attn.relative_position_index",),
                _BLOCK + "attn.relative_position_bias_table",
                derive=square_index,
            ),
            Row((_BLOCK + "attn_mask",), ""),
            Row(("layers.{i}.downsample.norm.{p}",), "layers.{i}.downsample.norm.{p}"),
            Row(("layers.{i}.downsample.reduction.{p}",), "layers.{i}.downsample.reduction.{p}"),
            Row(("norm.{p}",), "norm.{p}"),
            Row(("head.{p}",), "head.fc.{p}"),
        )
    ),
}


def recognise(keys: Collection[str]) -> str:
    """Give a key that only this dialect has, or an empty string."""
    buffer = first_key(
        keys, r"^layers\.\d+\.blocks\.\d+\.(attn\.relative_position_index|attn_mask)$"
    )
    head = first_key(keys, r"^head\.weight$") if first_key(keys, r"^layers\.\d+\.blocks\.") else ""
    return buffer or head
