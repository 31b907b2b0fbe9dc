# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""A model and the image it is asked about, as every explanation reads them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from muntin.data.batches import pad_images
from muntin.data.transforms import Preprocessing
from muntin.samples import Classes
from muntin.shapes import Float, Size, UInt8
from muntin.tasks.task import ImageMeta, InferenceBatch, Task

__all__ = ["Context", "pad_shown"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Context:
    """What is explained.

    Attributes:
        name: Of the model, for headings.
        network: In evaluation mode, on the CPU; backbone and head, or an exported file's
            engine, which has no modules inside to look at.
        task: What its output means.
        classes: What it tells apart.
        pre: What happened to the image first.
        pixels: The original image, (H, W, 3) uint8.
        shown: What the network sees of it, fitted and not yet normalised.
        images: The same as the network reads it: normalised, a batch of one, perhaps padded at
            the right and at the bottom.
        path: The image's file; empty when it came as an array.
        trained: Whether the weights are more than fresh ones.
        target: Number of the class, or of the box, region or keypoint, that is asked about; None
            for what the network is surest of.
        point: (x, y) in the original image, from 0 to 1, that is looked from; None for the
            middle.
    """

    name: str
    network: nn.Module
    task: Task
    classes: Classes
    pre: Preprocessing
    pixels: NDArray[np.uint8]
    shown: UInt8[Tensor, "C h w"]
    images: Float[Tensor, "1 in_chans Hi Wi"]
    path: str = ""
    trained: bool = True
    target: int | None = None
    point: tuple[float, float] | None = None

    @property
    def backbone(self) -> nn.Module | None:
        """The backbone; None where the network is an engine's."""
        backbone: nn.Module | None = getattr(self.network, "backbone", None)
        return backbone

    @property
    def size(self) -> Size:
        """(height, width) of the original image in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def shown_size(self) -> Size:
        """(height, width) of the image as the network sees it, without padding."""
        return self.shown.shape[1], self.shown.shape[2]

    def inputs(self) -> InferenceBatch:
        """Give what `muntin.tasks.task.Task.see` takes."""
        view = ImageMeta(path=self.path, size=self.size, shown=self.shown_size)
        return InferenceBatch(
            network=self.network,
            images=pad_shown(self.shown, self.pre),
            views=[view],
            pre=self.pre,
            classes=self.classes,
            device=self.images.device,
        )

    def with_network(self, network: nn.Module) -> Context:
        """Give the same image with another network, as sanity checks do."""
        return replace(self, network=network)


def pad_shown(shown: UInt8[Tensor, "C h w"], pre: Preprocessing) -> UInt8[Tensor, "1 C Hi Wi"]:
    """Give an image as a batch of one, padded right and below as prediction does."""
    fills = pre.fit in ("center_crop", "instance_crop")
    return shown[None] if fills else pad_images([shown])
