# SPDX-License-Identifier: Apache-2.0
"""Pretraining from images to a run folder: `pretrain`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from muntin.errors import quote
from muntin.run_config import RunConfig
from muntin.runs import Run
from muntin.shapes import Size
from muntin.training.arguments import TrainArguments, check_arguments
from muntin.training.few_labels import judge, list_probe
from muntin.training.progress import Reporter
from muntin.training.session import TrainedRun, arrange


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
    devices: int = 0,
    seed: int = -1,
    out: str | Path = "",
    resume: bool = False,
    settings: Mapping[str, object] | None = None,
    config: str | Path | RunConfig | None = None,
    quiet: bool = False,
    stop_after: int = 0,
    pictures: bool = True,
    started: float = 0.0,
    nodes: int = 0,
) -> TrainedRun:
    """Learn from images without labels; `train(..., weights=RUN)` goes on for any task.

    `images` are a folder, an archive, a list of paths (.txt, .csv) or a data set of any task, whose
    labels are not used; some are held out for validation. `objective` is what is learnt: "mae",
    "simmim" or "views", or "auto" by the model. With `probe`, images with classes as for
    `train("classify", ...)`, the run ends in a verdict: what the backbone has gained over a fresh
    one. Other arguments are those of `muntin.train`; `weights` are those to go on from, random if
    "auto", and `recipe` is "pretrain", "pretrain-small" or "pretrain-views".

    Returns:
        The run; its metrics are those of the best epoch, and "probe" those of the verdict.

    Raises:
        ConfigError: A name or a setting is invalid, or the model cannot learn by the objective.
        DataError: There are fewer than two images, or `probe` cannot judge.
        WeightError: The requested weights are not available.
        TrainingError: The loss, a gradient or a weight is NaN or infinite.
        RunError: The run folder cannot be written or resumed.
    """
    check_arguments(locals())
    # Listed before the training, which may take hours: a wrong probe must not be found after it.
    if probe:
        list_probe(str(probe))
    done = arrange(TrainArguments(
        task="pretrain", data=images, head="" if objective == "auto" else objective, model=model,
        weights=weights, recipe=recipe, epochs=epochs, max_time_s=max_time_s,
        batch_size=batch_size, img_size=img_size, precision=precision, device=device,
        devices=devices, seed=seed, out=out, resume=resume, settings=settings, config=config,
        quiet=quiet, stop_after=stop_after, pictures=pictures, started=started,
        nodes=nodes,
    ))  # fmt: skip
    if done.interrupted or done.rank:
        return done
    reporter = Reporter(None if quiet else Console())
    again = f"muntin pretrain {quote(images)} --resume --out {quote(done.path)} --probe"
    if not probe:
        reporter.note(f"what it gained is measured with labelled images: {again} LABELLED")
        return done
    try:
        run = Run.open(done.path, pretraining=True)
        figures = judge(run, str(probe), done.seconds, reporter)
    except KeyboardInterrupt:
        reporter.note(f"the run is complete, but for its verdict: {again} {quote(probe)}")
        raise
    return replace(done, metrics={**done.metrics, "probe": figures})
