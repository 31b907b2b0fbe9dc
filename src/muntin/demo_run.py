# SPDX-License-Identifier: Apache-2.0
"""The demo: generates images, trains and evaluates a model, and prints the next commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from muntin.data.decoding import open_image
from muntin.data.detection import list_detect
from muntin.data.listing import list_classify
from muntin.data.mask_values import read_mask
from muntin.data.pose import list_pose
from muntin.data.semantic import list_semantic
from muntin.drawing.detection_drawing import draw_detection_pair
from muntin.drawing.layout import Thumbnail, draw_sheet
from muntin.drawing.pose_drawing import annotated_poses, draw_pose_pair
from muntin.drawing.result_drawing import draw_semantic_pair
from muntin.drawing.saving import save_image
from muntin.errors import quote
from muntin.prediction.from_run import load
from muntin.results import Detections, Labels, Poses, SemanticMap
from muntin.samples import DataSets, Entry, Listing
from muntin.scoring.evaluation import evaluate
from muntin.staging import part_of, refuse_existing
from muntin.synthetic.datasets import write_classify, write_coco, write_frames, write_maps
from muntin.tasks.task_table import find_task
from muntin.training.session import TrainedRun, train

Tile = Callable[[Listing, Entry, NDArray[np.uint8], Any], Thumbnail]
"""Draws a prediction with the ground truth, from listing, entry, pixels and result."""

_PAIR = 640  # pixels: width of a ground truth and a prediction

# Easy enough for a few minutes: objects are nearly upright, and most have their usual colour.
_EASY: dict[str, Any] = {"max_angle": 0.5, "usual_colours": 0.9}
_SCENES: dict[str, Any] = {
    "num_train": 600,
    "num_val": 60,
    "size": (128, 160),
    "max_objects": 4,
    **_EASY,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Demo:
    """The demo of a task: the data, metrics to print, and a sheet of drawn predictions.

    `columns` of the sheet: 0 chooses; `side` is the longer one of each in pixels.
    """

    write_data: Callable[[Path], object]
    list_data: Callable[[Path], DataSets]
    draw_tile: Tile
    figures: tuple[str, ...]
    max_time_s: float
    num_images: int = 8
    columns: int = 2
    side: int = _PAIR


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
        RunError: The folder already contains a run, or data.
    """
    plan = _DEMOS[find_task(task).name]
    console = Console()
    out = Path(out or f"demo-{task}")
    data, run_folder = out / "data", out / "run"
    refuse_existing([run_folder, data], (), option="--out", force=None)
    console.print(f"Generating images of shapes in {data} ...", highlight=False)
    (write_data or plan.write_data)(data)
    limit = max_time_s or plan.max_time_s
    run = train(task, data, weights="none", max_time_s=limit, out=run_folder)
    if run.interrupted:
        return run
    figures = evaluate(run_folder, data)
    listing = plan.list_data(data).val
    assert listing is not None, "the generated set has images to validate with"
    _draw_predictions(run_folder, plan, listing, figures)
    image = Path(listing.source) / listing.entries[0].path
    console.print(f"\nResults on {figures['num_images']} validation images:", highlight=False)
    for name in plan.figures:
        console.print(f"  {name:10} {figures[name]:.3f}", highlight=False)
    console.print(f"Run folder: {run_folder}  (plots: {run_folder / 'pictures'})")
    console.print("Try next:", highlight=False)
    option = f" --out {quote(out / 'drawn')}" if find_task(task).dense else ""
    run_at, image_at, data_at = quote(run_folder), quote(image), quote(data)
    console.print(f"  muntin predict {run_at} {image_at}{option}", highlight=False, soft_wrap=True)
    console.print(f"  muntin eval {run_at} {data_at}", highlight=False, soft_wrap=True)
    return run


def _draw_predictions(
    run_folder: Path, plan: _Demo, listing: Listing, figures: dict[str, Any]
) -> None:
    predictor = load(run_folder)
    tiles = []
    for entry in listing.entries[:: max(1, len(listing) // plan.num_images)][: plan.num_images]:
        pixels = open_image(Path(listing.source) / entry.path)
        (result,) = predictor(pixels)
        if isinstance(result, Detections):
            result = result.above(result.threshold)
        tiles.append(plan.draw_tile(listing, entry, pixels, result))
    name = plan.figures[0]
    title = f"Ground truth and prediction, {name} {figures[name] or 0:.3f}"
    sheet = draw_sheet(tiles, title, columns=plan.columns, side=plan.side)
    save_image(sheet, part_of(run_folder, "pictures", "predictions.png"))


def _draw_classes(
    listing: Listing, entry: Entry, pixels: NDArray[np.uint8], result: Labels
) -> Thumbnail:
    truth = listing.class_names[entry.class_ids[0]]
    lines = (f"{result.best} {float(result.scores[0]):.2f}", f"true: {truth}")
    return Thumbnail(pixels=pixels, lines=lines, good=result.best == truth)


def _draw_objects(
    listing: Listing, entry: Entry, pixels: NDArray[np.uint8], result: Detections
) -> Thumbnail:
    assert entry.objects is not None, "the generated images have objects"
    drawn = draw_detection_pair(pixels, entry.objects, result, listing.class_names, side=_PAIR)
    return Thumbnail(pixels=np.asarray(drawn))


def _draw_map(
    listing: Listing, entry: Entry, pixels: NDArray[np.uint8], result: SemanticMap
) -> Thumbnail:
    drawn = draw_semantic_pair(pixels, read_mask(listing, entry).labels, result, side=_PAIR)
    return Thumbnail(pixels=np.asarray(drawn))


def _draw_poses(
    listing: Listing, entry: Entry, pixels: NDArray[np.uint8], result: Poses
) -> Thumbnail:
    assert entry.objects is not None, "the generated images have instances"
    assert listing.skeleton is not None, "instances have a skeleton"
    truth = annotated_poses(entry.objects, range(len(entry.objects)), listing.skeleton)
    return Thumbnail(pixels=np.asarray(draw_pose_pair(pixels, truth, result, side=_PAIR)))


_DEMOS = {
    "classify": _Demo(
        write_data=partial(
            write_classify, num_train_per_class=600, num_val_per_class=60, size=(64, 64), **_EASY
        ),
        list_data=list_classify,
        draw_tile=_draw_classes,
        figures=("top1", "macro_f1"),
        max_time_s=150.0,
        num_images=24,
        columns=0,
        side=150,
    ),
    "detect": _Demo(
        write_data=partial(write_coco, **_SCENES),
        list_data=list_detect,
        draw_tile=_draw_objects,
        figures=("box_ap", "box_ap50"),
        max_time_s=180.0,
    ),
    "instance": _Demo(
        write_data=partial(write_coco, **_SCENES),
        list_data=partial(list_detect, masks=True),
        draw_tile=_draw_objects,
        figures=("box_ap", "box_ap50", "mask_ap", "mask_ap50"),
        max_time_s=240.0,
    ),
    "pose": _Demo(
        write_data=partial(write_frames, num_train=600, num_val=60, size=(128, 128), **_EASY),
        list_data=partial(list_pose, whole=True),
        draw_tile=_draw_poses,
        figures=("oks_ap", "pck", "mean_pixel_error"),
        max_time_s=180.0,
    ),
    "semantic": _Demo(
        write_data=partial(write_maps, **_SCENES),
        list_data=list_semantic,
        draw_tile=_draw_map,
        figures=("miou", "pixel_accuracy"),
        max_time_s=180.0,
    ),
}
