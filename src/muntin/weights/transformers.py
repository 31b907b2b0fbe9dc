# SPDX-License-Identifier: Apache-2.0
"""Key mappings of Hugging Face transformers: names in its files, which are those of version 4.

Source:
    transformers 5.23, models/swin, swinv2, vit, deit, vit_mae, dinov2, beit and hiera; compared
    live in tests/parity. Since version 5, names in memory differ from those in files; both are
    read, those of files are written. Version 4 also stores relative position indices, which are
    ignored.
"""

from __future__ import annotations

from muntin.models.hiera import HieraConfig
from muntin.models.swin import SwinConfig
from muntin.models.swin_v2 import SwinV2Config
from muntin.models.vit import ViTConfig
from muntin.ops.positions import SizeRuleName
from muntin.weights.decoder_keys import FILE_MLP, HIERA_PARTS, MEMORY_PARTS, file_block
from muntin.weights.key_maps import STACKED, KeyMap, KeyMaps, Limits, Row, block_rows

_THEIRS, _OURS = "encoder.layers.{i}.blocks.{j}.", "layers.{i}.blocks.{j}."
_TABLE = "attn.relative_position_bias_table"

_AROUND_SWIN = (
    Row(("embeddings.patch_embeddings.projection.{p}",), "patch_embed.proj.{p}"),
    Row(("embeddings.norm.{p}",), "patch_embed.norm.{p}"),
    Row(("embeddings.position_embeddings",), "absolute_pos_embed"),
    Row(("embeddings.mask_token",), ""),
    Row(("encoder.layers.{i}.downsample.norm.{p}",), "layers.{i}.downsample.norm.{p}"),
    Row(("encoder.layers.{i}.downsample.reduction.{p}",), "layers.{i}.downsample.reduction.{p}"),
    Row(("layernorm.{p}",), "norm.{p}"),
    Row(("hidden_states_norms.stage{i+1}.{p}",), "norm{i}.{p}"),
    Row(("classifier.{p}",), "head.fc.{p}"),
)


def _swin_v2_block() -> tuple[Row, ...]:
    theirs = _THEIRS + "attention.self."
    bias_mlp = theirs + "continuous_position_bias_mlp."
    names = [f"{theirs}{name}" for name in ("query", "key", "value")]
    return (
        Row(tuple(f"{name}.weight" for name in names), _OURS + "attn.qkv.weight", STACKED),
        Row((f"{names[0]}.bias", f"{names[2]}.bias"), _OURS + "attn.qv_bias", STACKED),
        Row((theirs + "logit_scale",), _OURS + "attn.logit_scale"),
        Row((bias_mlp + "{k}.{p}",), _OURS + "attn.cpb_mlp.{k}.{p}"),
        Row((theirs + "relative_coords_table",), ""),
        Row((theirs + "relative_position_index",), ""),
        *block_rows(_THEIRS, _OURS, ("layernorm_before", "", "attention.output.dense", *FILE_MLP)),
    )


def _vitpose() -> KeyMap:
    """Names of the backbone of a ViTPose."""
    mlp = ("layernorm_after", "mlp.fc1", "mlp.fc2")
    return KeyMap(
        (
            Row(("embeddings.position_embeddings",), "pos_embed"),
            Row(("embeddings.patch_embeddings.projection.{p}",), "patch_embed.proj.{p}"),
            *file_block("encoder.layer.{j}.", "blocks.{j}.", "attention.attention", mlp),
            Row(("layernorm.{p}",), "norm.{p}"),
        ),
        wrappers=("backbone.",),
        unused=r"^head\.",
    )


_DINOV2_BLOCK, _BLOCK = "encoder.layer.{j}.", "blocks.{j}."


def _dinov2() -> tuple[Row, ...]:
    """Rows of a DINOv2 that other ViTs lack; a gated MLP has two layers in files, three in memory.

    Its prefix depends on whether it has registers.
    """
    theirs = _DINOV2_BLOCK
    mlp = ("norm2", "mlp.fc1", "mlp.fc2")
    qkv = "attention.attention.query attention.attention.key attention.attention.value"
    return (
        Row(("embeddings.register_tokens",), "reg_token"),
        *block_rows(theirs, _BLOCK, ("norm1", qkv, "attention.output.dense", *mlp)),
        *block_rows(theirs, _BLOCK, ("", *MEMORY_PARTS[1:3], "", "", "")),
        Row((theirs + "layer_scale1.lambda1",), _BLOCK + "ls1.gamma"),
        Row((theirs + "layer_scale2.lambda1",), _BLOCK + "ls2.gamma"),
    )


def _gated() -> tuple[Row, ...]:
    theirs = _DINOV2_BLOCK + "mlp."
    fc1, fc2 = _BLOCK + "mlp.fc1.{p}", _BLOCK + "mlp.fc2.{p}"
    return (
        Row((theirs + "weights_in.{p}",), fc1),
        Row((theirs + "weights_out.{p}",), fc2),
        Row((theirs + "gate_proj.{p}", theirs + "up_proj.{p}"), fc1, STACKED),
        Row((theirs + "down_proj.{p}",), fc2),
    )


def _beit() -> tuple[Row, ...]:
    """Rows of a BEiT: scaled branches, tables of offsets, a norm of the mean, keys without bias."""
    rows = [Row(("pooler.layernorm.{p}",), "fc_norm.{p}")]
    bias = "relative_position_bias.relative_position_bias_table"
    for theirs, query, value, table in (
        (
            "encoder.layer.{j}.",
            "attention.attention.query.bias",
            "attention.attention.value.bias",
            f"attention.attention.{bias}",
        ),
        ("layers.{j}.", "attention.q_proj.bias", "attention.v_proj.bias", bias),
    ):
        rows += [
            Row((theirs + "lambda_1",), _BLOCK + "ls1.gamma"),
            Row((theirs + "lambda_2",), _BLOCK + "ls2.gamma"),
            Row((theirs + table,), _BLOCK + _TABLE),
            Row((theirs + query, theirs + value), _BLOCK + "attn.qv_bias", STACKED),
        ]
    return tuple(rows)


def _vit(config: ViTConfig) -> KeyMap:
    """Names of a ViT, a DeiT with its distillation token, a ViTMAE, ViTPose, DINOv2 and BEiT."""
    if config.shared_position:
        return _vitpose()
    head: tuple[Row, ...] = (Row(("classifier.{p}",), "head.fc.{p}"),)
    if config.distillation_token:
        head = (
            Row(("cls_classifier.{p}",), "head.fc.{p}"),
            Row(("distillation_classifier.{p}",), "head.fc_dist.{p}"),
        )
    plain = (
        *file_block("encoder.layer.{j}.", _BLOCK, "attention.attention", FILE_MLP),
        *block_rows("layers.{j}.", _BLOCK, MEMORY_PARTS),
    )
    # All names are read; those of the first group that has a tensor are written.
    dinov2, gated, beit = _dinov2(), _gated(), _beit()
    groups = (plain, dinov2, gated, beit)
    prefix = "deit." if config.distillation_token else "vit."
    if config.relative_pos_bias:
        prefix, groups = "beit.", (beit, plain, dinov2, gated)
    elif config.layer_scale:
        prefix = "dinov2_with_registers." if config.registers else "dinov2."
        first = (gated, dinov2) if config.activation == "swiglu" else (dinov2, gated)
        groups = (*first, plain, beit)
    return KeyMap(
        (
            Row(("embeddings.cls_token",), "cls_token"),
            Row(("embeddings.distillation_token",), "dist_token"),
            Row(("embeddings.position_embeddings",), "pos_embed"),
            Row(("embeddings.mask_token",), ""),
            Row(("embeddings.patch_embeddings.projection.{p}",), "patch_embed.proj.{p}"),
            *(row for group in groups for row in group),
            Row(("layernorm.{p}",), "norm.{p}"),
            # Layer on the class token for other tasks; the classifier does not use it.
            Row(("pooler.dense.{p}",), ""),
            *head,
        ),
        prefix=prefix,
        wrappers=("deit.", "vit.", "dinov2.", "dinov2_with_registers.", "beit."),
        unused=r"^decoder\.|^lm_head\.",
    )


def _hiera(config: HieraConfig) -> KeyMap:
    """Names of a Hiera; theirs number the blocks of each stage from 0."""
    rows: list[Row] = []
    first = 0
    for stage, depth in enumerate(config.depths):
        theirs = f"encoder.stages.{stage}.layers.{{j}}."
        ours = f"blocks.{{j+{first}}}." if first else "blocks.{j}."
        rows += block_rows(theirs, ours, HIERA_PARTS)
        rows.append(Row((theirs + "proj.{p}",), ours + "proj.{p}"))
        first += depth
    # Last stage first: when writing, a later block also matches the rows of earlier stages.
    return KeyMap(
        (
            Row(("embeddings.patch_embeddings.projection.{p}",), "patch_embed.proj.{p}"),
            Row(("embeddings.position_embeddings",), "pos_embed"),
            *reversed(rows),
            Row(("pooler.layernorm.{p}",), "norm.{p}"),
            Row(("encoder_norm.{p}",), "norm.{p}"),  # HieraForPreTraining; so does timm
            Row(("classifier.{p}",), "head.fc.{p}"),
        ),
        prefix="hiera.",
        unused=r"^decoder\.|^multiscale_fusion\.",
    )


KEY_MAPS: KeyMaps = {
    SwinV2Config: KeyMap(
        (*_swin_v2_block(), *_AROUND_SWIN), prefix="swinv2.", unused=r"^decoder\."
    ),
    HieraConfig: _hiera,
    SwinConfig: KeyMap(
        (
            *file_block(_THEIRS, _OURS, "attention.self", FILE_MLP),
            Row((_THEIRS + "attention.self.relative_position_bias_table",), _OURS + _TABLE),
            Row((_THEIRS + "attention.self.relative_position_index",), ""),
            *block_rows(_THEIRS, _OURS, MEMORY_PARTS),
            Row(
                (_THEIRS + "attention.relative_position_bias.relative_position_bias_table",),
                _OURS + _TABLE,
            ),
            *_AROUND_SWIN,
        ),
        prefix="swin.",
        wrappers=("backbone.swin.", "backbone."),
        unused=r"^decoder\.",  # SimMIM
    ),
    ViTConfig: _vit,
}


def _list_pools(config: ViTConfig) -> tuple[str, ...]:
    if config.relative_pos_bias:  # BEiT
        return ("token", "mean")
    return ("token_and_mean",) if config.layer_scale else ("token",)


LIMITS: Limits = {
    ViTConfig: {
        "pool": _list_pools,
        "patch_padding, shared_position": ((0, False), (2, True)),  # ViTPose has both
    }
}

SIZE_EVIDENCE: tuple[tuple[str, SizeRuleName], ...] = (
    # As a backbone of dense tasks, a Swin always shifts, whatever the size of the map.
    (r"(^|\.)hidden_states_norms\.", "openmmlab"),
    # A Swin V2 fixes window and shift at construction; a Swin decides for each image.
    (r"\.continuous_position_bias_mlp\.", "transformers_v2"),
    (r"(^|\.)embeddings\.register_tokens$", "transformers_registers"),
)
