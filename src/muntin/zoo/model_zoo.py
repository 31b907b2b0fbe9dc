# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The table of models: name, config, published weights and accuracy with its source."""

from __future__ import annotations

from dataclasses import dataclass, replace

from muntin.models import hiera, swin
from muntin.models.swin_v2 import swin_v2_preset
from muntin.models.t2t_vit import t2t_vit_preset
from muntin.models.vit import deit3_preset, vit_preset, vitpose_preset
from muntin.zoo.families import BackboneConfig

__all__ = ["ALIASES", "MODELS", "ModelEntry"]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# The published ViT weights were trained on images scaled to [-1, 1].
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_NON_COMMERCIAL = "CC-BY-NC-4.0"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelEntry:
    """One row of the zoo.

    Attributes:
        config: The architecture.
        weights: Hub id of published weights, or empty.
        accuracy: Published ImageNet-1k top-1 in percent; 0 if unknown.
        source: Publication of that accuracy.
        mean: Per-channel mean of the normalization that the weights were trained with.
        std: Per-channel standard deviation, likewise.
        license: License of the weights.
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
    """Fields that all models of one publication share."""

    source: str
    license: str
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] = _IMAGENET

    def row(self, config: BackboneConfig, weights: str = "", accuracy: float = 0.0) -> ModelEntry:
        """Make the entry of one model."""
        return ModelEntry(
            config=config,
            weights=weights,
            accuracy=accuracy,
            source=self.source if accuracy else "",
            mean=self.normalisation[0],
            std=self.normalisation[1],
            license=self.license if weights else "",
        )


_swin = _Publisher("microsoft/Swin-Transformer MODELHUB", "MIT").row
_vit = _Publisher("timm results-imagenet.csv", "Apache-2.0", _HALF).row
_deit = _Publisher("facebookresearch/deit README_deit", "Apache-2.0").row
_deit3 = _Publisher("facebookresearch/deit README_revenge", "Apache-2.0").row
_mae = _Publisher("facebookresearch/mae FINETUNE, after fine-tuning", _NON_COMMERCIAL).row
_simmim = _Publisher("microsoft/SimMIM README, after fine-tuning", "MIT").row
_t2t = _Publisher("yitu-opensource/T2T-ViT README", "").row
_hiera = _Publisher("facebookresearch/hiera README", _NON_COMMERCIAL).row


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
    "swin_nano_patch4_256": _swin(swin.SWIN_NANO_256),
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
    # Swin V2
    "swinv2_tiny_window8_256": _swin(
        swin_v2_preset("tiny", 8, 256), "timm/swinv2_tiny_window8_256.ms_in1k", 81.8
    ),
    "swinv2_tiny_window16_256": _swin(
        swin_v2_preset("tiny", 16, 256), "timm/swinv2_tiny_window16_256.ms_in1k", 82.8
    ),
    "swinv2_small_window8_256": _swin(
        swin_v2_preset("small", 8, 256, drop_path_rate=0.3),
        "timm/swinv2_small_window8_256.ms_in1k",
        83.7,
    ),
    "swinv2_small_window16_256": _swin(
        swin_v2_preset("small", 16, 256, drop_path_rate=0.3),
        "timm/swinv2_small_window16_256.ms_in1k",
        84.1,
    ),
    "swinv2_base_window8_256": _swin(
        swin_v2_preset("base", 8, 256, drop_path_rate=0.5),
        "timm/swinv2_base_window8_256.ms_in1k",
        84.2,
    ),
    "swinv2_base_window16_256": _swin(
        swin_v2_preset("base", 16, 256, drop_path_rate=0.5),
        "timm/swinv2_base_window16_256.ms_in1k",
        84.6,
    ),
    "swinv2_base_window12_192": _swin(
        swin_v2_preset("base", 12, 192), "timm/swinv2_base_window12_192.ms_in22k"
    ),
    "swinv2_base_window12to16_192to256": _swin(
        swin_v2_preset("base", 16, 256, pretrained=True),
        "timm/swinv2_base_window12to16_192to256.ms_in22k_ft_in1k",
        86.2,
    ),
    "swinv2_base_window12to24_192to384": _swin(
        swin_v2_preset("base", 24, 384, pretrained=True),
        "timm/swinv2_base_window12to24_192to384.ms_in22k_ft_in1k",
        87.1,
    ),
    "swinv2_large_window12_192": _swin(
        swin_v2_preset("large", 12, 192), "timm/swinv2_large_window12_192.ms_in22k"
    ),
    "swinv2_large_window12to16_192to256": _swin(
        swin_v2_preset("large", 16, 256, pretrained=True),
        "timm/swinv2_large_window12to16_192to256.ms_in22k_ft_in1k",
        86.9,
    ),
    "swinv2_large_window12to24_192to384": _swin(
        swin_v2_preset("large", 24, 384, pretrained=True),
        "timm/swinv2_large_window12to24_192to384.ms_in22k_ft_in1k",
        87.6,
    ),
    # DeiT, with and without distillation; DeiT III
    "deit_tiny_patch16_224": _deit(
        vit_preset("tiny", 16, 224), "timm/deit_tiny_patch16_224.fb_in1k", 72.2
    ),
    "deit_small_patch16_224": _deit(
        vit_preset("small", 16, 224), "timm/deit_small_patch16_224.fb_in1k", 79.9
    ),
    "deit_base_patch16_224": _deit(
        vit_preset("base", 16, 224), "timm/deit_base_patch16_224.fb_in1k", 81.8
    ),
    "deit_base_patch16_384": _deit(
        vit_preset("base", 16, 384), "timm/deit_base_patch16_384.fb_in1k", 82.9
    ),
    "deit_tiny_distilled_patch16_224": _deit(
        replace(vit_preset("tiny", 16, 224), distillation_token=True),
        "timm/deit_tiny_distilled_patch16_224.fb_in1k",
        74.5,
    ),
    "deit_small_distilled_patch16_224": _deit(
        replace(vit_preset("small", 16, 224), distillation_token=True),
        "timm/deit_small_distilled_patch16_224.fb_in1k",
        81.2,
    ),
    "deit_base_distilled_patch16_224": _deit(
        replace(vit_preset("base", 16, 224), distillation_token=True),
        "timm/deit_base_distilled_patch16_224.fb_in1k",
        83.4,
    ),
    "deit_base_distilled_patch16_384": _deit(
        replace(vit_preset("base", 16, 384), distillation_token=True),
        "timm/deit_base_distilled_patch16_384.fb_in1k",
        85.2,
    ),
    "deit3_small_patch16_224": _deit3(
        deit3_preset("small", 16, 224), "timm/deit3_small_patch16_224.fb_in22k_ft_in1k", 83.1
    ),
    "deit3_small_patch16_384": _deit3(
        deit3_preset("small", 16, 384), "timm/deit3_small_patch16_384.fb_in22k_ft_in1k", 84.8
    ),
    "deit3_medium_patch16_224": _deit3(
        deit3_preset("medium", 16, 224), "timm/deit3_medium_patch16_224.fb_in22k_ft_in1k", 84.5
    ),
    "deit3_base_patch16_224": _deit3(
        deit3_preset("base", 16, 224), "timm/deit3_base_patch16_224.fb_in22k_ft_in1k", 85.7
    ),
    "deit3_base_patch16_384": _deit3(
        deit3_preset("base", 16, 384), "timm/deit3_base_patch16_384.fb_in22k_ft_in1k", 86.7
    ),
    "deit3_large_patch16_224": _deit3(
        deit3_preset("large", 16, 224), "timm/deit3_large_patch16_224.fb_in22k_ft_in1k", 87.0
    ),
    "deit3_large_patch16_384": _deit3(
        deit3_preset("large", 16, 384), "timm/deit3_large_patch16_384.fb_in22k_ft_in1k", 87.7
    ),
    "deit3_huge_patch14_224": _deit3(
        deit3_preset("huge", 14, 224), "timm/deit3_huge_patch14_224.fb_in22k_ft_in1k", 87.2
    ),
    # Pre-trained by masked image modeling (MAE, SimMIM)
    "mae_vit_base_patch16": _mae(
        replace(vit_preset("base", 16, 224), pool="mean", pool_norm="after"),
        "timm/vit_base_patch16_224.mae",
        83.6,
    ),
    "mae_vit_large_patch16": _mae(
        replace(vit_preset("large", 16, 224), pool="mean", pool_norm="after"),
        "timm/vit_large_patch16_224.mae",
        85.9,
    ),
    "mae_vit_huge_patch14": _mae(
        replace(vit_preset("huge", 14, 224), pool="mean", pool_norm="after"),
        "timm/vit_huge_patch14_224.mae",
        86.9,
    ),
    "simmim_vit_base_patch16_224": _simmim(
        replace(
            vit_preset("base", 16, 224),
            absolute_pos_embed=False,
            relative_pos_bias=True,
            key_bias=False,
            layer_scale=0.1,
            pool="mean",
            pool_norm="after",
        ),
        accuracy=83.8,
    ),
    "simmim_swin_base_window6_192": _simmim(
        replace(swin.SWIN_BASE, window_size=6, img_size=(192, 192), drop_path_rate=0.1),
        accuracy=82.8,
    ),
    "simmim_swin_base_window7_224": _simmim(
        replace(swin.SWIN_BASE, drop_path_rate=0.1), accuracy=84.0
    ),
    "simmim_swin_large_window14_224": _simmim(
        replace(swin.SWIN_LARGE, window_size=14), accuracy=85.4
    ),
    # ViTPose: backbones of pose estimators; the published weights include the head.
    "vitpose_small": ModelEntry(config=vitpose_preset("small"), license="Apache-2.0"),
    "vitpose_base": ModelEntry(config=vitpose_preset("base"), license="Apache-2.0"),
    "vitpose_large": ModelEntry(config=vitpose_preset("large"), license="Apache-2.0"),
    "vitpose_huge": ModelEntry(config=vitpose_preset("huge"), license="Apache-2.0"),
    # T2T-ViT
    "t2t_vit_7": _t2t(t2t_vit_preset(7), accuracy=71.7),
    "t2t_vit_10": _t2t(t2t_vit_preset(10), accuracy=75.2),
    "t2t_vit_12": _t2t(t2t_vit_preset(12), accuracy=76.5),
    "t2t_vit_14": _t2t(t2t_vit_preset(14), accuracy=81.5),
    "t2t_vit_14_384": _t2t(t2t_vit_preset(14, side=384), accuracy=83.3),
    "t2t_vit_19": _t2t(t2t_vit_preset(19), accuracy=81.9),
    "t2t_vit_24": _t2t(t2t_vit_preset(24), accuracy=82.3),
    "t2t_vit_t_14": _t2t(t2t_vit_preset(14, "transformer"), accuracy=81.7),
    "t2t_vit_t_19": _t2t(t2t_vit_preset(19, "transformer"), accuracy=82.4),
    "t2t_vit_t_24": _t2t(t2t_vit_preset(24, "transformer"), accuracy=82.6),
    # Hiera
    "hiera_tiny_224": _hiera(hiera.HIERA_TINY, "timm/hiera_tiny_224.mae_in1k_ft_in1k", 82.8),
    "hiera_small_224": _hiera(hiera.HIERA_SMALL, "timm/hiera_small_224.mae_in1k_ft_in1k", 83.8),
    "hiera_base_224": _hiera(hiera.HIERA_BASE, "timm/hiera_base_224.mae_in1k_ft_in1k", 84.5),
    "hiera_base_plus_224": _hiera(
        hiera.HIERA_BASE_PLUS, "timm/hiera_base_plus_224.mae_in1k_ft_in1k", 85.2
    ),
    "hiera_large_224": _hiera(hiera.HIERA_LARGE, "timm/hiera_large_224.mae_in1k_ft_in1k", 86.1),
    "hiera_huge_224": _hiera(hiera.HIERA_HUGE, "timm/hiera_huge_224.mae_in1k_ft_in1k", 86.9),
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
