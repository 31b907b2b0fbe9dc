# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Mixup and CutMix: images of a batch are blended, and their labels with them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torchvision.transforms import v2

from muntin.data.transforms import AugmentConfig

__all__ = ["build_mixing"]


def build_mixing(
    config: AugmentConfig, num_classes: int
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Make the function that mixes a batch; either kind equally often when both are on.

    Args:
        config: Gives the alphas.
        num_classes: Classes; class numbers become shares of each.

    Returns:
        From images and targets to mixed ones; None when nothing is to be mixed.
    """
    kinds: list[v2.Transform] = []
    if config.mixup:
        kinds.append(v2.MixUp(alpha=config.mixup, num_classes=num_classes))
    if config.cutmix:
        kinds.append(v2.CutMix(alpha=config.cutmix, num_classes=num_classes))
    if not kinds:
        return None
    choice = v2.RandomChoice(kinds)

    def mix(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        mixed, shares = choice(images, targets)
        return mixed, shares

    return mix
