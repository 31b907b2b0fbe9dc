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
from PIL import Image
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
from muntin.results import Detections, Poses, SemanticMap
from muntin.samples import Entry, Listing
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
    threshold = figures["best_threshold"] or 0.5

    def draw(pixels: np.ndarray, entry: Entry, found: Detections) -> Image.Image:
        assert entry.objects is not None, "the generated images have objects"
        return draw_detection_pair(
            pixels, entry.objects, found.above(threshold), listing.class_names
        )

    title = f"Ground truth, and detections with score >= {threshold:.2f}"
    _draw_pairs(run_folder, listing, title, draw)


def _draw_maps(run_folder: Path, data: Path, figures: dict[str, Any]) -> None:
    listing = list_semantic(data).val
    assert listing is not None, "the generated set has images to validate with"

    def draw(pixels: np.ndarray, entry: Entry, found: SemanticMap) -> Image.Image:
        return draw_semantic_pair(pixels, read_mask(listing, entry).labels, found)

    title = f"Ground truth and prediction, mIoU {figures['miou']:.3f}"
    _draw_pairs(run_folder, listing, title, draw)


def _draw_instances(run_folder: Path, data: Path, figures: dict[str, Any]) -> None:
    listing = list_pose(data, whole=True).val
    assert listing is not None, "the generated set has images to validate with"
    skeleton = listing.skeleton
    assert skeleton is not None, "instances have a skeleton"

    def draw(pixels: np.ndarray, entry: Entry, found: Poses) -> Image.Image:
        assert entry.objects is not None, "the generated images have instances"
        truth = annotated_poses(entry.objects, range(len(entry.objects)), skeleton)
        return draw_pose_pair(pixels, truth, found)

    title = f"Ground truth and prediction, PCK {figures['pck']:.3f}"
    _draw_pairs(run_folder, listing, title, draw)


def _draw_pairs(
    run_folder: Path, listing: Listing, title: str, draw: Callable[..., Image.Image]
) -> None:
    """Draw what is annotated beside what is found; `draw` gets pixels, entry and result."""
    predictor = load(run_folder)
    tiles = []
    for entry in listing.entries[:8]:
        pixels = open_image(Path(listing.source) / entry.path)
        drawn = draw(pixels, entry, predictor(pixels)[0])
        tiles.append(Thumbnail(pixels=np.asarray(drawn)))
    sheet = draw_sheet(tiles, title, columns=2, side=520)
    save_image(sheet, run_folder / "pictures" / "predictions.png")


# Easy enough for minutes: objects are nearly upright, and most have their usual colour.
_EASY: dict[str, Any] = {"max_angle": 0.5, "usual_colours": 0.9}
_SCENES: dict[str, Any] = {
    "num_train": 600, "num_val": 60, "size": (128, 160), "max_objects": 4, **_EASY,
}  # fmt: skip

_DEMOS = {
    "classify": _Demo(
        write_data=partial(
            write_classify, num_train_per_class=600, num_val_per_class=60, size=(64, 64), **_EASY
        ),
        draw=_draw_classes,
        figures=("top1", "macro_f1"),
        max_time_s=150.0,
    ),
    "detect": _Demo(
        write_data=partial(write_coco, **_SCENES),
        draw=_draw_objects,
        figures=("box_ap", "box_ap50"),
        max_time_s=180.0,
    ),
    "instance": _Demo(
        write_data=partial(write_coco, **_SCENES),
        draw=_draw_objects,
        figures=("box_ap", "box_ap50", "mask_ap", "mask_ap50"),
        max_time_s=240.0,
    ),
    "pose": _Demo(
        write_data=partial(write_frames, num_train=600, num_val=60, size=(128, 128), **_EASY),
        draw=_draw_instances,
        figures=("oks_ap", "pck", "mean_pixel_error"),
        max_time_s=180.0,
    ),
    "semantic": _Demo(
        write_data=partial(write_maps, **_SCENES),
        draw=_draw_maps,
        figures=("miou", "pixel_accuracy"),
        max_time_s=180.0,
    ),
}
