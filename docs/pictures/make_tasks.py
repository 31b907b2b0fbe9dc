# SPDX-License-Identifier: Apache-2.0
"""Make the pictures of README: an answer of each task, as muntin draws it.

``python docs/pictures/make_tasks.py`` in the root of the repository. The images are generated, and
the answers are their annotations with scores made up: the pictures show what an answer is, not how
well a model does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

import muntin
from muntin.results import Detections, Labels, Poses, SemanticMap
from muntin.run_lengths import encode_mask
from muntin.synthetic.scenes import CLASS_NAMES, KEYPOINT_NAMES, Scene, make_scene

HERE = Path(__file__).resolve().parent
SIZE = (240, 320)
WIDTH = 560  # pixels; README shows them half as wide
SCENES = {"classify": (9, 1), "detect": (2, 6), "instance": (2, 6), "semantic": (2, 6),
          "pose": (1, 1)}  # fmt: skip
"""Number of each task's scene, and the most objects in it."""


def answer(task: str, scene: Scene) -> Any:  # noqa: ANN401 (one of muntin.results)
    """Write the annotations of a scene as an answer of the task, the best first."""
    objects = scene.objects[::-1]
    ids = np.array([one.class_id for one in objects])
    scores = np.linspace(0.98, 0.71, len(objects))
    place: dict[str, Any] = {"path": "", "size": SIZE}
    if task == "classify":
        others = (one for one in range(len(CLASS_NAMES)) if one != ids[0])
        ids, scores = np.array([ids[0], *others])[:3], np.array([0.94, 0.04, 0.02])
    names = tuple(CLASS_NAMES[one] for one in ids)
    if task == "classify":
        return Labels(**place, class_ids=ids, scores=scores, class_names=names)
    if task == "semantic":
        labels = np.full(SIZE, -1, np.int16)  # the background stays as it is
        for one in scene.objects:
            labels[one.mask] = one.class_id
        return SemanticMap(**place, labels=labels, class_names=CLASS_NAMES)
    if task == "pose":
        points = np.stack([one.keypoints for one in objects]).astype(float)
        points[..., 2] = points[..., 2] > 0
        edges = tuple((0, tip) for tip in range(1, len(KEYPOINT_NAMES)))
        return Poses(
            **place, keypoints=points, scores=scores, keypoint_names=KEYPOINT_NAMES, edges=edges
        )
    boxes = np.array([one.box_xyxy for one in objects], float)
    masks = tuple(encode_mask(one.mask) for one in objects) if task == "instance" else None
    return Detections(
        **place, boxes=boxes, class_ids=ids, scores=scores, class_names=names, masks=masks
    )


def main() -> None:
    """Write ``task_TASK.png`` for each task."""
    for task, (number, most) in SCENES.items():
        scene = make_scene(7, number, size=SIZE, max_objects=most)
        # Without its noise, which would make pictures large.
        pixels = np.asarray(Image.fromarray(scene.image).filter(ImageFilter.MedianFilter(5)))
        drawn = muntin.draw(pixels, answer(task, scene)).convert("RGB")
        size = (WIDTH, round(WIDTH * drawn.height / drawn.width))
        drawn = drawn.resize(size, Image.Resampling.LANCZOS)
        small = drawn.quantize(128, method=Image.Quantize.MEDIANCUT)
        small.save(HERE / f"task_{task}.png", optimize=True)


if __name__ == "__main__":
    main()
