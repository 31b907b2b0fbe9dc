# SPDX-License-Identifier: Apache-2.0
"""Validation during training: when it is due, what it costs, and its figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from muntin.collectives import first_object, send_to_first
from muntin.data.batches import evaluation_batch
from muntin.data.cache import ImageCache
from muntin.data.loading import EvalLoader, Processes
from muntin.heads.network import Network
from muntin.objectives.objective import MeanLoss
from muntin.scoring.evaluator import Outputs, Scored
from muntin.training.checkpoint import Interruption
from muntin.training.time_limit import Clock, TimeLimit

if TYPE_CHECKING:
    from muntin.training.trainer import Trainer

VALIDATION_SHARE = 0.04
"""Under a time limit, at most about this share of the time is spent on validation."""


class Validation:
    """Scores the weights of a trainer that would be saved, on the images of `cache`."""

    def __init__(
        self,
        trainer: Trainer,
        cache: ImageCache,
        processes: Processes,
        *,
        time_limit: TimeLimit,
        clock: Clock,
    ) -> None:
        self.trainer, self.cache, self.processes = trainer, cache, processes
        self.time_limit, self.clock = time_limit, clock
        self.ended = clock()
        """When the last one ended; at first, when training began."""
        self.watch: Callable[[Network], None] | None = None
        """Looks at the scored network, in the first process, and changes nothing."""

    def is_due(self, *, first: bool) -> bool:
        """Whether there is time for one before training ends; `first` if there was none yet."""
        # Clocks differ: a process that validated alone would wait for the others forever.
        fabric = self.trainer.fabric
        due = self.time_limit.allows_validation(
            self.clock() - self.ended, VALIDATION_SHARE, first=first
        )
        return bool(fabric.broadcast(due)) if fabric.world_size > 1 else due

    def score(self, interruption: Interruption) -> Scored:
        """Compute the figures; a signal leaves it at once."""
        start = self.clock()
        with interruption.waiting(self.trainer.fabric):
            scored = self._score(self._evaluate())
            if self.watch is not None:
                self.watch(self.trainer.best_network)
        self.ended = self.clock()
        self.time_limit.validation_s = self.ended - start
        return scored

    def estimate(self, interruption: Interruption) -> None:
        """Time a few images, after as many that only warm up, so that the first is not late."""
        count, fabric = len(self.cache), self.trainer.fabric
        few = max(1, min(evaluation_batch(self.cache.pre), count // 20))
        _ = self.trainer.best_network  # shards are gathered by all processes
        if fabric.is_global_zero:
            for _ in range(2):
                start = self.clock()
                with interruption.waiting(fabric):
                    self.trainer.objective.score([self._evaluate(few)], self.cache.listing)
            # Starting the workers counts again for every few images: rather too much.
            self.time_limit.validation_s = (self.clock() - start) * count / few / fabric.world_size
        if fabric.world_size > 1:
            self.time_limit.validation_s = float(fabric.broadcast(self.time_limit.validation_s))

    def _evaluate(self, limit: int | None = None) -> Outputs:
        """Run the network over this process's share of the images, or of the first few."""
        trainer, pre = self.trainer, self.cache.pre
        batch = evaluation_batch(pre, trainer.config.validation_batch)
        loader = EvalLoader(
            self.cache,
            batch_size=min(batch, limit or batch),
            processes=self.processes,
            limit=limit,
        )
        # Of the strategy: the precision may have changed since the beginning.
        autocast = trainer.fabric.strategy.precision.forward_context
        return trainer.objective.evaluate(
            trainer.best_network, loader, trainer.fabric.device, autocast
        )

    def _score(self, outputs: Outputs) -> Scored:
        """Score the outputs of all processes in the first one; others get the figures only."""
        listing = self.cache.listing
        # As objects: outputs of detectors differ in length from image to image.
        parts = send_to_first(outputs)
        scored = self.trainer.objective.score(parts, listing) if parts else None
        figures: Any = first_object(None if scored is None else scored.figures)
        return scored or Scored(
            figures=figures, metric=MeanLoss(), outputs=outputs, listing=listing
        )
