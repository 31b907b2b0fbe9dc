# SPDX-License-Identifier: Apache-2.0
"""The table of dialects: their key maps, and conversion to them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor, nn

from muntin.errors import WeightError, shorten, unknown_name
from muntin.heads.classification_head import LinearHead
from muntin.heads.network import Network
from muntin.models.swin import SwinConfig
from muntin.models.swin_v2 import SwinV2Config
from muntin.models.vit import ViTConfig
from muntin.nn.layers import Activation
from muntin.ops.positions import SizeRuleName
from muntin.weights import google, microsoft, openmmlab, timm, torchvision, transformers
from muntin.weights.head_keys import add_head_keys
from muntin.weights.key_maps import KeyMap, KeyMaps, Limits, first_key, match
from muntin.weights.parameter_resizing import crop_table, move_positions
from muntin.weights.window_buffers import built_window, differing_stages, shrink_windows

NATIVE = "muntin"
_TABLE = "layers.{i}.blocks.{j}.attn.relative_position_bias_table"


def _as_it_is(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return state


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialect:
    """State-dict format of one ecosystem.

    `size_rule` is the padding policy of its models, unless a key matches a pattern of
    `size_evidence`, first row first, and so tells that the model is one of another policy;
    `built_rule` shrinks a bias table to the window that fits the map at `img_size`, empty if tables
    always have the configured window; `normalise` converts variants of names to those in the key
    maps; `limits` are the values of a family's config fields that models of the ecosystem can
    have, where the names do not tell; `activation` is that of its models, if it is always the same.
    """

    key_maps: KeyMaps
    size_rule: SizeRuleName
    size_evidence: tuple[tuple[str, SizeRuleName], ...] = ()
    built_rule: SizeRuleName | Literal[""] = ""
    normalise: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = _as_it_is
    limits: Limits = field(default_factory=dict)
    activation: Activation | None = None

    def find_size_rule(self, keys: Collection[str]) -> tuple[SizeRuleName, str]:
        """Size rule of models whose files have these keys, and the key that tells; maybe empty."""
        for pattern, rule in self.size_evidence:
            if key := first_key(keys, pattern):
                return rule, key
        return self.size_rule, ""


def _dialect(
    module: Any,  # noqa: ANN401 (one of this room)
    size_rule: SizeRuleName,
    built_rule: SizeRuleName | Literal[""] = "",
    activation: Activation | None = None,
) -> Dialect:
    """The row of a dialect, whose module has those tables that its names need."""
    tables = vars(module)
    return Dialect(
        key_maps=tables["KEY_MAPS"],
        size_rule=size_rule,
        size_evidence=tables.get("SIZE_EVIDENCE", ()),
        built_rule=built_rule,
        normalise=tables.get("normalise", _as_it_is),
        limits=tables.get("LIMITS", {}),
        activation=activation,
    )


DIALECTS: dict[str, Dialect] = {
    "microsoft": _dialect(microsoft, "microsoft", built_rule="microsoft", activation="gelu"),
    "timm": _dialect(timm, "timm", built_rule="timm"),
    "torchvision": _dialect(torchvision, "torchvision", activation="gelu"),
    "transformers": _dialect(transformers, "transformers"),
    "openmmlab": _dialect(openmmlab, "mmpretrain"),
    "detectron2": Dialect(key_maps=microsoft.DETECTRON2_KEY_MAPS, size_rule="openmmlab"),
    "google": _dialect(google, "google", activation="gelu_tanh"),  # the default of Flax
}


def find_key_map(name: str, config: object, *, required: bool) -> KeyMap | None:
    """Key map of a backbone; None if the dialect does not have the model and is not required."""
    try:
        return key_map(name, config)
    except WeightError:
        if required:
            raise
        return None


def key_map(name: str, config: object, head: nn.Module | None = None) -> KeyMap:
    """Build the key map of a model in a dialect; heads of dense tasks add their own rows."""
    if name not in DIALECTS:
        raise WeightError(unknown_name("dialect", name, [NATIVE, *DIALECTS]))
    maps = DIALECTS[name].key_maps
    if type(config) not in maps:
        has = shorten(family_name(kind) for kind in maps)
        message = (
            f"dialect {name!r} does not support the family {family_name(type(config))}, only "
            f"{has}. Choose another dialect or model."
        )
        raise WeightError(message)
    names = maps[type(config)]
    body = names if isinstance(names, KeyMap) else names(config)
    return add_head_keys(body, name, head)


def family_name(config_type: type) -> str:
    """Name of a family in messages."""
    return config_type.__name__.removesuffix("Config").replace("Timm", "model of timm")


def inner_model(model: nn.Module) -> nn.Module:
    """The model inside wrappers that compile, parallelise or average it."""
    # A compiled module has all attributes of the one inside.
    while (inner := dict(model.named_children()).get("_orig_mod")) is not None:
        model = inner
    inner = dict(model.named_children()).get("module")
    if inner is None or hasattr(model, "config") or isinstance(model, Network):
        return model
    return inner_model(inner)


def backbone_of(model: nn.Module) -> nn.Module:
    """Return the backbone of a network, or the module itself if it is a backbone."""
    model = inner_model(model)
    backbone = model.backbone if isinstance(model, Network) else model
    if not hasattr(backbone, "config") or not hasattr(backbone, "spec"):
        message = (
            f"model must be a muntin network or backbone, got {type(model).__name__}. "
            f"Build it with create_model or create_backbone."
        )
        raise WeightError(message)
    return backbone


def head_of(model: nn.Module) -> nn.Module | None:
    """Return the head of a network; None for a backbone."""
    model = inner_model(model)
    return model.head if isinstance(model, Network) else None


def to_dialect(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Export a model's state dict with the names and layout of another ecosystem.

    Args:
        model: A network or a backbone.
        name: "microsoft", "timm", "torchvision", "transformers", "openmmlab", "detectron2",
            "google", or "muntin" for muntin's own names.

    Returns:
        A state dict of copies, with the buffers that the ecosystem stores. Loading it back
        restores the same bits, except in "timm" and "microsoft" where a window of a classifier
        exceeds the map at `img_size`: these drop the entries of the bias table that are never
        read; and where the ecosystem's ViTs have no positions for class and distillation token
        (timm's with registers): their sums with the tokens are restored.

    Raises:
        WeightError: The dialect is unknown, or cannot represent a part of the model.

    Examples:
        >>> from muntin.models.swin import SWIN_NANO_32, Swin
        >>> sorted(to_dialect(Swin(SWIN_NANO_32), "torchvision"))[0]
        'features.0.0.bias'
    """
    model = inner_model(model)
    config: Any = backbone_of(model).config
    state = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    if name == NATIVE:
        return {key: tensor.clone() for key, tensor in state.items()}
    names = key_map(name, config, head_of(model))
    _reject_beyond_limits(name, config, head_of(model))
    _reject_other_windows(name, config, head_of(model))
    tensors = {key.removeprefix("backbone."): tensor for key, tensor in state.items()}
    rule = DIALECTS[name].built_rule
    # Detectors and segmenters, with a norm for each map, never shrink a window.
    if rule and getattr(config, "out_norm", "") != "each":
        tensors = {key: _as_built(key, tensor, config, rule) for key, tensor in tensors.items()}
    if isinstance(config, ViTConfig):
        held = config.positioned_tokens
        tensors |= move_positions(tensors, config, _written_positions(name, config), held)
    written, unmapped = names.write(tensors)
    if unmapped:
        message = (
            f"dialect {name!r} cannot represent these tensors of the model: {shorten(unmapped)}. "
            f"Choose another dialect."
        )
        raise WeightError(message)
    return {
        key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in written.items()
    }


def _reject_beyond_limits(name: str, config: object, head: nn.Module | None) -> None:
    """Raise if models of the ecosystem would compute something else from the same tensors."""
    for key, allowed in DIALECTS[name].limits.get(type(config), {}).items():
        allowed = allowed(config) if callable(allowed) else allowed
        # Only classifiers pool.
        matters = key != "pool" or (isinstance(head, LinearHead) and head.num_classes > 0)
        value = attrgetter(*key.split(", "))(config)
        if matters and value not in allowed:
            message = (
                f"models of the dialect {name!r} must have {key} "
                f"{' or '.join(map(repr, allowed))}, got {value!r}, which changes what the same "
                f"tensors compute. Choose another dialect."
            )
            raise WeightError(message)


def _reject_other_windows(name: str, config: object, head: nn.Module | None) -> None:
    """Raise if a classifier of the ecosystem has other windows at `img_size`, by its size rule."""
    last = getattr(config, "out_norm", "") == "last"
    of_classes = isinstance(head, LinearHead) or (head is None and last)
    if not isinstance(config, SwinConfig) or not of_classes or name == "detectron2":
        return
    shrinks = name == "openmmlab" and isinstance(config, SwinV2Config)
    theirs = shrink_windows(config) if shrinks else config  # type: ignore[arg-type]
    rule = DIALECTS[name].size_rule
    if stages := differing_stages(config, theirs, rule):
        message = (
            f"windows of the dialect {name!r} must be those of the model at "
            f"img_size={config.img_size}, but differ in stage {stages[0]} (counted from 0; "
            f"window_size={config.window_size}, size_rule={config.size_rule!r} here, {rule!r} "
            f"there). Choose another dialect, or change window_size (muntin.zoo.change_model)."
        )
        raise WeightError(message)


def _written_positions(dialect: str, config: ViTConfig) -> int:
    """Positions before those of the patches that the ecosystem's models have."""
    if dialect in ("transformers", "torchvision"):
        return config.prefix_tokens - config.registers
    return 0 if config.registers else config.positioned_tokens


def _as_built(key: str, tensor: Tensor, config: object, rule: SizeRuleName) -> Tensor:
    found = match(_TABLE, key)
    if found is None or not isinstance(config, SwinConfig):
        return tensor
    stage = int(found["i"])
    side = config.windows[stage]
    window = built_window(config, stage, rule)
    return (
        tensor if window == (side, side) else crop_table(tensor, window=window, full=(side, side))
    )
