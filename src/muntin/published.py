# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""A published detector as a run folder, ready to predict, to evaluate and to train on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from muntin.configs import with_texts
from muntin.data.transforms import Preprocessing
from muntin.errors import ConfigError, DataError, RunError
from muntin.runs import WEIGHTS, Run, RunConfig
from muntin.samples import Classes
from muntin.tasks import TASKS
from muntin.weights.files import write_weights
from muntin.weights.loading import LoadReport, load_weights
from muntin.zoo import ALIASES, create_detector, find_model

__all__ = ["COCO_NAMES", "open_published", "read_class_names"]

COCO_NAMES = tuple(
    """person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,
stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,
umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,
skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,
sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,
toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,
clock,vase,scissors,teddy bear,hair drier,toothbrush""".replace("\n", "").split(",")
)
"""The 80 classes of COCO in the order of their category ids."""


def open_published(
    source: str | Path,
    path: str | Path,
    *,
    model: str,
    head: str,
    conventions: str = "openmmlab",
    class_names: tuple[str, ...] = COCO_NAMES,
    settings: dict[str, str] | None = None,
) -> tuple[Run, LoadReport]:
    """Write a run folder from the weights of a whole published detector.

    Args:
        source: What `load_weights` takes.
        path: The new run folder.
        model: Name of the backbone.
        head: "mask_rcnn", "cascade_mask_rcnn", "faster_rcnn" or "cascade_rcnn".
        conventions: Origin of the weights: "openmmlab" (also Microsoft's), "detectron2" or
            "torchvision".
        class_names: In the order of the class numbers, without "nothing".
        settings: Fields of the backbone's config as text, where it differs from the zoo's.

    Returns:
        The run, and how the weights were read.

    Raises:
        RunError: The folder exists, or cannot be written.
        ConfigError: A name or a field is unknown.
        WeightError: The weights do not fit, the classes included.
    """
    path = Path(path)
    if path.exists():
        message = f"OUT must be a new folder, got {path}, which exists. Choose another."
        raise RunError(message)
    name = ALIASES.get(model, model)
    entry = find_model(name)
    network = create_detector(
        name,
        head=head,
        num_classes=len(class_names),
        conventions=conventions,
        **_as_fields(entry.config, settings or {}),
    )
    report = load_weights(network, source)
    if report.reset:
        message = (
            f"{source} must have the {len(class_names)} classes that were named, got others "
            f"({', '.join(report.reset[:2])}). Name them with --classes."
        )
        raise ConfigError(message)
    body: Any = network.backbone
    config = RunConfig(
        task=next(t.name for t in TASKS.values() if t.dense and head in t.dense.heads),
        data="",
        model_name=name,
        model=body.config,
        head=network.head.config,  # type: ignore[arg-type]
        weights=str(source),
        license=report.license,
    )
    preprocessing = Preprocessing(
        img_size=(800, 1333), mean=entry.mean, std=entry.std, fit="inside", interpolation="bilinear"
    )
    classes = Classes(names=class_names)
    run = Run(path=path, config=config, classes=classes, preprocessing=preprocessing)
    run.write()
    write_weights(path / WEIGHTS, network.state_dict(), {"dialect": "muntin", "model": name})
    return run, report


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """Read class names, one a line.

    Raises:
        DataError: There is no such file, or it names nothing.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        message = f"--classes must be a text file with one name a line, got {str(path)!r}: {error}."
        raise DataError(message) from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        message = f"--classes must name at least one class, got none in {str(path)!r}."
        raise DataError(message)
    return names


def _as_fields(config: object, settings: dict[str, str]) -> dict[str, Any]:
    """Fields that differ from a config's, as values."""
    changed = with_texts(config, settings.items())
    return {name: getattr(changed, name) for name in settings}
