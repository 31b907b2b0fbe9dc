# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""All that a run was asked for, as it is written to ``config.json`` and read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from muntin.configs import KIND, from_dict, replace, to_dict
from muntin.data.augmentations import AnyAugmentConfig
from muntin.data.cache import DataConfig
from muntin.data.transforms import AugmentConfig
from muntin.errors import ConfigError
from muntin.heads.conventions import RCNNConfig
from muntin.heads.fcos import FCOSConfig
from muntin.heads.pose import PoseConfig
from muntin.heads.semantic import SemanticConfig
from muntin.heads.table import AnyHeadConfig
from muntin.recipes import AUGMENTS, MachineConfig, TrainConfig
from muntin.tasks.table import find_task
from muntin.zoo.families import BackboneConfig, config_from_dict, config_to_dict

__all__ = ["RunConfig"]

SCHEMA = 2
"""Of `RunConfig.to_dict`.

Schema 1 is still read: it named no kinds of heads and augmentations, and `data_config` "reading".
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """All that a run was asked for, resolved; ``config.json``.

    Attributes:
        task: Name of the task.
        data: Folder, archive or CSV with the training images.
        val: The same for validation; empty when `data` has it or it was split off.
        model_name: Name in the zoo that the architecture started from.
        model: The architecture.
        head: That of the head, for tasks that have several.
        weights: Where the weights came from; empty = fresh.
        license: Licence of these weights.
        train: How it is learned.
        augment: What is done to training images.
        data_config: How images are read; `--set data.x` on the command line.
        machine: Where it runs.
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

    def to_dict(self) -> dict[str, Any]:
        """Give what JSON can hold."""
        return {"schema": SCHEMA, **to_dict(self), "model": config_to_dict(self.model)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str = "") -> RunConfig:
        """Read what `to_dict` gave, today or in schema 1.

        An augmentation that is left out is the default one of the task.

        Raises:
            ConfigError: A key is unknown or missing, or a value is of another type.
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
        # Only the task and its head say what may be done to the images.
        usual = AUGMENTS[find_task(config.task, config.head).recipe_kind]
        if schema == 1 and isinstance(augment, Mapping):
            augment = _name_augmentation(augment, usual)
        return replace(config, {"augment": augment or usual()}, where=where)


_FIRST_HEADS: Mapping[str, tuple[type[AnyHeadConfig], ...]] = {
    "detect": (FCOSConfig, RCNNConfig),
    "instance": (RCNNConfig,),
    "semantic": (SemanticConfig,),
    "pose": (PoseConfig, RCNNConfig),
}
"""Heads that each task had in schema 1. They are history: new ones do not belong here."""


def _name_head(values: Mapping[str, Any], task: str) -> Mapping[str, Any]:
    """Name the kind of a head of schema 1: of those of its task, the one with most of its keys."""
    shared = {
        kind: len(values.keys() & {field.name for field in fields(kind)})
        for kind in _FIRST_HEADS.get(task, ())
    }
    # Counting keys, and not trying to read them, leaves a misspelt key to the reader's message.
    return {KIND: max(shared, key=lambda kind: shared[kind]).kind, **values} if shared else values


def _name_augmentation(
    values: Mapping[str, Any], usual: type[AnyAugmentConfig]
) -> Mapping[str, Any] | None:
    """Name the kind of an augmentation of schema 1; None for one that never was of its task."""
    # `muntin convert --to run` wrote the default of classification whatever the task was.
    others = {field.name for field in fields(AugmentConfig)}
    if usual is not AugmentConfig and values.keys() == others:
        return None
    return {KIND: usual.kind, **values}
