# SPDX-License-Identifier: Apache-2.0
"""Swin (V1, V2) for one image size, with everything precomputed that does not depend on the image.

Tokens stay in window order between blocks: one gather reorders them from the windows of a block to
those of the next, or to the neighbourhoods that are merged. Windows that need padding come last;
padding is there only while they attend.

Letters: B images, L tokens of a map, N tokens of a window, nW windows of an image, C channels, h
heads, d width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muntin.features import Backbone, Features, FeatureSpec, TokenMask
from muntin.inference.folding import fold_norm, make_linear, make_qkv
from muntin.models.swin import PatchMerging, Swin, SwinBlock, WindowAttention
from muntin.models.swin_v2 import CosineWindowAttention, PatchMergingV2, SwinV2Block
from muntin.nn.layers import activate, without_key_bias
from muntin.ops.positions import (
    SIZE_RULES,
    expand_relative_position_bias,
    fit_patches,
    resample_grid,
)
from muntin.ops.windows import WindowLayout, add_mask, lay_out, merge_neighbours, window_order
from muntin.shapes import Bool, Float, Int, Size


class InferenceSwin(Backbone):
    """The same function as a backbone, which is left as it is, for images of one size in pixels."""

    positions: Tensor | None

    def __init__(self, model: Swin, size: Size) -> None:
        super().__init__()
        self._spec, config = model.spec, model.config
        rule = SIZE_RULES[config.size_rule]
        self.patch_size = config.patch_size
        self.patch_rule = rule.patch
        grid = model.mask_grid(size)
        self.patch_embed = model.patch_embed
        order = torch.arange(grid[0] * grid[1])
        positions = None
        if config.absolute_pos_embed:
            # Resized once: the size of the images is fixed.
            positions = resample_grid(
                model.absolute_pos_embed, old=config.grid, new=grid, how=rule.positions
            )
        self.register_buffer("positions", positions)
        steps: list[nn.Module] = []
        stages = _lay_out_stages(model, grid)
        for index, (stage, (grid, plain, shifted)) in enumerate(
            zip(model.layers, stages, strict=True)
        ):
            for block in stage.blocks:  # type: ignore[union-attr]
                step = _Block(block, shifted if block.shifted else plain, order)
                order = step.order
                steps.append(step)
            if index in config.out_indices:
                steps.append(_Out(model, index, grid, order))
            if index + 1 < len(stages):
                merging = _Merging(stage.downsample, grid, order, then=stages[index + 1][1])  # type: ignore[arg-type]
                order = merging.order
                steps.append(merging)
        self.steps = nn.ModuleList(steps)

    @property
    def spec(self) -> FeatureSpec:
        """Channels and strides of the maps."""
        return self._spec

    def features(
        self,
        images: Float[Tensor, "B in_chans H W"],
        *,
        sizes: Int[Tensor, "B 2"] | None = None,
        mask: TokenMask | None = None,
    ) -> Features:
        """Give maps, finest first, or the mean of the last one, which needs no gather."""
        self._refuse_mask(mask)
        *finer, (step, x) = self._run(images)
        last = step.normalise(x)  # B, L, C
        return Features(
            images,
            sizes=sizes,
            maps=lambda: [
                *(each.to_map(each.normalise(tokens)) for each, tokens in finer),
                step.to_map(last),
            ],
            vector=lambda: last.mean(dim=1),
        )

    def _run(self, images: Tensor) -> list[tuple[_Out, Tensor]]:
        images = fit_patches(images, self.patch_size, self.patch_rule)
        embed = self.patch_embed
        x = embed.norm(embed.proj(images).flatten(2).transpose(1, 2))  # B, L, C
        if self.positions is not None:
            x = x + self.positions
        found = []
        for step in self.steps:
            if isinstance(step, _Out):
                found.append((step, x))
            else:
                x = step(x)
        return found


class _Attention(nn.Module):
    """Attention inside windows whose tokens lie one after another: B, L, C.

    First come the windows without padding, then the tokens of the others, without their padding.
    """

    bias: Tensor
    padded_bias: Tensor
    temperature: Tensor | None
    fill: Tensor
    gather: Tensor | None
    scatter: Tensor

    def __init__(
        self,
        attn: WindowAttention | CosineWindowAttention,
        layout: WindowLayout,
        weight: Float[Tensor, "C3 C"],
        bias: Float[Tensor, " C3"] | None,
        fill: Float[Tensor, " C3"] | None,
    ) -> None:
        super().__init__()
        self.heads, self.tokens = attn.num_heads, layout.num_tokens
        self.proj = make_linear(attn.proj.weight, attn.proj.bias)
        if isinstance(attn, CosineWindowAttention):
            added, scale, temperature = attn.relative_position_bias(layout), 1.0, attn.temperature
        else:
            scale, temperature = attn.scale, None
            added = expand_relative_position_bias(
                attn.relative_position_bias_table,
                table_window=(attn.window, attn.window),
                window=layout.window,
            )
        self.qkv = make_qkv(weight, bias, scale)
        self.register_buffer("temperature", temperature)
        added = add_mask(added, layout)  # 1 or nW, h, N, N
        order, padded = _sort_windows(layout)
        self.whole = int((~padded).sum()) * self.tokens
        split = len(added) > 1 and self.whole < order.numel()
        self.register_buffer("bias", added[~padded] if split else added)
        self.register_buffer("gather", None)
        if self.whole == order.numel():
            return
        self.register_buffer("padded_bias", added[padded] if split else added)
        known = order.flatten()[self.whole :] >= 0
        # Tokens are counted; padding is behind the last of them.
        self.gather = torch.where(known, known.cumsum(0) - 1, known.sum())
        self.register_buffer("scatter", known.nonzero()[:, 0])
        # A padded token is zero behind the norm.
        given = weight.new_zeros(len(weight)) if fill is None else fill.detach()
        factors = torch.tensor([scale, 1.0, 1.0], device=given.device)
        self.register_buffer("fill", (given.view(3, 1, 1, -1) * factors.view(3, 1, 1, 1)).float())

    def forward(self, x: Float[Tensor, "B L C"]) -> Float[Tensor, "B L C"]:
        channels = x.shape[2]
        found = []
        if self.whole:
            whole = x if self.gather is None else x[:, : self.whole]
            # Tokens of a window are contiguous: of one image a view, no copy.
            whole = whole.reshape(-1, self.tokens, channels)  # B*nW, N, C
            y = self._attend([linear(whole) for linear in self.qkv], self.bias)
            found.append(y.reshape(-1, self.whole, channels))
        if self.gather is not None:
            rest = x[:, self.whole :]
            parts = [
                torch.cat([linear(rest), fill.expand(x.shape[0], -1, -1)], 1)
                for linear, fill in zip(self.qkv, self.fill, strict=True)
            ]
            y = self._attend(
                [part.index_select(1, self.gather) for part in parts], self.padded_bias
            )
            y = y.reshape(-1, self.gather.shape[0], channels)
            found.append(y.index_select(1, self.scatter))
        return self.proj(found[0] if len(found) == 1 else torch.cat(found, 1))

    def _attend(self, parts: list[Tensor], bias: Tensor) -> Float[Tensor, "windows N h d"]:
        q, k, v = (
            part.view(-1, self.tokens, self.heads, part.shape[2] // self.heads).transpose(1, 2)
            for part in parts
        )  # B*nW, h, N, d each
        if self.temperature is not None:
            q, k = F.normalize(q, dim=-1) * self.temperature, F.normalize(k, dim=-1)
        if bias.shape[0] > 1:
            # Bias plus shift mask differ by window, and windows are the batch: repeat per image.
            bias = bias.repeat(q.shape[0] // bias.shape[0], 1, 1, 1)
        return F.scaled_dot_product_attention(q, k, v, bias, scale=1.0).transpose(1, 2)


class _Block(nn.Module):
    """One block, and the gather before it. Norms are before a branch in V1, behind it in V2."""

    gather: Tensor | None

    def __init__(
        self, block: SwinBlock | SwinV2Block, layout: WindowLayout, order: Int[Tensor, " L"]
    ) -> None:
        super().__init__()
        self.order = _order_tokens(layout)
        # No gather where the order of the previous block fits.
        moves = not torch.equal(self.order, order)
        self.register_buffer("gather", _find(self.order, order) if moves else None)
        attn, fc1 = block.attn, block.mlp.fc1
        self.before1: nn.Module = nn.Identity()
        self.before2: nn.Module = nn.Identity()
        self.after1: nn.Module = nn.Identity()
        self.after2: nn.Module = nn.Identity()
        if isinstance(attn, CosineWindowAttention):
            self.after1, self.after2 = block.norm1, block.norm2
            weight: Tensor = attn.qkv.weight
            bias = fill = None if attn.qv_bias is None else without_key_bias(attn.qv_bias)
            self.fc1 = make_linear(fc1.weight, fc1.bias)
        else:
            fill = attn.qkv.bias
            self.before1, weight, bias = fold_norm(block.norm1, attn.qkv.weight, fill)
            self.before2, wide, shift = fold_norm(block.norm2, fc1.weight, fc1.bias)
            self.fc1 = make_linear(wide, shift)
        self.attn = _Attention(attn, layout, weight, bias, fill)
        self.activation = block.mlp.activation
        self.fc2 = make_linear(block.mlp.fc2.weight, block.mlp.fc2.bias)

    def forward(self, x: Float[Tensor, "B L C"]) -> Float[Tensor, "B L C"]:
        if self.gather is not None:
            x = x.index_select(1, self.gather)
        y = self.attn(self.before1(x))
        x = x + self.after1(y)
        return x + self.after2(self.fc2(activate(self.fc1(self.before2(x)), self.activation)))


class _Merging(nn.Module):
    gather: Tensor

    def __init__(
        self,
        merging: PatchMerging | PatchMergingV2,
        grid: Size,
        order: Int[Tensor, " L"],
        *,
        then: WindowLayout,
    ) -> None:
        super().__init__()
        raster = torch.arange(1.0, grid[0] * grid[1] + 1).view(1, *grid, 1)
        wanted = merge_neighbours(raster).long().flatten(0, 2) - 1  # l, 4
        self.order = _order_tokens(then)  # as the next block reads them
        wanted = wanted[self.order].flatten()
        self.register_buffer("gather", _find(wanted, order))
        self.padded = bool((wanted < 0).any())
        weight: Tensor = merging.reduction.weight
        bias: Tensor | None = merging.reduction.bias
        self.before: nn.Module = nn.Identity()
        self.after: nn.Module = nn.Identity()
        if isinstance(merging, PatchMergingV2):
            self.after = merging.norm
        else:
            self.before, weight, bias = fold_norm(merging.norm, weight, bias)
        self.reduction = make_linear(weight, bias)

    def forward(self, x: Float[Tensor, "B L C"]) -> Float[Tensor, "B l C2"]:
        channels = x.shape[2]
        if self.padded:
            x = F.pad(x, (0, 0, 0, 1))
        # B, L/4, 4C: four neighbours side by side.
        x = x.index_select(1, self.gather).view(-1, self.gather.shape[0] // 4, 4 * channels)
        return self.after(self.reduction(self.before(x)))


class _Out(nn.Module):
    """An output map: its norm, and the reordering to rows and columns."""

    gather: Tensor

    def __init__(self, model: Swin, stage: int, grid: Size, order: Int[Tensor, " L"]) -> None:
        super().__init__()
        self.grid = grid
        self.norm = model.norm_of(stage) or nn.Identity()
        self.register_buffer("gather", _find(torch.arange(grid[0] * grid[1]), order))

    def normalise(self, x: Float[Tensor, "B L C"]) -> Float[Tensor, "B L C"]:
        return self.norm(x)

    def to_map(self, x: Float[Tensor, "B L C"]) -> Float[Tensor, "B C H W"]:
        x = x.index_select(1, self.gather)
        return x.unflatten(1, self.grid).permute(0, 3, 1, 2)


def _lay_out_stages(model: Swin, grid: Size) -> list[tuple[Size, WindowLayout, WindowLayout]]:
    """Give the map of every stage, and its windows, plain and shifted; `grid` is the first map."""
    config = model.config
    rule, built, found = SIZE_RULES[config.size_rule], config.grid, []
    for index in range(len(model.layers)):
        window = (config.windows[index],) * 2
        plain, shifted = (
            lay_out(grid, window, shifts, rule, built_size=built) for shifts in (False, True)
        )
        found.append((grid, plain, shifted))
        grid, built = ((-(-height // 2), -(-width // 2)) for height, width in (grid, built))
    return found


def _sort_windows(layout: WindowLayout) -> tuple[Int[Tensor, "nW N"], Bool[Tensor, " nW"]]:
    """Tokens of windows, those with padding last, and which windows of the map these are."""
    order = window_order(layout)
    padded = (order < 0).any(dim=1)
    return torch.cat([order[~padded], order[padded]]), padded


def _order_tokens(layout: WindowLayout) -> Int[Tensor, " L"]:
    """Tokens in the order of their windows, without padding."""
    order = _sort_windows(layout)[0]
    return order[order >= 0]


def _find(wanted: Int[Tensor, " n"], order: Int[Tensor, " m"]) -> Int[Tensor, " n"]:
    """Where each wanted token stands in an order; behind its end for those beyond the map."""
    places = torch.full((int(order.max()) + 2,), order.numel())
    known = order >= 0
    places[order[known]] = torch.arange(order.numel())[known]
    places[-1] = order.numel()
    return places[wanted]
