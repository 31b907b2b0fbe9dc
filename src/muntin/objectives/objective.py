# SPDX-License-Identifier: Apache-2.0
"""The interface between the training loop and what is learnt, with or without labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from muntin.data.batches import Batch
from muntin.data.loading import EvalLoader
from muntin.data.randomness import derive_seed
from muntin.devices import Autocast
from muntin.heads.network import Network
from muntin.samples import Listing
from muntin.scoring.evaluator import Outputs, Scored, join_outputs, readable_parts
from muntin.shapes import Float, UInt8

Inputs = TypeVar("Inputs")

MASK_SEED = 0x6D61736B
"""Address of what is random in validation, which is the same in every epoch."""


class Objective(ABC, Generic[Inputs]):
    """One thing to learn.

    The loop gives it batches, minimises the sum of its losses, calls it after each change of the
    weights, and keeps the weights whose validation is best by its own figure. It does not depend on
    the kind of objective. Everything random in `prepare` and `losses` must come from torch's global
    generator, which the loop seeds by (seed, epoch, step, process), so that a run can be resumed
    bit for bit.
    """

    views: int = 1
    """Independently augmented versions of each image that `prepare` gets."""

    auxiliary: nn.Module | None = None
    """What is trained beside the network and dropped afterwards, such as a projection."""

    @abstractmethod
    def prepare(self, views: Sequence[Batch], device: torch.device) -> Inputs:
        """Convert loaded batches to the inputs of the losses.

        Args:
            views: One batch for each view, of the same images in the same order.
            device: Device of the network.
        """

    @abstractmethod
    def losses(self, network: Network, inputs: Inputs) -> dict[str, Float[Tensor, " B"]]:
        """Compute the loss of each image, by name. The loop minimises their sum."""

    def after_step(self, network: Network) -> None:
        """Called after each change of the weights, e.g. to update a teacher."""

    @abstractmethod
    def evaluate(
        self, network: Network, loader: EvalLoader, device: torch.device, autocast: Autocast
    ) -> Outputs:
        """Run the network in evaluation mode over this process's share of the validation images."""

    @abstractmethod
    def score(self, parts: Sequence[Outputs], listing: Listing) -> Scored:
        """Compute the figures of a listing from the outputs of all processes."""

    @abstractmethod
    def goal(self, figures: Mapping[str, Any]) -> tuple[str, float]:
        """Name of the figure by which epochs are compared, and a value that is larger when better.

        The name is empty where the figures hold none.
        """

    def state(self) -> dict[str, Any]:
        """Everything that steps change in the objective itself, such as a teacher's weights."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave."""


class TrainingStep(nn.Module):
    """Network and losses as one module, so that autocast and data parallelism cover both."""

    def __init__(self, network: Network, objective: Objective[Any]) -> None:
        super().__init__()
        self.network = network
        self.objective = objective
        self.auxiliary = objective.auxiliary

    def forward(self, inputs: Any) -> dict[str, Float[Tensor, " B"]]:  # noqa: ANN401 (each objective has its own)
        """Compute the losses of a batch."""
        return self.objective.losses(self.network, inputs)


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

    @abstractmethod
    def draw(self, views: Sequence[Batch], device: torch.device, generator: torch.Generator) -> Any:  # noqa: ANN401 (inputs of `losses`)
        """Make the inputs of the losses; everything random comes from the generator."""

    @abstractmethod
    def reconstruct(
        self, network: Network, batch: Batch, device: torch.device
    ) -> Reconstruction | None:
        """What the network makes of images whose parts are hidden; None if it hides nothing.

        The parts are the same whenever it is called. The network should be in evaluation mode.
        """

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
            for part in readable_parts(loader):
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
