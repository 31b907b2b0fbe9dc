# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The names of torchvision.

Source:
    torchvision 0.29.2, models/swin_transformer.py and models/vision_transformer.py; compared live
    in tests/parity. A Swin's state dict also holds the index of every table, as one long row.
"""

from __future__ import annotations

from collections.abc import Collection

from muntin.models.swin import SwinConfig
from muntin.models.vit import ViTConfig
from muntin.weights.renaming import KeyMap, Row, first_key, flat_index

__all__ = ["KEY_MAPS", "recognise"]

_THEIRS, _OURS = "features.{2i+1}.{j}.", "layers.{i}.blocks.{j}."
_LAYER = "encoder.layers.encoder_layer_{j}."

KEY_MAPS: dict[type, KeyMap] = {
    SwinConfig: KeyMap(
        (
            Row(("features.0.0.{p}",), "patch_embed.proj.{p}"),
            Row(("features.0.2.{p}",), "patch_embed.norm.{p}"),
            Row((_THEIRS + "norm1.{p}",), _OURS + "norm1.{p}"),
            Row(
                (_THEIRS + "attn.relative_position_bias_table",),
                _OURS + "attn.relative_position_bias_table",
            ),
            Row(
                (_THEIRS + "attn.relative_position_index",),
                _OURS + "attn.relative_position_bias_table",
                derive=flat_index,
            ),
            Row((_THEIRS + "attn.qkv.{p}",), _OURS + "attn.qkv.{p}"),
            Row((_THEIRS + "attn.proj.{p}",), _OURS + "attn.proj.{p}"),
            Row((_THEIRS + "norm2.{p}",), _OURS + "norm2.{p}"),
            Row((_THEIRS + "mlp.0.{p}",), _OURS + "mlp.fc1.{p}"),
            Row((_THEIRS + "mlp.3.{p}",), _OURS + "mlp.fc2.{p}"),
            Row(("features.{2i+2}.norm.{p}",), "layers.{i}.downsample.norm.{p}"),
            Row(("features.{2i+2}.reduction.{p}",), "layers.{i}.downsample.reduction.{p}"),
            Row(("norm.{p}",), "norm.{p}"),
            Row(("head.{p}",), "head.fc.{p}"),
        )
    ),
    ViTConfig: KeyMap(
        (
            Row(("class_token",), "cls_token"),
            Row(("encoder.pos_embedding",), "pos_embed"),
            Row(("conv_proj.{p}",), "patch_embed.proj.{p}"),
            Row((_LAYER + "ln_1.{p}",), "blocks.{j}.norm1.{p}"),
            Row((_LAYER + "self_attention.in_proj_{p}",), "blocks.{j}.attn.qkv.{p}"),
            Row((_LAYER + "self_attention.out_proj.{p}",), "blocks.{j}.attn.proj.{p}"),
            Row((_LAYER + "ln_2.{p}",), "blocks.{j}.norm2.{p}"),
            Row((_LAYER + "mlp.0.{p}",), "blocks.{j}.mlp.fc1.{p}"),
            Row((_LAYER + "mlp.3.{p}",), "blocks.{j}.mlp.fc2.{p}"),
            # Files from before torchvision 0.12.
            Row((_LAYER + "mlp.linear_1.{p}",), "blocks.{j}.mlp.fc1.{p}"),
            Row((_LAYER + "mlp.linear_2.{p}",), "blocks.{j}.mlp.fc2.{p}"),
            Row(("encoder.ln.{p}",), "norm.{p}"),
            Row(("heads.head.{p}",), "head.fc.{p}"),
        )
    ),
}


def recognise(keys: Collection[str]) -> str:
    """Give a key that only this dialect has, or an empty string."""
    return first_key(keys, r"^(features\.\d|conv_proj\.|encoder\.layers\.encoder_layer_)")
