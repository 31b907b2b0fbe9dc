# SPDX-License-Identifier: Apache-2.0
"""The tables of families and of models: config, published weights, accuracy and its source."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from muntin import configs
from muntin.features import Backbone
from muntin.models import hiera, swin
from muntin.models.hiera import Hiera, HieraConfig
from muntin.models.swin import Swin, SwinConfig
from muntin.models.swin_v2 import SwinV2, SwinV2Config, swin_v2_preset
from muntin.models.t2t_vit import T2TViT, T2TViTConfig, t2t_vit_preset
from muntin.models.timm_backbone import TimmBackbone, TimmConfig
from muntin.models.transformers_backbone import TransformersBackbone, TransformersConfig
from muntin.models.vit import ViT, ViTConfig
from muntin.models.vit_det import ViTDet, ViTDetConfig, vit_det_preset
from muntin.models.vit_presets import (
    ViTSize,
    beit_preset,
    deit3_preset,
    dinov2_preset,
    vit_preset,
    vitpose_preset,
)

BackboneConfig = (
    SwinConfig | ViTConfig | ViTDetConfig | T2TViTConfig | HieraConfig | TimmConfig
    | TransformersConfig
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A model family: its config class, and the function that builds from it."""

    config: type[Any]
    build: Callable[[Any], Backbone]


FAMILIES: dict[str, Family] = {
    "swin": Family(config=SwinConfig, build=Swin),
    "swin_v2": Family(config=SwinV2Config, build=SwinV2),
    "vit": Family(config=ViTConfig, build=ViT),
    "vit_det": Family(config=ViTDetConfig, build=ViTDet),
    "t2t_vit": Family(config=T2TViTConfig, build=T2TViT),
    "hiera": Family(config=HieraConfig, build=Hiera),
    "timm": Family(config=TimmConfig, build=TimmBackbone),
    "hf": Family(config=TransformersConfig, build=TransformersBackbone),
}


def family_of(config: BackboneConfig) -> str:
    """Name of the family of a config."""
    return next(name for name, family in FAMILIES.items() if type(config) is family.config)


def build_backbone(config: BackboneConfig) -> Backbone:
    """Build an untrained backbone from its config."""
    return FAMILIES[family_of(config)].build(config)


def parameter_bytes(config: BackboneConfig) -> float:
    """Bytes of a backbone's parameters in fp32 by its fields: at least so many, built or not."""
    width: int = getattr(config, "embed_dim", 0)
    depths = getattr(config, "depths", None) or (getattr(config, "depth", 0),)
    shares = 4 + 2 * getattr(config, "mlp_ratio", 0.0)  # attention, and the MLP
    count = sum(depth * (width * 2**i) ** 2 * shares for i, depth in enumerate(depths))
    count += config.in_chans * getattr(config, "patch_size", 1) ** 2 * width
    if getattr(config, "absolute_pos_embed", False):
        count += math.prod(config.grid) * width  # type: ignore[union-attr]
    for depth, side in zip(depths, getattr(config, "windows", ()), strict=False):
        count += depth * side**2  # at least that much of the position bias
    return 4.0 * count


def config_to_dict(config: BackboneConfig) -> dict[str, Any]:
    """Convert a backbone's config, with the name of its family, to plain values."""
    return {"family": family_of(config), **configs.to_dict(config)}


def config_from_dict(values: Mapping[str, Any], *, where: str = "") -> BackboneConfig:
    """Restore a config from `config_to_dict`."""
    families = {name: family.config for name, family in FAMILIES.items()}
    return configs.pick_kind(values, families, key="family", where=where or "the config")


def free_attention(config: BackboneConfig) -> BackboneConfig:
    """Replace forced fused attention, which not every machine has, by "auto"."""
    forced = getattr(config, "attention", "auto") == "fused"
    return configs.replace(config, {"attention": "auto"}) if forced else config


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# The published ViT weights were trained on images scaled to [-1, 1].
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_NON_COMMERCIAL = "CC-BY-NC-4.0"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelEntry:
    """One row of the zoo: `weights` is the hub id of published weights, or empty.

    `accuracy` is ImageNet-1k top-1 in percent, published in `source`; 0 if unknown. Mean and
    standard deviation, a value per channel, normalize images as in the training of the weights.
    """

    config: BackboneConfig
    weights: str = ""
    accuracy: float = 0.0
    source: str = ""
    mean: tuple[float, ...] = _IMAGENET[0]
    std: tuple[float, ...] = _IMAGENET[1]
    license: str = ""


@dataclass(frozen=True, slots=True)
class _Publisher:
    source: str
    license: str
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] = _IMAGENET

    def row(
        self, name: str, config: BackboneConfig, weights: str = "", accuracy: float = 0.0
    ) -> tuple[str, ModelEntry]:
        """Make a row of the table; `weights` is a hub id, or timm's tag of the weights."""
        entry = ModelEntry(
            config=config,
            weights=weights if "/" in weights or not weights else f"timm/{name}.{weights}",
            accuracy=accuracy,
            source=self.source if accuracy else "",
            mean=self.normalisation[0],
            std=self.normalisation[1],
            license=self.license if weights else "",
        )
        return name, entry


_swin = _Publisher("microsoft/Swin-Transformer MODELHUB", "MIT").row
_vit = _Publisher("timm results-imagenet.csv", "Apache-2.0", _HALF).row
_deit = _Publisher("facebookresearch/deit README_deit", "Apache-2.0").row
_deit3 = _Publisher("facebookresearch/deit README_revenge", "Apache-2.0").row
_mae = _Publisher("facebookresearch/mae FINETUNE, after fine-tuning", _NON_COMMERCIAL).row
_simmim = _Publisher("microsoft/SimMIM README, after fine-tuning", "MIT").row
_dinov2 = _Publisher("", "Apache-2.0").row
_beit = _Publisher("", "Apache-2.0", _HALF).row
_beitv2 = _Publisher("", "Apache-2.0").row
_t2t = _Publisher("yitu-opensource/T2T-ViT README", "").row
_hiera = _Publisher("facebookresearch/hiera README", _NON_COMMERCIAL).row


def _wider(size: str, window: int, side: int) -> SwinV2Config:
    """Fine-tuned with larger windows than it was pre-trained with."""
    return swin_v2_preset(size, window, side, pretrained=True)


def _distilled(size: ViTSize, patch: int, side: int) -> ViTConfig:
    return replace(vit_preset(size, patch, side), distillation_token=True)


def _mean_pooled(size: ViTSize, patch: int, side: int) -> ViTConfig:
    return replace(vit_preset(size, patch, side), pool="mean", pool_norm="after")


_MAE_BASE, _MAE_LARGE = _mean_pooled("base", 16, 224), _mean_pooled("large", 16, 224)
_MAE_HUGE = _mean_pooled("huge", 14, 224)
_SIMMIM_VIT = beit_preset("base", 224, 0.1)

_ROWS = (
    _swin("swin_tiny_patch4_window7_224", swin.SWIN_TINY, "ms_in1k", 81.2),
    _swin("swin_small_patch4_window7_224", swin.SWIN_SMALL, "ms_in1k", 83.2),
    _swin("swin_base_patch4_window7_224", swin.SWIN_BASE, "ms_in22k_ft_in1k", 85.2),
    _swin("swin_base_patch4_window12_384", swin.SWIN_BASE_384, "ms_in22k_ft_in1k", 86.4),
    _swin("swin_large_patch4_window7_224", swin.SWIN_LARGE, "ms_in22k_ft_in1k", 86.3),
    _swin("swin_large_patch4_window12_384", swin.SWIN_LARGE_384, "ms_in22k_ft_in1k", 87.3),
    _swin("swin_s3_tiny_224", swin.SWIN_S3_TINY, "ms_in1k"),
    _swin("swin_s3_small_224", swin.SWIN_S3_SMALL, "ms_in1k"),
    _swin("swin_s3_base_224", swin.SWIN_S3_BASE, "ms_in1k"),
    _swin("swin_nano_patch2_window4_32", swin.SWIN_NANO_32),
    _swin("swin_nano_patch4_window4_64", swin.SWIN_NANO_64),
    _swin("swin_nano_patch4_256", swin.SWIN_NANO_256),
    _vit("vit_tiny_patch16_224", vit_preset("tiny", 16, 224), "augreg_in21k_ft_in1k", 75.452),
    _vit("vit_tiny_patch16_384", vit_preset("tiny", 16, 384), "augreg_in21k_ft_in1k", 78.438),
    _vit("vit_small_patch32_224", vit_preset("small", 32, 224), "augreg_in21k_ft_in1k", 76.01),
    _vit("vit_small_patch32_384", vit_preset("small", 32, 384), "augreg_in21k_ft_in1k", 80.476),
    _vit("vit_small_patch16_224", vit_preset("small", 16, 224), "augreg_in21k_ft_in1k", 81.402),
    _vit("vit_small_patch16_384", vit_preset("small", 16, 384), "augreg_in21k_ft_in1k", 83.814),
    _vit("vit_small_patch8_224", vit_preset("small", 8, 224)),
    _vit("vit_base_patch32_224", vit_preset("base", 32, 224), "augreg_in21k_ft_in1k", 80.732),
    _vit("vit_base_patch32_384", vit_preset("base", 32, 384), "augreg_in21k_ft_in1k", 83.358),
    _vit("vit_base_patch16_224", vit_preset("base", 16, 224), "augreg_in21k_ft_in1k", 84.534),
    _vit("vit_base_patch16_384", vit_preset("base", 16, 384), "augreg_in21k_ft_in1k", 86.01),
    _vit("vit_base_patch8_224", vit_preset("base", 8, 224), "augreg_in21k_ft_in1k", 85.838),
    _vit("vit_large_patch32_224", vit_preset("large", 32, 224)),
    _vit("vit_large_patch32_384", vit_preset("large", 32, 384), "orig_in21k_ft_in1k", 81.508),
    _vit("vit_large_patch16_224", vit_preset("large", 16, 224), "augreg_in21k_ft_in1k", 85.856),
    _vit("vit_large_patch16_384", vit_preset("large", 16, 384), "augreg_in21k_ft_in1k", 87.096),
    _vit("vit_large_patch14_224", vit_preset("large", 14, 224)),
    _vit("vit_huge_patch14_224", vit_preset("huge", 14, 224)),
    # Swin V2
    _swin("swinv2_tiny_window8_256", swin_v2_preset("tiny", 8, 256), "ms_in1k", 81.8),
    _swin("swinv2_tiny_window16_256", swin_v2_preset("tiny", 16, 256), "ms_in1k", 82.8),
    _swin("swinv2_small_window8_256", swin_v2_preset("small", 8, 256, 0.3), "ms_in1k", 83.7),
    _swin("swinv2_small_window16_256", swin_v2_preset("small", 16, 256, 0.3), "ms_in1k", 84.1),
    _swin("swinv2_base_window8_256", swin_v2_preset("base", 8, 256, 0.5), "ms_in1k", 84.2),
    _swin("swinv2_base_window16_256", swin_v2_preset("base", 16, 256, 0.5), "ms_in1k", 84.6),
    _swin("swinv2_base_window12_192", swin_v2_preset("base", 12, 192), "ms_in22k"),
    _swin("swinv2_base_window12to16_192to256", _wider("base", 16, 256), "ms_in22k_ft_in1k", 86.2),
    _swin("swinv2_base_window12to24_192to384", _wider("base", 24, 384), "ms_in22k_ft_in1k", 87.1),
    _swin("swinv2_large_window12_192", swin_v2_preset("large", 12, 192), "ms_in22k"),
    _swin("swinv2_large_window12to16_192to256", _wider("large", 16, 256), "ms_in22k_ft_in1k", 86.9),
    _swin("swinv2_large_window12to24_192to384", _wider("large", 24, 384), "ms_in22k_ft_in1k", 87.6),
    # DeiT, with and without distillation; DeiT III
    _deit("deit_tiny_patch16_224", vit_preset("tiny", 16, 224), "fb_in1k", 72.2),
    _deit("deit_small_patch16_224", vit_preset("small", 16, 224), "fb_in1k", 79.9),
    _deit("deit_base_patch16_224", vit_preset("base", 16, 224), "fb_in1k", 81.8),
    _deit("deit_base_patch16_384", vit_preset("base", 16, 384), "fb_in1k", 82.9),
    _deit("deit_tiny_distilled_patch16_224", _distilled("tiny", 16, 224), "fb_in1k", 74.5),
    _deit("deit_small_distilled_patch16_224", _distilled("small", 16, 224), "fb_in1k", 81.2),
    _deit("deit_base_distilled_patch16_224", _distilled("base", 16, 224), "fb_in1k", 83.4),
    _deit("deit_base_distilled_patch16_384", _distilled("base", 16, 384), "fb_in1k", 85.2),
    _deit3("deit3_small_patch16_224", deit3_preset("small", 16, 224), "fb_in22k_ft_in1k", 83.1),
    _deit3("deit3_small_patch16_384", deit3_preset("small", 16, 384), "fb_in22k_ft_in1k", 84.8),
    _deit3("deit3_medium_patch16_224", deit3_preset("medium", 16, 224), "fb_in22k_ft_in1k", 84.5),
    _deit3("deit3_base_patch16_224", deit3_preset("base", 16, 224), "fb_in22k_ft_in1k", 85.7),
    _deit3("deit3_base_patch16_384", deit3_preset("base", 16, 384), "fb_in22k_ft_in1k", 86.7),
    _deit3("deit3_large_patch16_224", deit3_preset("large", 16, 224), "fb_in22k_ft_in1k", 87.0),
    _deit3("deit3_large_patch16_384", deit3_preset("large", 16, 384), "fb_in22k_ft_in1k", 87.7),
    _deit3("deit3_huge_patch14_224", deit3_preset("huge", 14, 224), "fb_in22k_ft_in1k", 87.2),
    # Pre-trained by masked image modeling (MAE, SimMIM)
    _mae("mae_vit_base_patch16", _MAE_BASE, "timm/vit_base_patch16_224.mae", 83.6),
    _mae("mae_vit_large_patch16", _MAE_LARGE, "timm/vit_large_patch16_224.mae", 85.9),
    _mae("mae_vit_huge_patch14", _MAE_HUGE, "timm/vit_huge_patch14_224.mae", 86.9),
    _simmim("simmim_vit_base_patch16_224", _SIMMIM_VIT, accuracy=83.8),
    _simmim(
        "simmim_swin_base_window6_192",
        replace(swin.SWIN_BASE, window_size=6, img_size=(192, 192), drop_path_rate=0.1),
        accuracy=82.8,
    ),
    _simmim(
        "simmim_swin_base_window7_224", replace(swin.SWIN_BASE, drop_path_rate=0.1), accuracy=84.0
    ),
    _simmim(
        "simmim_swin_large_window14_224", replace(swin.SWIN_LARGE, window_size=14), accuracy=85.4
    ),
    _beit("beit_base_patch16_224", beit_preset("base", 224, 0.1), "in22k_ft_in22k_in1k"),
    _beit("beit_base_patch16_384", beit_preset("base", 384, 0.1), "in22k_ft_in22k_in1k"),
    _beit("beit_large_patch16_224", beit_preset("large", 224, 1e-5), "in22k_ft_in22k_in1k"),
    _beit("beit_large_patch16_384", beit_preset("large", 384, 1e-5), "in22k_ft_in22k_in1k"),
    _beitv2("beitv2_base_patch16_224", beit_preset("base", 224, 1e-5), "in1k_ft_in22k_in1k"),
    _beitv2("beitv2_large_patch16_224", beit_preset("large", 224, 1e-5), "in1k_ft_in22k_in1k"),
    # DINOv2: self-supervised, published without a classifier
    _dinov2("vit_small_patch14_dinov2", dinov2_preset("small"), "lvd142m"),
    _dinov2("vit_base_patch14_dinov2", dinov2_preset("base"), "lvd142m"),
    _dinov2("vit_large_patch14_dinov2", dinov2_preset("large"), "lvd142m"),
    _dinov2("vit_giant_patch14_dinov2", dinov2_preset("giant"), "lvd142m"),
    _dinov2("vit_small_patch14_reg4_dinov2", dinov2_preset("small", 4), "lvd142m"),
    _dinov2("vit_base_patch14_reg4_dinov2", dinov2_preset("base", 4), "lvd142m"),
    _dinov2("vit_large_patch14_reg4_dinov2", dinov2_preset("large", 4), "lvd142m"),
    _dinov2("vit_giant_patch14_reg4_dinov2", dinov2_preset("giant", 4), "lvd142m"),
    # ViTPose: backbones of pose estimators; the published weights include the head.
    ("vitpose_small", ModelEntry(config=vitpose_preset("small"), license="Apache-2.0")),
    ("vitpose_base", ModelEntry(config=vitpose_preset("base"), license="Apache-2.0")),
    ("vitpose_large", ModelEntry(config=vitpose_preset("large"), license="Apache-2.0")),
    ("vitpose_huge", ModelEntry(config=vitpose_preset("huge"), license="Apache-2.0")),
    # ViTDet: backbones of detectors; the published weights include neck and heads.
    ("vitdet_base", ModelEntry(config=vit_det_preset("base", 0.1), license="Apache-2.0")),
    ("vitdet_large", ModelEntry(config=vit_det_preset("large", 0.4), license="Apache-2.0")),
    ("vitdet_huge", ModelEntry(config=vit_det_preset("huge", 0.5), license="Apache-2.0")),
    # T2T-ViT
    _t2t("t2t_vit_7", t2t_vit_preset(7), accuracy=71.7),
    _t2t("t2t_vit_10", t2t_vit_preset(10), accuracy=75.2),
    _t2t("t2t_vit_12", t2t_vit_preset(12), accuracy=76.5),
    _t2t("t2t_vit_14", t2t_vit_preset(14), accuracy=81.5),
    _t2t("t2t_vit_14_384", t2t_vit_preset(14, side=384), accuracy=83.3),
    _t2t("t2t_vit_19", t2t_vit_preset(19), accuracy=81.9),
    _t2t("t2t_vit_24", t2t_vit_preset(24), accuracy=82.3),
    _t2t("t2t_vit_t_14", t2t_vit_preset(14, "transformer"), accuracy=81.7),
    _t2t("t2t_vit_t_19", t2t_vit_preset(19, "transformer"), accuracy=82.4),
    _t2t("t2t_vit_t_24", t2t_vit_preset(24, "transformer"), accuracy=82.6),
    # Hiera
    _hiera("hiera_tiny_224", hiera.HIERA_TINY, "mae_in1k_ft_in1k", 82.8),
    _hiera("hiera_small_224", hiera.HIERA_SMALL, "mae_in1k_ft_in1k", 83.8),
    _hiera("hiera_base_224", hiera.HIERA_BASE, "mae_in1k_ft_in1k", 84.5),
    _hiera("hiera_base_plus_224", hiera.HIERA_BASE_PLUS, "mae_in1k_ft_in1k", 85.2),
    _hiera("hiera_large_224", hiera.HIERA_LARGE, "mae_in1k_ft_in1k", 86.1),
    _hiera("hiera_huge_224", hiera.HIERA_HUGE, "mae_in1k_ft_in1k", 86.9),
)


MODELS: dict[str, ModelEntry] = dict(_ROWS)

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
    "swinv2_tiny": "swinv2_tiny_window8_256",
    "swinv2_small": "swinv2_small_window8_256",
    "swinv2_base": "swinv2_base_window8_256",
    "swinv2_large": "swinv2_large_window12to16_192to256",
    "deit_tiny": "deit_tiny_patch16_224",
    "deit_small": "deit_small_patch16_224",
    "deit_base": "deit_base_patch16_224",
    "deit3_small": "deit3_small_patch16_224",
    "deit3_medium": "deit3_medium_patch16_224",
    "deit3_base": "deit3_base_patch16_224",
    "deit3_large": "deit3_large_patch16_224",
    "deit3_huge": "deit3_huge_patch14_224",
    "hiera_tiny": "hiera_tiny_224",
    "hiera_small": "hiera_small_224",
    "hiera_base": "hiera_base_224",
    "hiera_base_plus": "hiera_base_plus_224",
    "hiera_large": "hiera_large_224",
    "hiera_huge": "hiera_huge_224",
}
