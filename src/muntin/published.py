# SPDX-License-Identifier: Apache-2.0
"""Published models as run folders, and as runs in memory by their names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from muntin.configs import with_texts
from muntin.data.skeletons import COCO_PERSON
from muntin.data.transforms import Preprocessing
from muntin.engines.engine_table import find_format
from muntin.errors import ConfigError, DataError, RunError, WeightError
from muntin.heads.network import Network
from muntin.heads.rcnn_config import CONVENTIONS, RCNNConfig
from muntin.heads.transformers_model import TRANSFORMERS
from muntin.models.vit_det import ViTDetConfig
from muntin.recipes import AUGMENTS
from muntin.run_config import RunConfig
from muntin.run_files import WEIGHTS
from muntin.runs import Run
from muntin.samples import Classes
from muntin.shapes import Size
from muntin.tasks.task import Task
from muntin.tasks.task_table import find_task, task_of_head
from muntin.untrusted import read_regular, reading
from muntin.weights.opened_weights import open_weights
from muntin.weights.source_info import SourceInfo, read_source_info
from muntin.weights.weight_files import (
    FOLDER_VARIABLE,
    fetch,
    find_local,
    in_folder,
    is_here,
    is_hub_id,
    is_weight_file,
    write_weights,
)
from muntin.weights.weight_loading import LoadReport, load_weights
from muntin.zoo.creating import create, resolve_head
from muntin.zoo.model_building import TIMM, canonical_name, find_model
from muntin.zoo.model_zoo import ALIASES, MODELS, ModelEntry
from muntin.zoo.published_classifier import (
    PublishedModel,
    build_shell,
    find_source_model,
    read_backbone,
    read_classifier,
)
from muntin.zoo.transformers_folder import is_transformers_folder, read_transformers_folder


def coco_names() -> tuple[str, ...]:
    """The 80 classes of COCO by category id."""
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights as Weights

    names = Weights.COCO_V1.meta["categories"]
    return tuple(name for name in names if name not in ("__background__", "N/A"))


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
        if not model and is_transformers_folder(source):
            return _write_whole(source, path, head, (class_names, texts | of_head))
        name, entry = find_source_model(model, read_source_info(source), texts)
        if head:
            read = _read_dense(source, name, entry, class_names, (head, dialect, of_head))
        else:
            opened = open_weights(source, dialect, build_shell(entry))
            if "img_size" in texts and opened.stated is not None:
                opened = replace(opened, stated=_resized(opened.stated, entry.config.img_size))
            read = read_classifier(opened, name, entry, class_names, of_head.get("rows"))
    run = Run(path=path, **_parts(read, name, source))
    run.write()
    state = read.network.state_dict()
    write_weights(path / WEIGHTS, state, {"dialect": "muntin", "model": name})
    return run, read.report


def _write_whole(
    source: str | Path, path: Path, task: str, given: tuple[tuple[str, ...], dict[str, str]]
) -> tuple[Run, LoadReport]:
    """Write the run of a whole model of the transformers library."""
    found = read_transformers_folder(source, task, *given)
    row = find_task(found.task)
    head: Any = None if row.dense is None else row.dense.whole
    name = f"{TRANSFORMERS}{found.config.name}"
    run = Run(
        path=path,
        config=RunConfig(
            task=row.name,
            data="",
            model_name=name,
            model=found.config,
            head=head,
            weights=str(source),
            augment=AUGMENTS[row.recipe_kind](),
        ),
        classes=found.classes,
        preprocessing=found.preprocessing,
    )
    network = run.build_network()
    report = load_weights(network, source)
    run.write()
    write_weights(path / WEIGHTS, network.state_dict(), {"dialect": "muntin", "model": name})
    return run, report


def _parts(read: PublishedModel, name: str, source: str | Path) -> dict[str, Any]:
    """What a run holds beside its path."""
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
    return {"config": config, "classes": read.classes, "preprocessing": read.preprocessing}


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedRun(Run):
    """A run in memory, without a folder: a model by its name, with published weights.

    Attributes:
        network: In evaluation mode.
        report: Of loading the weights.
    """

    network: Network = field(repr=False)
    report: LoadReport = field(repr=False)

    @property
    def folder(self) -> Path:
        """Folder for files that are derived from the run."""
        return Path("runs") / self.config.model_name.removeprefix(TIMM)

    def load_network(self) -> Network:
        """Give the network."""
        return self.network

    def describe(self) -> str:
        """Say in one line which weights these are, and their licence."""
        text = f"{self.config.model_name}: {self.report.summary()}"
        source = self.config.weights
        if is_hub_id(source) and not Path(source).exists() and (file := in_folder(source)):
            text += f", read from {file}, which counts as them by its name alone"
        return text if self.report.license else f"{text}; license {self.config.license or '?'}"


def open_run(source: Run | Path | str, *, backbone_only: bool = False) -> Run:
    """Open a run folder, an exported file, or the published weights of a model by its name.

    Names are those of `muntin.list_models`. Weights are a file of the name, here or in the folder
    that ``MUNTIN_WEIGHTS`` names, or those of the hub, from its cache or downloaded. A file of
    weights that is called as its model, or lies beside a config.json, is opened too.

    Args:
        source: Path or name; a path that exists takes precedence.
        backbone_only: Whether a run of pretraining or weights without a classifier will do.

    Raises:
        RunError: There is neither a run nor a model of this name, or a file is broken.
        WeightError: The weights cannot be had, or do not fit.
        ConfigError: The weights have no classifier.
    """
    if isinstance(source, Run):
        return source
    path, text = Path(source), str(source)
    if is_weight_file(path) and find_format(path) is None:
        name = canonical_name(path.stem)
        if name in MODELS or read_source_info(path) is not None:
            return open_named(name if name in MODELS else "", path, backbone_only=backbone_only)
    is_name = canonical_name(text) in MODELS or text.startswith(TIMM)
    if is_name and len(path.parts) == 1 and not path.exists():
        return open_named(text, find_published(text), backbone_only=backbone_only)
    if not (path.is_dir() or (path.is_file() and find_format(path) is not None)):
        raise RunError(_no_run(path))
    return Run.open(path, pretraining=backbone_only)


def _no_run(path: Path) -> str:
    """Say what would have been a run, and what is nearest to what came."""
    near = difflib.get_close_matches(str(path), [*MODELS, *ALIASES], n=1)
    near = near if len(path.parts) == 1 else []
    if is_weight_file(path):
        advice = (
            f"Call a file of weights as its model, such as swin_tiny{path.suffix}, or put its "
            f"config.json beside it."
        )
    elif near:
        advice = f"Did you mean the model {near[0]!r}?"
    else:
        advice = "Check the path, or the name: muntin models"
    return (
        f"RUN must be a folder of muntin train, a file of muntin export or the name of a model, "
        f"got {str(path)!r}, which is none of them here. {advice}"
    )


def open_named(
    name: str,
    source: str | Path,
    *,
    backbone_only: bool = False,
    settings: Mapping[str, str] | None = None,
) -> PublishedRun:
    """Open weights of a classifier as a run in memory; arguments as in `open_published`."""
    with reading(str(source), "Copy or download it again.", WeightError):
        known, entry = find_source_model(name, read_source_info(source), settings or {})
        opened = open_weights(source, "auto", build_shell(entry))
        read = (read_backbone if backbone_only else read_classifier)(opened, known, entry)
    parts = _parts(read, known, source)
    if not parts["config"].license and str(source) == entry.weights:
        parts["config"] = replace(parts["config"], license=entry.license)
    path = Path(name or source)
    return PublishedRun(path=path, network=read.network.eval(), report=read.report, **parts)


def find_published(text: str) -> str:
    """Find the weights of a model: the path of a file of its name, or the hub id of those there.

    Raises:
        WeightError: They cannot be had, with the ways to get them.
    """
    name, entry = canonical_name(text), find_model(text)
    names = (text, name, *(alias for alias, known in ALIASES.items() if known == name))
    file = name.removeprefix(TIMM)
    if entry.weights and is_here(entry.weights):
        return entry.weights
    if (found := find_local([each.removeprefix(TIMM) for each in names])) is not None:
        return str(found)
    place = f"as {file}.safetensors here or in the folder that {FOLDER_VARIABLE} names"
    if not entry.weights:
        message = (
            f"{text} must have trained weights to answer, but none are known on the hub. Save some "
            f"{place}, or train it: muntin train TASK DATA --model {text}"
        )
        raise WeightError(message)
    try:
        fetch(entry.weights)
    except WeightError as error:
        message = (
            f"{text} needs its published weights: {str(error).partition('. ')[0]}. Save "
            f"model.safetensors of {entry.weights} {place}, or set a mirror of the hub "
            f"(HF_ENDPOINT)."
        )
        raise WeightError(message) from error
    return entry.weights


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
            f"{source} must have {len(class_names)} classes, as many as named, but the "
            f"shapes of {', '.join(report.reset[:2])} are for another number. Name all its "
            f"classes with --classes."
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
        return coco_names()
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
