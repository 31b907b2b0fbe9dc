# SPDX-License-Identifier: Apache-2.0
"""Preview of a training batch after augmentation, drawn before the first step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from muntin.data.cache import ImageCache
from muntin.data.loading import TrainLoader
from muntin.drawing.detection_drawing import draw_objects
from muntin.drawing.layout import Thumbnail, draw_sheet
from muntin.drawing.result_drawing import draw_labels, draw_poses
from muntin.drawing.saving import save_image
from muntin.errors import plural
from muntin.results import Poses
from muntin.run_lengths import Segmentation, encode_mask
from muntin.runs import Run
from muntin.samples import Objects
from muntin.targets import BoxTargets, Keypoints, LabelMap, Target


def draw_batch(run: Run, store: ImageCache) -> None:
    """Draw augmented training images with their targets into ``pictures/batch.png``."""
    config = run.config
    count, side = (12, 280) if run.task.dense else (24, 150)
    loader = TrainLoader(store, config.augment, batch_size=count, seed=config.train.seed)
    batch = next(loader.batches(0, 0, run.preprocessing.img_size))
    tiles = []
    for row, (high, wide) in enumerate(batch.sizes.tolist()):
        # Without padding, and greyscale images as RGB.
        image = batch.images[row, :, :high, :wide]
        pixels = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
        target = None if batch.targets is None else batch.targets[row]
        ids = store.listing.entries[int(batch.indices[row])].class_ids
        tiles.append(_draw_tile(target, pixels, run, ids))
    sheet = draw_sheet(tiles, "Training images after augmentation", side=side)
    save_image(sheet, run.path / "pictures" / "batch.png")


def _draw_tile(
    target: Target | None, pixels: NDArray[np.uint8], run: Run, class_ids: Sequence[int]
) -> Thumbnail:
    """Draw an image with its targets; in classification, with the names of its classes."""
    names = run.classes.names
    if isinstance(target, LabelMap):
        return Thumbnail(pixels=np.asarray(draw_labels(pixels, target.labels.numpy(), names)))
    if isinstance(target, Keypoints):
        return Thumbnail(pixels=np.asarray(draw_poses(pixels, _as_poses(target, run))))
    if isinstance(target, BoxTargets):
        objects = _as_objects(target)
        drawn = np.asarray(draw_objects(pixels, objects, names))
        return Thumbnail(pixels=drawn, lines=(plural(len(objects), "object"),))
    return Thumbnail(pixels=pixels, lines=(", ".join(names[i] for i in class_ids) or "none",))


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
