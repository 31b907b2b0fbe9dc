# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The table of families: name -> config class and model, and configs as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from muntin.configs import pick_kind, replace, to_dict
from muntin.features import Backbone
from muntin.models.hiera import Hiera, HieraConfig
from muntin.models.swin import Swin, SwinConfig
from muntin.models.swin_v2 import SwinV2, SwinV2Config
from muntin.models.t2t_vit import T2TViT, T2TViTConfig
from muntin.models.timm_backbone import TimmBackbone, TimmConfig
from muntin.models.vit import ViT, ViTConfig

__all__ = [
    "FAMILIES",
    "BackboneConfig",
    "Family",
    "build_backbone",
    "config_from_dict",
    "config_to_dict",
    "family_of",
    "free_attention",
]

BackboneConfig = SwinConfig | ViTConfig | T2TViTConfig | HieraConfig | TimmConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A model file: its config class and how to build from it."""

    config: type[Any]
    build: Callable[[Any], Backbone]


FAMILIES: dict[str, Family] = {
    "swin": Family(config=SwinConfig, build=Swin),
    "swin_v2": Family(config=SwinV2Config, build=SwinV2),
    "vit": Family(config=ViTConfig, build=ViT),
    "t2t_vit": Family(config=T2TViTConfig, build=T2TViT),
    "hiera": Family(config=HieraConfig, build=Hiera),
    "timm": Family(config=TimmConfig, build=TimmBackbone),
}


def family_of(config: BackboneConfig) -> str:
    """Name of the family that a config belongs to."""
    return next(name for name, family in FAMILIES.items() if type(config) is family.config)


def build_backbone(config: BackboneConfig) -> Backbone:
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
    families = {name: family.config for name, family in FAMILIES.items()}
    return pick_kind(values, families, key="family", where=where or "the config")


def free_attention(config: BackboneConfig) -> BackboneConfig:
    """Give the config of a backbone that runs anywhere: "auto" where fused attention was forced.

    How attention is computed belongs to a machine, not to the weights.
    """
    forced = getattr(config, "attention", "auto") == "fused"
    return replace(config, {"attention": "auto"}) if forced else config
