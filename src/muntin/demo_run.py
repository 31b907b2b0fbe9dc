# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The demo: generates images, trains and evaluates a model, and prints the next commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from muntin.data.decoding import open_image
from muntin.data.detection import list_detect
from muntin.data.label_files import read_mask
from muntin.data.pose import list_pose
from muntin.data.semantic import list_semantic
from muntin.drawing.detection_drawing import draw_detection_pair
from muntin.drawing.grid import Thumbnail, draw_sheet
from muntin.drawing.pose_drawing import annotated_poses, draw_pose_pair
from muntin.drawing.saving import save_image
from muntin.drawing.semantic_drawing import draw_semantic_pair
from muntin.errors import RunError
from muntin.prediction.from_run import load
from muntin.scoring.evaluation import evaluate
from muntin.synthetic.datasets import write_classify, write_coco, write_frames, write_maps
from muntin.tasks.task_table import find_task
from muntin.training.session import TrainedRun, train

__all__ = ["demo"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Demo:
    """The demo of a task; `figures` names the metrics to print, `max_time_s` limits training."""

    write_data: Callable[[Path], object]
    draw: Callable[[Path, Path, dict[str, Any]], None]
    figures: tuple[str, ...]
    max_time_s: float


def demo(
    task: str = "classify",
    *,
    out: str | Path = "",
    write_data: Callable[[Path], object] | None = None,
    max_time_s: float = 0.0,
) -> TrainedRun:
    """Run the whole workflow once, in a few minutes on two CPU cores.

    Args:
        task: "classify", "detect", "instance", "semantic" or "pose".
        out: Folder for the generated data and the run; ``demo-TASK`` when empty.
        write_data: Writes the data set to a folder; default: hundreds of images.
        max_time_s: Seconds of training; 0: a few minutes.

    Returns:
        The trained run.

    Raises:
        ConfigError: The task is unknown.
        RunError: The folder already contains a run.
    """
    plan = _DEMOS[find_task(task).name]
    console = Console()
    out = Path(out or f"demo-{task}")
    data, run_folder = out / "data", out / "run"
    if run_folder.exists():
        message = (
            f"--out must be a new folder, got {out}, which contains a run. Choose another folder."
        )
        raise RunError(message)
    console.print(f"Generating images of shapes in {data} ...", highlight=False)
    (write_data or plan.write_data)(data)
    limit = max_time_s or plan.max_time_s
    run = train(task, data, weights="none", max_time_s=limit, out=run_folder)
    if run.interrupted:
        return run
    figures = evaluate(run_folder, data)
    plan.draw(run_folder, data, figures)
    image = _images(data)[0]
    console.print(f"\nResults on {figures['num_images']} validation images:", highlight=False)
    for name in plan.figures:
        console.print(f"  {name:10} {figures[name]:.3f}", highlight=False)
    console.print(f"Run folder: {run_folder}  (plots: {run_folder / 'pictures'})")
    console.print("Try next:", highlight=False)
    option = f" --out {out / 'drawn'}" if find_task(task).dense else ""
    console.print(f"  muntin predict {run_folder} {image}{option}", highlight=False, soft_wrap=True)
    console.print(f"  muntin eval {run_folder} {data}", highlight=False, soft_wrap=True)
    return run


def _images(data: Path) -> list[Path]:
    """Validation images."""
    found = (path for path in data.rglob("*") if path.suffix in (".png", ".jpg"))
    parts = ((path, path.relative_to(data).parts) for path in found)
    return sorted(path for path, names in parts if "val" in names and "masks" not in names)


def _write_classify(folder: Path) -> object:
    # Easy enough for two minutes: objects are nearly upright, and most have their usual colour.
    return write_classify(
        folder,
        num_train_per_class=600,
        num_val_per_class=60,
        size=(64, 64),
        max_angle=0.5,
        usual_colours=0.9,
    )


def _write_scenes(folder: Path, write: Callable[..., Path] = write_coco) -> object:
    return write(
        folder,
        num_train=600,
        num_val=60,
        size=(128, 160),
        max_objects=4,
        max_angle=0.5,
        usual_colours=0.9,
    )


def _write_frames(folder: Path) -> object:
    return write_frames(
        folder, num_train=600, num_val=60, size=(128, 128), max_angle=0.5, usual_colours=0.9
    )


def _draw_classes(run_folder: Path, data: Path, figures: dict[str, Any]) -> None:
    every = [path for path in _images(data) if path.suffix == ".png"]
    images = every[:: max(1, len(every) // 24)][:24]
    tiles = []
    for path, result in zip(images, load(run_folder)(images), strict=True):
        truth = path.parent.name
        lines = (f"{result.best} {float(result.scores[0]):.2f}", f"true: {truth}")
        tiles.append(Thumbnail(pixels=open_image(path), lines=lines, good=result.best == truth))
    sheet = draw_sheet(tiles, "Predictions and ground truth")
    save_image(sheet, run_folder / "pictures" / "predictions.png")


def _draw_objects(run_folder: Path, data: Path, figures: dict[str, Any]) -> None:
    listing = list_detect(data, masks="mask_ap" in figures).val
    assert listing is not None, "the generated set has images to validate with"
    predictor = load(run_folder)
    threshold = figures["best_threshold"] or 0.5
    tiles = []
    for entry in listing.entries[:8]:
        assert entry.objects is not None, "the generated images have objects"
        pixels = open_image(Path(listing.source) / entry.path)
        found = predictor(pixels)[0].above(threshold)
        drawn = draw_detection_pair(pixels, entry.objects, found, listing.class_names)
        tiles.append(Thumbnail(pixels=np.asarray(drawn)))
    sheet = draw_sheet(
        tiles, f"Ground truth, and detections with score >= {threshold:.2f}", columns=2, side=520
    )
    save_image(sheet, run_folder / "pictures" / "predictions.png")


def _draw_maps(run_folder: Path, data: Path, figures: dict[str, Any]) -> None:
    listing = list_semantic(data).val
    assert listing is not None, "the generated set has images to validate with"
    predictor = load(run_folder)
    tiles = []
    for entry in listing.entries[:8]:
        pixels = open_image(Path(listing.source) / entry.path)
        truth = read_mask(listing, entry).labels
        drawn = draw_semantic_pair(pixels, truth, predictor(pixels)[0])
        tiles.append(Thumbnail(pixels=np.asarray(drawn)))
    sheet = draw_sheet(
        tiles, f"Ground truth and prediction, mIoU {figures['miou']:.3f}", columns=2, side=520
    )
    save_image(sheet, run_folder / "pictures" / "predictions.png")


def _draw_instances(run_folder: Path, data: Path, figures: dict[str, Any]) -> None:
    listing = list_pose(data, whole=True).val
    assert listing is not None, "the generated set has images to validate with"
    assert listing.skeleton is not None, "instances have a skeleton"
    predictor = load(run_folder)
    tiles = []
    for entry in listing.entries[:8]:
        assert entry.objects is not None, "the generated images have instances"
        pixels = open_image(Path(listing.source) / entry.path)
        found = predictor(pixels)[0]
        truth = annotated_poses(entry.objects, range(len(entry.objects)), listing.skeleton)
        tiles.append(Thumbnail(pixels=np.asarray(draw_pose_pair(pixels, truth, found))))
    title = f"Ground truth and prediction, PCK {figures['pck']:.3f}"
    sheet = draw_sheet(tiles, title, columns=2, side=520)
    save_image(sheet, run_folder / "pictures" / "predictions.png")


_DEMOS = {
    "classify": _Demo(
        write_data=_write_classify,
        draw=_draw_classes,
        figures=("top1", "macro_f1"),
        max_time_s=150.0,
    ),
    "detect": _Demo(
        write_data=_write_scenes,
        draw=_draw_objects,
        figures=("box_ap", "box_ap50"),
        max_time_s=180.0,
    ),
    "instance": _Demo(
        write_data=_write_scenes,
        draw=_draw_objects,
        figures=("box_ap", "box_ap50", "mask_ap", "mask_ap50"),
        max_time_s=240.0,
    ),
    "pose": _Demo(
        write_data=_write_frames,
        draw=_draw_instances,
        figures=("oks_ap", "pck", "mean_pixel_error"),
        max_time_s=180.0,
    ),
    "semantic": _Demo(
        write_data=partial(_write_scenes, write=write_maps),
        draw=_draw_maps,
        figures=("miou", "pixel_accuracy"),
        max_time_s=180.0,
    ),
}
