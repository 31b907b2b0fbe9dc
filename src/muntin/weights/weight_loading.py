# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Weights from anywhere into a model: every name accounted for, all of it or nothing."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from muntin.errors import MuntinWarning, WeightError, shorten, unknown_name
from muntin.models.timm_backbone import TimmConfig
from muntin.ops.size_rules import SizeRuleName
from muntin.weights import hub
from muntin.weights.detector_keys import DETECTOR_NAMES, adopt
from muntin.weights.dialects import (
    DIALECTS,
    NATIVE,
    backbone_of,
    detect,
    family_name,
    head_of,
    key_map,
    to_dialect,
)
from muntin.weights.key_maps import Reading
from muntin.weights.parameter_resizing import Stretching
from muntin.weights.state_matching import fit, misfits, place
from muntin.weights.weight_files import SUFFIXES, read_weights, unwrap

__all__ = [
    "Facts",
    "LoadReport",
    "Opened",
    "load_weights",
    "look_into",
    "open_weights",
    "to_dialect",
]


# How our own names of a timm model begin.
_OWN = ("backbone.net.", "net.", "head.")
# How torchvision's detectors call their backbone.
_BODY = "backbone.body."


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """What `load_weights` did.

    Attributes:
        dialect: The dialect that the weights were written in.
        source: Where they came from.
        renamed: (their name, our name) of every tensor whose name differs.
        resized: Our names of tensors that were brought to another window or image size.
        reset: Our names of parameters that were left as they were: a head for other classes.
        ignored: Their names of what the model does not need: derived buffers, a head or stages
            that were not built.
        size_rule: The rule for odd sizes that the model took over; empty when it kept its own.
        conventions: How a detector reads its weights now, where that changed: fields of the head's
            config that it took over.
        class_names: Names of the classes, where the file says them.
        license: Licence of the weights, where the file says it.
    """

    dialect: str
    source: str
    renamed: tuple[tuple[str, str], ...]
    resized: tuple[str, ...]
    reset: tuple[str, ...]
    ignored: tuple[str, ...]
    size_rule: str
    conventions: str = ""
    class_names: tuple[str, ...] = ()
    license: str = ""

    def summary(self) -> str:
        """Say it in one line."""
        parts = [f"{self.dialect} weights from {self.source}: {len(self.renamed)} renamed"]
        if self.resized:
            parts.append(f"{len(self.resized)} resized ({shorten(self.resized, limit=2)})")
        if self.reset:
            parts.append(f"kept fresh: {shorten(self.reset, limit=2)}")
        if self.ignored:
            parts.append(f"{len(self.ignored)} ignored")
        if self.size_rule:
            parts.append(f"size rule is now {self.size_rule!r}")
        if self.conventions:
            parts.append(f"the head's conventions are now {self.conventions}")
        if self.license:
            parts.append(f"licence {self.license}")
        return ", ".join(parts)


def load_weights(
    model: nn.Module,
    source: str | Path | Mapping[str, Any] | Opened,
    dialect: str = "auto",
    *,
    resampling: Stretching = "bicubic",
    head_rows: Sequence[int] | str | Path | None = None,
) -> LoadReport:
    """Fill a model with weights from any known ecosystem.

    The model takes over what the ecosystem's own models do at sizes that do not come out even,
    so that outputs equal theirs at every size that they accept; a detector takes over how they
    lay anchors and read regions. After an error the model is as it
    was.

    Args:
        model: A network or a backbone.
        source: A file, a folder that holds one, a state dict (or a training checkpoint with one
            inside), or a hub id such as "timm/swin_tiny_patch4_window7_224.ms_in1k". A path that
            exists never touches the network.
        dialect: "auto", or one of "muntin", "microsoft", "timm", "torchvision", "transformers",
            "openmmlab", "detectron2", "google".
        resampling: How relative-position tables of another window are resized: "bicubic", or
            "geometric", which keeps near offsets in place. The same window is exact.
        head_rows: For a head of many classes into one of few (22k to 1k): the source's class number
            for each class of the model, or a text file with one a line.

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
    if resampling not in ("bicubic", "geometric"):
        raise WeightError(unknown_name("resampling", resampling, ["bicubic", "geometric"]))
    opened = open_weights(source, dialect, backbone.config)
    state, metadata, where, dialect = opened.state, opened.texts, opened.where, opened.dialect
    reading = _read(state, dialect, backbone.config, head_of(model))
    if head_rows is not None:
        own_head = model.state_dict().get("head.fc.weight")
        classes = None if own_head is None else own_head.shape[0]
        _pick_rows(reading.tensors, read_rows(head_rows), classes, where)
    own_rule: SizeRuleName = getattr(backbone.config, "size_rule", "muntin")
    rule = own_rule if dialect == NATIVE else DIALECTS[dialect].size_rule(state, backbone.config)
    plan = fit(model, reading, dialect, rule, resampling)
    problems = misfits(plan, reading, state, dialect, backbone.config)
    if problems:
        message = (
            f"weights from {where} ({dialect}) must fit {family_name(type(backbone.config))} "
            f"exactly; {problems}. The model is unchanged."
        )
        raise WeightError(message)
    _refuse_unusable(plan.values, where)
    _copy(plan.values, model)
    adopts = rule != own_rule and hasattr(backbone.config, "size_rule")
    size_rule = rule if adopts else ""
    if adopts:
        backbone.config = dataclasses.replace(backbone.config, size_rule=size_rule)
    conventions = ""
    if plan.has_head:
        conventions = adopt(model.head, DETECTOR_NAMES.get(dialect))  # type: ignore[arg-type]
    taken = [(theirs, place(ours, model)) for theirs, ours in reading.pairs]
    return LoadReport(
        dialect=dialect,
        source=where,
        renamed=tuple(pair for pair in taken if pair[0] != pair[1] and pair[1] in plan.values),
        resized=tuple(plan.resized),
        reset=tuple(plan.reset),
        ignored=tuple(plan.ignored),
        size_rule=size_rule,
        conventions=conventions,
        class_names=tuple(json.loads(metadata.get("class_names", "[]"))),
        license=metadata.get("license", ""),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a source of weights tells about the model that they belong to.

    Attributes:
        num_classes: Classes of the classifier; 0 when there is none.
        in_chans: Channels of an image.
        dtype: Of the weights; float32 when they differ.
    """

    num_classes: int
    in_chans: int
    dtype: torch.dtype


def look_into(opened: Opened, config: object) -> Facts:
    """Find out what has to be built before weights can be loaded exactly.

    Args:
        opened: What `open_weights` gave.
        config: Of the family that the weights are of.

    Raises:
        WeightError: They are not of this family.
    """
    state, where, dialect = opened.state, opened.where, opened.dialect
    tensors = _read(state, dialect, config).tensors
    patches = [tensors[key] for key in tensors if key.endswith("patch_embed.proj.weight")]
    first = tensors.get("tokens_to_token.attention1.norm1.weight")
    head = tensors.get("head.fc.weight")
    if not patches and first is None and not isinstance(config, TimmConfig):
        message = (
            f"weights from {where} ({dialect}) must be those of a "
            f"{family_name(type(config))}, got none for its patches. Check model and dialect."
        )
        raise WeightError(message)
    if isinstance(config, TimmConfig):
        patches = [tensor for tensor in tensors.values() if tensor.ndim == 4]  # the stem is first
    in_chans = patches[0].shape[1] if patches else len(first) // 49  # type: ignore[arg-type]
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    return Facts(
        dtype=dtypes.pop() if len(dtypes) == 1 else torch.float32,
        num_classes=0 if head is None else head.shape[0],
        in_chans=in_chans,
    )


def read_rows(rows: Sequence[int] | str | Path) -> list[int]:
    """Read class numbers, one a line, from a file; a list is given back as it is.

    Raises:
        WeightError: The file is not there, or holds something else.
    """
    if not isinstance(rows, (str, Path)):
        if not all(isinstance(row, int) for row in rows):
            message = f"head_rows must be whole numbers, got {shorten(rows)}."
            raise WeightError(message)
        return list(rows)
    try:
        return [int(line) for line in Path(rows).read_text(encoding="utf-8").split()]
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        message = f"{str(rows)!r} must be a text file with one class number a line, got: {said}."
        raise WeightError(message) from error


def _pick_rows(
    tensors: dict[str, Tensor], rows: list[int], classes: int | None, where: str
) -> None:
    """Keep these rows of the classifiers."""
    if classes is not None and len(rows) != classes:
        message = (
            f"head_rows must have a row for each of the model's {classes} classes, got {len(rows)}."
        )
        raise WeightError(message)
    for name in [name for name in tensors if name.startswith("head.fc")]:
        count = tensors[name].shape[0]
        if not rows or min(rows) < 0 or max(rows) >= count:
            message = (
                f"head_rows must be class numbers from 0 to {count - 1} of {where}, got "
                f"{f'{min(rows)} to {max(rows)}' if rows else 'none'}. Check head_rows."
            )
            raise WeightError(message)
        tensors[name] = tensors[name][rows]


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """Weights that were read and recognised, to be loaded once or more.

    Attributes:
        state: The flat state dict.
        texts: What stands beside it in the file.
        where: What to call the source.
        dialect: The dialect that it is written in.
    """

    state: Mapping[str, Tensor]
    texts: Mapping[str, str]
    where: str
    dialect: str


def open_weights(
    source: str | Path | Mapping[str, Any] | Opened, dialect: str, config: object
) -> Opened:
    """Read a source of weights and recognise its dialect.

    Args:
        source: As in `load_weights`; what is open already is given back.
        dialect: The same.
        config: Of the model that they are for.

    Raises:
        WeightError: The weights cannot be read, or their dialect is not recognised.
    """
    if isinstance(source, Opened):
        return source
    if dialect not in ("auto", NATIVE, *DIALECTS):
        raise WeightError(unknown_name("dialect", dialect, ["auto", NATIVE, *DIALECTS]))
    state, texts, where = _unpack(source)
    if dialect == "auto":
        stored = texts.get("dialect", "")
        if stored in (NATIVE, *DIALECTS):
            dialect = stored
        elif isinstance(config, TimmConfig):
            foreign = "torchvision" if any(key.startswith(_BODY) for key in state) else "timm"
            dialect = NATIVE if all(key.startswith(_OWN) for key in state) else foreign
        else:
            dialect = detect(state, where=where)
    if dialect != NATIVE:
        state = dict(DIALECTS[dialect].normalise(state))
    return Opened(state=state, texts=texts, where=where, dialect=dialect)


def _unpack(
    source: str | Path | Mapping[str, Any],
) -> tuple[dict[str, Tensor], Mapping[str, str], str]:
    if not isinstance(source, Mapping | str | Path):
        message = (
            f"weights must be a file, a folder, a hub id or a state dict, got "
            f"{type(source).__name__}. Name one."
        )
        raise WeightError(message)
    if isinstance(source, Mapping):
        state, way = unwrap(source, where="the state dict")
        return state, {}, f"a state dict [{way}]" if way else "a state dict"
    if not str(source).strip():
        message = f"weights must be a file, a folder or a hub id, got {str(source)!r}. Name one."
        raise WeightError(message)
    path = Path(source).expanduser()
    text = str(source).removeprefix("hf-hub:")
    # "runs/flowers" may be a hub id or a mistyped path: where there is a folder "runs", a path.
    local = isinstance(source, Path) or path.exists() or path.suffix.lower() in SUFFIXES
    texts: dict[str, str] = {}
    if not local and hub.is_hub_id(text) and not Path(text.split("/")[0]).is_dir():
        path = hub.fetch(text)
        texts["license"] = hub.license_of(text)
    file = read_weights(path)
    texts |= {key: value for key, value in file.metadata.items() if value}
    if "NC" in texts.get("license", ""):
        message = f"weights from {source} have the licence {texts['license']}: no commercial use."
        warnings.warn(message, MuntinWarning, stacklevel=4)
    state, way = unwrap(file.tensors, where=repr(str(file.path)))
    return state, texts, f"{source} [{way}]" if way else str(source)


def _read(
    state: Mapping[str, Tensor], dialect: str, config: object, head: nn.Module | None = None
) -> Reading:
    if dialect != NATIVE:
        return key_map(dialect, config, head).read(state)
    names = {key: key.removeprefix("backbone.") for key in state}
    return Reading(
        tensors={ours: state[key] for key, ours in names.items()}, pairs=list(names.items())
    )


def _refuse_unusable(values: Mapping[str, Tensor], where: str) -> None:
    """Raise at the first tensor that is not made of finite real numbers."""
    for key, tensor in values.items():
        if key.endswith("num_batches_tracked"):  # a counter of batch norms
            continue
        if not tensor.is_floating_point():
            message = (
                f"weights from {where} must be floating-point, got {tensor.dtype} for {key}. "
                f"Quantised weights must be turned back first. The model is unchanged."
            )
            raise WeightError(message)
        # A sum shows NaN and infinity in one quick pass; one that overflows is looked at again.
        if not tensor.sum(dtype=torch.float32).isfinite() and not tensor.isfinite().all():
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
