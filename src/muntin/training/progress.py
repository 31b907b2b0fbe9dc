# SPDX-License-Identifier: Apache-2.0
"""What a training shows: a live bar or lines, and a picture of its first batch."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from muntin.data.cache import ImageCache
from muntin.data.loading import TrainLoader
from muntin.data.transforms import to_shown
from muntin.drawing.detection_drawing import draw_objects
from muntin.drawing.layout import Thumbnail, draw_sheet
from muntin.drawing.pose_drawing import draw_poses
from muntin.drawing.result_drawing import draw_labels
from muntin.drawing.saving import save_image
from muntin.drawing.style import clean_label
from muntin.errors import plural
from muntin.results import Poses
from muntin.run_lengths import Segmentation, encode_mask
from muntin.runs import Run
from muntin.samples import Objects
from muntin.staging import part_of
from muntin.targets import BoxTargets, Keypoints, LabelMap, Target

LINE_EVERY_S = 30.0
_SIDE = 320  # pixels: of images with targets in the sheet of the first batch


def format_duration(seconds: float) -> str:
    """Format a duration in seconds.

    Examples:
        >>> format_duration(9), format_duration(75), format_duration(3700)
        ('9s', '1m15s', '1h01m')
    """
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02}m"


class Reporter(ExitStack):
    """Reports progress: a bar in a terminal or a notebook, a line every `line_every_s` elsewhere.

    Without a console it is silent, as in all processes but the first.
    """

    def __init__(self, console: Console | None, line_every_s: float = LINE_EVERY_S) -> None:
        super().__init__()
        self._console, self._line_every_s = console, line_every_s
        self._bar: Progress | None = None
        self._row: TaskID | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> Reporter:
        """Start the bar."""
        if self._console is not None and _is_live(self._console):
            bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[facts]}", markup=False),
                console=self._console,
                transient=True,
                refresh_per_second=4,
                redirect_stdout=sys.stdout.isatty(),  # not what goes to a file
            )
            self._bar = self.enter_context(bar)
            self._row = bar.add_task("starting", total=1.0, facts="")
        return self

    def note(self, text: str, *, style: str | None = None) -> None:
        """Print a line, above the bar if it is active."""
        if self._console is not None:
            # No markup: file names may contain brackets.
            self._console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    def step(self, title: str, done: float, facts: Mapping[str, str]) -> None:
        """Report the progress after a step: the finished part, in [0, 1], and formatted metrics."""
        if self._console is None:
            return
        text = "  ".join(f"{name} {value}" for name, value in facts.items())
        if self._bar is not None and self._row is not None:
            self._bar.update(self._row, description=title, completed=done, facts=text)
        # In a log file each redrawn bar would be a line.
        elif time.monotonic() - self._last_line > self._line_every_s:
            self._last_line = time.monotonic()
            self.note(f"{title}  {done:.0%}  {text}")


def _is_live(console: Console) -> bool:
    """Whether a bar can be redrawn: in a terminal, and in notebooks that have widgets."""
    widgets = console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal or widgets


def draw_batch(run: Run, store: ImageCache) -> None:
    """Draw augmented training images with their targets into ``pictures/batch.png``."""
    config = run.config
    count, side = (12, _SIDE) if run.task.dense else (24, 150)
    loader = TrainLoader(store, config.augment, batch_size=count, seed=config.train.seed)
    batch = next(loader.batches(0, 0, run.preprocessing.img_size))
    tiles = []
    for row, (high, wide) in enumerate(batch.sizes.tolist()):
        # Without padding.
        image = batch.images[row, :, :high, :wide]
        pixels = to_shown(image)
        target = None if batch.targets is None else batch.targets[row]
        ids = store.listing.entries[int(batch.indices[row])].class_ids
        tiles.append(_draw_tile(target, pixels, run, ids))
    sheet = draw_sheet(tiles, "Training images after augmentation", side=side)
    save_image(sheet, part_of(run.path, "pictures", "batch.png"))


def _draw_tile(
    target: Target | None, pixels: NDArray[np.uint8], run: Run, class_ids: Sequence[int]
) -> Thumbnail:
    """Draw an image with its targets; in classification, with the names of its classes."""
    names = run.classes.names
    if isinstance(target, LabelMap):
        labels = target.labels.numpy()
        return Thumbnail(pixels=np.asarray(draw_labels(pixels, labels, names, largest=_SIDE)))
    if isinstance(target, Keypoints):
        poses = draw_poses(pixels, _as_poses(target, run), largest=_SIDE)
        return Thumbnail(pixels=np.asarray(poses))
    if isinstance(target, BoxTargets):
        objects = _as_objects(target)
        drawn = np.asarray(draw_objects(pixels, objects, names, largest=_SIDE))
        return Thumbnail(pixels=drawn, lines=(plural(len(objects), "object"),))
    if not names:  # pretraining
        return Thumbnail(pixels=pixels)
    return Thumbnail(
        pixels=pixels, lines=(", ".join(clean_label(names[i], i) for i in class_ids) or "none",)
    )


def _as_poses(target: Keypoints, run: Run) -> Poses:
    skeleton = run.classes.skeleton
    assert skeleton is not None, "keypoints have a skeleton"
    points = torch.cat([target.points, target.known[:, None].float()], dim=1)
    return Poses(
        path="",
        size=run.preprocessing.img_size,
        keypoints=points[None].double().numpy(),
        scores=np.ones(1),
        keypoint_names=skeleton.names,
        edges=skeleton.edges,
        flip_pairs=skeleton.flip_pairs,
    )


def _as_objects(targets: BoxTargets) -> Objects:
    boxes = np.concatenate([targets.boxes.numpy(), targets.ignored.numpy()])
    num_objects, count = len(targets.boxes), len(boxes)
    return Objects(
        boxes=boxes,
        # Ignored regions are drawn as crowds, whose class does not matter.
        class_ids=np.r_[targets.class_ids.numpy(), np.zeros(count - num_objects, np.int64)],
        crowd=np.arange(count) >= num_objects,
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        masks=_masks(targets, count) if len(targets.layers) else (),
    )


def _masks(targets: BoxTargets, count: int) -> tuple[Segmentation | None, ...]:
    masks: list[Segmentation | None] = [None] * count
    for number, layer in enumerate(targets.layer_of.tolist()):
        if layer >= 0:
            mask: NDArray[np.bool_] = (targets.layers[layer] == number + 1).numpy()
            masks[number] = encode_mask(mask)
    return tuple(masks)
