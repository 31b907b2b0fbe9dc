# SPDX-License-Identifier: Apache-2.0
"""Key mappings of timm 0.9 and later, and of the repositories that adopted its names.

Source:
    timm 1.0.31, compared live in tests/parity. A Swin downsamples at the start of the next stage. A
    relative position bias table has the size of the actual window, which is smaller than
    window_size on small maps. facebookresearch/deit@7e160fe, mae@efb2a80, hiera@b12b842,
    dinov2@027a9ac and yitu-opensource/T2T-ViT@0f63dc9 use the same names with few exceptions, which
    are read too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from muntin.models.hiera import HieraConfig
from muntin.models.swin import SwinConfig
from muntin.models.swin_v2 import SwinV2Config
from muntin.models.t2t_vit import T2TViTConfig
from muntin.models.timm_backbone import TimmConfig, describe_timm
from muntin.models.vit import ViTConfig
from muntin.ops.positions import SizeRuleName
from muntin.weights.key_maps import (
    STACKED,
    SWIN_BLOCK,
    SWIN_V2_BLOCK,
    KeyMap,
    KeyMaps,
    Limits,
    Row,
    block_rows,
    same_names,
)

_MERGING = tuple(
    Row(("layers.{i+1}.downsample." + name,), "layers.{i}.downsample." + name)
    for name in ("norm.{p}", "reduction.{p}")
)


def _swin(block: tuple[Row, ...]) -> KeyMap:
    return KeyMap(
        (
            *same_names("patch_embed.proj.{p}", "patch_embed.norm.{p}", "norm.{p}", "head.fc.{p}"),
            *block,
            *_MERGING,
            # Models built with features_only=True.
            *(
                Row(
                    tuple(name.replace(".", "_", 1) for name in row.theirs), row.ours, row.transform
                )
                for row in (*block, *_MERGING)
            ),
        ),
        # Only in files of TorchScript.
        unused=r"\.(relative_position_index|relative_coords_table|attn_mask)$",
    )


def _prefixed(config: TimmConfig) -> KeyMap:
    """Names of a model that timm implements: all unchanged, with the prefix "net."."""
    classifier = describe_timm(config.name).get("classifier") or "fc"
    several = not isinstance(classifier, str)  # one for each token: none is that of the vector
    heads = [
        Row((name + ".{n}",), "" if several else "head.fc.{n}")
        for name in (classifier if several else (classifier,))
    ]
    return KeyMap((*heads, Row(("{n}",), "net.{n}")))


_VIT_BLOCK = block_rows("blocks.{j}.", "blocks.{j}.")
_BIAS = "blocks.0.attn.relative_position_bias_table"
_TOKENS = "tokens_to_token."
_LAYER = _TOKENS + "attention{i}."

KEY_MAPS: KeyMaps = {
    SwinConfig: _swin(SWIN_BLOCK),
    SwinV2Config: _swin(SWIN_V2_BLOCK),
    ViTConfig: KeyMap(
        (
            *same_names("cls_token", "dist_token", "reg_token", "pos_embed"),
            *same_names("patch_embed.proj.{p}"),
            *_VIT_BLOCK,
            # BEiT and microsoft/SimMIM; facebookresearch/deit (DeiT III) is read too.
            *(
                Row((f"blocks.{{j}}.gamma_{k}",), f"blocks.{{j}}.ls{k}.gamma", beside=_BIAS)
                for k in (1, 2)
            ),
            *same_names("blocks.{j}.ls1.gamma", "blocks.{j}.ls2.gamma", "norm.{p}", "fc_norm.{p}"),
            Row(("head.{p}",), "head.fc.{p}"),
            Row(("head_dist.{p}",), "head.fc_dist.{p}"),
            # facebookresearch/dinov2, and timm where a gated MLP has three layers.
            Row(("register_tokens",), "reg_token"),
            Row(("blocks.{j}.mlp.w12.{p}",), "blocks.{j}.mlp.fc1.{p}"),
            Row(("blocks.{j}.mlp.w3.{p}",), "blocks.{j}.mlp.fc2.{p}"),
            Row(
                ("blocks.{j}.mlp.fc1_g.{p}", "blocks.{j}.mlp.fc1_x.{p}"),
                "blocks.{j}.mlp.fc1.{p}",
                STACKED,
            ),
            # Layer between backbone and classifier, only after pre-training on ImageNet-21k.
            Row(("pre_logits.fc.{p}",), ""),
            # BEiT, and microsoft/SimMIM with a ViT.
            Row(
                ("blocks.{j}.attn.q_bias", "blocks.{j}.attn.v_bias"),
                "blocks.{j}.attn.qv_bias",
                STACKED,
            ),
            *same_names("blocks.{j}.attn.relative_position_bias_table"),
            Row(("blocks.{j}.attn.relative_position_index",), ""),
        ),
        wrappers=("encoder.",),
        # Added for pre-training by facebookresearch/mae, dinov2, microsoft/SimMIM and unilm (BEiT).
        unused=r"^(encoder\.)?mask_token|^decoder(_(pos_embed|embed|blocks|norm|pred))?\b|^lm_head\.",
    ),
    T2TViTConfig: KeyMap(
        (
            *same_names(
                "cls_token",
                "pos_embed",
                _LAYER + "w",
                _LAYER + "kqv.{p}",
                _LAYER + "proj.{p}",
                _LAYER + "mlp.{k}.{p}",
                _TOKENS + "project.{p}",
                "norm.{p}",
            ),
            *block_rows(_LAYER, _LAYER),
            *_VIT_BLOCK,
            Row(("head.{p}",), "head.fc.{p}"),
        )
    ),
    HieraConfig: KeyMap(
        (
            *same_names("pos_embed", "patch_embed.proj.{p}", "blocks.{j}.proj.{p}"),
            *_VIT_BLOCK,
            Row(("head.norm.{p}",), "norm.{p}"),
            Row(("head.fc.{p}",), "head.fc.{p}"),
            # facebookresearch/hiera.
            Row(("norm.{p}",), "norm.{p}"),
            Row(("encoder_norm.{p}",), "norm.{p}"),
            Row(("head.projection.{p}",), "head.fc.{p}"),
        ),
        unused=r"^(mask_token|multi_scale_fusion_heads\.|decoder_(pos_embed|embed|blocks|norm|pred)\b)",
    ),
    TimmConfig: _prefixed,
}


LIMITS: Limits = {ViTConfig: {"patch_padding": (0,), "shared_position": (False,)}}

SIZE_EVIDENCE: tuple[tuple[str, SizeRuleName], ...] = (
    (r"^multi_scale_fusion_heads\.", "timm"),  # a Hiera
    (r"^decoder_", "facebook"),  # MAE
    # DINOv2; with registers its models resize as timm's do.
    (r"^register_tokens$", "timm"),
    (r"^mask_token$", "dino"),
    # BEiT has names of DeiT III in timm too.
    (r"^blocks\.\d+\.attn\.relative_position_bias_table$", "timm"),
    (r"^blocks\.\d+\.gamma_1$", "facebook"),  # DeiT III
    # DeiT, MAE and the many scripts that were written from theirs.
    (r"^ViT under 'model'$", "facebook"),
)

_SHARED = "rel_pos_bias.relative_position_bias_table"
_CHUNKED = re.compile(r"^(.*\bblocks\.)\d+\.(\d+\.(norm|attn|ls|mlp))")


def normalise(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Number the blocks through, copy a table that all of them share to each, drop zero biases.

    facebookresearch/dinov2 trains with chunks of blocks, which keep their numbers; SimMIM and BEiT
    pre-train with one table. TorchScript stores keys' biases of Swin V2 and BEiT, which are 0.
    """
    state = {
        _CHUNKED.sub(r"\1\2", key): tensor
        for key, tensor in state.items()
        if not key.endswith(".attn.k_bias") or tensor.is_meta or tensor.any()
    }
    key = next((key for key in state if key.endswith(_SHARED)), "")
    if not key:
        return state
    prefix = key.removesuffix(_SHARED)
    shared = (f"{prefix}rel_pos_bias.", key)
    blocks = [
        name.removesuffix("qkv.weight") for name in state if name.endswith(".attn.qkv.weight")
    ]
    plain = {name: tensor for name, tensor in state.items() if not name.startswith(shared)}
    return plain | {f"{block}relative_position_bias_table": state[key] for block in blocks}
