# SPDX-License-Identifier: Apache-2.0
"""Self-supervised learning: two views of an image get the same projection, images differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from muntin.data.batches import Batch
from muntin.data.transforms import Preprocessing, normalise
from muntin.heads.network import Network
from muntin.heads.views_head import ViewsConfig
from muntin.objectives.objective import LossObjective
from muntin.shapes import Float


class ViewedImages(NamedTuple):
    """Normalised images, all first views before all second ones, and random directions."""

    images: Float[Tensor, "V*B C H W"]
    num_views: int
    directions: Float[Tensor, "D M"]


class TwoViews(LossObjective):
    """Let independently augmented views of an image agree (`muntin.heads.views_head`)."""

    views = 2

    def __init__(self, preprocessing: Preprocessing, config: ViewsConfig) -> None:
        self.preprocessing, self.config = preprocessing, config

    def draw(
        self, views: Sequence[Batch], device: torch.device, generator: torch.Generator
    ) -> ViewedImages:
        """Normalise and draw directions; of a single view, the other is a random crop."""
        images = [normalise(view.images.to(device), self.preprocessing) for view in views]
        if len(images) == 1:
            images.append(crop_randomly(images[0], generator))
        size = (self.config.dim, self.config.directions)
        directions = torch.randn(size, generator=generator).to(device)
        return ViewedImages(torch.cat(images), len(images), directions)

    def losses(self, network: Network, inputs: ViewedImages) -> dict[str, Float[Tensor, " B"]]:
        """Compute how far the views of each image are apart, and how far from a Gaussian all."""
        head: Any = network.head
        features = network.features(inputs.images)
        losses: dict[str, Tensor] = head.losses(features, inputs.num_views, inputs.directions)
        return losses

    def reconstruct(self, network: Network, batch: Batch, device: torch.device) -> None:
        """Nothing is hidden."""


def crop_randomly(
    images: Float[Tensor, "B C H W"], generator: torch.Generator
) -> Float[Tensor, "B C H W"]:
    """A part of each image, with half to all of each side, enlarged to its size; half mirrored."""
    draws = torch.rand(3, len(images), 2, generator=generator).to(images.device)
    scale = 0.5 + 0.5 * draws[0]  # of width and height, as grid_sample counts
    shift = (1 - scale) * (2 * draws[1] - 1)
    mirror = torch.stack([(draws[2, :, 0] < 0.5).float() * 2 - 1, torch.ones_like(scale[:, 0])], 1)
    turns = torch.diag_embed(scale * mirror)  # B, 2, 2
    grid = F.affine_grid(
        torch.cat([turns, shift[..., None]], 2), list(images.shape), align_corners=False
    )
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
