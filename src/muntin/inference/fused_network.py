# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""From a trained network to one that only infers, for a GPU: fused layers, narrow tokens."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from muntin.features import Backbone
from muntin.heads.network import Network
from muntin.inference.fused_modules import FusionConfig, Pixels
from muntin.inference.fused_swin import FusedSwin
from muntin.inference.fused_vit import FusedViT
from muntin.inference.inference_network import build_inference
from muntin.models.swin import Swin
from muntin.models.vit import ViT
from muntin.ops.fused_layers import LayerBackend
from muntin.shapes import Int, Size, UInt8

__all__ = ["FusedFromPixels", "build_fused", "is_fusible"]


def is_fusible(network: Network) -> bool:
    """Whether the family of a network's backbone has a form of its own for GPUs."""
    backbone: Backbone = network.backbone
    whole_patches = not (isinstance(backbone, ViT) and backbone.config.patch_padding)
    return isinstance(backbone, (Swin, ViT)) and whole_patches


@torch.no_grad()
def build_fused(
    network: Network,
    size: Size,
    *,
    dtype: torch.dtype = torch.bfloat16,
    pixels: Pixels | None = None,
    backend: LayerBackend = "auto",
) -> Network:
    """Give a network that computes the same for images of one size, in few and wide steps.

    Every layer takes in its neighbours: norms, GELU, shortcuts, the merging of tokens and the
    normalisation of pixels. What is computed beforehand is computed in float64. The head stays as
    it is, in float32. Families without such a form get the one of `build_inference`.

    Args:
        network: Backbone and head; it is left as it is.
        size: (height, width) in pixels of the images.
        dtype: Of the tokens between the blocks and of the weights; sums are float32.
        pixels: The backbone reads pixels from 0 to 255 of any type, and normalises them so; None:
            it reads normalised images. Families without a fused form ignore it.
        backend: "auto" takes a kernel where it qualifies, "plain" none, "fused" insists.

    Returns:
        A network for any number of images of this size, on the same device, in evaluation mode,
        without gradients. Move it with ``.to(device)``; a change of its type would also change
        what must stay float32.

    Example:
        >>> import torch
        >>> from muntin.zoo import create_model
        >>> model = create_model("swin_nano", num_classes=10).eval()
        >>> fused = build_fused(model, (64, 64), dtype=torch.float32)
        >>> images = torch.randn(1, 3, 64, 64)
        >>> torch.allclose(model(images), fused(images), atol=1e-5)
        True
    """
    if not is_fusible(network):
        return build_inference(network, size)
    device = next(network.parameters()).device
    copied = copy.deepcopy(network).cpu().eval().requires_grad_(False)
    how = FusionConfig(dtype=dtype, backend=backend, pixels=pixels)
    backbone: Any = copied.backbone
    form = FusedSwin if isinstance(backbone, Swin) else FusedViT
    fused = Network(form(backbone, size, how), copied.head).to(device)
    return fused.eval().requires_grad_(False)


class FusedFromPixels(nn.Module):
    """A fused network that reads pixels from 0 to 255.

    Args:
        network: Backbone and head; left as it is.
        pixels: How they are normalised.
        size: (height, width) of the images.
        dtype: As in `build_fused`.
        padded: Whether it also takes the sizes of the images inside the images; what is beyond
            them becomes 0 behind the normalisation.
        backend: As in `build_fused`.
    """

    def __init__(
        self,
        network: Network,
        pixels: Pixels,
        size: Size,
        *,
        dtype: torch.dtype = torch.bfloat16,
        padded: bool = False,
        backend: LayerBackend = "auto",
    ) -> None:
        super().__init__()
        # What is beyond an image inside the image is no pixel, so it cannot be told by pixels.
        self.reads_pixels = not padded and is_fusible(network)
        self.network = build_fused(
            network, size, dtype=dtype, backend=backend,
            pixels=pixels if self.reads_pixels else None,
        )  # fmt: skip
        self.padded = padded
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(pixels.mean).view(-1, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(pixels.std).view(-1, 1, 1) * 255)

    def forward(
        self, images: UInt8[Tensor, "B C H W"], sizes: Int[Tensor, "B 2"] | None = None
    ) -> Any:  # noqa: ANN401 (as the network)
        """Give what the network gives."""
        if self.reads_pixels:
            return self.network(images)
        x = (images - self.mean) / self.std
        if self.padded:
            assert sizes is not None, "what is padded comes with its sizes"
            rows = torch.arange(x.shape[2], device=x.device) < sizes[:, :1]  # B, H
            columns = torch.arange(x.shape[3], device=x.device) < sizes[:, 1:]  # B, W
            x = x * (rows[:, None, :, None] & columns[:, None, None, :])
        return self.network(x, sizes)
