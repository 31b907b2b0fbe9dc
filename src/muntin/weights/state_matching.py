# SPDX-License-Identifier: Apache-2.0
"""Match a renamed state dict to the parameters of a model; then check its values, and copy them."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from muntin.errors import ShapeError, WeightError
from muntin.heads.network import Head, Network
from muntin.models.swin import SwinConfig
from muntin.models.vit import ViTConfig
from muntin.ops.positions import SIZE_RULES, SizeRuleName, TableInterpolation
from muntin.weights.dialects import backbone_of, head_of
from muntin.weights.key_maps import RenamedState
from muntin.weights.parameter_resizing import move_positions
from muntin.weights.source_geometry import Resizer, is_on_grid


@dataclass(slots=True)
class MatchResult:
    """Tensors matched to parameters, and everything that does not match.

    Names are the model's, but in `ignored` and `unexpected` those of the file; parameters in
    `reset` keep their values, and `mismatched` gives two shapes.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    resized: list[str] = field(default_factory=list)
    reset: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mismatched: dict[str, str] = field(default_factory=dict)
    causes: list[str] = field(default_factory=list)
    has_head: bool = False
    assumed: str = ""


def model_key(name: str, model: nn.Module) -> str:
    """Key in the model's state dict of a tensor with this name in a bare backbone."""
    bare = backbone_of(model) is model
    return name if bare or name.startswith("head.") else f"backbone.{name}"


def match_state(
    model: nn.Module,
    reading: RenamedState,
    dialect: str,
    size_rule: SizeRuleName,
    method: TableInterpolation | None,
    source: object = None,
) -> MatchResult:
    """Assign every renamed tensor to a parameter of the model.

    `size_rule` is the ecosystem's, whose interpolation of tables `method` replaces; `source` as in
    `Resizer`.
    """
    backbone, head = backbone_of(model), head_of(model)
    own = model.state_dict()
    unbuilt = functools.cache(functools.partial(_full_backbone_names, backbone))
    rule = SIZE_RULES[size_rule]
    positions = getattr(backbone.config, "resampling", rule.positions)
    resizer = Resizer(backbone.config, source, dialect, positions, method or rule.tables)
    heads = _HeadRules(head, reading.tensors)
    result = MatchResult(ignored=list(reading.ignored), unexpected=list(reading.unknown))
    _move_positions(reading, backbone.config, source)
    _move_encoder_norm(reading, own)
    for name, tensor in reading.tensors.items():
        key = model_key(name, model)
        if key in own:
            _assign(result, key, tensor, own[key], resizer, heads)
            continue
        known = heads.may_ignore(name) or name in unbuilt()
        theirs = [pair[0] for pair in reading.pairs if pair[1] == name]
        (result.ignored if known else result.unexpected).extend(theirs)
    if source is None:
        result.assumed = _assume_grid(result, backbone.config)
    _reset_pooled_norm(result, own)
    settled = {*result.values, *result.reset, *result.mismatched}
    result.has_head = any(key.startswith("head.") for key in settled)
    fresh = () if result.has_head or head is None else _reset_without_head(own, settled)
    if result.has_head and isinstance(head, Head) and head.reads == "maps":
        _require_norms_of_maps(result, backbone)
    for key in own:
        # Frozen batch norms are stored without this counter, and inference does not use it.
        if key not in settled and not key.endswith(".num_batches_tracked"):
            (result.reset if key in fresh else result.missing).append(key)
    return result


def _assume_grid(result: MatchResult, config: object) -> str:
    """What was assumed about the grid of the weights, if that of the model is no square."""
    rows, columns = getattr(config, "grid", (1, 1))
    uneven = rows != columns or getattr(config, "shared_position", False)
    if not uneven or not any(map(is_on_grid, result.values)):
        return ""
    if any(map(is_on_grid, result.resized)):
        return "positions are of a square, or of 4:3 in a ViTPose (made_with)"
    return f"positions are of {rows} x {columns} patches, as the model's (made_with)"


def _move_positions(reading: RenamedState, config: object, source: Any) -> None:  # noqa: ANN401
    """Move positions into their tokens, or back, as the model has them; listed as renamed."""
    if not isinstance(config, ViTConfig) or "pos_embed" not in reading.tensors:
        return
    held = None
    if source is not None:
        held = reading.tensors["pos_embed"].shape[1] - source.grid[0] * source.grid[1]
    moved = move_positions(reading.tensors, config, config.positioned_tokens, held)
    reading.tensors |= moved
    theirs = [pair[0] for pair in reading.pairs if pair[1] == "pos_embed"]
    reading.pairs += [(key, name) for key in theirs for name in moved if name != "pos_embed"]


def _move_encoder_norm(reading: RenamedState, own: Collection[str]) -> None:
    """Take the norm before the decoder of a Hiera as the last one, as timm does."""
    for end in ("weight", "bias"):
        theirs, ours = f"head.encoder_norm.{end}", f"norm.{end}"
        if theirs in reading.tensors and theirs not in own and ours not in reading.tensors:
            reading.tensors[ours] = reading.tensors.pop(theirs)
            reading.pairs = [(key, ours if name == theirs else name) for key, name in reading.pairs]


def _reset_without_head(own: Collection[str], settled: Collection[str]) -> set[str]:
    """Head, and norms of all maps (only dense tasks have them): random if a file has no head."""
    norms = {key for key in own if _NORM_OF_MAP.match(key)}
    heads = {key for key in own if key.startswith("head.")}
    return heads if norms & set(settled) else heads | norms


def _require_norms_of_maps(result: MatchResult, backbone: nn.Module) -> None:
    """Report norms of maps as unexpected: a head trained with them is wrong without."""
    config: Any = backbone.config
    norms = [name for name in result.ignored if _NORM_OF_MAP.match(name)]
    if norms and getattr(config, "out_norm", "each") != "each":
        result.unexpected += norms
        result.causes.append("the weights have a norm for each map; set out_norm='each'")


_NORM_OF_MAP = re.compile(r"(backbone\.)?(bottom_up\.)?norm\d+\.")


@dataclass(frozen=True, slots=True)
class _HeadRules:
    """Permitted differences between the head of a file and that of the model."""

    head: nn.Module | None
    tensors: Mapping[str, Tensor]

    def may_ignore(self, name: str) -> bool:
        """Whether a tensor of a head may be ignored if the model does not have it."""
        if not name.startswith("head."):
            return False
        # Weights of a dense task may come with the classifier of pre-training.
        if name.startswith("head.fc") or not isinstance(self.head, Head):
            return True
        return self.head.may_lack(name.removeprefix("head."))

    def is_for_other_classes(self, name: str, tensor: Tensor, own: Tensor) -> bool:
        """Whether a tensor of a head differs only in the number of classes."""
        rows = _class_rows(self.head)
        if name not in rows or tensor.shape[1:] != own.shape[1:]:
            return False
        # The first of them, in the order of the head, says how many classes the file has.
        first = next(known for known in rows if known in self.tensors)
        per_class, others = rows[first]
        num_classes = (len(self.tensors[first]) - others) // per_class
        per_class, others = rows[name]
        return tensor.shape[0] == per_class * num_classes + others


def _class_rows(head: nn.Module | None) -> dict[str, tuple[int, int]]:
    """Our names of a head's parameters with rows per class, and `Head.class_layers` of each."""
    if not isinstance(head, Head):
        return {}
    layers = {f".{end}": rows for end, rows in head.class_layers().items()}
    names = {f"head.{name}": f".{name.rpartition('.')[0]}" for name in head.state_dict()}
    return {
        name: layers[end] for name, path in names.items() for end in layers if path.endswith(end)
    }


def class_tensors(model: Network) -> list[str]:
    """List the tensors of a network whose size depends on the number of classes or keypoints."""
    return list(_class_rows(model.head))


def _reset_pooled_norm(result: MatchResult, own: Mapping[str, Tensor]) -> None:
    """Ignore the final norm of pre-trained encoders; the norm of pooled tokens stays random."""
    norms = [name for name in result.unexpected if re.search(r"(^|\.)(norm|layernorm)\.", name)]
    fresh = [key for key in own if re.search(r"(^|\.)fc_norm\.", key)]
    has_head = any(key.startswith("head.") for key in result.values)
    if (
        norms
        and norms == result.unexpected
        and not has_head
        and not set(fresh) & set(result.values)
    ):
        result.unexpected = []
        result.ignored += norms
        result.reset += fresh


def _full_backbone_names(backbone: nn.Module) -> set[str]:
    """Names of the backbone's parameters with all stages and all norms."""
    family: Any = type(backbone)
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
            names |= set(family(dataclasses.replace(config, **changes)).state_dict())
    return names


def _assign(
    result: MatchResult, key: str, tensor: Tensor, own: Tensor, resizer: Resizer, heads: _HeadRules
) -> None:
    """Match one parameter; the tensor is resized if only its window or image size differs."""
    name = key.removeprefix("backbone.")
    if resizer.fits(name, tensor, own):
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
    result.mismatched[key] = (
        f"{tuple(tensor.shape)} in the weights, {tuple(own.shape)} in the model"
    )


def copy_values(values: Mapping[str, Tensor], model: nn.Module) -> None:
    """Copy matched tensors to the parameters and buffers of a model."""
    own = model.state_dict()
    with torch.no_grad():
        for key, tensor in values.items():
            own[key].copy_(tensor)


def reject_values(values: Mapping[str, Tensor], own: Mapping[str, Tensor], where: str) -> None:
    """Raise for the first tensor that is not real, or not finite in the types of the model."""
    for key, tensor in values.items():
        if key.endswith("num_batches_tracked"):  # integer counter of batch norms
            continue
        if not tensor.is_floating_point():
            advice = "Take real parts" if tensor.is_complex() else "Dequantize quantized weights"
            message = (
                f"weights from {where} must be floating-point, got {tensor.dtype} for {key}. "
                f"{advice} first. The model is unchanged."
            )
            raise WeightError(message)
        # NaN and infinity propagate to the sum, which is one fast pass; as finite values may
        # overflow it too, a non-finite sum is checked elementwise.
        copied = tensor.to(own[key].dtype)
        if copied.sum(dtype=torch.float32).isfinite() or copied.isfinite().all():
            continue
        got = f"up to {tensor.abs().max():.2g}" if tensor.isfinite().all() else "NaN or infinity"
        message = (
            f"weights from {where} must be finite in {copied.dtype}, got {got} in {key}. The "
            f"training run probably diverged; use an earlier checkpoint. The model is unchanged."
        )
        raise WeightError(message)
