# SPDX-License-Identifier: Apache-2.0
"""Published models of dense tasks as run folders, for prediction, evaluation and fine-tuning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from muntin.configs import with_texts
from muntin.data.skeletons import COCO_PERSON
from muntin.data.transforms import Preprocessing
from muntin.errors import ConfigError, DataError, RunError
from muntin.recipes import AUGMENTS
from muntin.run_config import RunConfig
from muntin.runs import WEIGHTS, Run
from muntin.samples import Classes
from muntin.tasks.task import Task
from muntin.tasks.task_table import task_of_head
from muntin.weights.weight_files import write_weights
from muntin.weights.weight_loading import LoadReport, load_weights
from muntin.zoo.creating import create
from muntin.zoo.model_building import find_model
from muntin.zoo.model_zoo import ALIASES, ModelEntry

COCO_NAMES = tuple(
    name
    for name in MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    if name not in ("__background__", "N/A")
)
"""The 80 classes of COCO by category id."""


def open_published(
    source: str | Path,
    path: str | Path,
    *,
    model: str,
    head: str,
    conventions: str = "",
    class_names: tuple[str, ...] = (),
    settings: dict[str, str] | None = None,
) -> tuple[Run, LoadReport]:
    """Write a run folder from the weights of a published model of a dense task.

    `head` is "mask_rcnn", "cascade_mask_rcnn", "faster_rcnn", "cascade_rcnn", "upernet"; for the 17
    keypoints of COCO "simple_baseline", "vitpose", "vitpose_simple" or "keypoint_rcnn".
    `conventions` are the origin of the weights of an R-CNN: "openmmlab" (also Microsoft),
    "detectron2" or "torchvision"; default: that of the head. `class_names`, by number without
    background, are COCO's by default for detectors. `settings` are fields of the backbone's config,
    as text, that differ from the zoo. The folder must be new.
    """
    path = Path(path)
    if path.exists():
        message = f"OUT must be a new folder, got {path}, which exists. Choose another folder."
        raise RunError(message)
    name = ALIASES.get(model, model)
    entry = find_model(name)
    task = task_of_head(head)
    class_names = class_names or _default_names(task)
    skeleton = COCO_PERSON if task.kind == "keypoints" else None
    changed = with_texts(entry.config, (settings or {}).items())
    network = create(
        task.name,
        name,
        head=head,
        num_classes=len(class_names),
        num_keypoints=len(skeleton.names) if skeleton else None,
        conventions=conventions,
        **{field: getattr(changed, field) for field in settings or {}},
    )
    report = load_weights(network, source)
    if report.reset:
        message = (
            f"{source} must have {len(class_names)} classes, but the shapes of "
            f"{', '.join(report.reset[:2])} differ. Pass the class names with --classes."
        )
        raise ConfigError(message)
    body: Any = network.backbone
    head_config: Any = network.head.config
    config = RunConfig(
        task=task.name,
        data="",
        model_name=name,
        model=body.config,
        head=head_config,
        weights=str(source),
        license=report.license,
        augment=AUGMENTS[task.recipe_kind](),
    )
    preprocessing = _preprocessing(task, entry, head_config)
    classes = Classes(names=class_names, skeleton=skeleton)
    run = Run(path=path, config=config, classes=classes, preprocessing=preprocessing)
    run.write()
    write_weights(path / WEIGHTS, network.state_dict(), {"dialect": "muntin", "model": name})
    return run, report


def _preprocessing(task: Task, entry: ModelEntry, head: Any) -> Preprocessing:  # noqa: ANN401
    plain = Preprocessing(
        img_size=(512, 512), mean=entry.mean, std=entry.std, interpolation="bilinear"
    )
    if task.top_down:
        return replace(plain, img_size=(256, 192), fit="instance_crop", alignment=head.coding)
    if task.detects:
        return replace(plain, img_size=(800, 1333), fit="letterbox")
    return replace(plain, fit="sliding_window", short_side=512)


def _default_names(task: Task) -> tuple[str, ...]:
    if task.kind == "keypoints":
        return ("person",)
    if task.detects:
        return COCO_NAMES
    message = (
        "class_names are required for segmentation heads, got none. Pass --classes FILE with one "
        "name per line, by class number."
    )
    raise ConfigError(message)


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """Read class names, one per line."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        message = (
            f"--classes must be a text file with one name per line, got {str(path)!r}: {error}."
        )
        raise DataError(message) from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        message = f"--classes must list at least one class, got none in {str(path)!r}."
        raise DataError(message)
    return names
