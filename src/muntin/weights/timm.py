# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The names of timm 0.9 and later.

Source:
    timm 1.0.31, swin_transformer.py and vision_transformer.py; compared live in tests/parity. In a
    Swin, merging stands at the start of the next stage. A relative-position table belongs to the
    window that was built, which is smaller than the window asked for where the map is.
"""

from __future__ import annotations

from collections.abc import Collection

from muntin.models.swin import SwinConfig
from muntin.models.vit import ViTConfig
from muntin.weights.microsoft import PLAIN_BLOCK
from muntin.weights.renaming import KeyMap, Row, first_key

__all__ = ["KEY_MAPS", "recognise"]

_MERGING = tuple(
    Row(("layers.{i+1}.downsample." + name,), "layers.{i}.downsample." + name)
    for name in ("norm.{p}", "reduction.{p}")
)

KEY_MAPS: dict[type, KeyMap] = {
    SwinConfig: KeyMap(
        (
            Row(("patch_embed.proj.{p}",), "patch_embed.proj.{p}"),
            Row(("patch_embed.norm.{p}",), "patch_embed.norm.{p}"),
            *PLAIN_BLOCK,
            *_MERGING,
            Row(("norm.{p}",), "norm.{p}"),
            Row(("head.fc.{p}",), "head.fc.{p}"),
            # Models built with features_only=True.
            *(
                Row((row.theirs[0].replace(".", "_", 1),), row.ours)
                for row in (*PLAIN_BLOCK, *_MERGING)
            ),
        )
    ),
    ViTConfig: KeyMap(
        (
            *(
                Row((name,), name)
                for name in (
                    "cls_token",
                    "pos_embed",
                    "patch_embed.proj.{p}",
                    "blocks.{j}.norm1.{p}",
                    "blocks.{j}.attn.qkv.{p}",
                    "blocks.{j}.attn.proj.{p}",
                    "blocks.{j}.norm2.{p}",
                    "blocks.{j}.mlp.fc1.{p}",
                    "blocks.{j}.mlp.fc2.{p}",
                    "norm.{p}",
                    "fc_norm.{p}",
                )
            ),
            Row(("head.{p}",), "head.fc.{p}"),
        )
    ),
}


def recognise(keys: Collection[str]) -> str:
    """Give a key that only this dialect has, or an empty string."""
    merges = first_key(keys, r"^layers\.[1-9]\d*\.downsample\.")
    merges_early = "" if first_key(keys, r"^layers\.0\.downsample\.") else merges
    head = first_key(keys, r"^head\.fc\.") if first_key(keys, r"^layers\.\d+\.blocks\.") else ""
    return merges_early or head or first_key(keys, r"^(blocks\.\d+\.attn\.|layers_\d+\.)")
