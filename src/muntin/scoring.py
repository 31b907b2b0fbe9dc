# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""A network, a data set and a metric: one table of figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from muntin.data.loading import Batch, EvalLoader
from muntin.data.storing import DataConfig, PictureStore
from muntin.data.transforms import Preprocessing, normalise
from muntin.devices import choose_device
from muntin.drawing.plots import draw_bars, draw_confusion
from muntin.drawing.saving import save_figure, save_picture
from muntin.drawing.sheets import Tile, draw_sheet
from muntin.errors import DataError
from muntin.runs import Run
from muntin.samples import Listing
from muntin.tasks.task import Classes, Metric, Task

__all__ = ["Outputs", "Scored", "evaluate", "pick_part", "run_network", "score"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """What a network said about the pictures of a listing that could be read.

    Attributes:
        logits: Raw output, one row a picture.
        targets: What the task's loss compares it with.
        losses: Loss of each picture.
        indices: Place of each picture in the listing.
    """

    logits: Tensor
    targets: Tensor
    losses: Tensor
    indices: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """Figures, and what they were computed from.

    Attributes:
        figures: Named numbers; those of a class are lists in the order of the classes.
        metric: The collector (it holds the confusion matrix, say).
        outputs: What the network said.
        listing: The pictures.
    """

    figures: dict[str, Any]
    metric: Metric
    outputs: Outputs
    listing: Listing


@torch.no_grad()
def run_network(
    network: nn.Module,
    batches: Iterable[Batch],
    *,
    pre: Preprocessing,
    targets: Tensor,
    loss: Callable[[Any, Tensor], Tensor],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Outputs:
    """Run a network over batches, in evaluation mode, and collect what it says.

    Args:
        network: Left in the mode it was in.
        batches: Pictures; those with weight 0 are left out.
        pre: How they are normalised.
        targets: One row for each picture of the listing.
        loss: Loss of each picture from raw output and targets.
        device: Where the network is.
        autocast: Makes the context that sets the precision; as the weights are when left out.

    Returns:
        Everything on the CPU.
    """
    was_training = network.training
    network.eval()
    rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    try:
        for batch in batches:
            with autocast():
                logits = network(normalise(batch.images.to(device), pre))
            kept = batch.weights > 0
            logits, indices = logits.float().cpu()[kept], batch.indices[kept]
            wanted = targets[indices]
            rows.append((logits, wanted, loss(logits, wanted), indices))
    finally:
        network.train(was_training)
    if not rows:
        empty = torch.empty(0)
        return Outputs(logits=empty, targets=empty, losses=empty, indices=empty)
    logits, wanted, losses, indices = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return Outputs(logits=logits, targets=wanted, losses=losses, indices=indices)


def score(
    network: nn.Module,
    store: PictureStore,
    task: Task,
    classes: Classes,
    *,
    batch_size: int = 64,
    device: torch.device | None = None,
    workers: int = 0,
) -> Scored:
    """Evaluate a network on a set.

    Args:
        network: Backbone and head.
        store: The pictures.
        task: What they are for.
        classes: What the network was trained to tell apart.
        batch_size: Pictures at a time; the figures do not depend on it.
        device: Where the network is; the CPU when left out.
        workers: Processes that decode.

    Returns:
        The figures of the task's metric and the mean `loss`.
    """
    targets = task.targets(store.listing, classes)
    outputs = run_network(
        network,
        EvalLoader(store, batch_size=batch_size, workers=workers),
        pre=store.pre,
        targets=targets,
        loss=lambda logits, wanted: task.loss(logits, wanted, classes, None, 0.0),
        device=device or torch.device("cpu"),
    )
    metric = task.metric(classes)
    metric.update(outputs.logits, outputs.targets)
    figures = {**metric.compute(), "loss": outputs.losses.mean().item()}
    return Scored(figures=figures, metric=metric, outputs=outputs, listing=store.listing)


def pick_part(task: Task, data: Path | str, classes: Classes) -> Listing:
    """Choose what to evaluate on: the test part if the data has one, else validation, else all.

    Raises:
        DataError: The data cannot be read, or asks for other classes.
    """
    parts = task.list_data(data, classes.names)
    listing = parts.test or parts.val or parts.train
    if listing is None or not len(listing):
        message = f"{data} must hold pictures, got none. See: muntin check {task.name} {data}"
        raise DataError(message)
    if listing.multi_label and not classes.multi_label:
        message = (
            f"{data} must have one class a picture, as the run was trained with, got pictures "
            f"with none or several. Evaluate a run that was trained on several."
        )
        raise DataError(message)
    return listing


def evaluate(
    run: Run | Path | str,
    data: Path | str,
    *,
    batch_size: int = 64,
    device: str = "auto",
    pictures: bool = True,
) -> dict[str, Any]:
    """Score a run on a data set.

    Args:
        run: A run folder.
        data: What `DATA` may be; its test part if it has one, else its validation part, else all.
        batch_size: Pictures at a time.
        device: "auto" takes a GPU when there is one.
        pictures: Whether confusion matrix, per-class figures and worst mistakes are drawn into
            the run's ``pictures/eval``.

    Returns:
        Named figures in [0, 1], per class too, and `num_images`.

    Raises:
        RunError: The run folder is incomplete.
        DataError: The data cannot be read, or has other classes.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    listing = pick_part(run.task, data, run.classes)
    where = choose_device(device)
    network = run.load_network().to(where)
    store = PictureStore(listing, run.preprocessing, DataConfig())
    scored = score(network, store, run.task, run.classes, batch_size=batch_size, device=where)
    if pictures:
        draw_scored(scored, store, run.classes, run.path / "pictures" / "eval")
    return scored.figures


def draw_scored(scored: Scored, store: PictureStore, classes: Classes, folder: Path) -> None:
    """Draw confusion matrix, per-class figures and the worst mistakes into a folder."""
    figures, outputs = scored.figures, scored.outputs
    name, value = next((n, figures[n]) for n in ("top1", "map", "loss") if n in figures)
    per_class = next((n for n in ("recall", "average_precision") if n in figures), "")
    if per_class:
        values = dict(zip(classes.names, figures[per_class], strict=True))
        title = f"{per_class.replace('_', ' ')} of each class"
        save_figure(draw_bars(values, title, per_class.replace("_", " ")), folder / "per_class.png")
    if classes.multi_label or not len(outputs.indices):
        return
    counts = scored.metric.confusion.numpy()  # type: ignore[attr-defined]
    title = f"{name} {value:.3f} on {figures['num_images']} pictures"
    save_figure(draw_confusion(counts, classes.names, title), folder / "confusion.png")
    tiles = []
    scores = outputs.logits.softmax(dim=1)
    for row in outputs.losses.argsort(descending=True)[:24].tolist():
        said, truth = int(scores[row].argmax()), int(outputs.targets[row])
        index = int(outputs.indices[row])
        picture = store.picture(index)
        if said == truth or picture is None:
            continue
        lines = (
            f"true: {classes.names[truth]} {float(scores[row, truth]):.2f}",
            f"said: {classes.names[said]} {float(scores[row, said]):.2f}",
            "/".join(Path(scored.listing.entries[index].path).parts[-2:]),
        )
        shown = picture.expand(3, -1, -1).permute(1, 2, 0).numpy()
        tiles.append(Tile(picture=shown, lines=lines, good=False))
    if tiles:
        sheet = draw_sheet(tiles, "Worst mistakes: the true class least likely first")
        save_picture(sheet, folder / "worst_mistakes.png")
