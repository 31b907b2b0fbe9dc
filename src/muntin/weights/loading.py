# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Weights from anywhere into a model: every name accounted for, all of it or nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from muntin.errors import WeightError, shorten, unknown_name
from muntin.weights import hub
from muntin.weights.dialects import (
    DIALECTS,
    NATIVE,
    backbone_of,
    detect,
    family_name,
    key_map,
    to_dialect,
)
from muntin.weights.files import SUFFIXES, read_weights, unwrap
from muntin.weights.fitting import fit, misfits, place
from muntin.weights.renaming import Reading

__all__ = ["LoadReport", "load_weights", "to_dialect"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """What `load_weights` did.

    Attributes:
        dialect: The dialect that the weights were written in.
        source: Where they came from.
        renamed: (their name, our name) of every tensor whose name differs.
        resized: Our names of tensors that were brought to another window or picture size.
        reset: Our names of parameters that were left as they were: a head for other classes.
        ignored: Their names of what the model does not need: derived buffers, a head or stages
            that were not built.
        size_rule: The rule for odd sizes that the model took over; empty when it kept its own.
    """

    dialect: str
    source: str
    renamed: tuple[tuple[str, str], ...]
    resized: tuple[str, ...]
    reset: tuple[str, ...]
    ignored: tuple[str, ...]
    size_rule: str

    def summary(self) -> str:
        """Say it in one line."""
        parts = [f"{self.dialect} weights from {self.source}: {len(self.renamed)} renamed"]
        if self.resized:
            parts.append(f"{len(self.resized)} resized ({shorten(self.resized, most=2)})")
        if self.reset:
            parts.append(f"kept fresh: {shorten(self.reset, most=2)}")
        if self.ignored:
            parts.append(f"{len(self.ignored)} ignored")
        if self.size_rule:
            parts.append(f"size rule is now {self.size_rule!r}")
        return ", ".join(parts)


def load_weights(
    model: nn.Module, source: str | Path | Mapping[str, Any], dialect: str = "auto"
) -> LoadReport:
    """Fill a model with weights from any known ecosystem.

    The model takes over what the ecosystem's own models do at sizes that do not come out even,
    so that outputs equal theirs at every size that they accept. After an error the model is as it
    was.

    Args:
        model: A network or a backbone.
        source: A file, a folder that holds one, a state dict (or a training checkpoint with one
            inside), or a hub id such as "timm/swin_tiny_patch4_window7_224.ms_in1k". A path that
            exists never touches the network.
        dialect: "auto", or one of "muntin", "microsoft", "timm", "torchvision", "transformers".

    Returns:
        What was done.

    Raises:
        WeightError: The weights cannot be read, hold NaN, or do not fit: a name that nothing in
            the model claims, or a parameter that nothing fills (a class head excepted).

    Example:
        >>> from muntin.models.swin import SWIN_NANO_32, Swin
        >>> body = Swin(SWIN_NANO_32)
        >>> load_weights(body, {"backbone." + k: v for k, v in body.state_dict().items()}).dialect
        'muntin'
    """
    backbone: Any = backbone_of(model)
    if dialect not in ("auto", NATIVE, *DIALECTS):
        raise WeightError(unknown_name("dialect", dialect, ["auto", NATIVE, *DIALECTS]))
    state, metadata, where = _open(source)
    if dialect == "auto":
        stored = metadata.get("dialect", "")
        dialect = stored if stored in (NATIVE, *DIALECTS) else detect(state, where=where)
    reading = _read(state, dialect, backbone.config)
    plan = fit(model, reading, dialect)
    problems = misfits(plan, reading, state, dialect, backbone.config)
    if problems:
        message = (
            f"weights from {where} ({dialect}) must fit {family_name(type(backbone.config))} "
            f"exactly; {problems}. The model is unchanged."
        )
        raise WeightError(message)
    _refuse_unusable(plan.values, where)
    _copy(plan.values, model)
    size_rule = "" if dialect == NATIVE else DIALECTS[dialect].size_rule
    if size_rule == backbone.config.size_rule:
        size_rule = ""
    if size_rule:
        backbone.config = dataclasses.replace(backbone.config, size_rule=size_rule)
    taken = [(theirs, place(ours, model)) for theirs, ours in reading.pairs]
    return LoadReport(
        dialect=dialect,
        source=where,
        renamed=tuple(pair for pair in taken if pair[0] != pair[1] and pair[1] in plan.values),
        resized=tuple(plan.resized),
        reset=tuple(plan.reset),
        ignored=tuple(plan.ignored),
        size_rule=size_rule,
    )


def _open(
    source: str | Path | Mapping[str, Any],
) -> tuple[dict[str, Tensor], Mapping[str, str], str]:
    """The flat state dict of a source, the texts beside it, and what to call it."""
    if isinstance(source, Mapping):
        state, way = unwrap(source, where="the state dict")
        return state, {}, f"a state dict [{way}]" if way else "a state dict"
    path = Path(source).expanduser()
    text = str(source).removeprefix("hf-hub:")
    # "runs/flowers" may be a hub id or a mistyped path: where there is a folder "runs", a path.
    local = isinstance(source, Path) or path.exists() or path.suffix.lower() in SUFFIXES
    if not local and hub.is_hub_id(text) and not Path(text.split("/")[0]).is_dir():
        path = hub.fetch(text)
    file = read_weights(path)
    state, way = unwrap(file.tensors, where=repr(str(file.path)))
    return state, file.metadata, f"{source} [{way}]" if way else str(source)


def _read(state: Mapping[str, Tensor], dialect: str, config: object) -> Reading:
    if dialect != NATIVE:
        return key_map(dialect, config).read(state)
    names = {key: key.removeprefix("backbone.") for key in state}
    return Reading(
        tensors={ours: state[key] for key, ours in names.items()}, pairs=list(names.items())
    )


def _refuse_unusable(values: Mapping[str, Tensor], where: str) -> None:
    """Raise at the first tensor that is not made of finite real numbers."""
    for key, tensor in values.items():
        if not tensor.is_floating_point():
            message = (
                f"weights from {where} must be floating-point, got {tensor.dtype} for {key}. "
                f"Quantised weights must be turned back first. The model is unchanged."
            )
            raise WeightError(message)
        low, high = tensor.aminmax()
        if not (torch.isfinite(low) and torch.isfinite(high)):
            message = (
                f"weights from {where} must be finite, got NaN or infinity in {key}. The training "
                f"run that wrote them diverged; take an earlier one. The model is unchanged."
            )
            raise WeightError(message)


def _copy(values: Mapping[str, Tensor], model: nn.Module) -> None:
    own = model.state_dict()
    with torch.no_grad():
        for key, tensor in values.items():
            own[key].copy_(tensor)
