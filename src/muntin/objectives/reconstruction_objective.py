# SPDX-License-Identifier: Apache-2.0
"""Self-supervised learning: predict the pixels hidden from the backbone (MAE, SimMIM)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from muntin.data.batches import Batch
from muntin.data.loading import EvalLoader
from muntin.data.randomness import derive_seed
from muntin.data.transforms import Preprocessing, normalise
from muntin.features import Features
from muntin.heads.network import Network
from muntin.objectives.objective import Autocast, Objective
from muntin.ops.masks import Mask
from muntin.samples import Listing
from muntin.scoring.evaluator import Outputs, Scored, join_outputs
from muntin.shapes import Float, Size, UInt8

MASK_SEED = 0x6D61736B
"""Address of the masks of validation, which are the same in every epoch."""

DrawMask = Callable[[int, Size, torch.Generator], Mask]
"""From a number of images and their (height, width) in pixels to what is hidden of each."""


class MaskedImages(NamedTuple):
    """Normalised images, and what the backbone sees of them."""

    images: Float[Tensor, "B C H W"]
    mask: Mask


class Reconstruction(NamedTuple):
    """Images, what was seen of them, and the hidden part as predicted."""

    images: UInt8[Tensor, "B C H W"]
    masked: UInt8[Tensor, "B C H W"]
    predicted: UInt8[Tensor, "B C H W"]


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


class LossObjective(Objective[Any]):
    """An objective without labels, validated by its loss on images that it always treats alike."""

    preprocessing: Preprocessing

    def draw(self, views: Sequence[Batch], device: torch.device, generator: torch.Generator) -> Any:  # noqa: ANN401 (inputs of `losses`)
        """Make the inputs of the losses; everything random comes from the generator."""
        raise NotImplementedError

    def reconstruct(
        self, network: Network, batch: Batch, device: torch.device
    ) -> Reconstruction | None:
        """What the network makes of images whose parts are hidden; None if it hides nothing.

        The parts are the same whenever it is called. The network should be in evaluation mode.
        """
        raise NotImplementedError

    def prepare(self, views: Sequence[Batch], device: torch.device) -> Any:  # noqa: ANN401 (as `draw`)
        """Normalise the images and draw what is random."""
        # A seed from the global generator, which the loop has seeded for this step.
        seed = int(torch.randint(2**62, ()))
        return self.draw(views, device, torch.Generator().manual_seed(seed))

    def draw_fixed(self, batch: Batch, device: torch.device) -> Any:  # noqa: ANN401 (as `draw`)
        """Inputs of the losses that are always the same for these images."""
        seed = derive_seed(MASK_SEED, int(batch.indices[0]))
        return self.draw((batch,), device, torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def evaluate(
        self, network: Network, loader: EvalLoader, device: torch.device, autocast: Autocast
    ) -> Outputs:
        """Compute the losses of the validation images."""
        was_training = network.training
        network.eval()
        rows: list[tuple[Tensor, Tensor]] = []
        try:
            for batch in loader:
                readable = torch.where(batch.weights > 0)[0]
                if not len(readable):
                    continue
                part = batch.select(readable)
                inputs = self.draw_fixed(part, device)
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
        """Inverse of `normalise`."""
        mean = torch.tensor(self.preprocessing.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.preprocessing.std, device=images.device).view(1, -1, 1, 1)
        values = (images.float() * std + mean) * 255
        return values.round().clamp(0, 255).to(torch.uint8).cpu()
