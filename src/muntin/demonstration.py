# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The demo: generated pictures, a model trained on them, its figures and what to try next."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from muntin.data.shape_sets import write_classify
from muntin.drawing.saving import save_picture
from muntin.drawing.sheets import Tile, draw_sheet
from muntin.errors import RunError
from muntin.prediction import load
from muntin.scoring import evaluate
from muntin.tasks import find_task
from muntin.training.session import TrainedRun, train

__all__ = ["demo"]

SIDE = 64
MAX_TIME_S = 150.0


def demo(task: str = "classify", *, out: str | Path = "demo") -> TrainedRun:
    """Show everything once, in a few minutes on two CPU cores.

    Args:
        task: "classify".
        out: Folder for the generated data and the run.

    Returns:
        The trained run.

    Raises:
        ConfigError: There is no such task.
        RunError: The folder already holds a run.
    """
    find_task(task)
    console = Console()
    out = Path(out)
    data, run_folder = out / "data", out / "run"
    if run_folder.exists():
        message = f"out must be a new folder, got {out}, which holds a run. Pass another --out."
        raise RunError(message)
    console.print(f"Generating pictures of shapes in {data} ...", highlight=False)
    write_classify(
        data,
        num_train_per_class=600,
        num_val_per_class=60,
        size=(SIDE, SIDE),
        # Not too hard for two minutes: objects stand nearly upright and most have their colour.
        max_angle=0.5,
        usual_colours=0.9,
    )
    run = train(task, data, weights="none", max_time_s=MAX_TIME_S, out=run_folder)
    if run.interrupted:
        return run
    figures = evaluate(run_folder, data)
    pictures = sorted((data / "val").rglob("*.png"))
    _draw_predictions(run_folder, pictures[:: max(1, len(pictures) // 24)][:24])
    console.print(f"\nOn pictures it has not seen ({figures['num_images']}):", highlight=False)
    for name in ("top1", "macro_f1"):
        console.print(f"  {name:10} {figures[name]:.3f}", highlight=False)
    console.print(f"Run folder: {run_folder}  (look into {run_folder / 'pictures'})")
    console.print("Try next:", highlight=False)
    console.print(f"  muntin predict {run_folder} {pictures[0]}", highlight=False, soft_wrap=True)
    console.print(f"  muntin eval {run_folder} {data}", highlight=False, soft_wrap=True)
    return run


def _draw_predictions(run_folder: Path, pictures: list[Path]) -> None:
    predictor = load(run_folder)
    tiles = []
    for path, result in zip(pictures, predictor(pictures), strict=True):
        from muntin.data.decoding import open_picture

        truth = path.parent.name
        lines = (f"{result.best} {float(result.scores[0]):.2f}", f"true: {truth}")
        tiles.append(Tile(picture=open_picture(path), lines=lines, good=result.best == truth))
    sheet = draw_sheet(tiles, "Predictions beside the truth")
    save_picture(sheet, run_folder / "pictures" / "predictions.png")
