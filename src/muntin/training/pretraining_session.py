# SPDX-License-Identifier: Apache-2.0
"""Pretraining from images to a run folder: `pretrain`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from muntin.run_config import RunConfig
from muntin.runs import Run
from muntin.shapes import Size
from muntin.training.few_labels import judge, list_probe
from muntin.training.machine import choose_machine
from muntin.training.progress import Reporter
from muntin.training.request import Request, read_config
from muntin.training.session import Sitting, TrainedRun, carry_out, new_folder


def pretrain(
    images: str | Path,
    *,
    model: str = "",
    objective: str = "auto",
    probe: str | Path = "",
    weights: str | Path | None = "auto",
    recipe: str = "auto",
    epochs: int = 0,
    max_time_s: float = 0.0,
    batch_size: int = 0,
    img_size: int | Size = 0,
    precision: str = "auto",
    device: str = "auto",
    devices: int = 1,
    seed: int = -1,
    out: str | Path = "",
    resume: bool = False,
    settings: Mapping[str, object] | None = None,
    config: str | Path | RunConfig | None = None,
    quiet: bool = False,
    stop_after: int = 0,
    pictures: bool = True,
    started: float = 0.0,
) -> TrainedRun:
    """Learn from images without labels; `train(..., weights=RUN)` goes on for any task.

    `images` are a folder, an archive, a list of paths (.txt, .csv) or a data set of any task, whose
    labels are not used; some are held out for validation. `objective` is what is learnt: "mae",
    "simmim" or "views", or "auto" by the model. With `probe`, images with classes as for
    `train("classify", ...)`, the run ends in a verdict: what the backbone has gained over a fresh
    one. `weights` are those to go on from, if they are not to be random; `recipe` is "pretrain",
    "pretrain-small" or "pretrain-views". Other arguments are those of `muntin.train`.

    Returns:
        The run; its metrics are those of the best epoch, and "probe" those of the verdict.

    Raises:
        ConfigError: A name or a setting is invalid, or the model cannot learn by the objective.
        DataError: There are fewer than two images, or `probe` has no classes.
        WeightError: The requested weights are not available.
        TrainingError: The loss, a gradient or a weight is NaN or infinite.
        RunError: The run folder cannot be written or resumed.
    """
    begun = started or time.monotonic()  # a limit includes reading the images
    base = read_config(config) if isinstance(config, (str, Path)) else config
    request = Request(
        task="pretrain",
        data=str(images),
        out=str(out or new_folder(Path(images))),
        model=model,
        head="" if objective == "auto" else objective,
        weights="none" if weights is None else str(weights),
        recipe=recipe,
        epochs=epochs,
        max_time_s=max_time_s,
        batch_size=batch_size,
        img_size=(img_size, img_size) if isinstance(img_size, int) else img_size,
        seed=seed,
        machine=choose_machine(base, precision, device, devices),
        settings=tuple((name, str(value)) for name, value in (settings or {}).items()),
        base=base,
    )
    sitting = Sitting(
        resume=resume,
        has_out=bool(out),
        started=begun,
        stop_after=stop_after,
        quiet=quiet,
        pictures=pictures,
    )
    if probe:
        list_probe(str(probe))
    done = carry_out(request, sitting)
    if done.interrupted:
        return done
    reporter = Reporter(None if quiet else Console())
    if not probe:
        reporter.note(
            f"what it gained is measured with labelled images: muntin pretrain {images} --resume "
            f"--out {done.path} --probe LABELLED"
        )
        return done
    run = Run.open(done.path, pretraining=True)
    figures = judge(run, str(probe), done.seconds, reporter)
    return replace(done, metrics={**done.metrics, "probe": figures})
