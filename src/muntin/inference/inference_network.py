# SPDX-License-Identifier: Apache-2.0
"""From a trained network to one that only infers.

Letters: B images, N tokens, C channels, h heads, d width of a head.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muntin.features import Backbone
from muntin.heads.network import Network
from muntin.inference.folded_swin import InferenceSwin
from muntin.inference.folding import fold_norm, fold_pixels, make_linear, make_qkv
from muntin.models.swin import Swin
from muntin.models.vit import SelfAttention, ViT, ViTBlock
from muntin.nn.layers import BiasedLinear, LayerScale, activate, without_key_bias
from muntin.ops.positions import SIZE_RULES, resample_grid
from muntin.shapes import Float, Int, Real, Size


@torch.no_grad()
def build_inference(network: Network, size: Size, *, keeps_maps: bool = False) -> Network:
    """Give a network that computes the same for images of one size, with fewer steps.

    Norms, the scale of queries and the factors of branches become part of the layers beside them;
    position biases, masks and positions are computed once; Swin's tokens stay in the order of its
    windows, unless `keeps_maps`: on a GPU window attention of whole maps is one kernel, and what is
    constant a compiler folds. The given network is left as it is; other families are copied.

    Examples:
        >>> import torch
        >>> from muntin.zoo import create_model
        >>> model = create_model("swin_nano", num_classes=10).eval()
        >>> fast, images = build_inference(model, (64, 64)), torch.randn(1, 3, 64, 64)
        >>> torch.allclose(model(images), fast(images), atol=1e-5)
        True
    """
    # The given network stays usable for training.
    copied = copy.deepcopy(network).eval().requires_grad_(False)
    backbone: Backbone = copied.backbone
    if isinstance(backbone, Swin) and not keeps_maps:
        backbone = InferenceSwin(backbone, size)
    elif isinstance(backbone, ViT):
        backbone = fold_vit(backbone, size)
    return Network(backbone, copied.head).eval().requires_grad_(False)


class FromPixels(nn.Module):
    """A copy of a network that reads pixels from 0 to 255, of any type, instead of normalised ones.

    `mean` and `std` are in [0, 1]; the size of the images decides where the normalisation is done.
    A `padded` network also takes the sizes of the images inside the images; what is beyond them
    becomes 0.
    """

    def __init__(
        self,
        network: Network,
        mean: Sequence[float],
        std: Sequence[float],
        size: Size,
        *,
        padded: bool = False,
    ) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        embed = getattr(self.network.backbone, "patch_embed", None)
        proj = getattr(embed, "proj", None)
        self.mean: Tensor
        self.scale: Tensor | None
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1) * 255)
        # Zeros are added around normalised images: then the mean cannot be in the bias.
        self.padded = padded
        even = (
            not padded
            and isinstance(proj, nn.Conv2d)
            and not any(side % proj.stride[0] for side in size)
            and not any(proj.padding)
        )
        self.subtracts = not even
        scale = None
        if isinstance(proj, nn.Conv2d):
            folded = fold_pixels(proj, mean, std, reads_mean=even)
            setattr(embed, "proj", folded)  # noqa: B010 (the families name it alike)
        else:
            scale = torch.tensor(std).view(-1, 1, 1) * 255
        self.register_buffer("scale", scale)

    def forward(
        self, images: Real[Tensor, "B C H W"], sizes: Int[Tensor, "B 2"] | None = None
    ) -> Any:  # noqa: ANN401 (as the network)
        """Give what the network gives."""
        x = images.to(self.mean.dtype)
        if self.subtracts:
            x = x - self.mean
        if self.padded:
            assert sizes is not None, "what is padded comes with its sizes"
            rows = torch.arange(x.shape[2], device=x.device) < sizes[:, :1]  # B, H
            columns = torch.arange(x.shape[3], device=x.device) < sizes[:, 1:]  # B, W
            x = x * (rows[:, None, :, None] & columns[:, None, None, :])
        return self.network(x if self.scale is None else x / self.scale, sizes)


def fold_vit(model: ViT, size: Size) -> ViT:
    """Fold a ViT in place, for images of one size in pixels."""
    config, grid = model.config, model.mask_grid(size)
    if config.absolute_pos_embed:
        positions = resample_grid(
            model.pos_embed,
            old=config.grid,
            new=grid,
            num_prefix=model.pos_embed.shape[1] - config.grid[0] * config.grid[1],
            how=SIZE_RULES[config.size_rule].positions,
        )
        model.pos_embed = nn.Parameter(positions, requires_grad=False)
        # The model resizes no more: this is the grid that its positions are of.
        side = config.patch_size
        model.config = replace(config, img_size=(grid[0] * side, grid[1] * side))
    model.pos_drop = nn.Identity()  # type: ignore[assignment]
    model.blocks = nn.ModuleList(_Block(block, grid) for block in model.blocks)  # type: ignore[arg-type]
    return model


class _Block(nn.Module):
    """One block; norms, the scale of the queries and the factors of branches are in its layers."""

    bias: Tensor | None

    def __init__(self, block: ViTBlock, grid: Size) -> None:
        super().__init__()
        attn: SelfAttention = block.attn
        dim = attn.proj.in_features
        self.heads = attn.num_heads
        given: Tensor | None = attn.qkv.bias
        if isinstance(attn.qkv, BiasedLinear):
            given = without_key_bias(attn.qv_bias)
        self.norm1, weight, bias = fold_norm(block.norm1, attn.qkv.weight, given)
        self.qkv = make_qkv(weight, bias, (dim // self.heads) ** -0.5)
        self.proj = _with_scale(attn.proj, block.ls1)
        self.norm2, weight, bias = fold_norm(block.norm2, block.mlp.fc1.weight, block.mlp.fc1.bias)
        self.activation = block.mlp.activation
        self.fc1 = make_linear(weight, bias)
        self.fc2 = _with_scale(block.mlp.fc2, block.ls2)
        added = (
            attn.relative_position_bias(grid)[None].detach().clone() if attn.has_positions else None
        )
        self.register_buffer("bias", added)

    def forward(self, x: Float[Tensor, "B N C"], grid: Size) -> Float[Tensor, "B N C"]:
        tokens, channels = x.shape[1:]
        normed = self.norm1(x)
        q, k, v = (
            linear(normed).view(-1, tokens, self.heads, channels // self.heads).transpose(1, 2)
            for linear in self.qkv
        )  # B, h, N, d each
        y = F.scaled_dot_product_attention(q, k, v, self.bias, scale=1.0)
        x = x + self.proj(y.transpose(1, 2).reshape(-1, tokens, channels))
        return x + self.fc2(activate(self.fc1(self.norm2(x)), self.activation))


def _with_scale(linear: nn.Linear, scale: nn.Module) -> nn.Linear:
    """Layer scale: g * (W x + b) = (g W) x + g b."""
    if not isinstance(scale, LayerScale):
        return make_linear(linear.weight, linear.bias)
    factor = scale.gamma.detach().double()
    bias = None if linear.bias is None else linear.bias.detach().double() * factor
    return make_linear(linear.weight.detach().double() * factor[:, None], bias)
