# SPDX-License-Identifier: Apache-2.0
"""The model of weights from elsewhere: by its name, or by what files beside the weights state."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from muntin import configs
from muntin.errors import ConfigError
from muntin.models.timm_backbone import has_timm
from muntin.weights.source_info import SourceInfo
from muntin.zoo.model_building import TIMM, canonical_name, find_model, model_config
from muntin.zoo.model_zoo import MODELS, ModelEntry


def find_source_model(
    name: str, beside: SourceInfo | None, settings: Mapping[str, str]
) -> tuple[str, ModelEntry]:
    """Find name and row of the model of weights, with the config that belongs to them.

    Args:
        name: Its name, or empty: then files beside the weights must state what it is.
        beside: What they state; None without such files.
        settings: Fields as text, which override what is stated.

    Raises:
        ConfigError: The model is not stated, or not one of ours.
    """
    name = canonical_name(name)
    if not name:
        name = _stated_name(beside)
        if beside is not None and beside.family is not None:
            config: Any = configs.from_dict(beside.family, _whole(beside), where=beside.where)
            entry = dataclasses.replace(MODELS[name], config=config)
            return name, _with_texts(entry, settings)
    entry = find_model(name)
    known = {field.name for field in dataclasses.fields(entry.config)}
    if beside is not None and beside.family in (None, type(entry.config)):
        stated = {**beside.implied, **beside.fields}
        fields = {key: value for key, value in stated.items() if key in known}
        entry = dataclasses.replace(entry, config=model_config(name, fields))
    return name, _with_texts(entry, settings)


def _stated_name(beside: SourceInfo | None) -> str:
    if beside is not None and beside.family is not None:
        rows = [(name, row.config) for name, row in MODELS.items()]
        own = [(name, config) for name, config in rows if type(config) is beside.family]
        return min(own, key=lambda row: _count_other(row[1], _whole(beside)))[0]
    stated = "" if beside is None else beside.model
    name = canonical_name(stated)
    if name in MODELS or has_timm(stated):
        return name if name in MODELS else TIMM + stated
    message = (
        f"the model of the weights must be stated beside them, in a config.json of transformers or "
        f"timm, got {stated or 'none of them'!r}. Pass its name with --model; see: muntin models."
    )
    raise ConfigError(message)


def _count_other(config: object, fields: Mapping[str, Any]) -> int:
    return sum(getattr(config, name, value) != value for name, value in fields.items())


def _whole(beside: SourceInfo) -> dict[str, Any]:
    """All fields of a config: every stage has a map."""
    fields = {**beside.implied, **beside.fields}
    if "depths" in fields:
        fields["out_indices"] = tuple(range(len(fields["depths"])))
    return fields


def _with_texts(entry: ModelEntry, settings: Mapping[str, str]) -> ModelEntry:
    config = configs.with_texts(entry.config, settings.items())
    return dataclasses.replace(entry, config=config)
