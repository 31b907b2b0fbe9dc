# SPDX-License-Identifier: Apache-2.0
"""Published models as run folders, for prediction, evaluation and fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from muntin.configs import with_texts
from muntin.data.skeletons import COCO_PERSON
from muntin.data.transforms import Preprocessing
from muntin.errors import ConfigError, DataError, RunError, WeightError
from muntin.heads.rcnn_config import CONVENTIONS, RCNNConfig
from muntin.models.vit_det import ViTDetConfig
from muntin.recipes import AUGMENTS
from muntin.run_config import RunConfig
from muntin.run_files import WEIGHTS
from muntin.runs import Run
from muntin.samples import Classes
from muntin.shapes import Size
from muntin.tasks.task import Task
from muntin.tasks.task_table import task_of_head
from muntin.untrusted import read_regular, reading
from muntin.weights.opened_weights import open_weights
from muntin.weights.source_info import SourceInfo, read_source_info
from muntin.weights.weight_files import write_weights
from muntin.weights.weight_loading import LoadReport, load_weights
from muntin.zoo.creating import create, resolve_head
from muntin.zoo.model_building import find_model
from muntin.zoo.model_zoo import ModelEntry
from muntin.zoo.published_classifier import PublishedModel, build_shell, read_classifier
from muntin.zoo.source_models import find_source_model

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
    model: str = "",
    head: str = "",
    dialect: str = "auto",
    class_names: tuple[str, ...] = (),
    settings: Mapping[str, str] | None = None,
) -> tuple[Run, LoadReport]:
    """Write a run folder from the weights of a published or a fine-tuned model.

    Files of transformers or timm beside the weights state the model, the names of its classes and
    how images are prepared; otherwise these are what the arguments say, and what is known of the
    model.

    Args:
        source: Weights, as in `load_weights`.
        path: A new folder.
        model: Name of the model; may be empty if it is stated beside the weights.
        head: Empty for a classifier, or "mask_rcnn", "cascade_mask_rcnn", "faster_rcnn",
            "cascade_rcnn", "mask_rcnn_vitdet", "cascade_mask_rcnn_vitdet", "upernet"; for the 17
            keypoints of COCO "simple_baseline", "vitpose", "vitpose_simple" or "keypoint_rcnn".
        dialect: As in `load_weights`; also the origin of an R-CNN, whose conventions it gets.
        class_names: By class number without background.
        settings: Fields as text that differ from the zoo: of the backbone's config, or, behind
            "head.", of the head's; for a classifier "head.rows", as `head_rows` of `load_weights`.

    Raises:
        ConfigError: The model or the classes are not known, or do not fit.
        WeightError: The weights cannot be read or do not fit.
        RunError: The folder exists.
    """
    path = Path(path)
    if path.exists():
        message = f"OUT must be a new folder, got {path}, which exists. Choose another folder."
        raise RunError(message)
    texts = dict(settings or {})
    of_head = {key[5:]: texts.pop(key) for key in list(texts) if key.startswith("head.")}
    if of_head and not head and [*of_head] != ["rows"]:
        message = f"fields of a head require --head, got {of_head}."
        raise ConfigError(message)
    with reading(str(source), "Copy or download it again.", WeightError):
        name, entry = find_source_model(model, read_source_info(source), texts)
        if head:
            read = _read_dense(source, name, entry, class_names, (head, dialect, of_head))
        else:
            opened = open_weights(source, dialect, build_shell(entry))
            if "img_size" in texts and opened.stated is not None:
                opened = replace(opened, stated=_resized(opened.stated, entry.config.img_size))
            read = read_classifier(opened, name, entry, class_names, of_head.get("rows"))
    body: Any = read.network.backbone
    config = RunConfig(
        task=read.task.name,
        data="",
        model_name=name,
        model=body.config,
        head=getattr(read.network.head, "config", None),
        weights=str(source),
        license=read.report.license,
        augment=AUGMENTS[read.task.recipe_kind](),
    )
    run = Run(path=path, config=config, classes=read.classes, preprocessing=read.preprocessing)
    run.write()
    state = read.network.state_dict()
    write_weights(path / WEIGHTS, state, {"dialect": "muntin", "model": name})
    return run, read.report


def _read_dense(
    source: str | Path,
    name: str,
    entry: ModelEntry,
    class_names: tuple[str, ...],
    chosen: tuple[str, str, dict[str, str]],
) -> PublishedModel:
    head, dialect, texts = chosen
    task = task_of_head(head)
    if dialect == "auto" and "rcnn" in head and not head.endswith("_small"):
        dialect = open_weights(source, "auto", build_shell(entry)).dialect
    conventions = dialect if dialect in CONVENTIONS else ""
    beside = read_source_info(source)
    if beside is not None and beside.problem:
        raise ConfigError(beside.problem)
    class_names = class_names or _default_names(task)
    skeleton = COCO_PERSON if task.kind == "keypoints" else None
    usual: Any = find_model(name).config
    names = {field.name for field in fields(usual)} - {"out_indices", "out_norm"}
    changed = {key: getattr(entry.config, key) for key in names}
    network = create(
        task.name,
        name,
        head=with_texts(resolve_head(task, head, conventions), texts.items(), group="head"),
        num_classes=len(class_names),
        num_keypoints=len(skeleton.names) if skeleton else None,
        **{key: value for key, value in changed.items() if value != getattr(usual, key)},
    )
    report = load_weights(network, source)
    if report.reset:
        message = (
            f"{source} must have {len(class_names)} classes, but the shapes of "
            f"{', '.join(report.reset[:2])} differ. Pass the class names with --classes."
        )
        raise ConfigError(message)
    preprocessing = _preprocessing(task, entry, network.head.config)
    if beside is not None and beside.preprocessing is not None:
        stated = beside.preprocessing
        preprocessing = replace(preprocessing, mean=stated.mean, std=stated.std)
    classes = Classes(names=class_names, skeleton=skeleton)
    return PublishedModel(task, network, report, classes, preprocessing)


def _resized(beside: SourceInfo, size: Size) -> SourceInfo:
    """Images of another size, cut by the same part."""
    pre = beside.preprocessing
    if pre is None:
        return beside
    short = round(pre.short_side * min(size) / min(pre.img_size))
    rows, columns = (
        round(side * new / old)
        for side, new, old in zip(pre.resize_to, size, pre.img_size, strict=True)
    )
    pre = replace(pre, img_size=size, short_side=short, resize_to=(rows, columns))
    return replace(beside, preprocessing=pre)


def _preprocessing(task: Task, entry: ModelEntry, head: Any) -> Preprocessing:  # noqa: ANN401
    plain = Preprocessing(
        img_size=(512, 512), mean=entry.mean, std=entry.std, interpolation="bilinear"
    )
    if task.top_down:
        return replace(plain, img_size=(256, 192), fit="instance_crop", alignment=head.coding)
    if task.detects and isinstance(head, RCNNConfig) and head.neck.norm == "layer":
        # detectron2's project ViTDet: squares, whose padding takes part in the attention.
        own = isinstance(entry.config, ViTDetConfig)
        size = entry.config.img_size if own else (1024, 1024)
        return replace(plain, img_size=size, fit="letterbox", pad_to_size=True)
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
        lines = read_regular(path).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        message = (
            f"--classes must be a text file with one name per line, got {str(path)!r}: {error}."
        )
        raise DataError(message) from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        message = f"--classes must list at least one class, got none in {str(path)!r}."
        raise DataError(message)
    return names
