# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Layers of a network that only infers on a GPU, each with its neighbours as one step.

They hold what `muntin.ops.fused_layers` takes: weights in the type of the tokens, vectors in
float32, norms folded into the products behind them.

Letters: B images, H and W sides of a map in tokens, C and K channels in, N channels out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from muntin.errors import ShapeError
from muntin.inference.folding import fold_norm, fold_pixels
from muntin.models.swin import PatchMerging
from muntin.models.swin_v2 import PatchMergingV2
from muntin.nn.mlp import Mlp
from muntin.ops.fused_layers import (
    LayerBackend,
    apply_linear,
    apply_mlp,
    embed_patches,
    merge_tokens,
)
from muntin.shapes import Float, Size

__all__ = ["FusedLinear", "FusedMerging", "FusedMlp", "FusedPatches", "FusionConfig", "Pixels"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pixels:
    """How pixels from 0 to 255 become numbers that a model reads.

    Attributes:
        mean: Of each channel, in [0, 1].
        std: The same.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionConfig:
    """How a network is fused.

    Attributes:
        dtype: Of the tokens between the blocks, and of the weights.
        backend: Of the layers; see `muntin.ops.fused_layers.apply_linear`.
        pixels: The network reads pixels from 0 to 255 and normalises them so; None: it reads
            normalised images.
    """

    dtype: torch.dtype
    backend: LayerBackend = "auto"
    pixels: Pixels | None = None


class FusedLinear(nn.Module):
    """A product with a norm before or behind it, GELU and residual.

    Args:
        weight: N, K.
        bias: N.
        how: The types.
        before: Norm before, which is folded.
        behind: Norm behind.
        gelu: Whether GELU follows.
    """

    def __init__(
        self,
        weight: Float[Tensor, "N K"],
        bias: Float[Tensor, " N"] | None,
        how: FusionConfig,
        *,
        before: nn.LayerNorm | None = None,
        behind: nn.LayerNorm | None = None,
        gelu: bool = False,
    ) -> None:
        super().__init__()
        self.backend, self.gelu = how.backend, gelu
        self.eps = (before or behind or nn.LayerNorm(1)).eps
        self.weight: Tensor
        self.bias: Tensor | None
        self.sums: Tensor | None
        self.gamma: Tensor | None
        self.beta: Tensor | None
        if before is not None:
            _, weight, bias = fold_norm(before, weight, bias)
        _hold(self, "", weight, bias, how, sums=before is not None)
        _hold_norm(self, behind)

    def forward(
        self, x: Float[Tensor, "*rows K"], residual: Float[Tensor, "*rows N"] | None = None
    ) -> Float[Tensor, "*rows N"]:
        """Transform every token."""
        return apply_linear(
            x, self.weight, self.bias, sums=self.sums, gamma=self.gamma, beta=self.beta,
            eps=self.eps, gelu=self.gelu, residual=residual, backend=self.backend,
        )  # fmt: skip


class FusedMlp(nn.Module):
    """The MLP branch of a block with its norm and its shortcut.

    Args:
        mlp: The two layers.
        how: The types.
        before: Norm before, which is folded.
        behind: Norm behind; exactly one of both.
        scale: What each channel of the branch is multiplied by before it is added.
    """

    def __init__(
        self,
        mlp: Mlp,
        how: FusionConfig,
        *,
        before: nn.LayerNorm | None = None,
        behind: nn.LayerNorm | None = None,
        scale: Float[Tensor, " C"] | None = None,
    ) -> None:
        super().__init__()
        self.backend = how.backend
        self.eps = (before or behind or nn.LayerNorm(1)).eps
        self.weight1: Tensor
        self.bias1: Tensor
        self.weight2: Tensor
        self.bias2: Tensor
        self.sums1: Tensor | None
        self.gamma: Tensor | None
        self.beta: Tensor | None
        weight: Tensor = mlp.fc1.weight
        bias: Tensor | None = mlp.fc1.bias
        if before is not None:
            _, weight, bias = fold_norm(before, weight, bias)
        _hold(self, "1", weight, bias, how, sums=before is not None)
        weight, bias = scale_outputs(mlp.fc2.weight, mlp.fc2.bias, scale)
        _hold(self, "2", weight, bias, how, sums=False)
        _hold_norm(self, behind)

    def forward(self, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows C"]:
        """Transform every token, and add it."""
        return apply_mlp(
            x, self.weight1, self.bias1, self.weight2, self.bias2,
            sums=self.sums1, gamma=self.gamma, beta=self.beta, eps=self.eps, backend=self.backend,
        )  # fmt: skip


class FusedMerging(nn.Module):
    """Joins 2 x 2 neighbours.

    Args:
        merging: The layer that is replaced.
        how: The types.
    """

    def __init__(self, merging: PatchMerging | PatchMergingV2, how: FusionConfig) -> None:
        super().__init__()
        self.backend, self.eps = how.backend, merging.norm.eps
        self.weight: Tensor
        self.bias: Tensor | None
        self.sums: Tensor | None
        self.gamma: Tensor | None
        self.beta: Tensor | None
        weight: Tensor = merging.reduction.weight
        bias: Tensor | None = merging.reduction.bias
        after = isinstance(merging, PatchMergingV2)
        if not after:
            _, weight, bias = fold_norm(merging.norm, weight, bias)
        _hold(self, "", weight, bias, how, sums=not after)
        _hold_norm(self, merging.norm if after else None)

    def forward(self, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B h w N"]:
        """Halve height and width, rounding up."""
        return merge_tokens(
            x, self.weight, self.bias, sums=self.sums, gamma=self.gamma, beta=self.beta,
            eps=self.eps, backend=self.backend,
        )  # fmt: skip


class FusedPatches(nn.Module):
    """Makes tokens of images of one size.

    Args:
        proj: The convolution that is replaced: its steps are as long as its sides.
        norm: Norm behind, if there is one.
        size: (height, width) of the images in pixels.
        grid: Patches down and across; pixels beyond them are not read, and what patches have
            beyond the image is zero behind the normalisation.
        how: The types, and the normalisation.
    """

    fill: Tensor

    def __init__(
        self, proj: nn.Conv2d, norm: nn.Module | None, size: Size, grid: Size, how: FusionConfig
    ) -> None:
        super().__init__()
        self.size, self.grid, self.backend = size, grid, how.backend
        self.patch = int(proj.stride[0])
        self.eps = norm.eps if isinstance(norm, nn.LayerNorm) else 1e-5
        self.weight: Tensor
        self.bias: Tensor | None
        self.gamma: Tensor | None
        self.beta: Tensor | None
        fill = torch.zeros(proj.in_channels, dtype=torch.float64)
        bias: Tensor | None = proj.bias
        if how.pixels is not None:
            proj = fold_pixels(proj, how.pixels.mean, how.pixels.std, reads_mean=False)
            fill = torch.tensor(how.pixels.mean, dtype=torch.float64) * 255
            # Of the rounded weights, so that the mean takes away what it is to take away.
            rounded = proj.weight.detach().to(how.dtype).double()
            bias = torch.zeros(len(rounded)) if bias is None else bias.detach()
            bias = bias.double() - (rounded.sum(dim=(2, 3)) * fill).sum(dim=1)
        _hold(self, "", proj.weight.flatten(1), bias, how, sums=False)
        _hold_norm(self, norm if isinstance(norm, nn.LayerNorm) else None)
        self.register_buffer("fill", fill.float())

    def forward(self, images: Tensor) -> Float[Tensor, "B H W N"]:
        """Give the map of patches, channels last; images are of any type.

        Raises:
            ShapeError: They are of another size.
        """
        if tuple(images.shape[2:]) != self.size:
            message = (
                f"images must be {self.size[0]}x{self.size[1]} pixels (height x width), the size "
                f"of the fused network, got {images.shape[2]}x{images.shape[3]}. Build it for "
                f"this size."
            )
            raise ShapeError(message)
        return embed_patches(
            images, self.weight, self.bias, self.fill, patch=self.patch, grid=self.grid,
            gamma=self.gamma, beta=self.beta, eps=self.eps, backend=self.backend,
        )  # fmt: skip


def scale_outputs(
    weight: Float[Tensor, "N K"],
    bias: Float[Tensor, " N"] | None,
    factor: Float[Tensor, " N"] | None,
) -> tuple[Float[Tensor, "N K"], Float[Tensor, " N"] | None]:
    """Multiply the outputs of a linear layer, in float64."""
    if factor is None:
        return weight, bias
    factor = factor.detach().double()
    return (
        weight.detach().double() * factor[:, None],
        None if bias is None else bias.detach().double() * factor,
    )


def _hold(
    module: nn.Module,
    suffix: str,
    weight: Tensor,
    bias: Tensor | None,
    how: FusionConfig,
    *,
    sums: bool,
) -> None:
    """Register weights in the type of the tokens, and float32 vectors."""
    rounded = weight.detach().to(how.dtype).contiguous()
    whole = rounded.double().sum(dim=1).float() if sums else None
    module.register_buffer(f"weight{suffix}", rounded)
    module.register_buffer(f"bias{suffix}", None if bias is None else bias.detach().float())
    module.register_buffer(f"sums{suffix}", whole)


def _hold_norm(module: nn.Module, norm: nn.LayerNorm | None) -> None:
    """Register scale and shift of the norm behind."""
    for name, vector in (("gamma", "weight"), ("beta", "bias")):
        given = None if norm is None else getattr(norm, vector).detach().float().clone()
        module.register_buffer(name, given)
