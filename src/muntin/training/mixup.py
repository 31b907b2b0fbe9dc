# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Mixup and CutMix: images of a batch and their labels are blended."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torchvision.transforms import v2

from muntin.data.classification_transforms import AugmentConfig

__all__ = ["build_mixup"]


def build_mixup(
    config: AugmentConfig, num_classes: int
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Build the function that mixes a batch; if both are on, each is drawn half of the time.

    Args:
        config: Gives the alpha of the beta distribution of each, 0 = off.
        num_classes: Number of classes; class ids become class shares.

    Returns:
        Maps images B, C, H, W and targets (B or B, classes) to mixed images and targets B, classes;
        None if both are off.
    """
    kinds: list[v2.Transform] = []
    if config.mixup:
        kinds.append(v2.MixUp(alpha=config.mixup, num_classes=num_classes))
    if config.cutmix:
        kinds.append(v2.CutMix(alpha=config.cutmix, num_classes=num_classes))
    # None instead of an identity: targets stay class ids, which need less memory than shares.
    if not kinds:
        return None
    choice = v2.RandomChoice(kinds)

    def mix(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        mixed, shares = choice(images, targets)
        return mixed, shares

    return mix
