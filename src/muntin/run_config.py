# SPDX-License-Identifier: Apache-2.0
"""The resolved config of a run, as it is written to ``config.json`` and read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from muntin.configs import KIND, Range, check_range, check_ranges, from_dict, replace, to_dict
from muntin.data.classification_transforms import AugmentConfig
from muntin.data.data_config import DataConfig
from muntin.errors import ConfigError, unknown_name
from muntin.heads.fcos import FCOSConfig
from muntin.heads.head_table import AnyHeadConfig
from muntin.heads.pose_head import PoseConfig
from muntin.heads.rcnn_config import RCNNConfig
from muntin.heads.semantic_head import SemanticConfig
from muntin.recipes import AUGMENTS, AnyAugmentConfig
from muntin.samples import TaskKind
from muntin.train_config import MachineConfig, TrainConfig
from muntin.zoo.model_zoo import BackboneConfig, config_from_dict, config_to_dict

SCHEMA = 2
"""Version of the format that `RunConfig.to_dict` writes.

Schema 1 is still read: it had no `kind` in heads and augmentations, and called `data_config`
"reading".
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """How a run learns from a teacher, besides from labels.

    Attributes:
        teacher: A run folder, an exported file, or the name of a model with published weights.
        checksum: SHA-256 of its weights, which a resumed run compares.
        kind: What is learnt of it: "hard", the class that it ranks first; "soft", its
            probabilities; "features", its maps. "auto": hard for classify, features elsewhere.
        temperature: For "soft": what logits are divided by.
        alpha: Weight of the teacher: for "hard" and "soft" its share of the loss, the rest is for
            labels; for "features" the factor on a loss that is added. "auto": 0.5, 0.1 and 1.
        cache: Whether the answers to whole images are computed once and stored, or the teacher
            sees every augmented image. "auto": stored for classify without mixup and CutMix, whose
            crops keep at least half of the image, and without operations on colour.
        cache_dir: Folder of stored answers, which several runs may share; empty = in the run.
        cache_mib: Largest size of stored answers.
    """

    teacher: str = ""
    checksum: str = ""
    kind: Literal["auto", "hard", "soft", "features"] = "auto"
    temperature: Annotated[float, Range(0.01, 1000)] = 3.0
    alpha: float | Literal["auto"] = "auto"
    cache: Literal["auto", "on", "off"] = "auto"
    cache_dir: str = ""
    cache_mib: Annotated[int, Range(1, 10**6)] = 2048

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges("distill", self)
        if self.alpha != "auto":
            most = 1 if self.kind in ("hard", "soft") else 1000
            check_range("distill.alpha", self.alpha, 0, most)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtendConfig:
    """The run that this one adds classes to (`muntin.heads.extended_head`).

    Attributes:
        run: Its folder.
        checksum: SHA-256 of its weights.
        classes: Its classes, which come first.
        counts: How many of them each part of its head has: several if it had added some itself.
    """

    run: str
    checksum: str
    classes: tuple[str, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """The resolved config of a run; ``config.json``.

    Attributes:
        val: Validation images; empty if `data` includes them or they were split off.
        head: None if the task has only one.
        weights: Source of the initial weights; empty if they are random.
        license: Licence of these weights.
        data_config: How images are read; `--set data.x` on the command line.
        distill: The teacher, if there is one.
        extend: The run that classes were added to, if there is one.
    """

    task: str
    data: str
    val: str = ""
    model_name: str
    model: BackboneConfig
    head: AnyHeadConfig | None = None
    weights: str = ""
    license: str = ""
    train: TrainConfig = field(default_factory=TrainConfig)
    augment: AnyAugmentConfig = field(default_factory=AugmentConfig)
    data_config: DataConfig = field(default_factory=DataConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)
    distill: DistillConfig | None = None
    extend: ExtendConfig | None = None

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dictionary that JSON can hold."""
        return {"schema": SCHEMA, **to_dict(self), "model": config_to_dict(self.model)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str = "") -> RunConfig:
        """Read the output of `to_dict`, in the current schema or in schema 1.

        A missing augmentation becomes the default of the task.
        """
        schema = values.get("schema")
        if schema not in (1, SCHEMA) or not isinstance(values.get("model"), Mapping):
            message = (
                f"{where or 'the config'} must have schema {SCHEMA} (or 1) and a model, got schema "
                f"{schema!r}. Was it written by another version of muntin?"
            )
            raise ConfigError(message)
        rest = dict(values)
        del rest["schema"]
        rest["model"] = config_from_dict(values["model"], where=where)
        if "reading" in rest:  # as schema 1 called it
            rest["data_config"] = rest.pop("reading")
        augment = rest.pop("augment", {})
        if schema == 1 and isinstance(values.get("head"), Mapping):
            rest["head"] = _name_head(values["head"], str(values.get("task")))
        config = from_dict(cls, rest, where=where)
        if schema == SCHEMA and augment:
            return replace(config, {"augment": augment}, where=where)
        default = _default_augmentation(config, where)
        if schema == 1 and isinstance(augment, Mapping):
            augment = _name_augmentation(augment, default)
        return replace(config, {"augment": augment or default()}, where=where)


_FIRST_TASKS: Mapping[str, TaskKind] = {
    "classify": "classification",
    "detect": "detection",
    "instance": "detection",
    "semantic": "segmentation",
    "pose": "keypoints",
}
"""Tasks whose files may lack an augmentation or its kind. This is history: add no new ones."""


def _default_augmentation(config: RunConfig, where: str) -> type[AnyAugmentConfig]:
    if config.task not in _FIRST_TASKS:
        place = f" in {where}" if where else ""
        raise ConfigError(unknown_name(f"task{place}", config.task, _FIRST_TASKS))
    # Keypoint R-CNN trains on whole images, as detectors do.
    detects = isinstance(config.head, RCNNConfig)
    return AUGMENTS["detection" if detects else _FIRST_TASKS[config.task]]


_FIRST_HEADS: Mapping[str, tuple[type[AnyHeadConfig], ...]] = {
    "detect": (FCOSConfig, RCNNConfig),
    "instance": (RCNNConfig,),
    "semantic": (SemanticConfig,),
    "pose": (PoseConfig, RCNNConfig),
}
"""Heads that each task had in schema 1. This is history: add no new ones."""


def _name_head(values: Mapping[str, Any], task: str) -> Mapping[str, Any]:
    """Add the kind to a head of schema 1: the head of its task that shares most keys with it."""
    shared = {
        kind: len(values.keys() & {field.name for field in fields(kind)})
        for kind in _FIRST_HEADS.get(task, ())
    }
    # Keys are counted, not parsed, so that the reader still reports a misspelt key by name.
    return {KIND: max(shared, key=lambda kind: shared[kind]).kind, **values} if shared else values


def _name_augmentation(
    values: Mapping[str, Any], default: type[AnyAugmentConfig]
) -> Mapping[str, Any] | None:
    """Add the kind to an augmentation of schema 1; None if it belongs to another task."""
    # `muntin convert --to run` used to write the default of classification for every task.
    others = {field.name for field in fields(AugmentConfig)}
    if default is not AugmentConfig and values.keys() == others:
        return None
    return {KIND: default.kind, **values}
