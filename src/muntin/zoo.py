# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The table of models: name, family, config, published weights; and the functions that build."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from muntin.configs import from_dict, replace, to_dict
from muntin.errors import ConfigError, unknown_name
from muntin.heads.linear import LinearHead
from muntin.heads.network import Network
from muntin.models import swin
from muntin.models.swin import Swin, SwinConfig
from muntin.models.vit import ViT, ViTConfig, vit_preset

__all__ = [
    "ALIASES",
    "FAMILIES",
    "MODELS",
    "Family",
    "ModelEntry",
    "build_backbone",
    "create_backbone",
    "create_model",
    "find_model",
    "list_models",
    "model_config",
]

BackboneConfig = SwinConfig | ViTConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A model file: its config class and how to build from it."""

    config: type[Any]
    build: Callable[[Any], nn.Module]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelEntry:
    """One row of the zoo.

    Attributes:
        config: The architecture.
        weights: Hub id of published weights, or empty.
        accuracy: Published ImageNet-1k top-1 of these weights in percent; 0 when unknown.
        source: Where that figure stands.
        mean: Normalisation that the weights were trained with, one a channel.
        std: The same.
        license: Licence of the weights.
    """

    config: BackboneConfig
    weights: str = ""
    accuracy: float = 0.0
    source: str = ""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    license: str = ""


FAMILIES: dict[str, Family] = {
    "swin": Family(config=SwinConfig, build=Swin),
    "vit": Family(config=ViTConfig, build=ViT),
}


def _swin(config: SwinConfig, weights: str = "", accuracy: float = 0.0) -> ModelEntry:
    return ModelEntry(
        config=config,
        weights=weights,
        accuracy=accuracy,
        source="microsoft/Swin-Transformer MODELHUB" if accuracy else "",
        license="MIT" if weights else "",
    )


def _vit(config: ViTConfig, weights: str = "", accuracy: float = 0.0) -> ModelEntry:
    # The published ViT weights were trained on pictures scaled to [-1, 1].
    half = (0.5, 0.5, 0.5)
    return ModelEntry(
        config=config,
        weights=weights,
        accuracy=accuracy,
        source="timm results-imagenet.csv" if accuracy else "",
        mean=half,
        std=half,
        license="Apache-2.0" if weights else "",
    )


MODELS: dict[str, ModelEntry] = {
    "swin_tiny_patch4_window7_224": _swin(
        swin.SWIN_TINY, "timm/swin_tiny_patch4_window7_224.ms_in1k", 81.2
    ),
    "swin_small_patch4_window7_224": _swin(
        swin.SWIN_SMALL, "timm/swin_small_patch4_window7_224.ms_in1k", 83.2
    ),
    "swin_base_patch4_window7_224": _swin(
        swin.SWIN_BASE, "timm/swin_base_patch4_window7_224.ms_in22k_ft_in1k", 85.2
    ),
    "swin_base_patch4_window12_384": _swin(
        swin.SWIN_BASE_384, "timm/swin_base_patch4_window12_384.ms_in22k_ft_in1k", 86.4
    ),
    "swin_large_patch4_window7_224": _swin(
        swin.SWIN_LARGE, "timm/swin_large_patch4_window7_224.ms_in22k_ft_in1k", 86.3
    ),
    "swin_large_patch4_window12_384": _swin(
        swin.SWIN_LARGE_384, "timm/swin_large_patch4_window12_384.ms_in22k_ft_in1k", 87.3
    ),
    "swin_s3_tiny_224": _swin(swin.SWIN_S3_TINY, "timm/swin_s3_tiny_224.ms_in1k"),
    "swin_s3_small_224": _swin(swin.SWIN_S3_SMALL, "timm/swin_s3_small_224.ms_in1k"),
    "swin_s3_base_224": _swin(swin.SWIN_S3_BASE, "timm/swin_s3_base_224.ms_in1k"),
    "swin_nano_patch2_window4_32": _swin(swin.SWIN_NANO_32),
    "swin_nano_patch4_window4_64": _swin(swin.SWIN_NANO_64),
    "vit_tiny_patch16_224": _vit(
        vit_preset("tiny", 16, 224), "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", 75.452
    ),
    "vit_tiny_patch16_384": _vit(
        vit_preset("tiny", 16, 384), "timm/vit_tiny_patch16_384.augreg_in21k_ft_in1k", 78.438
    ),
    "vit_small_patch32_224": _vit(
        vit_preset("small", 32, 224), "timm/vit_small_patch32_224.augreg_in21k_ft_in1k", 76.01
    ),
    "vit_small_patch32_384": _vit(
        vit_preset("small", 32, 384), "timm/vit_small_patch32_384.augreg_in21k_ft_in1k", 80.476
    ),
    "vit_small_patch16_224": _vit(
        vit_preset("small", 16, 224), "timm/vit_small_patch16_224.augreg_in21k_ft_in1k", 81.402
    ),
    "vit_small_patch16_384": _vit(
        vit_preset("small", 16, 384), "timm/vit_small_patch16_384.augreg_in21k_ft_in1k", 83.814
    ),
    "vit_small_patch8_224": _vit(vit_preset("small", 8, 224)),
    "vit_base_patch32_224": _vit(
        vit_preset("base", 32, 224), "timm/vit_base_patch32_224.augreg_in21k_ft_in1k", 80.732
    ),
    "vit_base_patch32_384": _vit(
        vit_preset("base", 32, 384), "timm/vit_base_patch32_384.augreg_in21k_ft_in1k", 83.358
    ),
    "vit_base_patch16_224": _vit(
        vit_preset("base", 16, 224), "timm/vit_base_patch16_224.augreg_in21k_ft_in1k", 84.534
    ),
    "vit_base_patch16_384": _vit(
        vit_preset("base", 16, 384), "timm/vit_base_patch16_384.augreg_in21k_ft_in1k", 86.01
    ),
    "vit_base_patch8_224": _vit(
        vit_preset("base", 8, 224), "timm/vit_base_patch8_224.augreg_in21k_ft_in1k", 85.838
    ),
    "vit_large_patch32_224": _vit(vit_preset("large", 32, 224)),
    "vit_large_patch32_384": _vit(
        vit_preset("large", 32, 384), "timm/vit_large_patch32_384.orig_in21k_ft_in1k", 81.508
    ),
    "vit_large_patch16_224": _vit(
        vit_preset("large", 16, 224), "timm/vit_large_patch16_224.augreg_in21k_ft_in1k", 85.856
    ),
    "vit_large_patch16_384": _vit(
        vit_preset("large", 16, 384), "timm/vit_large_patch16_384.augreg_in21k_ft_in1k", 87.096
    ),
    "vit_large_patch14_224": _vit(vit_preset("large", 14, 224)),
    "vit_huge_patch14_224": _vit(vit_preset("huge", 14, 224)),
}

ALIASES: dict[str, str] = {
    "swin_nano": "swin_nano_patch4_window4_64",
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "swin_small": "swin_small_patch4_window7_224",
    "swin_base": "swin_base_patch4_window7_224",
    "swin_large": "swin_large_patch4_window7_224",
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "vit_large": "vit_large_patch16_224",
    "vit_huge": "vit_huge_patch14_224",
}


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models, short aliases included, that match a shell pattern; sorted.

    Example:
        >>> list_models("swin_t*")
        ['swin_tiny', 'swin_tiny_patch4_window7_224']
    """
    return sorted(fnmatch.filter([*MODELS, *ALIASES], pattern))


def find_model(name: str) -> ModelEntry:
    """Give the row of a model.

    Raises:
        ConfigError: There is no such model; the nearest name is suggested.
    """
    row = MODELS.get(ALIASES.get(name, name))
    if row is None:
        known = [*MODELS, *ALIASES]
        raise ConfigError(unknown_name("model", name, known, hint="List them with: muntin models"))
    return row


def model_config(name: str, fields_changed: Mapping[str, Any] | None = None) -> BackboneConfig:
    """Give the config of a model with some fields changed.

    Raises:
        ConfigError: The model or a field is unknown, or the fields do not go together.
    """
    return replace(find_model(name).config, fields_changed or {}, where=name)


def family_of(config: BackboneConfig) -> str:
    """Name of the family that a config belongs to."""
    return next(name for name, family in FAMILIES.items() if type(config) is family.config)


def build_backbone(config: BackboneConfig) -> nn.Module:
    """Build a fresh backbone from its config."""
    return FAMILIES[family_of(config)].build(config)


def config_to_dict(config: BackboneConfig) -> dict[str, Any]:
    """Write a backbone's config with the name of its family."""
    return {"family": family_of(config), **to_dict(config)}


def config_from_dict(values: Mapping[str, Any], *, where: str = "") -> BackboneConfig:
    """Read what `config_to_dict` wrote.

    Raises:
        ConfigError: The family or a field is unknown.
    """
    family = values.get("family")
    if family not in FAMILIES:
        raise ConfigError(unknown_name(f"family in {where or 'the config'}", str(family), FAMILIES))
    rest = {key: value for key, value in values.items() if key != "family"}
    return from_dict(FAMILIES[family].config, rest, where=where)


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
        name: A name of `list_models`.
        num_classes: Classes; 0 gives the pooled vector instead of logits.
        in_chans: Channels of an image.
        weights: None for fresh ones; a local file or folder; or a hub id such as
            "timm/swin_tiny_patch4_window7_224.ms_in1k".
        architecture: Fields of the model's config, such as ``img_size=256`` or
            ``drop_path_rate=0.1``.

    Returns:
        The model, in training mode.

    Raises:
        ConfigError: The model or a field is unknown, or the fields do not go together.
        WeightError: The weights cannot be read or do not fit.

    Example:
        >>> model = create_model("swin_tiny", num_classes=10)
        >>> model(torch.zeros(1, 3, 64, 96)).shape
        torch.Size([1, 10])
    """
    config = model_config(name, {"in_chans": in_chans, **architecture})
    if num_classes < 0:
        message = f"num_classes must be 0 or more, got {num_classes}, for {name!r}."
        raise ConfigError(message)
    backbone = build_backbone(config)
    model = Network(backbone, LinearHead(backbone.embed_channels, num_classes))  # type: ignore[arg-type]
    if weights is not None:
        _load(model, weights)
    return model


def create_backbone(
    name: str,
    *,
    out_indices: tuple[int, ...] | None = None,
    in_chans: int = 3,
    weights: str | Path | None = None,
    **architecture: Any,
) -> nn.Module:
    """Build a backbone: images of any height and width to a list of maps, finest first.

    Args:
        name: A name of `list_models`.
        out_indices: Stages (Swin) or blocks (ViT) whose maps are wanted; all stages of a Swin and
            the last block of a ViT when left out.
        in_chans: Channels of an image.
        weights: As in `create_model`; the classifier's head is left aside.
        architecture: Fields of the model's config.

    Returns:
        The backbone; ``.spec`` tells channels and strides. Maps are as the stages leave them,
        without a final norm, unless ``out_norm="last"``.

    Raises:
        ConfigError: The model or a field is unknown, or the fields do not go together.
        WeightError: The weights cannot be read or do not fit.

    Example:
        >>> body = create_backbone("swin_tiny")
        >>> [tuple(m.shape) for m in body(torch.zeros(1, 3, 64, 96))]
        [(1, 96, 16, 24), (1, 192, 8, 12), (1, 384, 4, 6), (1, 768, 2, 3)]
    """
    changed = {"in_chans": in_chans, "out_norm": "none", **architecture}
    if out_indices is not None:
        changed["out_indices"] = out_indices
    backbone = build_backbone(model_config(name, changed))
    if weights is not None:
        _load(backbone, weights)
    return backbone


def _load(model: nn.Module, weights: str | Path) -> None:
    from muntin.weights.loading import load_weights

    load_weights(model, weights)


def count_parameters(config: BackboneConfig, num_classes: int) -> int:
    """Parameters of a classifier, counted without allocating them."""
    with torch.device("meta"):
        backbone = build_backbone(config)
        head = LinearHead(backbone.embed_channels, num_classes)  # type: ignore[arg-type]
    return sum(p.numel() for part in (backbone, head) for p in part.parameters())


def describe_models(pattern: str = "*") -> list[dict[str, Any]]:
    """Facts of the models whose name or alias matches: what ``muntin models`` shows.

    Raises:
        ConfigError: Nothing matches.
    """
    wanted = list_models(pattern)
    names = list(dict.fromkeys(ALIASES.get(name, name) for name in wanted))
    if not names:
        raise ConfigError(unknown_name("model", pattern, [*MODELS, *ALIASES]))
    alias_of = {name: alias for alias, name in ALIASES.items()}
    rows = []
    for name in sorted(names):
        entry = MODELS[name]
        config = entry.config
        window = getattr(config, "window_size", None)
        rows.append(
            {
                "name": name,
                "alias": alias_of.get(name, ""),
                "family": family_of(config),
                "params": count_parameters(config, 1000),
                "img_size": list(config.img_size),
                "window": "-" if window is None else str(window).strip("()"),
                "accuracy": entry.accuracy or None,
                "source": entry.source,
                "weights": entry.weights,
                "license": entry.license,
            }
        )
    return rows
