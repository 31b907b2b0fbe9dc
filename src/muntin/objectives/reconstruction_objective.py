# SPDX-License-Identifier: Apache-2.0
"""Self-supervised learning: predict the pixels hidden from the backbone (MAE, SimMIM)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from muntin.data.batches import Batch
from muntin.data.transforms import Preprocessing, denormalise, normalise
from muntin.features import Features
from muntin.heads.network import Network
from muntin.objectives.objective import LossObjective, Reconstruction
from muntin.ops.masks import Mask
from muntin.shapes import Float, Size, UInt8

DrawMask = Callable[[int, Size, torch.Generator], Mask]
"""From a number of images and their (height, width) in pixels to what is hidden of each."""


class MaskedImages(NamedTuple):
    """Normalised images, and what the backbone sees of them."""

    images: Float[Tensor, "B C H W"]
    mask: Mask


class MaskedReconstruction(LossObjective):
    """Hide parts of images, and predict their pixels with the network's only head.

    The head has `make_mask`, `losses` and `reconstruct` (`muntin.heads.pixel_decoder`).
    """

    def __init__(self, preprocessing: Preprocessing, draw_mask: DrawMask) -> None:
        self.preprocessing, self.draw_mask = preprocessing, draw_mask

    def draw(
        self, views: Sequence[Batch], device: torch.device, generator: torch.Generator
    ) -> MaskedImages:
        """Normalise the images and draw what is hidden."""
        (batch,) = views
        images = normalise(batch.images.to(device), self.preprocessing)
        mask = self.draw_mask(len(images), (images.shape[2], images.shape[3]), generator)
        return MaskedImages(images, mask.to(device))

    def losses(self, network: Network, inputs: MaskedImages) -> dict[str, Float[Tensor, " B"]]:
        """Compute the error of the hidden pixels of each image."""
        head: Any = network.head
        losses: dict[str, Tensor] = head.losses(self._see(network, inputs), inputs.images)
        return losses

    @torch.no_grad()
    def reconstruct(self, network: Network, batch: Batch, device: torch.device) -> Reconstruction:
        """Images, with the hidden pixels as the mean of images, and as predicted."""
        inputs: MaskedImages = self.draw_fixed(batch, device)
        head: Any = network.head
        predicted, hidden = head.reconstruct(self._see(network, inputs), inputs.images)
        masked = inputs.images.masked_fill(hidden[:, None], 0.0)
        return Reconstruction(batch.images, self._to_bytes(masked), self._to_bytes(predicted))

    def _see(self, network: Network, inputs: MaskedImages) -> Features:
        head: Any = network.head
        return network.features(inputs.images, mask=head.make_mask(inputs.mask))

    def _to_bytes(self, images: Float[Tensor, "B C H W"]) -> UInt8[Tensor, "B C H W"]:
        values = denormalise(images, self.preprocessing)
        return values.round().clamp(0, 255).to(torch.uint8).cpu()
