# SPDX-License-Identifier: Apache-2.0
"""The interface between the training loop and what is learnt, with or without labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from muntin.data.batches import Batch
from muntin.data.loading import EvalLoader
from muntin.heads.network import Network
from muntin.samples import Listing
from muntin.scoring.evaluator import Outputs, Scored
from muntin.shapes import Float

Inputs = TypeVar("Inputs")

Autocast = Callable[[], AbstractContextManager[Any]]
"""Makes the context that sets the precision of a forward pass."""


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
