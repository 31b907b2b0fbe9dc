# SPDX-License-Identifier: Apache-2.0
"""Key mappings of the decoders of masked pretraining, which are added to those of a backbone.

Source:
    MAE: facebookresearch/mae@efb2a80 and hiera@b12b842, whose encoders have timm's names;
    transformers 5.23 (`ViTMAEForPreTraining`, `HieraForPreTraining`), in files and in memory.
    SimMIM: microsoft/SimMIM@d3e29bc, and `SwinForMaskedImageModeling` and its kin.
    Compared live in tests/parity/test_mae_parity.py and test_simmim_parity.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from muntin.weights.key_maps import Row, Transform, block_rows, layer_rows

_OURS = "head.decoder."
_BLOCK = _OURS + "blocks.{j}."
_TOKEN = Transform(
    join=lambda parts: parts[0].flatten(), split=lambda whole, _: (whole.view(1, 1, -1),)
)
"""Our token is a vector; theirs has dimensions for images and tokens."""


# What transformers calls the parts of a block, of encoders too.
FILE_MLP = ("layernorm_after", "intermediate.dense", "output.dense")


def file_block(theirs: str, ours: str, attention: str, mlp: Sequence[str]) -> tuple[Row, ...]:
    """Rows of a block by the names in files."""
    qkv = " ".join(f"{attention}.{name}" for name in ("query", "key", "value"))
    return block_rows(theirs, ours, ("layernorm_before", qkv, "attention.output.dense", *mlp))


MEMORY_PARTS = (
    "layernorm_before",
    "attention.q_proj attention.k_proj attention.v_proj",
    "attention.o_proj",
    "layernorm_after",
    "mlp.fc1",
    "mlp.fc2",
)
"""Names of the parts of a block in memory, since version 5."""

HIERA_PARTS = ("layernorm_before", "attn.qkv", "attn.proj", *MEMORY_PARTS[3:])


def _mae_rows(before: str, positions: str = "pos_embed", embed: str = "embed") -> tuple[Row, ...]:
    """What surrounds the blocks."""
    return (
        *layer_rows(f"{before}decoder_{embed}", _OURS + "embed"),
        Row((f"{before}mask_token",), _OURS + "mask_token", _TOKEN),
        Row((f"{before}decoder_{positions}",), _OURS + "pos_embed"),
        *layer_rows(f"{before}decoder_norm", _OURS + "norm"),
        *layer_rows(f"{before}decoder_pred", _OURS + "pred"),
    )


MAE_TIMM = (*_mae_rows(""), *block_rows("decoder_blocks.{j}.", _BLOCK))

MAE_TRANSFORMERS = (
    *_mae_rows("decoder."),
    *file_block("decoder.decoder_layers.{j}.", _BLOCK, "attention.attention", FILE_MLP),
    *block_rows("decoder.decoder_layers.{j}.", _BLOCK, MEMORY_PARTS),
    # What version 5 calls them when it writes.
    *file_block("decoder.decoder_encoder.layer.{j}.", _BLOCK, "attention.attention", FILE_MLP),
)

HIERA_TIMM = (
    *MAE_TIMM,
    *layer_rows("multi_scale_fusion_heads.{i}", "head.fusion.{i}"),
    *layer_rows("encoder_norm", "head.encoder_norm"),
)

HIERA_TRANSFORMERS = (
    *_mae_rows("decoder.", "position_embeddings", "embeddings"),
    *block_rows("decoder.decoder_block.layers.{j}.", _BLOCK, HIERA_PARTS),
    *layer_rows("multiscale_fusion.multi_scale_fusion_heads.{i}", "head.fusion.{i}"),
    *layer_rows("encoder_norm", "head.encoder_norm"),
)

BODY = "<body>"
"""Stands for the prefix of the backbone in names of tensors that lie among its own."""

_PREDICT = layer_rows("decoder.0", "head.predict")
SIMMIM = (Row((BODY + "mask_token",), "head.mask_token", _TOKEN), *_PREDICT)
SIMMIM_TRANSFORMERS = (
    Row((BODY + "embeddings.mask_token",), "head.mask_token", _TOKEN),
    *_PREDICT,
)

DECODERS = (
    r"^(decoder(_\w+)?|multi_scale_fusion_heads|multiscale_fusion|encoder_norm)\."
    r"|^decoder_pos_embed$|(^|\.)mask_token$"
)
"""Keys of the decoders."""
