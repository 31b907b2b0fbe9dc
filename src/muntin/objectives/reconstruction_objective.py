# SPDX-License-Identifier: Apache-2.0
"""Self-supervised learning: predict the patches hidden from the backbone (MAE)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from muntin.configs import check_range
from muntin.data.batches import Batch
from muntin.data.loading import EvalLoader
from muntin.data.randomness import derive_seed
from muntin.data.transforms import Preprocessing, normalise
from muntin.features import TokenMask
from muntin.heads.network import Network
from muntin.objectives.objective import Autocast, Objective
from muntin.samples import Listing
from muntin.scoring.evaluator import Outputs, Scored, join_outputs
from muntin.shapes import Bool, Float

MASK_SEED = 0x6D61736B
"""Address of the masks of validation, which are the same in every epoch."""


class MaskedImages(NamedTuple):
    """Normalised images, and the patches that the backbone sees, row by row over the grid."""

    images: Float[Tensor, "B C H W"]
    keep: Bool[Tensor, "B N"]


class MeanLoss:
    """The metric of an objective without other figures: its mean loss."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []

    @property
    def num_images(self) -> int:
        """Images added so far."""
        return sum(map(len, self._losses))

    def update(self, answers: Float[Tensor, " B"], truth: object = None) -> None:
        """Add the losses of a batch."""
        self._losses.append(answers)

    def compute(self) -> dict[str, Any]:
        """Mean `loss`, and `num_images`."""
        losses = torch.cat([*self._losses, torch.empty(0)])
        return {"loss": float(losses.mean()), "num_images": self.num_images}


class MaskedReconstruction(Objective[MaskedImages]):
    """Drop most patches, and predict their pixels with the network's only head, a `PixelDecoder`.

    `patch_size` is the side of a patch of the backbone in pixels, `mask_ratio` the share of the
    patches that is dropped, 0.75 as published.
    """

    def __init__(
        self, preprocessing: Preprocessing, *, patch_size: int, mask_ratio: float = 0.75
    ) -> None:
        check_range("mask_ratio", mask_ratio, 0.01, 0.99)
        self.preprocessing = preprocessing
        self.patch_size, self.mask_ratio = patch_size, mask_ratio

    def prepare(self, views: Sequence[Batch], device: torch.device) -> MaskedImages:
        """Normalise the images and draw the patches that are kept."""
        (batch,) = views
        # A seed from the global generator, which the loop has seeded for this step.
        seed = int(torch.randint(2**62, ()))
        return self._mask(batch, device, torch.Generator().manual_seed(seed))

    def losses(self, network: Network, inputs: MaskedImages) -> dict[str, Float[Tensor, " B"]]:
        """Compute the mean squared error of the dropped patches of each image."""
        features = network.features(inputs.images, mask=TokenMask(inputs.keep))
        head: Any = network.head
        losses: dict[str, Tensor] = head.losses(features, inputs.images)
        return losses

    @torch.no_grad()
    def evaluate(
        self, network: Network, loader: EvalLoader, device: torch.device, autocast: Autocast
    ) -> Outputs:
        """Compute the losses of the validation images, each with a mask of its own."""
        was_training = network.training
        network.eval()
        rows: list[tuple[Tensor, Tensor]] = []
        try:
            for batch in loader:
                readable = torch.where(batch.weights > 0)[0]
                if not len(readable):
                    continue
                part = batch.select(readable)
                seed = derive_seed(MASK_SEED, int(part.indices[0]))
                inputs = self._mask(part, device, torch.Generator().manual_seed(seed))
                with autocast():
                    losses = self.losses(network, inputs)
                rows.append((torch.stack([*losses.values()]).sum(0).float().cpu(), part.indices))
        finally:
            network.train(was_training)
        empty = torch.empty(0)
        return Outputs(
            answers=empty,
            truth=empty,
            losses=torch.cat([losses for losses, _ in rows] or [empty]),
            indices=torch.cat([indices for _, indices in rows] or [empty]),
        )

    def score(self, parts: Sequence[Outputs], listing: Listing) -> Scored:
        """Average the losses of all processes."""
        outputs = join_outputs(parts)
        metric = MeanLoss()
        metric.update(outputs.losses)
        return Scored(figures=metric.compute(), metric=metric, outputs=outputs, listing=listing)

    def goal(self, figures: Mapping[str, Any]) -> tuple[str, float]:
        """The loss, which is better when smaller."""
        return "loss", -float(figures["loss"])

    def _mask(self, batch: Batch, device: torch.device, generator: torch.Generator) -> MaskedImages:
        images = normalise(batch.images.to(device), self.preprocessing)
        grid = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        keep = draw_masks(len(images), grid[0] * grid[1], self.mask_ratio, generator)
        return MaskedImages(images, keep.to(device))


def draw_masks(
    count: int, num_patches: int, mask_ratio: float, generator: torch.Generator
) -> Bool[Tensor, "B N"]:
    """Draw which patches each image keeps: equally many, at least one, and not all."""
    num_kept = min(max(round(num_patches * (1 - mask_ratio)), 1), num_patches - 1)
    order = torch.rand(count, num_patches, generator=generator).argsort(dim=1)
    return torch.zeros(count, num_patches, dtype=torch.bool).scatter_(1, order[:, :num_kept], True)
