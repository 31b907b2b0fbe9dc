# SPDX-License-Identifier: Apache-2.0
"""Infer the fields of a config from the names and shapes of weights, by our names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from muntin.models.hiera import HieraConfig
from muntin.models.swin import SwinConfig
from muntin.models.swin_v2 import SwinV2Config
from muntin.models.t2t_vit import T2TViTConfig
from muntin.models.vit import ViTConfig
from muntin.weights.key_maps import RenamedState

Fields = Iterator[tuple[str, Any]]


def infer_fields(config: Any, reading: RenamedState) -> dict[str, Any]:  # noqa: ANN401 (any family)
    """Return the fields of the config that the weights tell, where they differ from its own."""
    infer = _FAMILIES.get(type(config))
    if infer is None or not reading.tensors:
        return {}
    told = {name: value for name, value in infer(config, reading) if hasattr(config, name)}
    return {name: value for name, value in told.items() if value != getattr(config, name)}


def _infer_plain(config: Any, reading: RenamedState) -> Fields:  # noqa: ANN401
    """Fields of families with one row of equal blocks."""
    tensors = reading.tensors
    yield from _infer_mlp(config, tensors, "blocks.")
    numbers = [int(found[1]) for name in tensors if (found := re.match(r"blocks\.(\d+)\.", name))]
    if numbers:
        yield "depth", max(numbers) + 1
    table = _first(tensors, r"blocks\.\d+\..*bias_table")
    if table is not None:
        yield "num_heads", table.shape[1]
    bias = _first(tensors, r"blocks\.\d+\.attn\.qkv\.bias") is not None
    keyless = _first(tensors, r"blocks\.\d+\.attn\.qv_bias") is not None
    keyless = keyless or any(re.search(r"k(ey|_proj)\.bias$", name) for name in reading.missing)
    yield "qkv_bias", bias or keyless
    if bias or keyless:
        yield "key_bias", not keyless


def _infer_vit(config: ViTConfig, reading: RenamedState) -> Fields:
    tensors = reading.tensors
    yield from _infer_plain(config, reading)
    yield "class_token", "cls_token" in tensors
    yield "distillation_token", "dist_token" in tensors
    yield "registers", tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
    yield "absolute_pos_embed", "pos_embed" in tensors
    tabled = _first(tensors, r"blocks\.\d+\.attn\.relative_position_bias_table") is not None
    yield "relative_pos_bias", tabled
    scaled = _first(tensors, r"blocks\.\d+\.ls1\.gamma") is not None
    # What it starts with is replaced by the weights: any number above 0 will do.
    yield "layer_scale", (config.layer_scale or 1e-5) if scaled else 0.0
    after, before = "fc_norm.weight" in tensors, "norm.weight" in tensors
    head, token = tensors.get("head.fc.weight"), tensors.get("cls_token")
    if head is not None and token is not None and head.shape[1] == 2 * token.shape[2]:
        yield "pool", "token_and_mean"
    elif after and not before and config.pool_norm == "before":
        yield "pool", "mean"
    elif before and not after and config.pool_norm == "after":
        yield "pool", "mean" if token is None else "token"
    elif token is None:
        yield "pool", "mean"
    if after != before:
        yield "pool_norm", "after" if after else "before"


def _infer_t2t(config: T2TViTConfig, reading: RenamedState) -> Fields:
    yield from _infer_plain(config, reading)
    performer = "tokens_to_token.attention1.w" in reading.tensors
    yield "token_attention", "performer" if performer else "transformer"
    project = _first(reading.tensors, r"tokens_to_token\.attention1\.(attn\.)?proj\.weight")
    if project is not None:
        yield "token_dim", project.shape[0]


def _infer_swin(config: SwinConfig, reading: RenamedState) -> Fields:
    tensors = reading.tensors
    places = [re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", name) for name in tensors]
    blocks = [(int(found[1]), int(found[2])) for found in places if found]
    stages = sorted({stage for stage, _ in blocks})
    if not blocks or stages != list(range(len(stages))):
        return
    yield "depths", tuple(max(n for i, n in blocks if i == stage) + 1 for stage in stages)
    if len(stages) != len(config.depths):
        yield "out_indices", tuple(stages)
        yield "pretrained_windows", (0,) * len(stages)
        yield "window_size", max(config.windows)
    heads = [
        _first(tensors, rf"layers\.{stage}\..*\.(relative_position_bias_table|logit_scale)")
        for stage in stages
    ]
    counts = [
        table.shape[1] if table.ndim == 2 else len(table) for table in heads if table is not None
    ]
    if len(counts) == len(stages):
        yield "num_heads", tuple(counts)
    yield from _infer_mlp(config, tensors, "layers.0.")
    hidden = _first(tensors, r".*\.cpb_mlp\.0\.weight")
    if hidden is not None:
        yield "bias_hidden", len(hidden)
    yield "patch_norm", "patch_embed.norm.weight" in tensors
    yield "absolute_pos_embed", "absolute_pos_embed" in tensors
    yield "qkv_bias", _first(tensors, r".*\.attn\.(qkv\.bias|qv_bias)") is not None


def _infer_hiera(config: HieraConfig, reading: RenamedState) -> Fields:
    found = [
        (int(name.split(".")[1]), len(x))
        for name, x in reading.tensors.items()
        if re.fullmatch(r"blocks\.\d+\.norm2\.weight", name)
    ]
    widths = [width for _, width in sorted(found)]
    if widths:
        # The first block of a stage has twice the channels of the block before it.
        yield "depths", tuple(widths.count(width) for width in dict.fromkeys(widths))
    yield from _infer_mlp(config, reading.tensors, "blocks.0.")


def _infer_mlp(config: Any, tensors: Mapping[str, Tensor], first: str) -> Fields:  # noqa: ANN401
    """Width and MLP of the first block; heads, of which weights tell nothing, as wide as now."""
    pattern = re.escape(first) + r".*mlp\.fc{}\.weight"
    into, out = (_first(tensors, pattern.format(n)) for n in (1, 2))
    if into is None or out is None:
        return
    dim, hidden = out.shape
    yield "embed_dim", dim
    if isinstance(config.num_heads, int) and dim != config.embed_dim:
        yield "num_heads", max(dim // (config.embed_dim // config.num_heads), 1)
    kept = int(dim * config.mlp_ratio) == hidden
    ratio = hidden / dim if int(dim * (hidden / dim)) == hidden else (hidden + 0.5) / dim
    yield "mlp_ratio", config.mlp_ratio if kept else ratio
    gated = len(into) == 2 * hidden
    if gated != (getattr(config, "activation", "") == "swiglu"):
        yield "activation", "swiglu" if gated else "gelu"


def _first(tensors: Mapping[str, Tensor], pattern: str) -> Tensor | None:
    return next((x for name, x in tensors.items() if re.fullmatch(pattern, name)), None)


_FAMILIES: dict[type, Callable[[Any, RenamedState], Fields]] = {
    ViTConfig: _infer_vit,
    T2TViTConfig: _infer_t2t,
    SwinConfig: _infer_swin,
    SwinV2Config: _infer_swin,
    HieraConfig: _infer_hiera,
}
