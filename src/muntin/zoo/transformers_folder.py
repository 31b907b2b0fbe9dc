# SPDX-License-Identifier: Apache-2.0
"""Folders of whole models of the transformers library: what they say, and the run that they become.

Source:
    transformers 5.24, `resize` of the image processors, `get_size_with_aspect_ratio`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from muntin.data.transforms import Preprocessing
from muntin.errors import ConfigError, WeightError
from muntin.heads.transformers_head import reads_windows, tasks_of
from muntin.heads.transformers_model import (
    ARCHITECTURES,
    SMALL_SETTINGS,
    TRANSFORMERS,
    find_architecture,
    name_architecture,
    read_processor,
    state_settings,
)
from muntin.models.transformers_backbone import TransformersConfig
from muntin.samples import Classes
from muntin.untrusted import parse_json, read_regular, reading
from muntin.weights.source_fields import read_labels
from muntin.zoo.model_zoo import ModelEntry

_PROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformersFolder:
    """What the files beside the weights of a whole model say."""

    config: TransformersConfig
    task: str
    classes: Classes
    preprocessing: Preprocessing


def is_transformers_folder(source: str | Path) -> bool:
    """Whether it is a folder of a model that can be run as a whole, and is no backbone here."""
    path = Path(source)
    if not (path / "config.json").is_file():
        return False
    values = _read(path / "config.json")
    kind = values.get("model_type")
    classes = values.get("architectures") or []
    if "task" in values or kind is None:
        return False  # a run
    if not classes:
        return kind in ARCHITECTURES
    return any(part in str(one) for one in classes for part in _ANSWERS)


_ANSWERS = ("ObjectDetection", "Segmentation")


def read_transformers_folder(
    source: str | Path,
    task: str = "",
    class_names: tuple[str, ...] = (),
    changed: Mapping[str, str] | None = None,
) -> TransformersFolder:
    """Read the files of a folder; `task` chooses where the model can do several.

    `class_names` replace those of the folder; no fields can be `changed`.

    Raises:
        WeightError: A file is damaged, or missing.
        ConfigError: The model, or what its processor does, cannot be done here.
    """
    path = Path(source)
    values = _read(path / "config.json")
    name = name_architecture(values)
    row = find_architecture(name)
    stated = values.get("architectures") or [row.model_class]
    if row.model_class not in stated:
        message = (
            f"architectures in {path / 'config.json'} must be {row.model_class}, got {stated}. "
            f"What can be run of the library: {', '.join(ARCHITECTURES)}."
        )
        raise ConfigError(message)
    where = str(path / _PROCESSOR)
    if not (path / _PROCESSOR).is_file():
        message = f"images are prepared as {where} says, which is missing. Download it too."
        raise WeightError(message)
    steps = read_processor(_read(path / _PROCESSOR), where)
    told = f"{path.name} {values.get('_name_or_path', '')}"
    told += " semantic" * bool(steps.get("do_split_image"))
    task = _choose_task(name, task, told)
    pre, fixed = _find_shape(steps, task, where)
    # Pixels of padding that are black before they are normalised.
    black = tuple(-mean / std for mean, std in zip(pre.mean, pre.std, strict=True))
    padded = fixed and pre.fit == "letterbox"
    settings = state_settings(values)
    config = TransformersConfig(
        name=name,
        settings=settings,
        img_size=pre.img_size,
        fixed_size=fixed,
        reads_mask=row.reads_mask or padded,
        padding=black if padded else (),
    )
    names, problem = read_labels(values.get("id2label"), f"id2label in {path / 'config.json'}")
    if problem:
        raise ConfigError(problem)
    names = names or tuple(f"LABEL_{number}" for number in range(int(values.get("num_labels", 2))))
    if changed or (class_names and len(class_names) != len(names)):
        message = (
            f"a whole model of the transformers library is converted as it is, with {len(names)} "
            f"classes, got {len(class_names)} names and {changed}. Leave them out, and train the "
            f"run for another size or other classes."
        )
        raise ConfigError(message)
    classes = Classes(names=class_names or _distinct(names))
    return TransformersFolder(config=config, task=task, classes=classes, preprocessing=pre)


def find_transformers(name: str) -> ModelEntry:
    """The row of a model named hf:...: a folder, with its weights, or a family without."""
    if (Path(name) / "config.json").is_file():
        able = tasks_of(name_architecture(_read(Path(name) / "config.json")))
        found = read_transformers_folder(name, able[0] if len(able) > 1 else "")
        pre = found.preprocessing
        return ModelEntry(config=found.config, weights=name, mean=pre.mean, std=pre.std)
    row = find_architecture(name)
    side = 640 if row.answers == "boxes" else 512
    settings = state_settings(SMALL_SETTINGS.get(name, {}))
    config = TransformersConfig(
        name=name, settings=settings, img_size=(side, side), reads_mask=row.reads_mask
    )
    if row.rescales:
        return ModelEntry(config=config, mean=(0.0,) * 3, std=(1.0,) * 3)
    return ModelEntry(config=config)


_OWN_STEPS: dict[str, dict[str, Any]] = {
    "RfDetrImageProcessor": {"interpolation": "aliased"},
    "YolosImageProcessor": {"size_multiple": -16},
}
"""What processors do besides what their fields say."""


def _read(path: Path) -> dict[str, Any]:
    with reading(str(path), "Download it again.", WeightError):
        values = parse_json(read_regular(path))
        if not isinstance(values, dict):
            message = "it must hold an object"
            raise TypeError(message)
    return values


def _choose_task(name: str, task: str, told: str) -> str:
    able = tasks_of(name)
    named = [one for one in able if one in told.lower()]
    chosen = task or (able[0] if len(able) == 1 else "".join(named) if len(named) == 1 else "")
    if chosen not in able:
        message = (
            f"--head must say what a {TRANSFORMERS}{name} answers, {' or '.join(able)}, got "
            f"{task or 'nothing'!r}, and no name of the folder tells. Add --head {able[0]}."
        )
        raise ConfigError(message)
    return chosen


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    """Number the names that several classes have, as the unused ids of COCO ("N/A") do."""
    times = Counter(names)
    return tuple(
        name if times[name] == 1 else f"{name} ({number})" for number, name in enumerate(names)
    )


def _find_shape(steps: Mapping[str, Any], task: str, where: str) -> tuple[Preprocessing, bool]:
    """How an image gets its size, and whether the model takes only that one."""
    pre = _find_values(steps, where)
    size = steps["size"]
    if size.get("height") and size.get("width"):
        step, sides = max(1, pre.size_multiple), (int(size["height"]), int(size["width"]))
        high, wide = (-(-side // step) * step for side in sides)
        pre = replace(pre, size_multiple=1)
        return replace(pre, fit="stretch", img_size=(high, wide), resize_to=(high, wide)), False
    if not size.get("shortest_edge"):
        message = (
            f"size in {where} must be a height and a width, or a shortest_edge, got {dict(size)}. "
            f"Write it so."
        )
        raise ConfigError(message)
    short, long = int(size["shortest_edge"]), int(size.get("longest_edge") or 0)
    pre = replace(pre, edges=(short, long))
    if steps.get("do_split_image"):  # windows of squares
        squares = replace(pre, fit="sliding_window", img_size=(short, short), short_side=short)
        return squares, True
    if "do_split_image" in steps and reads_windows(task):
        message = (
            f"do_split_image in {where} must be true for semantic segmentation, got false. Use a "
            f"model of semantic segmentation, or --head instance."
        )
        raise ConfigError(message)
    if steps.get("do_pad") and "do_split_image" in steps:
        whole = (short, long or short)
        return replace(pre, fit="letterbox", img_size=whole, pad_to_size=True, pad_to=1), True
    if reads_windows(task):  # twice the sides are one window
        half = max(short, long // 2)
        return replace(pre, fit="sliding_window", img_size=(short, half), short_side=short), False
    return replace(pre, fit="letterbox", img_size=(short, long or 2 * short), pad_to=1), False


def _find_values(steps: Mapping[str, Any], where: str) -> Preprocessing:
    """What is done to an image whatever its size."""
    for name, wanted in (
        ("do_resize", True), ("do_center_crop", False), ("keep_aspect_ratio", False),
    ):  # fmt: skip
        if bool(steps.get(name, wanted)) != wanted:
            message = f"{name} in {where} must be {wanted}, got {steps[name]}. Change it there."
            raise ConfigError(message)
    scale = 255 * (steps["rescale_factor"] if steps.get("do_rescale", True) else 1.0)
    mean, std = steps["image_mean"], steps["image_std"]
    if not steps.get("do_normalize", True):
        mean, std = [0.0] * 3, [1.0] * 3
    pre = Preprocessing(
        img_size=(1, 1),
        mean=tuple(round(value / scale, 12) for value in mean),
        std=tuple(round(value / scale, 12) for value in std),
        interpolation="bicubic" if int(steps["resample"]) == 3 else "bilinear",
        size_multiple=int(steps.get("size_divisor") or steps.get("ensure_multiple_of") or 1),
    )
    return replace(pre, **_OWN_STEPS.get(str(steps["image_processor_type"]), {}))
