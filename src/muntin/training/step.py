# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What is wrapped for precision and processes: a network together with its losses."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from muntin.heads.network import Network
from muntin.samples import Classes
from muntin.shapes import Float
from muntin.tasks.task import Lesson

__all__ = ["TrainingStep"]


class TrainingStep(nn.Module):
    """From a batch to the losses of its images, in one module.

    Autocast and DistributedDataParallel act on what one call of a module does: losses that were
    computed outside would be computed in another precision, and heads that look at the whole
    batch could not be part of it.

    Args:
        network: Learns.
        losses: As in `Task.losses`.
        classes: What the network tells apart.
    """

    def __init__(
        self,
        network: Network,
        losses: Callable[[Network, Lesson, Classes], dict[str, Float[Tensor, " B"]]],
        classes: Classes,
    ) -> None:
        super().__init__()
        self.network = network
        self.losses = losses
        self.classes = classes

    def forward(self, inputs: Lesson) -> dict[str, Float[Tensor, " B"]]:
        """Give the losses of each image, by name."""
        return self.losses(self.network, inputs, self.classes)
