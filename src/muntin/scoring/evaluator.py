# SPDX-License-Identifier: Apache-2.0
"""Run a network over a data set with the code of prediction, and compute its figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from muntin.data.batches import Batch, split_by_size
from muntin.data.cache import ImageCache
from muntin.data.loading import EvalLoader
from muntin.prediction.batch import Part, PreparedBatch
from muntin.samples import Classes, Listing
from muntin.tasks.task import ImageMeta, Metric, PredictOptions, Task

if TYPE_CHECKING:
    from muntin.prediction.predictor import Predictor


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """Predictions for the readable images of a listing, with the ground truth.

    Answers and truth have one row per image: tensors or lists. `losses` holds the loss of each
    image, none if the task has none; `indices` the image's index in the listing.
    """

    answers: Any
    truth: Any
    losses: Tensor
    indices: Tensor

    @property
    def mean_loss(self) -> dict[str, float]:
        """The mean `loss`; empty if the task has none."""
        return {"loss": self.losses.mean().item()} if len(self.losses) else {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """Figures, with the metric and the outputs they were computed from.

    Figures of classes are lists in the order of the classes. `threshold` is the minimum score of
    what is drawn, that of the run; None: the one with the best F1 in these figures.
    """

    figures: dict[str, Any]
    metric: Metric
    outputs: Outputs
    listing: Listing
    threshold: float | None = None


def _join_rows(parts: Sequence[Any]) -> Any:  # noqa: ANN401 (tensors or lists)
    """Concatenate the rows of batches: tensors, or lists."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    return [row for part in parts for row in part]


def join_outputs(parts: Sequence[Outputs]) -> Outputs:
    """Concatenate the outputs of several processes, about disjoint images, in their order."""
    full = [part for part in parts if len(part.indices)] or list(parts[:1])
    if len(full) == 1:
        return full[0]
    indices = torch.cat([part.indices for part in full])
    order = indices.argsort()
    answers, truth = (
        _select_rows(_join_rows(rows), order)
        for rows in ([part.answers for part in full], [part.truth for part in full])
    )
    losses = torch.cat([part.losses for part in full])
    return Outputs(
        answers=answers,
        truth=truth,
        losses=losses[order] if len(losses) == len(order) else losses,
        indices=indices[order],
    )


def _select_rows(rows: Any, order: Tensor) -> Any:  # noqa: ANN401 (a tensor or a list)
    if isinstance(rows, Tensor):
        return rows[order] if len(rows) == len(order) else rows
    return [rows[place] for place in order.tolist()]


@torch.no_grad()
def run_network(
    predictor: Predictor,
    batches: Iterable[Batch],
    listing: Listing,
    *,
    truth_rows: Any = None,  # noqa: ANN401 (of `Task.ground_truth`)
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    tta: bool = False,
) -> Outputs:
    """Run a network over batches and collect its predictions, on the CPU.

    Images with weight 0 are left out. `truth_rows` is the ground truth of the listing where it is
    known already. `autocast` makes the context that sets the precision; `tta` averages with
    predictions for mirrored images.
    """
    task, classes = predictor.task, predictor.classes
    if truth_rows is None:
        truth_rows = task.ground_truth(listing, classes)
    rows: list[tuple[Any, Any, Tensor | None, Tensor]] = []
    for part in readable_parts(batches):
        with autocast():
            raw = predictor.run(_prepared(part, listing, tta=tta))
        (found,) = raw.parts
        answers = task.answers(found.raw, found.metas, classes)
        truth = part.labels if truth_rows is None else truth_rows[part.indices]
        rows.append((answers, truth, task.compare(answers, truth, classes), part.indices))
    if not rows:
        empty = torch.empty(0)
        return Outputs(answers=empty, truth=empty, losses=empty, indices=empty)
    answers, truth, losses, indices = zip(*rows, strict=True)
    return Outputs(
        answers=_join_rows(answers),
        truth=_join_rows(truth),
        losses=torch.cat([part for part in losses if part is not None] or [torch.empty(0)]),
        indices=torch.cat(indices),
    )


def readable_parts(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Leave out images with weight 0, and split batches whose images need other padding."""
    for batch in batches:
        readable = torch.where(batch.weights > 0)[0]
        if len(readable):
            yield from split_by_size(batch.select(readable))


def _prepared(batch: Batch, listing: Listing, *, tta: bool) -> PreparedBatch:
    """Wrap a batch of the cache, whose images are already resized, as a `PreparedBatch`."""
    rows = zip(batch.indices.tolist(), batch.originals.tolist(), batch.sizes.tolist(), strict=True)
    metas = tuple(
        ImageMeta(
            path=listing.entries[index].path,
            size=tuple(original),
            input_size=tuple(input_size),
            box=listing.entries[index].box,
        )
        for index, original, input_size in rows
    )
    part = Part(images=batch.images, metas=metas, places=tuple(range(len(metas))))
    return PreparedBatch(parts=(part,), merges=(), options=PredictOptions(tta=tta))


def compute_figures(
    parts: Sequence[Outputs], task: Task, classes: Classes, listing: Listing
) -> Scored:
    """Compute the figures of the task's metric and the mean `loss`, where the task has one.

    `parts` are the outputs of each process, about disjoint images of the listing.
    """
    metric = task.metric(classes)
    # At once, in the order of the images: a process may have had none.
    outputs = join_outputs(parts)
    metric.update(outputs.answers, outputs.truth)
    figures = {**metric.compute(), **outputs.mean_loss}
    return Scored(figures=figures, metric=metric, outputs=outputs, listing=listing)


def score(
    predictor: Predictor, store: ImageCache, *, batch_size: int = 64, tta: bool = False
) -> Scored:
    """Evaluate a network on a set: the figures of its task's metric, and the mean `loss`.

    The batch size does not change the figures.
    """
    loader = EvalLoader(store, batch_size=batch_size)
    outputs = run_network(predictor, loader, store.listing, tta=tta)
    scored = compute_figures([outputs], predictor.task, predictor.classes, store.listing)
    return replace(scored, threshold=predictor.threshold)
