# SPDX-License-Identifier: Apache-2.0
"""From a trained network to one that only infers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from muntin.features import Backbone
from muntin.heads.network import Network
from muntin.inference.folded_swin import InferenceSwin
from muntin.inference.folded_vit import fold_vit
from muntin.inference.folding import fold_pixels
from muntin.models.swin import Swin
from muntin.models.vit import ViT
from muntin.shapes import Int, Size, UInt8


@torch.no_grad()
def build_inference(network: Network, size: Size, *, keeps_maps: bool = False) -> Network:
    """Give a network that computes the same for images of one size, with fewer steps.

    Norms, the scale of queries and the factors of branches become part of the layers beside them;
    position biases, masks and positions are computed once; Swin's tokens stay in the order of its
    windows, unless `keeps_maps`: on a GPU window attention of whole maps is one kernel, and what is
    constant a compiler folds. The given network is left as it is; other families are copied.

    Example:
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
        self, images: UInt8[Tensor, "B C H W"], sizes: Int[Tensor, "B 2"] | None = None
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
