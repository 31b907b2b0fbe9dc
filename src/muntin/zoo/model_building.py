# SPDX-License-Identifier: Apache-2.0
"""Functions that build classifiers and backbones by name."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import fnmatch
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import nn

from muntin.configs import replace, to_dict
from muntin.errors import ConfigError, MuntinWarning, shorten, unknown_name
from muntin.features import Backbone
from muntin.heads.classification_head import build_classifier
from muntin.heads.network import Network
from muntin.heads.transformers_model import ARCHITECTURES, TRANSFORMERS
from muntin.models.swin import SwinConfig
from muntin.models.timm_backbone import TimmConfig, describe_timm, has_timm, list_timm
from muntin.zoo.model_names import match_name, split_tag
from muntin.zoo.model_zoo import ALIASES, MODELS, BackboneConfig, ModelEntry, build_backbone
from muntin.zoo.transformers_folder import find_transformers

TIMM = "timm:"
"""Prefix of names of timm models."""

_ARGUMENTS = ("num_classes", "num_keypoints", "weights", "head", "conventions")

M = TypeVar("M", bound=nn.Module)


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models, short aliases included, that match a shell pattern; sorted.

    A pattern that begins with ``timm:`` lists the models of timm if it is installed.

    Examples:
        >>> list_models("swin_t*")
        ['swin_tiny', 'swin_tiny_patch4_window7_224']
    """
    if pattern.startswith(TIMM):
        return [f"{TIMM}{name}" for name in list_timm(pattern.removeprefix(TIMM))]
    if pattern.startswith(TRANSFORMERS):
        return fnmatch.filter([TRANSFORMERS + name for name in ARCHITECTURES], pattern)
    return sorted(fnmatch.filter([*MODELS, *ALIASES], pattern))


def find_model(name: str) -> ModelEntry:
    """Look up a model by its name here or in another library; see `canonical_name`."""
    if not isinstance(name, str):
        message = f"a model must be given by its name, such as 'swin_tiny', got {name!r}."
        raise ConfigError(message)
    if name.startswith(TIMM):
        return _find_timm(name.removeprefix(TIMM))
    if name.startswith(TRANSFORMERS):
        return find_transformers(name.removeprefix(TRANSFORMERS))
    known, weights = _resolve(name)
    if not known:
        base = split_tag(name)[0]
        near = difflib.get_close_matches(base, [*MODELS, *ALIASES])
        hint = "List models with: muntin models, or: muntin models 'swin*'"
        if has_timm(base):
            near, hint = [], f"It is a model of timm; name it {TIMM + base!r}."
        raise ConfigError(unknown_name("model", name, near, hint=hint))
    entry = MODELS[known]
    if weights in ("", entry.weights):
        return entry
    return dataclasses.replace(entry, weights=weights, accuracy=0.0, source="", license="")


def canonical_name(name: str) -> str:
    """Name in the table of a model that may be called as elsewhere; unknown ones are unchanged.

    Known are timm's names, with a tag, which stays if it names other weights than the table does;
    those of torchvision and OpenMMLab; and ids of the hub.

    Examples:
        >>> canonical_name("swin_t"), canonical_name("google/vit-base-patch16-224")
        ('swin_tiny_patch4_window7_224', 'vit_base_patch16_224')
    """
    known, weights = _resolve(name)
    if not known or weights in ("", MODELS[known].weights):
        return known or name
    return weights.removeprefix("timm/")


def _resolve(name: str) -> tuple[str, str]:
    """Name in the table, or empty, and the hub id of weights, if timm's tag names them."""
    if name.startswith((TIMM, TRANSFORMERS)):
        return "", ""
    if name in MODELS or name in ALIASES:
        return ALIASES.get(name, name), ""
    base, tag = split_tag(name)
    hub_id = f"timm/{base}.{tag}" if tag else ""
    known = next((known for known, row in MODELS.items() if row.weights == hub_id != ""), "")
    if not known and (base in MODELS or base in ALIASES):
        known = ALIASES.get(base, base)
    if known:
        return known, hub_id
    configs = {known: row.config for known, row in MODELS.items()}
    return match_name(base, configs, ALIASES), ""


def _find_timm(name: str) -> ModelEntry:
    facts = describe_timm(name)
    size = facts.get("input_size") or (3, 224, 224)
    entry = ModelEntry(
        config=TimmConfig(name=name, img_size=(size[1], size[2])),
        weights=facts.get("hf_hub_id") or "",
        license=facts.get("license") or "",
    )
    if "mean" not in facts:
        return entry
    return dataclasses.replace(entry, mean=tuple(facts["mean"]), std=tuple(facts["std"]))


def model_config(name: str, fields_changed: Mapping[str, Any] | None = None) -> BackboneConfig:
    """Return the config of a model with some fields changed; unknown fields are errors."""
    config, given = find_model(name).config, dict(fields_changed or {})
    depths = given.get("depths", getattr(config, "depths", ()))
    stages = len(depths) if isinstance(depths, tuple | list) else 1
    changed = {key: _square(key, value, stages) for key, value in given.items()}
    if "attention" in changed and not hasattr(config, "attention"):
        message = (
            f"attention can be set only for models with window attention (Swin and Swin V2), got "
            f"{name!r}, which always uses PyTorch's attention. Remove attention."
        )
        raise ConfigError(message)
    names = [field.name for field in dataclasses.fields(config)]
    unknown = next((key for key in changed if key not in names), "")
    if unknown:
        if unknown in _ELSEWHERE:
            message = f"Unknown option in {name} {unknown!r}. {_ELSEWHERE[unknown]}"
            raise ConfigError(message)
        # The arguments of the functions that create models are compared too.
        message = unknown_name(f"option in {name}", unknown, [*names, *_ARGUMENTS])
        raise ConfigError(message)
    return replace(config, changed, where=name)


_ELSEWHERE = {
    "pretrained": "Set weights to a hub id, such as that in the column of muntin models.",
    "pretrained_cfg": "Set weights to a hub id, a file or a folder.",
    "checkpoint_path": "Set weights to the file.",
    "features_only": "Call create_backbone, whose output is a list of maps.",
    "global_pool": "Set pool='mean' or pool='token' (ViT); other families have one way of pooling.",
    "num_labels": "Set num_classes.",
    "image_size": "Set img_size.",
    "hidden_size": "Set embed_dim.",
    "num_hidden_layers": "Set depth.",
    "num_attention_heads": "Set num_heads.",
    "num_channels": "Set in_chans.",
    "init_values": "Set layer_scale.",
}
"""Keywords of timm and transformers, and what does the same here."""


def _square(name: str, value: Any, stages: int) -> Any:  # noqa: ANN401 (any field)
    """Turn a pair of equal numbers into one, where a side is meant."""
    sides = name in ("patch_size", "window_size", "mask_unit")
    if not sides or not isinstance(value, (tuple, list)) or len(value) != 2:
        return value
    if value[0] == value[1]:
        return value[0]
    if name == "window_size" and stages == len(value):
        return value  # one a stage
    message = f"{name} must be the side of a square, got {tuple(value)}. Set one number."
    raise ConfigError(message)


def dense_config(config: BackboneConfig, *, finest: int = 4) -> BackboneConfig:
    """Return a config for dense tasks: maps from stride `finest` on, each with its own norm."""
    changed: dict[str, Any] = {}
    if hasattr(config, "depths"):
        stages = len(config.depths)
        first = getattr(config, "patch_size", 4)
        wanted = [stage for stage in range(stages) if first * 2**stage >= finest]
        changed["out_indices"] = tuple(wanted) or (stages - 1,)
    if isinstance(config, SwinConfig):
        changed["out_norm"] = "each"
    return replace(config, changed)


def classifier_config(config: BackboneConfig) -> BackboneConfig:
    """Return a config for classification: one norm, behind the last map or its mean."""
    if not hasattr(config, "depths"):
        return config
    indices = tuple(range(len(config.depths)))
    return replace(config, {"out_norm": "last", "out_indices": indices})


def build_dense_backbone(
    name: str, architecture: Mapping[str, Any], *, finest: int = 4
) -> Backbone:
    """Build an untrained backbone from `dense_config`; fields in `architecture` override it."""
    body = dense_config(model_config(name, architecture), finest=finest)
    kept = {key: architecture[key] for key in ("out_indices", "out_norm") if key in architecture}
    return build_backbone(replace(body, kept, where=name))


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    weights: str | Path | None = None,
    **architecture: Any,
) -> Network:
    """Build a classifier: images (B, in_chans, H, W) float to logits (B, num_classes).

    Args:
        name: A name of `list_models`, or ``timm:`` and the name of any model of timm.
        num_classes: Number of classes; 0 returns the pooled vector instead of logits.
        in_chans: Input channels.
        weights: None for random weights; a local file or folder; or a hub id such as
            "timm/swin_tiny_patch4_window7_224.ms_in1k".
        architecture: Fields of the model's config, such as ``img_size=256`` or
            ``drop_path_rate=0.1``.

    Returns:
        The model, in training mode.

    Raises:
        ConfigError: The model or a field is unknown, or the fields are inconsistent.
        WeightError: The weights cannot be read or do not fit.

    Examples:
        >>> import torch
        >>> model = create_model("swin_tiny", num_classes=10)
        >>> model(torch.zeros(1, 3, 64, 96)).shape
        torch.Size([1, 10])
    """
    config = model_config(name, {"in_chans": in_chans, **architecture})
    if not isinstance(num_classes, int) or num_classes < 0:
        message = f"num_classes must be an integer from 0 on, got {num_classes!r} (model {name!r})."
        raise ConfigError(message)
    backbone = build_backbone(config)
    model = Network(backbone, build_classifier(backbone, num_classes))
    if weights is not None:
        load_into(model, weights, architecture, name)
    return model


def change_model(model: M, **architecture: Any) -> M:
    """Return a copy of a model with a changed architecture and its weights transferred.

    Relative position bias tables, position embeddings, patch embeddings and input channels are
    resized as `muntin.load_weights` does; tensors of equal size are copied exactly. The model
    itself is not modified; the new one is in the same mode.

    Args:
        model: A network or a backbone, such as from `create_model` or `create_backbone`.
        architecture: Fields of its config, such as ``window_size=12`` or ``img_size=384``.

    Raises:
        ConfigError: A field is unknown, or the fields are inconsistent.
        WeightError: The weights cannot be transferred, for example to another width or depth.

    Examples:
        >>> model = create_model("swin_nano", num_classes=3)
        >>> change_model(model, window_size=8).backbone.config.window_size
        8
    """
    from muntin.weights.dialects import backbone_of
    from muntin.weights.source_info import set_config
    from muntin.weights.weight_loading import load_weights

    backbone_of(model)  # raises if it is not a muntin model
    old: Any = model.backbone if isinstance(model, Network) else model
    config = replace(old.config, architecture, where=type(old).__name__)
    fresh: Any = build_backbone(config)
    load_weights(fresh, old.state_dict(), dialect="muntin", made_with=to_dict(old.config))
    if "pretrained_windows" in architecture:
        set_config(fresh, config)
    parameter = next(old.parameters())
    fresh.to(parameter.device, parameter.dtype).train(old.training)
    if not isinstance(model, Network):
        return cast("M", fresh)
    changed = Network(fresh, copy.deepcopy(model.head))
    return cast("M", changed.train(model.training))


def create_backbone(
    name: str,
    *,
    out_indices: tuple[int, ...] | None = None,
    in_chans: int = 3,
    weights: str | Path | None = None,
    **architecture: Any,
) -> nn.Module:
    """Build a backbone: images of any height and width to a list of feature maps, finest first.

    Args:
        name: A name of `list_models`.
        out_indices: Stages (Swin) or blocks (ViT) whose maps are returned; by default all, or the
            last block. Negative ones count from the end.
        in_chans: Input channels.
        weights: As in `create_model`; the classifier head is ignored.
        architecture: Fields of the model's config.

    Returns:
        The backbone; ``.spec`` holds channels and strides. Sides of the maps are image sides /
        stride, rounded up, or as the size rule or timm's own model says (ConvNeXt: down). Maps
        have a final norm only with ``out_norm="last"``.

    Raises:
        ConfigError: The model or a field is unknown, or the fields are inconsistent.
        WeightError: The weights cannot be read or do not fit.

    Examples:
        >>> import torch
        >>> body = create_backbone("swin_tiny")
        >>> [tuple(m.shape) for m in body(torch.zeros(1, 3, 64, 96))]
        [(1, 96, 16, 24), (1, 192, 8, 12), (1, 384, 4, 6), (1, 768, 2, 3)]
    """
    changed = {"in_chans": in_chans, **architecture}
    if hasattr(find_model(name).config, "out_norm"):
        changed.setdefault("out_norm", "none")
    if out_indices is not None:
        changed["out_indices"] = out_indices
    backbone = build_backbone(model_config(name, changed))
    if weights is not None:
        load_into(backbone, weights, architecture, name)
    return backbone


def load_into(
    model: nn.Module, weights: str | Path, requested: Mapping[str, Any], name: str = ""
) -> None:
    """Load weights; fields that the caller set are kept, with a warning if the source differs.

    `name` is that of the zoo, which knows with which config its published weights were made.
    """
    from muntin.weights.source_info import adopt, build_adopted, set_config
    from muntin.weights.weight_loading import load_weights

    entry = find_model(name) if name else None
    published = entry is not None and entry.weights == str(weights).removeprefix("hf-hub:")
    made_with = to_dict(entry.config) if published and entry else None
    report = load_weights(model, weights, made_with=made_with)
    body: Any = model.backbone if isinstance(model, Network) else model
    if report.dropped:
        message = (
            f"the classifier is random: that of {weights} was not loaded "
            f"({shorten(report.dropped, limit=2)})."
        )
        warnings.warn(message, MuntinWarning, stacklevel=3)
    own = ("size_rule", "window_size", "pretrained_windows")
    if changed := {name: requested[name] for name in own if name in requested}:
        set_config(body, replace(body.config, changed))
    kept = {name: requested[name] for name in report.adopted if name in requested}
    other = build_adopted(body, kept, "the call")
    if other is not None:
        adopt(body, other)
        message = f"{weights} states {dict(report.adopted)}, but {kept} was requested, and is used."
        warnings.warn(message, MuntinWarning, stacklevel=3)
