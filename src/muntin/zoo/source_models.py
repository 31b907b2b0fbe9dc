# SPDX-License-Identifier: Apache-2.0
"""The model of weights from elsewhere: by its name, or by what files beside the weights state."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from muntin import configs
from muntin.errors import ConfigError, WeightError
from muntin.models.timm_backbone import has_timm
from muntin.weights.source_info import SourceInfo
from muntin.zoo.model_building import TIMM, canonical_name, find_model
from muntin.zoo.model_zoo import MODELS, ModelEntry, config_from_dict


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
        WeightError: What is stated of it is inconsistent, or of the wrong types.
    """
    name = canonical_name(name)
    named = bool(name)
    name = name or _stated_name(beside)
    entry = find_model(name)
    config: Any = entry.config
    if beside is not None:
        try:
            config = _adopt_stated(config, beside, named=named)
        except ConfigError as error:
            message = f"{error} Correct {beside.where}, or delete it and pass --model."
            raise WeightError(message) from error
    config = configs.with_texts(config, settings.items())
    return name, dataclasses.replace(entry, config=config)


def _adopt_stated(config: Any, beside: SourceInfo, *, named: bool) -> Any:  # noqa: ANN401 (of any family)
    if beside.whole and not named:
        return config_from_dict(beside.whole, where=beside.where)
    if beside.family is not None and not named:
        return configs.from_dict(beside.family, _whole(beside), where=beside.where)
    if beside.family not in (None, type(config)):  # the name of another family takes precedence
        return config
    known = {field.name for field in dataclasses.fields(config)}
    stated = {**beside.implied, **beside.fields}
    fields = {key: value for key, value in stated.items() if key in known}
    if "pool" in fields and fields["pool"] != config.pool:
        # Where the mean is read, the norm comes after it in timm and transformers.
        fields.setdefault("pool_norm", "after" if fields["pool"] == "mean" else "before")
    return configs.replace(config, fields, where=beside.where)


def _stated_name(beside: SourceInfo | None) -> str:
    if beside is not None and beside.family is not None:
        rows = [(name, row.config) for name, row in MODELS.items()]
        own = [(name, config) for name, config in rows if type(config) is beside.family]
        return min(own, key=lambda row: _count_other(row[1], _whole(beside)))[0]
    stated = "" if beside is None else beside.model
    name = canonical_name(stated)
    of_timm = stated.removeprefix(TIMM)  # a run names it with the prefix
    if name in MODELS or has_timm(of_timm):
        return name if name in MODELS else TIMM + of_timm
    if beside is not None and beside.model_type:
        message = (
            f"model_type in {beside.where} must be known here, got {beside.model_type!r}. If a "
            f"model here is equal to it, pass its name with --model; see: muntin models."
        )
        raise ConfigError(message)
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
