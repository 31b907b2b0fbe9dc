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

BackboneConfig = SwinConfig | ViTConfig | T2TViTConfig | HieraConfig | TimmConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A model family: its config class, and the function that builds from it."""

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
    """Name of the family of a config."""
    return next(name for name, family in FAMILIES.items() if type(config) is family.config)


def build_backbone(config: BackboneConfig) -> Backbone:
    """Build an untrained backbone from its config."""
    return FAMILIES[family_of(config)].build(config)


def config_to_dict(config: BackboneConfig) -> dict[str, Any]:
    """Convert a backbone's config, with the name of its family, to plain values."""
    return {"family": family_of(config), **to_dict(config)}


def config_from_dict(values: Mapping[str, Any], *, where: str = "") -> BackboneConfig:
    """Restore a config from `config_to_dict`."""
    families = {name: family.config for name, family in FAMILIES.items()}
    return pick_kind(values, families, key="family", where=where or "the config")


def free_attention(config: BackboneConfig) -> BackboneConfig:
    """Replace forced fused attention, which not every machine has, by "auto"."""
    forced = getattr(config, "attention", "auto") == "fused"
    return replace(config, {"attention": "auto"}) if forced else config
