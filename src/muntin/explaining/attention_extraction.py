# SPDX-License-Identifier: Apache-2.0
"""Extractors of attention, one per kind of layer, by the plain formula of its family.

Letters: h heads, d width of a head, nW windows, G groups (windows) of tokens that attend to each
other, N tokens of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muntin.explaining.attention_layers import AttentionLayer, QueriesAndKeys
from muntin.features import name_blocks
from muntin.models.hiera import MaskUnitAttention
from muntin.models.swin import WindowAttention
from muntin.models.swin_v2 import CosineWindowAttention
from muntin.models.t2t_vit import SPLITS, TokenAttention, TokenPerformer, unfolded_size
from muntin.models.vit import SelfAttention
from muntin.nn.layers import BiasedLinear, without_key_bias
from muntin.ops.positions import expand_relative_position_bias
from muntin.ops.windows import WindowLayout, cut_heads, shift_mask, window_order
from muntin.shapes import Size


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LayerCall:
    """One recorded call of a layer, by its name in the backbone, for an image of a size (h, w)."""

    backbone: Any
    name: str
    module: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    size: Size

    @property
    def tokens(self) -> Tensor:
        """The layer's input, normalised if the norm is one of its arguments."""
        norm: nn.Module | None = self.kwargs.get("norm")
        with torch.inference_mode(False), torch.no_grad():
            return self.args[0] if norm is None else norm(self.args[0])


AttentionExtractor = Callable[[LayerCall], AttentionLayer | None]


def find_extractor(module: nn.Module) -> AttentionExtractor | None:
    """Find the extractor of a module; None unless it is a known kind of attention layer."""
    kind = type(module)
    return EXTRACTORS.get(kind) or TIMM_EXTRACTORS.get(f"{kind.__module__}.{kind.__name__}")


def _split(x: Tensor, layout: WindowLayout, heads: int, fill: Tensor | None) -> list[Tensor]:
    """Split into queries and keys, (h, nW, N, d) each."""
    parts = cut_heads(x, layout, 3, heads, fill)[:2, 0]  # 2, nW, h, N, d
    return list(parts.transpose(1, 2).float().unbind(0))


def _place(call: LayerCall) -> tuple[int, int]:
    """Stage and block within it, counted from 1; all blocks of a plain ViT form one stage."""
    backbone = call.backbone
    block: int = backbone.layer_of(call.name)
    if backbone.stage_unit == "block":
        return 1, block
    stage: int = backbone.stage_of(call.name)
    return stage, block - sum(backbone.stage_of(one) < stage for one in name_blocks(backbone))


def _window_layer(
    call: LayerCall,
    layout: WindowLayout,
    num_heads: int,
    patch_size: int,
    pair: Callable[[], QueriesAndKeys],
) -> AttentionLayer:
    stage, block = _place(call)
    shifted = " (shifted)" if any(layout.shift) else ""
    numbers = window_order(layout)
    return AttentionLayer(
        name=call.name,
        title=f"stage {stage}, block {block}{shifted}",
        stage=stage,
        num_heads=num_heads,
        grid=layout.size,
        stride=patch_size * 2 ** (stage - 1),
        queries=numbers,
        keys=numbers,
        layout=layout,
        pair=pair,
        scores="cosine" if isinstance(call.module, CosineWindowAttention) else "biased",
    )


def _pair_with_table(module: Any, x: Tensor, layout: WindowLayout, window: Size) -> QueriesAndKeys:  # noqa: ANN401
    """Queries and keys of Swin V1, ours or timm's, whose table was built for a window."""
    q, k = _split(module.qkv(x), layout, module.num_heads, module.qkv.bias)
    table = module.relative_position_bias_table.float()
    bias = expand_relative_position_bias(table, table_window=window, window=layout.window)
    return QueriesAndKeys(queries=q * module.scale, keys=k, bias=bias, mask=shift_mask(layout))


def _extract_window(call: LayerCall) -> AttentionLayer:
    module: WindowAttention = call.module
    x, layout = call.tokens, call.args[1]
    pair = partial(_pair_with_table, module, x, layout, (module.window, module.window))
    return _window_layer(call, layout, module.num_heads, call.backbone.config.patch_size, pair)


def _extract_cosine(call: LayerCall) -> AttentionLayer:
    module: CosineWindowAttention = call.module
    x, layout = call.args[:2]

    def pair() -> QueriesAndKeys:
        fill = None if module.qv_bias is None else without_key_bias(module.qv_bias)
        q, k = _split(module.qkv(x, fill), layout, module.num_heads, fill)
        return QueriesAndKeys(
            queries=F.normalize(q, dim=-1) * module.temperature[:, None].float(),
            keys=F.normalize(k, dim=-1),
            bias=module.relative_position_bias(layout).float(),
            mask=shift_mask(layout),
        )

    return _window_layer(call, layout, module.num_heads, call.backbone.config.patch_size, pair)


def _extract_timm_window(call: LayerCall) -> AttentionLayer:
    """Timm's Swin V1: only the block, not its attention, has the shift and the whole map."""
    block, (x,) = call.module, call.args
    attention = block.attn
    size: Size = (x.shape[1], x.shape[2])
    window, shift = tuple(block.window_size), tuple(block.shift_size)
    layout = WindowLayout(
        size=size,
        window=window,
        shift=shift,
        pad=(-size[0] % window[0], -size[1] % window[1]),
        pad_first=False,
        built_window=window,
    )

    def pair() -> QueriesAndKeys:
        return _pair_with_table(attention, block.norm1(x), layout, window)

    patch_size = call.backbone.net.patch_embed.patch_size[0]
    return _window_layer(call, layout, attention.num_heads, patch_size, pair)


def _global_layer(
    call: LayerCall,
    num_heads: int,
    grid: Size,
    stride: int,
    prefix: tuple[str, ...],
    pair: Callable[[], QueriesAndKeys],
    *,
    step: int = 0,
) -> AttentionLayer:
    before = torch.full((1, len(prefix)), -1)
    numbers = torch.cat([before, torch.arange(grid[0] * grid[1])[None]], dim=1)
    return AttentionLayer(
        name=call.name,
        title=f"tokens to token, step {step}" if step else f"block {_place(call)[1]}",
        stage=0 if step else 1,
        num_heads=num_heads,
        grid=grid,
        stride=stride,
        prefix=prefix,
        queries=numbers,
        keys=numbers,
        pair=pair,
    )


def _extract_self(call: LayerCall) -> AttentionLayer:
    module: SelfAttention = call.module
    x, grid = call.tokens, call.args[1]
    registers: int = getattr(call.backbone.config, "registers", 0)
    named = ("class token", "distillation token")[: x.shape[1] - grid[0] * grid[1] - registers]
    prefix = (*named, *(f"register {n + 1}" for n in range(registers)))

    def pair() -> QueriesAndKeys:
        given = isinstance(module.qkv, BiasedLinear)
        qkv = module.qkv(x, without_key_bias(module.qv_bias)) if given else module.qkv(x)
        q, k, _ = qkv[0].unflatten(-1, (3, module.num_heads, -1)).float().permute(1, 2, 0, 3)
        bias = module.relative_position_bias(grid).float() if module.has_positions else None
        return QueriesAndKeys(queries=q[:, None] * q.shape[-1] ** -0.5, keys=k[:, None], bias=bias)

    stride = call.backbone.spec.strides[0]
    return _global_layer(call, module.num_heads, grid, stride, prefix, pair)


def _extract_timm_self(call: LayerCall) -> AttentionLayer | None:
    module, x, net = call.module, call.args[0], call.backbone.net
    embed: Any = getattr(net, "patch_embed", None)
    count = getattr(net, "num_prefix_tokens", -1)
    masked = any(value is not None and value is not False for value in call.kwargs.values())
    inside = any(call.name.startswith(f"{block}.") for block in name_blocks(call.backbone))
    if not hasattr(embed, "dynamic_feat_size") or not inside or masked:
        return None
    grid: Size = tuple(embed.dynamic_feat_size(call.size))
    if x.ndim != 3 or x.shape[1] != count + grid[0] * grid[1]:
        return None
    named = ("class token",) if getattr(net, "cls_token", None) is not None else ()
    prefix = (*named, *(f"extra token {n + 1}" for n in range(count - len(named))))

    def pair() -> QueriesAndKeys:
        q, k, _ = module.qkv(x)[0].unflatten(-1, (3, module.num_heads, -1)).permute(1, 2, 0, 3)
        q, k = module.q_norm(q).float(), module.k_norm(k).float()
        return QueriesAndKeys(queries=q[:, None] * module.scale, keys=k[:, None])

    return _global_layer(call, module.num_heads, grid, embed.patch_size[0], prefix, pair)


def _extract_mask_unit(call: LayerCall) -> AttentionLayer:
    module: MaskUnitAttention = call.module
    backbone, (x, window) = call.backbone, call.args
    pooled = 2 if module.pools else 1
    layout = _whole_windows((x.shape[1], x.shape[2]), window)
    asking = _whole_windows(
        (x.shape[1] // pooled, x.shape[2] // pooled), (window[0] // pooled, window[1] // pooled)
    )

    def pair() -> QueriesAndKeys:
        q, k = _split(module.qkv(x), layout, module.num_heads, None)
        if module.pools:  # max pooling over 2 x 2 tokens of a window
            rows, columns = asking.window
            q = q.unflatten(2, (rows, 2, columns, 2)).amax(dim=(3, 5)).flatten(2, 3)
        return QueriesAndKeys(queries=q * q.shape[-1] ** -0.5, keys=k)

    block = backbone.layer_of(call.name)
    # Each block before this one that pools its queries halved the grid.
    steps: list[Any] = list(backbone.blocks[: block - 1])
    stage = backbone.stage_of(call.name)
    where = "global" if layout.num_windows == 1 else "mask units"
    pools = ", pooled queries" if module.pools else ""
    finest = backbone.spec.strides[0] // 2 ** backbone.config.halvings(
        backbone.config.out_indices[0]
    )
    return AttentionLayer(
        name=call.name,
        title=f"stage {stage}, block {block} ({where}{pools})",
        stage=stage,
        num_heads=module.num_heads,
        grid=layout.size,
        stride=finest * 2 ** sum(step.attn.pools for step in steps),
        queries=window_order(asking),
        keys=window_order(layout),
        layout=layout,
        pooled=pooled,
        pair=pair,
    )


def _whole_windows(size: Size, window: Size) -> WindowLayout:
    return WindowLayout(
        size=size, window=window, shift=(0, 0), pad=(0, 0), pad_first=True, built_window=window
    )


def _extract_tokens(call: LayerCall) -> AttentionLayer:
    module: TokenAttention | TokenPerformer = call.module
    (x,) = call.args
    step = 1 if "attention1" in call.name else 2
    size, stride = call.size, 1
    for split in SPLITS[:step]:
        size, stride = unfolded_size(size, split), stride * split[1]

    def pair() -> QueriesAndKeys:
        if isinstance(module, TokenAttention):
            q, k, _ = module.qkv(x).float().chunk(3, dim=-1)
            return QueriesAndKeys(queries=q[None] * module.scale, keys=k[None])
        k, q, _ = module.kqv(module.norm1(x)).float().chunk(3, dim=-1)
        q, k = module.features(q), module.features(k)
        return QueriesAndKeys(queries=q[None], keys=k[None], linear=True)

    return _global_layer(call, 1, size, stride, (), pair, step=step)


EXTRACTORS: dict[type[nn.Module], AttentionExtractor] = {
    WindowAttention: _extract_window,
    CosineWindowAttention: _extract_cosine,
    SelfAttention: _extract_self,
    MaskUnitAttention: _extract_mask_unit,
    TokenAttention: _extract_tokens,
    TokenPerformer: _extract_tokens,
}

# By name: timm is an optional dependency.
TIMM_EXTRACTORS: dict[str, AttentionExtractor] = {
    "timm.layers.attention.Attention": _extract_timm_self,
    "timm.models.swin_transformer.SwinTransformerBlock": _extract_timm_window,
}
