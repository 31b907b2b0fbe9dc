# SPDX-License-Identifier: Apache-2.0
"""Key mappings of torchvision.

Source:
    torchvision 0.29.2, compared live in tests/parity and tests/heads. A Swin's state dict also
    holds flattened relative position indices; that of a Swin V2 also the coordinate tables, and one
    qkv bias whose middle third (keys) is zero. Detectors freeze the batch norms of a ResNet,
    without a counter. Those published as COCO_V1 set epsilon to 0, which files do not record;
    muntin uses timm's 1e-5.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from muntin.errors import WeightError
from muntin.models.swin import SwinConfig
from muntin.models.swin_v2 import SwinV2Config
from muntin.models.timm_backbone import TimmConfig
from muntin.models.vit import ViTConfig
from muntin.nn.layers import without_key_bias
from muntin.weights.key_maps import (
    TORCHVISION_DETECTOR,
    KeyMap,
    KeyMaps,
    Limits,
    Row,
    Transform,
    block_rows,
    flat_index,
    layer_rows,
    norm_rows,
    same_names,
)
from muntin.weights.window_buffers import window_rows

# Their bias of the keys is always zero.
_WITHOUT_KEYS = Transform(
    join=lambda parts: torch.cat(parts[0].chunk(3)[::2]),
    split=lambda whole, _: [without_key_bias(whole)],
)

_THEIRS, _OURS = "features.{2i+1}.{j}.", "layers.{i}.blocks.{j}."
_TABLE = "attn.relative_position_bias_table"
_LAYER = "encoder.layers.encoder_layer_{j}."
_ATTENTION = ("ln_1", "self_attention.in_proj_", "self_attention.out_proj")

_SHARED = (
    Row(("features.0.0.{p}",), "patch_embed.proj.{p}"),
    Row(("features.0.2.{p}",), "patch_embed.norm.{p}"),
    *block_rows(_THEIRS, _OURS, ("norm1", "", "attn.proj", "norm2", "mlp.0", "mlp.3")),
    Row(("features.{2i+2}.norm.{p}",), "layers.{i}.downsample.norm.{p}"),
    Row(("features.{2i+2}.reduction.{p}",), "layers.{i}.downsample.reduction.{p}"),
    Row(("norm.{p}",), "norm.{p}"),
    Row(("head.{p}",), "head.fc.{p}"),
)


def _with_bodies(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Add the names in detectors, which hold the modules of `features` without this name."""
    bodies = [
        replace(
            row,
            theirs=tuple(name.removeprefix("features.") for name in row.theirs),
            ours="" if row.derive else row.ours,
            derive=None,
        )
        for row in rows
        if row.theirs[0].startswith("features.")
    ]
    return (*rows, *bodies)


def _swin_v2(config: SwinV2Config) -> KeyMap:
    """Names of a Swin V2; its buffers are computed from the windows of the config."""
    attention = (
        Row((_THEIRS + "attn.qkv.bias",), _OURS + "attn.qv_bias", _WITHOUT_KEYS),
        *same_names(
            "qkv.weight",
            "logit_scale",
            "cpb_mlp.{k}.{p}",
            theirs=_THEIRS + "attn.",
            ours=_OURS + "attn.",
        ),
    )
    rows = (*attention, *window_rows(_THEIRS + "attn.", config, flat=True), *_SHARED)
    return KeyMap(_with_bodies(rows), wrappers=_WRAPPERS, unused=TORCHVISION_DETECTOR)


# ResNets have the same names in timm.
_RESNETS = (
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *("resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2"),
)
_BLOCK = "layer{i}.{j}."
_RESNET = (
    *(
        Row((name,), f"net.{name}")
        for name in ("conv1.weight", _BLOCK + "conv{k}.weight", _BLOCK + "downsample.0.weight")
    ),
    *norm_rows("bn1", "net.bn1"),
    *norm_rows(_BLOCK + "bn{k}", f"net.{_BLOCK}bn{{k}}"),
    *norm_rows(_BLOCK + "downsample.1", f"net.{_BLOCK}downsample.1"),
    *layer_rows("fc", "head.fc"),
)


def _resnet(config: TimmConfig) -> KeyMap:
    if config.name.partition(".")[0] not in _RESNETS:
        message = (
            f"the dialect 'torchvision' supports only the timm models {', '.join(_RESNETS)}, got "
            f"{config.name!r}. Choose another dialect."
        )
        raise WeightError(message)
    return KeyMap(_RESNET, wrappers=_WRAPPERS, unused=TORCHVISION_DETECTOR)


_WRAPPERS = ("backbone.body.",)  # of detectors

KEY_MAPS: KeyMaps = {
    TimmConfig: _resnet,
    SwinV2Config: _swin_v2,
    SwinConfig: KeyMap(
        _with_bodies(
            (
                *same_names(_TABLE, "attn.qkv.{p}", theirs=_THEIRS, ours=_OURS),
                Row((_THEIRS + "attn.relative_position_index",), _OURS + _TABLE, derive=flat_index),
                *_SHARED,
            )
        ),
        wrappers=_WRAPPERS,
        unused=TORCHVISION_DETECTOR,
    ),
    ViTConfig: KeyMap(
        (
            Row(("class_token",), "cls_token"),
            Row(("encoder.pos_embedding",), "pos_embed"),
            Row(("conv_proj.{p}",), "patch_embed.proj.{p}"),
            *block_rows(_LAYER, "blocks.{j}.", (*_ATTENTION, "ln_2", "mlp.0", "mlp.3")),
            # Files saved before torchvision 0.12.
            *block_rows(_LAYER, "blocks.{j}.", ("", "", "", "", "mlp.linear_1", "mlp.linear_2")),
            Row(("encoder.ln.{p}",), "norm.{p}"),
            Row(("heads.head.{p}",), "head.fc.{p}"),
        )
    ),
}

LIMITS: Limits = {
    ViTConfig: {
        "pool": ("token",),
        "qkv_bias": (True,),
        "patch_padding": (0,),
        "shared_position": (False,),
    },
}
