# SPDX-License-Identifier: Apache-2.0
"""Key mappings of google-research/vision_transformer and big_vision (JAX arrays, ``.npz``).

Source:
    google-research/vision_transformer@c6de1e5, vit_jax/models_vit.py: kernels are input-first,
    queries, keys and values are separate, and each has an axis for the heads. Files of big_vision
    have the prefix "params/" or "opt/target/", number the parts of a block differently, and may
    stack all blocks; `normalise` undoes that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from muntin.models.vit import ViTConfig
from muntin.weights.key_maps import AS_IS, KeyMap, KeyMaps, Limits, Row, Transform

_BLOCK = "Transformer/encoderblock_{j}/"
_ATTENTION = _BLOCK + "MultiHeadDotProductAttention_1/"

_TRANSPOSED = Transform(
    join=lambda parts: parts[0].t().contiguous(), split=lambda whole, _: (whole.t().contiguous(),)
)
_CONVOLUTION = Transform(
    join=lambda parts: parts[0].permute(3, 2, 0, 1).contiguous(),
    split=lambda whole, _: (whole.permute(2, 3, 1, 0).contiguous(),),
)


def _vit(config: ViTConfig) -> KeyMap:
    heads = config.num_heads
    kernels = Transform(
        join=lambda parts: torch.cat([part.flatten(1).t() for part in parts]),
        split=lambda whole, n: [
            part.t().unflatten(1, (heads, -1)).contiguous() for part in whole.chunk(n)
        ],
    )
    biases = Transform(
        join=lambda parts: torch.cat([part.flatten() for part in parts]),
        split=lambda whole, n: [part.unflatten(0, (heads, -1)) for part in whole.chunk(n)],
    )
    out = Transform(
        join=lambda parts: parts[0].permute(2, 0, 1).flatten(1).contiguous(),
        split=lambda whole, _: [whole.unflatten(1, (heads, -1)).permute(1, 2, 0).contiguous()],
    )
    names = ("query", "key", "value")
    return KeyMap(
        (
            Row(("cls",), "cls_token"),
            Row(("Transformer/posembed_input/pos_embedding",), "pos_embed"),
            Row(("embedding/kernel",), "patch_embed.proj.weight", _CONVOLUTION),
            Row(("embedding/bias",), "patch_embed.proj.bias"),
            *_norm(_BLOCK + "LayerNorm_0", "blocks.{j}.norm1"),
            *_norm(_BLOCK + "LayerNorm_2", "blocks.{j}.norm2"),
            *_norm("Transformer/encoder_norm", "norm"),
            Row(
                tuple(f"{_ATTENTION}{name}/kernel" for name in names),
                "blocks.{j}.attn.qkv.weight",
                kernels,
            ),
            Row(
                tuple(f"{_ATTENTION}{name}/bias" for name in names),
                "blocks.{j}.attn.qkv.bias",
                biases,
            ),
            Row((_ATTENTION + "out/kernel",), "blocks.{j}.attn.proj.weight", out),
            Row((_ATTENTION + "out/bias",), "blocks.{j}.attn.proj.bias"),
            *_linear(_BLOCK + "MlpBlock_3/Dense_0", "blocks.{j}.mlp.fc1"),
            *_linear(_BLOCK + "MlpBlock_3/Dense_1", "blocks.{j}.mlp.fc2"),
            *_linear("head", "head.fc"),
        ),
        # Layer between backbone and classifier in pre-training; no model here has it.
        unused=r"^pre_logits/",
    )


def _norm(theirs: str, ours: str) -> tuple[Row, Row]:
    return Row((f"{theirs}/scale",), f"{ours}.weight"), Row((f"{theirs}/bias",), f"{ours}.bias")


def _linear(theirs: str, ours: str) -> tuple[Row, Row]:
    return (
        Row((f"{theirs}/kernel",), f"{ours}.weight", _TRANSPOSED),
        Row((f"{theirs}/bias",), f"{ours}.bias", AS_IS),
    )


KEY_MAPS: KeyMaps = {ViTConfig: _vit}

LIMITS: Limits = {ViTConfig: {"patch_padding": (0,), "shared_position": (False,)}}

_STACKED = "Transformer/encoderblock/"
_BIG_VISION = (
    (re.compile(r"^(params|opt/target|target)/"), ""),
    (re.compile(r"^(Transformer/)?pos_embedding$"), "Transformer/posembed_input/pos_embedding"),
    (re.compile(r"/MultiHeadDotProductAttention_0/"), "/MultiHeadDotProductAttention_1/"),
    (re.compile(r"/MlpBlock_0/"), "/MlpBlock_3/"),
    (re.compile(r"(encoderblock[^/]*)/LayerNorm_1/"), r"\1/LayerNorm_2/"),
)


def normalise(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert big_vision's names and stacked blocks to those of vision_transformer."""
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, text in _BIG_VISION:
            name = pattern.sub(text, name)
        if name.startswith(_STACKED):
            for index, part in enumerate(tensor.unbind(0)):
                plain[name.replace("encoderblock/", f"encoderblock_{index}/", 1)] = part
        else:
            plain[name] = tensor
    return plain
