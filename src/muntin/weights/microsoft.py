# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The names of microsoft/Swin-Transformer, which are ours but for the classifier.

Source:
    microsoft/Swin-Transformer@f82860b, models/swin_transformer.py and swin_transformer_v2.py. Its
    files also hold the attention masks and offsets of the image size that it was built for; they
    are ignored. microsoft/SimMIM@d3e29bc puts "encoder." before the names and adds a decoder. The
    forks for detection (@c7b2011) and segmentation (@87e6f90) put "backbone." there, have a norm
    for each map, and never shrink a window.
"""

from __future__ import annotations

from collections.abc import Collection

from muntin.models.swin import SwinConfig
from muntin.models.swin_v2 import SwinV2Config
from muntin.ops.windows import SizeRuleName
from muntin.weights.renaming import STACKED, KeyMap, KeyMaps, Row, first_key, square_index

__all__ = ["KEY_MAPS", "OTHER_TASKS", "PLAIN_BLOCK", "PLAIN_BLOCK_V2", "recognise", "size_rule"]

_BLOCK = "layers.{i}.blocks.{j}."

OTHER_TASKS = (
    r"^(neck|rpn_head|roi_head|bbox_head|mask_head|decode_head|auxiliary_head|keypoint_head"
    r"|proposal_generator|roi_heads|sem_seg_head|data_preprocessor)\."
)
"""Names of what detectors and segmenters hold beside their backbone."""


def _plain(*names: str) -> tuple[Row, ...]:
    return tuple(Row((name,), name) for name in names)


# The parts of a block have the same names in every plain dialect.
PLAIN_BLOCK = _plain(
    _BLOCK + "norm1.{p}",
    _BLOCK + "attn.relative_position_bias_table",
    _BLOCK + "attn.qkv.{p}",
    _BLOCK + "attn.proj.{p}",
    _BLOCK + "norm2.{p}",
    _BLOCK + "mlp.fc1.{p}",
    _BLOCK + "mlp.fc2.{p}",
)
PLAIN_BLOCK_V2 = (
    *_plain(
        _BLOCK + "norm1.{p}",
        _BLOCK + "attn.logit_scale",
        _BLOCK + "attn.cpb_mlp.{k}.{p}",
        _BLOCK + "attn.qkv.{p}",
        _BLOCK + "attn.proj.{p}",
        _BLOCK + "norm2.{p}",
        _BLOCK + "mlp.fc1.{p}",
        _BLOCK + "mlp.fc2.{p}",
    ),
    Row((_BLOCK + "attn.q_bias", _BLOCK + "attn.v_bias"), _BLOCK + "attn.qv_bias", STACKED),
    # Files of SimMIM from before the name settled.
    Row((_BLOCK + "attn.rpe_mlp.{k}.{p}",), _BLOCK + "attn.cpb_mlp.{k}.{p}"),
)

_AROUND = (
    *_plain(
        "patch_embed.proj.{p}",
        "patch_embed.norm.{p}",
        "absolute_pos_embed",
        "layers.{i}.downsample.norm.{p}",
        "layers.{i}.downsample.reduction.{p}",
        "norm.{p}",
        "norm{i}.{p}",
    ),
    Row(("head.{p}",), "head.fc.{p}"),
    Row(("mask_token",), ""),
    Row((_BLOCK + "attn_mask",), ""),
)

_WRAPPERS = ("encoder.", "backbone.")
_UNUSED = rf"{OTHER_TASKS}|^decoder\."

KEY_MAPS: KeyMaps = {
    SwinConfig: KeyMap(
        (
            *PLAIN_BLOCK,
            Row(
                (_BLOCK + "attn.relative_position_index",),
                _BLOCK + "attn.relative_position_bias_table",
                derive=square_index,
            ),
            *_AROUND,
        ),
        wrappers=_WRAPPERS,
        unused=_UNUSED,
    ),
    SwinV2Config: KeyMap(
        (
            *PLAIN_BLOCK_V2,
            Row((_BLOCK + "attn.relative_position_index",), ""),
            Row((_BLOCK + "attn.relative_coords_table",), ""),
            *_AROUND,
        ),
        wrappers=_WRAPPERS,
        unused=_UNUSED,
    ),
}


def size_rule(keys: Collection[str], config: object) -> SizeRuleName:
    """The forks for detection and segmentation treat odd sizes as OpenMMLab does."""
    del config
    return "openmmlab" if first_key(keys, r"^(backbone\.)?norm\d\.|^backbone\.") else "microsoft"


def recognise(keys: Collection[str]) -> str:
    """Give a key that only this dialect has, or an empty string."""
    block = r"^(encoder\.|backbone\.)?layers\.\d+\.blocks\.\d+\."
    buffer = first_key(
        keys, block + r"(attn\.relative_position_index|attn\.relative_coords_table|attn_mask)$"
    )
    simmim = first_key(keys, r"^encoder\.layers\.\d+\.blocks\.\d+\.(norm1|attn)\.")
    # timm has the same names for a Swin V2, but merges at the start of the next stage.
    early = first_key(keys, r"^layers\.0\.downsample\.")
    second = first_key(keys, r"^layers\.\d+\.blocks\.\d+\.attn\.q_bias$") if early else ""
    if buffer or simmim or second:
        return buffer or simmim or second
    fork = (
        first_key(keys, OTHER_TASKS) if first_key(keys, r"^backbone\.layers\.\d+\.blocks") else ""
    )
    head = first_key(keys, r"^head\.weight$") if first_key(keys, r"^layers\.\d+\.blocks\.") else ""
    return fork or head
