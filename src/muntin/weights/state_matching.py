# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Decide what of a renamed state dict goes where in a model, before anything is copied."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from muntin.errors import ShapeError, shorten
from muntin.heads.network import Network
from muntin.heads.rcnn import RCNN
from muntin.models.swin import SwinConfig
from muntin.ops.positions import Resampling
from muntin.ops.size_rules import SIZE_RULES, SizeRuleName
from muntin.weights.detector_keys import class_rows
from muntin.weights.dialects import (
    DIALECTS,
    NATIVE,
    backbone_of,
    built_window,
    family_name,
    head_of,
)
from muntin.weights.key_maps import KeyMap, Reading
from muntin.weights.parameter_resizing import (
    Stretching,
    embed_table,
    fit_channels,
    resample_patches,
    resample_positions,
    resample_table,
)
from muntin.weights.pose_keys import pose_rows
from muntin.weights.segmenter_keys import map_rows

__all__ = ["Fit", "class_tensors", "fit", "misfits", "place"]


@dataclass(slots=True)
class Fit:
    """Which tensor goes where, and everything that is left over.

    Attributes:
        values: The model's name to what it shall hold.
        resized: The model's names of tensors that had another window or image size.
        reset: The model's names of parameters to be left as they are.
        ignored: Their names of what the model does not need.
        homeless: Their names that belong nowhere.
        unfilled: The model's names that nothing fills.
        misshapen: The model's names whose tensors have another shape, and the two shapes.
        causes: What would explain it.
        has_head: Whether the file has a head for the model's task.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    resized: list[str] = field(default_factory=list)
    reset: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    homeless: list[str] = field(default_factory=list)
    unfilled: list[str] = field(default_factory=list)
    misshapen: dict[str, str] = field(default_factory=dict)
    causes: list[str] = field(default_factory=list)
    has_head: bool = False


def place(name: str, model: nn.Module) -> str:
    """Where in the model's state dict the tensor with this name of a bare backbone stands."""
    bare = backbone_of(model) is model
    return name if bare or name.startswith("head.") else f"backbone.{name}"


def fit(
    model: nn.Module, reading: Reading, dialect: str, size_rule: SizeRuleName, how: Stretching
) -> Fit:
    """Assign every tensor that was read to a parameter of the model.

    Args:
        model: What is to be filled.
        reading: What was read, under our names.
        dialect: Where it came from.
        size_rule: How that ecosystem resizes positions.
        how: How relative-position tables are resized.
    """
    backbone, head = backbone_of(model), head_of(model)
    own, whole = model.state_dict(), _Whole(backbone)
    resizer = _Resizer(backbone.config, dialect, SIZE_RULES[size_rule].positions, how)
    heads = _Heads(head, reading.tensors)
    result = Fit(ignored=list(reading.ignored), homeless=list(reading.unclaimed))
    for name, tensor in reading.tensors.items():
        key = place(name, model)
        theirs = [pair[0] for pair in reading.pairs if pair[1] == name]
        if key in own:
            _assign(result, key, tensor, own[key], resizer, heads)
        elif heads.can_spare(name) or whole.has(name):
            result.ignored += theirs
        else:
            result.homeless += theirs
    _leave_pooled_norm_fresh(result, own)
    _leave_deeper_head_fresh(result)
    settled = {*result.values, *result.reset, *result.misshapen}
    result.has_head = any(key.startswith("head.") for key in settled)
    fresh = () if result.has_head or head is None else _fresh_without_head(own, settled)
    if result.has_head and isinstance(head, RCNN):
        _miss_norms_of_maps(result, backbone)
    for key in own:
        # The counter of a frozen batch norm is not stored, and nothing reads it.
        if key not in settled and not key.endswith(".num_batches_tracked"):
            (result.reset if key in fresh else result.unfilled).append(key)
    return result


def _fresh_without_head(own: Collection[str], settled: Collection[str]) -> set[str]:
    """Parameters that begin anew when a file has no head for this model's task.

    They are those of the head, and the norms of all maps, which only dense tasks have.
    """
    norms = {key for key in own if _NORM_OF_MAP.match(key)}
    heads = {key for key in own if key.startswith("head.")}
    return heads if norms & set(settled) else heads | norms


def _miss_norms_of_maps(result: Fit, backbone: nn.Module) -> None:
    """A detector that was trained on normalised maps would be wrong without their norms."""
    config: Any = backbone.config
    norms = [name for name in result.ignored if _NORM_OF_MAP.match(name)]
    if norms and getattr(config, "out_norm", "each") != "each":
        result.homeless += norms
        result.causes.append("the weights have a norm for each map; set out_norm='each'")


_NORM_OF_MAP = re.compile(r"(backbone\.)?(bottom_up\.)?norm\d+\.")


@dataclass(frozen=True, slots=True)
class _Heads:
    """What a file's head may hold otherwise than the model's."""

    head: nn.Module | None
    tensors: Mapping[str, Tensor]

    def can_spare(self, name: str) -> bool:
        """Whether nothing is wrong when the model has no place for a tensor of a head."""
        if not name.startswith("head."):
            return False
        if _class_rows(self.head, name, 0) is None or name.startswith("head.fc"):
            return True  # no detector, or a classifier's
        has_masks = len(getattr(self.head, "mask_heads", ())) > 0
        return name.startswith("head.mask_heads.") and not has_masks

    def is_for_other_classes(self, name: str, tensor: Tensor, own: Tensor) -> bool:
        """Whether a tensor of a head differs in the number of classes alone."""
        if not name.startswith("head.") or tensor.shape[1:] != own.shape[1:]:
            return False
        rows = _class_rows(self.head, name, self._num_classes())
        return rows is None or tensor.shape[0] == rows

    def _num_classes(self) -> int:
        """Classes of the file's detector or segmenter."""
        for name in ("head.classes.bias", "head.classifier.bias"):
            if name in self.tensors:
                return len(self.tensors[name])
        return len(self.tensors.get("head.box_heads.0.fc_cls.bias", ())) - 1


def _class_rows(head: nn.Module | None, name: str, num_classes: int) -> int | None:
    found = (rows_of(head, name, num_classes) for rows_of in (class_rows, map_rows, pose_rows))
    return next((rows for rows in found if rows is not None), None)


def class_tensors(model: Network) -> list[str]:
    """Name the tensors of a network that depend on what it tells apart: classes, or keypoints."""
    names = [f"head.{name}" for name in model.head.state_dict()]
    return [
        name
        for name in names
        if (_class_rows(model.head, name, 1) or 0) > 0 or name.startswith("head.fc")
    ]


def _leave_pooled_norm_fresh(result: Fit, own: Mapping[str, Tensor]) -> None:
    """Pre-trained encoders end in a norm of tokens; one that reads their mean begins anew."""
    norms = [name for name in result.homeless if re.search(r"(^|\.)(norm|layernorm)\.", name)]
    fresh = [key for key in own if re.search(r"(^|\.)fc_norm\.", key)]
    has_head = any(key.startswith("head.") for key in result.values)
    if norms and norms == result.homeless and not has_head and not set(fresh) & set(result.values):
        result.homeless = []
        result.ignored += norms
        result.reset += fresh


def _leave_deeper_head_fresh(result: Fit) -> None:
    """A classifier that read a further layer, which no model has, would be wrong without it."""
    if any("pre_logits" in name for name in result.ignored):
        heads = [key for key in result.values if key.startswith("head.")]
        result.reset += heads
        for key in heads:
            del result.values[key]


class _Whole:
    """The backbone with everything built; made only when a name asks for it."""

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = backbone
        self.names: set[str] | None = None

    def has(self, name: str) -> bool:
        """Whether the whole backbone has a parameter of this name."""
        if self.names is None:
            self.names = _whole_names(self.backbone)
        return name in self.names


def _whole_names(backbone: nn.Module) -> set[str]:
    """Names of the backbone's parameters when every stage and every norm are built."""
    config: Any = backbone.config
    if not hasattr(config, "out_norm"):
        return set()
    stages = len(config.depths) if hasattr(config, "depths") else 0
    wholes: list[dict[str, Any]] = [{"out_indices": (stages - 1,), "out_norm": "last"}]
    if isinstance(config, SwinConfig):
        wholes.append({"out_indices": tuple(range(stages)), "out_norm": "each"})
    names: set[str] = set()
    for changes in wholes:
        with torch.device("meta"):
            whole = type(backbone)(dataclasses.replace(config, **changes))
        names |= set(whole.state_dict())
    return names


def _assign(
    result: Fit, key: str, tensor: Tensor, own: Tensor, resizer: _Resizer, heads: _Heads
) -> None:
    """Settle one parameter; a tensor for another size of the same thing is resized."""
    name = key.removeprefix("backbone.")
    if tensor.shape == own.shape:
        result.values[key] = tensor
        return
    if heads.is_for_other_classes(name, tensor, own):
        result.reset.append(key)
        return
    try:
        resized = resizer.resize(name, tensor, own)
    except ShapeError as error:
        result.causes.append(str(error))
        resized = tensor
    if resized.shape == own.shape:
        result.values[key] = resized
        result.resized.append(key)
        return
    result.misshapen[key] = f"{tuple(tensor.shape)} there, {tuple(own.shape)} here"


@dataclass(frozen=True, slots=True)
class _Resizer:
    """Brings tensors of another window, image size, patch or channel count to the model's."""

    config: Any
    dialect: str
    positions: Resampling
    how: Stretching

    def resize(self, name: str, tensor: Tensor, own: Tensor) -> Tensor:
        """Give the tensor for the model; as it is when it is no such tensor."""
        if name.endswith(".relative_position_bias_table") and tensor.shape[1:] == own.shape[1:]:
            if name.startswith("blocks."):  # a ViT's, with three rows for the class token
                middle = resample_table(tensor[:-3], window=self.config.grid[0], how=self.how)
                return torch.cat([middle, tensor[-3:]])
            return self._table(tensor, int(name.split(".")[1]))
        if name in ("pos_embed", "absolute_pos_embed") and tensor.shape[2:] == own.shape[2:]:
            grid = self.config.grid
            return resample_positions(
                tensor,
                new=grid,
                num_prefix=own.shape[1] - grid[0] * grid[1],
                how=self.positions,
            )
        if name == "patch_embed.proj.weight" and tensor.ndim == own.ndim:
            tensor = fit_channels(tensor, own.shape[1])
            size = (own.shape[2], own.shape[3])
            return tensor if tensor.shape[0] != own.shape[0] else resample_patches(tensor, size)
        if name.startswith("net.") and own.ndim == 4 and own.shape[1] == self.config.in_chans:
            same = (tensor.ndim, tensor.shape[0], tensor.shape[2:]) == (
                4,
                own.shape[0],
                own.shape[2:],
            )
            return fit_channels(tensor, own.shape[1]) if same else tensor  # timm's stem
        return tensor

    def _table(self, tensor: Tensor, stage: int) -> Tensor:
        side = self.config.windows[stage]
        rule = "" if self.dialect == NATIVE else DIALECTS[self.dialect].built_rule
        if rule:
            built = built_window(self.config, stage, rule)
            if tensor.shape[0] == (2 * built[0] - 1) * (2 * built[1] - 1):
                return embed_table(tensor, window=built, full=(side, side))
        return resample_table(tensor, window=side, how=self.how)


def misfits(
    result: Fit, reading: Reading, state: Mapping[str, Tensor], dialect: str, config: object
) -> str:
    """Word everything that is left over, with the likely cause; empty when nothing is."""
    shapes = [f"{key} {text}" for key, text in result.misshapen.items()]
    problems = [
        f"{what}: {shorten(names)}"
        for what, names in (
            ("names without a place in the model", result.homeless),
            ("parameters that nothing fills", result.unfilled),
            ("names missing beside others of their group", reading.missing),
            ("parameters that two names claim", reading.twice),
            ("other shapes", shapes),
        )
        if names
    ]
    if not problems:
        return ""
    cause = _other_kind(result, state, dialect, config) or _likely_cause(result, reading)
    return f"{'; '.join(problems)}. Likely cause: {cause}"


def _other_kind(result: Fit, state: Mapping[str, Tensor], dialect: str, config: object) -> str:
    """Name the family and dialect that these weights are of, when they are of another."""
    if 2 * len(result.homeless) <= len(state):
        return ""
    for name, other in DIALECTS.items():
        for kind, names in other.key_maps.items():
            if (name, kind) == (dialect, type(config)) or not isinstance(names, KeyMap):
                continue
            if not names.read(state).unclaimed:
                family = family_name(kind)
                return f"they are weights of a {family} in the dialect {name!r}; choose these"
    return "they are weights of another kind of model"


def _likely_cause(result: Fit, reading: Reading) -> str:
    if result.causes:
        return "; ".join(dict.fromkeys(cause.rstrip(".") for cause in result.causes))
    if reading.twice:
        return "the file mixes two spellings, or two models"
    if result.misshapen:
        return "the model has other widths, heads or mlp_ratio; build the variant of the weights"
    over = {name.removeprefix("backbone.") for name in (*result.homeless, *result.unfilled)}
    if over and all(name.startswith(("norm.", "fc_norm.")) for name in over):
        return "the last norm stands elsewhere; set pool_norm or patch_norm as the source has it"
    if any("layer" in name or "block" in name for name in result.homeless):
        return "the weights have more blocks or parts than the model; set depths as they have"
    if result.homeless:
        return "the file holds more than this model, such as another head"
    return "the file is incomplete, or the model has more blocks or parts than the weights"
