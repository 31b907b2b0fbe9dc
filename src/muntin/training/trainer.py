# SPDX-License-Identifier: Apache-2.0
"""Training steps, the state that they change, and the objective of a run with labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import Precision
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from muntin.collectives import BatchPart, holding
from muntin.data.batches import Batch
from muntin.data.randomness import derive_seed
from muntin.devices import return_freed_memory
from muntin.errors import TrainingError
from muntin.heads.network import Network
from muntin.objectives.objective import Objective, TrainingStep
from muntin.samples import Listing
from muntin.train_config import TrainConfig
from muntin.training.low_rank import adapt_layers
from muntin.training.optimization import build_optimizers, freeze_stages
from muntin.training.recompute import checkpoint_blocks, narrow_residual, recompute_layers
from muntin.training.sharding import (
    FullNetwork,
    clip_gradients,
    gradient_norm,
    join_unused,
    own_part,
    shard_step,
    take_moments,
    take_rows,
)


def class_balanced_shares(listing: Listing) -> NDArray[np.float64]:
    """Sampling shares with which each class is drawn equally often, shape (images,).

    An image with several classes gets the share of its rarest class, one without any the mean.
    """
    counts = torch.tensor(listing.class_counts, dtype=torch.float32).clamp(min=1)
    rarity = (1 / counts).tolist()
    mean = sum(rarity) / len(rarity)
    shares = [max((rarity[i] for i in entry.class_ids), default=mean) for entry in listing.entries]
    return np.array(shares)


_ADAPTERS = 0x6C6F7261
"""Address of the first values of adapters."""

Tensors = tuple[Tensor, ...] | list[Tensor]


def _average_by(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Exponential moving average whose decay rises to `decay`: short runs forget the start too.

    The rise (1 + n) / (10 + n) after n updates is that of TensorFlow's ExponentialMovingAverage.
    """

    @torch.no_grad()
    def average(averaged: Tensors, current: Tensors, count: Tensor | int) -> None:
        updates = int(count)
        # After few updates the average is close to the current weights. With a constant decay of
        # 0.9999 the random start would dominate the first 10,000 steps.
        weight = 1 - min(decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(averaged, current, weight)

    return average


def _not_finite(value: Any, path: str = "") -> list[str]:  # noqa: ANN401 (nested, as a checkpoint)
    """Paths of the tensors of a nested state that hold NaN or an infinity."""
    if isinstance(value, Tensor):
        value = own_part(value)
        whole = not value.is_floating_point() or bool(torch.isfinite(value).all())
        return [] if whole else [path]
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        return []
    start = f"{path}." if path else ""
    return [name for key, part in value.items() for name in _not_finite(part, f"{start}{key}")]


class Trainer:
    """Network, objective, optimizers and averaged weights; `config` has a resolved batch size."""

    def __init__(
        self,
        fabric: Fabric,
        config: TrainConfig,
        network: Network,
        objective: Objective[Any],
        *,
        compiled: bool = False,
    ) -> None:
        self.fabric, self.config = fabric, config
        self.network, self.objective = network, objective
        # Before the optimizers, which only get parameters that require a gradient.
        freeze_stages(network, config.freeze)
        if config.adapt == "lora":
            # From an address: what is drawn here is the same in every process.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(config.seed, _ADAPTERS))
                adapt_layers(network, config.lora_rank, config.lora_alpha)
        self.sharded = config.shard and fabric.world_size > 1
        # Before compilation, DDP and shards, which must see the wrapped layers and blocks.
        if config.recomputed_layers:
            recompute_layers(network)
            if fabric.device.type == "cpu":
                return_freed_memory()  # here: where steps are only measured, the process stays
        if config.checkpointing or config.recomputed_blocks:
            count = None if config.checkpointing else config.recomputed_blocks
            checkpoint_blocks(network.backbone, count)
        if config.residual == "half":
            narrow_residual(network.backbone)
        self._full = FullNetwork(network.to(fabric.device)) if self.sharded else None
        self._averaged, self._left_half = None, False
        self._optimizers: list[Any]
        self._setup(TrainingStep(network, objective), compiled=compiled)
        if config.ema_decay:
            # Outside the module that DDP wraps: averages have no gradients to synchronise.
            average = _average_by(config.ema_decay)
            if self._full is None:
                self._averaged = AveragedModel(network, multi_avg_fn=average).requires_grad_(False)
            else:
                self._averaged = self._full.average(network, average)

    def _setup(self, step: Any, *, compiled: bool) -> None:  # noqa: ANN401 (compiled or not)
        """Build the optimizers, and distribute the step over the devices."""
        fabric, network = self.fabric, self.network
        if self.sharded:
            # Not by Fabric, whose strategy for it starts processes in another way.
            shard_step(step.to(fabric.device))
        # Now: shards have other parameters than the whole network had.
        optimizers = build_optimizers(
            network, self.config, self.objective.auxiliary, sharded=self.sharded
        )
        if self.sharded:
            self._step = step
            self._optimizers = [fabric.setup_optimizers(each) for each in optimizers]
            return
        # Network and losses in one graph: the compiler can fuse across the border between them.
        step = torch.compile(step) if compiled else step
        self._step, *self._optimizers = fabric.setup(step, *optimizers)

    @property
    def best_network(self) -> Network:
        """Network with the weights to evaluate and save: averaged ones with `ema_decay`.

        All processes must ask for it before one of them uses it alone: shards are gathered.
        """
        best: Any = self.network if self._averaged is None else self._averaged.module
        return best if self._full is None else self._full.filled(best)

    @property
    def learning_rate(self) -> float:
        """Current learning rate of the first parameter group."""
        rate: float = self._optimizers[0].param_groups[0]["lr"]
        return rate

    def accumulate_gradients(
        self, views: Sequence[Batch], epoch: int, step: int, *, share: float, last: bool
    ) -> float:
        """Run the forward and the backward pass; return the loss summed over this process's images.

        There is one batch for each view that the objective needs. Epoch and step (of the epoch),
        both from 0, seed all random numbers. `share` is the weight of this batch in the accumulated
        gradient; after the `last` one the weights are updated, so its gradients are synchronised.
        """
        fabric = self.fabric
        # One seed for each step: a resumed run draws the same drop paths and mixtures as one that
        # was not interrupted. All processes draw for the whole batch, and use their rows.
        torch.manual_seed(derive_seed(self.config.seed, epoch, step, 0))
        rows = len(views[0].weights)
        part = BatchPart(fabric.global_rank * rows, rows, views[0].num_real)
        weights = views[0].weights.to(fabric.device)
        if self._full is not None:
            self._full.empty()
        with holding(part), self._accumulating(last):
            inputs = self.objective.prepare(views, fabric.device)
            total = (sum(self._losses(inputs).values()) * weights).sum()
            if self.sharded:
                total = join_unused(total, self._step)
            # DDP averages gradients over processes. Times world_size / num_real this becomes the
            # mean over the images of the whole batch, even if processes have different numbers.
            fabric.backward(total * (share * fabric.world_size / views[0].num_real))
        # Checked before the update, so that NaN never reaches the weights.
        value, place = float(total.detach()), f"epoch {epoch + 1}, step {step + 1}"
        if not math.isfinite(value):
            self._report_divergence("loss", f"{value} at {place}")
        # A scaled loss overflows now and then, and the scaler leaves out such a step itself.
        if last and getattr(fabric.strategy.precision, "scaler", None) is None:
            named = self.network.named_parameters()
            gradients = {name: p.grad for name, p in named if p.grad is not None}
            norm = gradient_norm(list(gradients.values()))
            if not math.isfinite(norm):
                name = next(iter(_not_finite(gradients)), "all parameters together")
                self._report_divergence("gradient", f"a norm of {norm} ({name}) at {place}")
        return value

    def _accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Context whose gradients are added up over processes after the `last` step alone."""
        # Shards do so after every step: whole gradients would take the memory of the parameters.
        if self.sharded:
            return nullcontext()
        return self.fabric.no_backward_sync(self._step, enabled=not last)

    def _losses(self, inputs: Any) -> dict[str, Tensor]:  # noqa: ANN401 (of the objective)
        """Losses of the images in the precision of the run."""
        losses: dict[str, Tensor]
        if not self.sharded:
            losses = self._step(inputs)
            return losses
        with self.fabric.autocast():
            losses = self._step(inputs)
        return {name: each.float() for name, each in losses.items()}

    def _report_divergence(self, what: str, got: str) -> NoReturn:
        message = (
            f"the {what} must stay finite, got {got}. Lower train.learning_rate (now "
            f"{self.config.learning_rate:g}), or use --precision fp32. Weights of finished epochs "
            f"are kept."
        )
        raise TrainingError(message)

    def require_finite(self) -> None:
        """Refuse weights, averages or moments that are NaN or infinite: they must not be kept."""
        wrong, found = _not_finite(self.state()), False
        if self.sharded:  # each process sees its own rows
            found = bool(self.fabric.strategy.reduce_boolean_decision(bool(wrong), all=False))
        if wrong or found:
            where = wrong[0] if wrong else "the rows of another process"
            self._report_divergence("state", f"other values in {where}")

    def leave_half_precision(self) -> bool:
        """Drop the gradients of a failed step and go on in fp32; False if that is no way out."""
        precision = self.fabric.strategy.precision
        # Processes fail at different steps, and the half residual stream needs half precision.
        if type(precision) is Precision or self.fabric.world_size > 1:
            return False
        if self.config.residual == "half" or _not_finite(self.network.state_dict()):
            return False
        self.fabric.strategy.precision, self._left_half = Precision(), True
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        return True

    def update_weights(self, lr_factor: float) -> None:
        """Update the weights; `lr_factor` scales the full learning rate of each group."""
        for optimizer in self._optimizers:
            # Muon normalises its updates: clipping would have no effect.
            most = self.config.clip_grad
            if most and isinstance(optimizer.optimizer, torch.optim.AdamW):
                if self.sharded:
                    clip_gradients([p for g in optimizer.param_groups for p in g["params"]], most)
                else:
                    self.fabric.clip_gradients(
                        self._step, optimizer, max_norm=most, error_if_nonfinite=False
                    )
            # Full rates differ between groups, by layer decay and by optimizer.
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * lr_factor
            optimizer.step()
            optimizer.zero_grad()
        if self._averaged is not None:
            self._averaged.update_parameters(self.network)
        self.objective.after_step(self.network)

    def state(self) -> dict[str, Any]:
        """State that steps change, for a checkpoint."""
        state: dict[str, Any] = {
            "network": self.network.state_dict(),
            "averaged": None if self._averaged is None else self._averaged.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            # The loss scale of fp16: from its initial value a resumed run would skip its first
            # updates.
            "precision": self.fabric.strategy.precision.state_dict(),
        }
        # Only if not empty: checkpoints of older runs have no such keys.
        if (auxiliary := self.objective.auxiliary) is not None:
            state["auxiliary"] = auxiliary.state_dict()
        if objective := self.objective.state():
            state["objective"] = objective
        if self._left_half:
            state["left_half_precision"] = True
        return state

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state returned by `state`."""
        own = self.network.state_dict()
        for name, tensor in state["network"].items():
            if name in own and own[name].dtype != tensor.dtype:
                message = f"{name} must be {own[name].dtype}, got {tensor.dtype}"
                raise ValueError(message)
        _load_into(self.network, state["network"])
        if self.objective.auxiliary is not None:
            _load_into(self.objective.auxiliary, state["auxiliary"])
        if self._averaged is not None:
            _load_into(self._averaged, state["averaged"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            if self.sharded:
                saved = take_moments(saved, optimizer)
            _check_optimizer_state(optimizer, saved)
            optimizer.load_state_dict(saved)
        if state.get("left_half_precision"):
            self.leave_half_precision()
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.objective.load_state(state.get("objective", {}))


def _load_into(module: torch.nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Load a state dict of whole tensors into a module, whole or sharded."""
    own = module.state_dict()
    rows = {
        name: take_rows(each, own[name]) if name in own else each for name, each in saved.items()
    }
    module.load_state_dict(rows)


def _check_optimizer_state(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Refuse what the next step would fail at: PyTorch takes any values, of any shape."""
    for group, theirs in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        for name in group.keys() & theirs.keys() - {"params"}:
            ours, value = group[name], theirs[name]
            if ours is None or value is None:  # left to PyTorch, by device and version
                continue
            plain = (int, float) if type(ours) in (int, float) else type(ours)
            same = isinstance(value, list | tuple if isinstance(ours, tuple) else plain)
            if not same or (isinstance(ours, tuple) and len(value) != len(ours)):
                message = f"{name} of an optimizer must be like {ours!r}, got {value!r:.80}"
                raise ValueError(message)
        places = zip(theirs["params"], group["params"], strict=True)
        rows = [(parameter, saved["state"].get(place)) for place, parameter in places]
        fields = {frozenset(row) for _, row in rows if row}
        whole = all(
            isinstance(value, Tensor) and value.shape in ((), parameter.shape)
            for parameter, row in rows
            for value in (row or {}).values()
        )
        if len(fields) > 1 or not whole:
            message = "the state of an optimizer must have the same tensors for each parameter"
            raise ValueError(message)
