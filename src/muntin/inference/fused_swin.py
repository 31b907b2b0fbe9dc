# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""A Swin (V1, V2) for images of one size on a GPU: four or five kernels a block.

Tokens keep the order of the map, since the fused attention reads it as it lies: norm and qkv,
attention from the map to the map, projection and shortcut, MLP with norm and shortcut.

Letters: B images, H and W sides of a map in tokens, C channels, N tokens of a window, h heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from muntin.features import Features, TokenMask
from muntin.inference.folded_swin import lay_out_stages
from muntin.inference.fused_modules import (
    FusedLinear,
    FusedMerging,
    FusedMlp,
    FusedPatches,
    FusionConfig,
)
from muntin.inference.inference_backbone import InferenceBackbone
from muntin.models.swin import Swin, SwinBlock
from muntin.models.swin_v2 import SwinV2Block
from muntin.nn.linear_layers import without_key_bias
from muntin.ops.positions import expand_relative_position_bias, resample_grid
from muntin.ops.size_rules import SIZE_RULES, fit_patches
from muntin.ops.window_attention import BackendName, window_attention
from muntin.ops.windows import WindowLayout
from muntin.shapes import Float, Int, Size, UInt8

__all__ = ["FusedSwin"]


class FusedSwin(InferenceBackbone):
    """The same function as a backbone, for one size of images.

    Args:
        model: The backbone; it is left as it is.
        size: Height and width of the images in pixels.
        how: The types, and whether it reads pixels.
    """

    positions: Tensor | None

    def __init__(self, model: Swin, size: Size, how: FusionConfig) -> None:
        super().__init__(model)
        config = model.config
        rule = SIZE_RULES[config.size_rule]
        example = torch.zeros(1, config.in_chans, *size)
        fitted = fit_patches(example, config.patch_size, rule.patch)
        grid = fitted.shape[2] // config.patch_size, fitted.shape[3] // config.patch_size
        embed = model.patch_embed
        self.patches = FusedPatches(embed.proj, embed.norm, size, grid, how)
        positions = None
        if config.absolute_pos_embed:
            positions = resample_grid(
                model.absolute_pos_embed, old=config.grid, new=grid, how=rule.positions
            ).view(1, *grid, -1)  # fmt: skip
            positions = positions.to(how.dtype)
        self.register_buffer("positions", positions)
        self.stages = nn.ModuleList()
        self.norms = nn.ModuleDict()
        for index, (stage, (_, plain, shifted)) in enumerate(
            zip(model.layers, lay_out_stages(model, grid), strict=True)
        ):
            steps = nn.ModuleList(
                _Block(block, shifted if block.shifted else plain, how)
                for block in stage.blocks  # type: ignore[union-attr]
            )
            self.stages.append(steps)
            if index in config.out_indices:
                self.norms[str(index)] = _norm_of(model, index)
        self.mergings = nn.ModuleList(
            FusedMerging(stage.downsample, how)  # type: ignore[arg-type]
            for stage in model.layers[:-1]
        )

    def features(
        self,
        images: Float[Tensor, "B in_chans H W"] | UInt8[Tensor, "B in_chans H W"],
        *,
        sizes: Int[Tensor, "B 2"] | None = None,
        mask: TokenMask | None = None,
    ) -> Features:
        """Give maps, finest first, or the mean of the last one; both in float32."""
        self._refuse_mask(mask)
        outputs = self._run(images)
        *finer, coarsest = outputs
        last = self.norms[coarsest](outputs[coarsest].float())  # B, H, W, C
        return Features(
            images,
            sizes=sizes,
            maps=lambda: [
                *(self.norms[i](outputs[i].float()).permute(0, 3, 1, 2) for i in finer),
                last.permute(0, 3, 1, 2),
            ],
            vector=lambda: last.mean(dim=(1, 2)),
        )

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        """The map (B, H, W, C) behind each stage that is asked for, by its number."""
        x = self.patches(images)  # B, H, W, C
        if self.positions is not None:
            x = x + self.positions
        outputs = {}
        for index, blocks in enumerate(self.stages):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
            if str(index) in self.norms:
                outputs[str(index)] = x
            if index < len(self.mergings):
                x = self.mergings[index](x)
        return outputs


class _Block(nn.Module):
    """One block on the map as it lies."""

    position_bias: Tensor
    fill: Tensor | None
    temperature: Tensor | None

    def __init__(
        self, block: SwinBlock | SwinV2Block, layout: WindowLayout, how: FusionConfig
    ) -> None:
        super().__init__()
        self.layout = layout
        self.backend: BackendName = block.backend
        attn: Any = block.attn
        temperature = None
        if isinstance(block, SwinV2Block):
            self.scale = 1.0
            fill = None if attn.qv_bias is None else without_key_bias(attn.qv_bias)
            self.qkv = FusedLinear(attn.qkv.weight, fill, how)
            self.proj = FusedLinear(attn.proj.weight, attn.proj.bias, how, behind=block.norm1)
            self.mlp = FusedMlp(block.mlp, how, behind=block.norm2)
            bias, temperature = attn.relative_position_bias(layout), attn.temperature.detach()
        else:
            self.scale = attn.scale
            # A padded token is zero behind the norm: what it becomes is the bias itself.
            fill = attn.qkv.bias
            self.qkv = FusedLinear(attn.qkv.weight, fill, how, before=block.norm1)
            self.proj = FusedLinear(attn.proj.weight, attn.proj.bias, how)
            self.mlp = FusedMlp(block.mlp, how, before=block.norm2)
            bias = expand_relative_position_bias(
                attn.relative_position_bias_table,
                table_window=(attn.window, attn.window),
                window=layout.window,
            )
        self.register_buffer("position_bias", bias.detach().float().contiguous())
        self.register_buffer("fill", None if fill is None else fill.detach().float().clone())
        self.register_buffer("temperature", temperature)

    def forward(self, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B H W C"]:
        # B, H, W, 3C -> B, H, W, C: shift, partition and reversal happen in the kernel.
        y = window_attention(
            self.qkv(x), self.position_bias, self.layout, scale=self.scale, fill=self.fill,
            temperature=self.temperature, backend=self.backend,
        )  # fmt: skip
        return self.mlp(self.proj(y, x))


def _norm_of(model: Swin, stage: int) -> nn.Module:
    """The norm of a map that is given."""
    if model.config.out_norm == "each":
        return model.get_submodule(f"norm{stage}")
    last = model.config.out_norm == "last" and stage == model.config.out_indices[-1]
    return model.get_submodule("norm") if last else nn.Identity()
