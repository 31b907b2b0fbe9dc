# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The names of Hugging Face transformers: those of its files, which are the names of version 4.

Source:
    transformers 5.23, models/swin and models/vit; compared live in tests/parity. From version 5 on
    the names in memory differ from those in the file; both are read, the file's are written.
    Version 4 also stores the index of every table; it is ignored.
"""

from __future__ import annotations

from collections.abc import Collection

from muntin.models.swin import SwinConfig
from muntin.models.vit import ViTConfig
from muntin.weights.renaming import STACKED, KeyMap, Row, first_key

__all__ = ["KEY_MAPS", "recognise"]


def _block(
    theirs: str, ours: str, qkv: tuple[str, str, str], rest: tuple[str, str, str]
) -> tuple[Row, ...]:
    """Rows of a block: where query, key and value stand, and output projection and MLP."""
    proj, expand, contract = rest
    return (
        Row((theirs + "layernorm_before.{p}",), ours + "norm1.{p}"),
        Row(tuple(f"{theirs}{name}.{{p}}" for name in qkv), ours + "attn.qkv.{p}", STACKED),
        Row((theirs + proj + ".{p}",), ours + "attn.proj.{p}"),
        Row((theirs + "layernorm_after.{p}",), ours + "norm2.{p}"),
        Row((theirs + expand + ".{p}",), ours + "mlp.fc1.{p}"),
        Row((theirs + contract + ".{p}",), ours + "mlp.fc2.{p}"),
    )


def _file_block(theirs: str, ours: str, attention: str) -> tuple[Row, ...]:
    query, key, value = (f"{attention}.{name}" for name in ("query", "key", "value"))
    rest = ("attention.output.dense", "intermediate.dense", "output.dense")
    return _block(theirs, ours, (query, key, value), rest)


def _memory_block(theirs: str, ours: str) -> tuple[Row, ...]:
    query, key, value = (f"attention.{name}_proj" for name in "qkv")
    return _block(theirs, ours, (query, key, value), ("attention.o_proj", "mlp.fc1", "mlp.fc2"))


_THEIRS, _OURS = "encoder.layers.{i}.blocks.{j}.", "layers.{i}.blocks.{j}."
_TABLE = "attn.relative_position_bias_table"

KEY_MAPS: dict[type, KeyMap] = {
    SwinConfig: KeyMap(
        (
            Row(("embeddings.patch_embeddings.projection.{p}",), "patch_embed.proj.{p}"),
            Row(("embeddings.norm.{p}",), "patch_embed.norm.{p}"),
            Row(("embeddings.position_embeddings",), "absolute_pos_embed"),
            Row(("embeddings.mask_token",), ""),
            *_file_block(_THEIRS, _OURS, "attention.self"),
            Row((_THEIRS + "attention.self.relative_position_bias_table",), _OURS + _TABLE),
            Row((_THEIRS + "attention.self.relative_position_index",), ""),
            *_memory_block(_THEIRS, _OURS),
            Row(
                (_THEIRS + "attention.relative_position_bias.relative_position_bias_table",),
                _OURS + _TABLE,
            ),
            Row(("encoder.layers.{i}.downsample.norm.{p}",), "layers.{i}.downsample.norm.{p}"),
            Row(
                ("encoder.layers.{i}.downsample.reduction.{p}",),
                "layers.{i}.downsample.reduction.{p}",
            ),
            Row(("layernorm.{p}",), "norm.{p}"),
            Row(("classifier.{p}",), "head.fc.{p}"),
        ),
        prefix="swin.",
    ),
    ViTConfig: KeyMap(
        (
            Row(("embeddings.cls_token",), "cls_token"),
            Row(("embeddings.position_embeddings",), "pos_embed"),
            Row(("embeddings.mask_token",), ""),
            Row(("embeddings.patch_embeddings.projection.{p}",), "patch_embed.proj.{p}"),
            *_file_block("encoder.layer.{j}.", "blocks.{j}.", "attention.attention"),
            *_memory_block("layers.{j}.", "blocks.{j}."),
            Row(("layernorm.{p}",), "norm.{p}"),
            # Reads the class token for other tasks; the classifier does not.
            Row(("pooler.dense.{p}",), ""),
            Row(("classifier.{p}",), "head.fc.{p}"),
        ),
        prefix="vit.",
    ),
}


def recognise(keys: Collection[str]) -> str:
    """Give a key that only this dialect has, or an empty string."""
    return first_key(keys, r"(^|\.)(embeddings\.patch_embeddings|layernorm_before)\.")
