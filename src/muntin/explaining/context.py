# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The model and the image that an explanation is about: input of every explainer."""

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

__all__ = ["Context", "pad_image"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Context:
    """A model, an image, and what to explain of its prediction.

    Attributes:
        name: Name of the model, for headings.
        network: Backbone and head, or the engine of an exported file (which exposes no
            modules), in evaluation mode on the CPU.
        task: Task that decodes the output.
        classes: Class names and keypoint skeleton.
        pre: Preprocessing of the image.
        pixels: The original image, (H, W, 3) uint8, RGB.
        shown: The resized or cropped image, before padding and normalisation.
        images: The network's input: normalised, a batch of one, possibly padded at the right and
            bottom.
        path: Image file; empty for an array.
        trained: False if the weights are randomly initialised.
        target: Number of the class, box, region or keypoint to explain; None for the prediction
            with the highest score.
        point: (x, y) from 0 to 1 in the original image: query of the attention maps; None for
            the centre.
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
        """The backbone; None for an exported file."""
        backbone: nn.Module | None = getattr(self.network, "backbone", None)
        return backbone

    @property
    def size(self) -> Size:
        """(height, width) of the original image in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def shown_size(self) -> Size:
        """(height, width) of the network's input in pixels, without padding."""
        return self.shown.shape[1], self.shown.shape[2]

    def inputs(self) -> InferenceBatch:
        """Build the input of the task's prediction step."""
        meta = ImageMeta(path=self.path, size=self.size, input_size=self.shown_size)
        return InferenceBatch(
            network=self.network,
            images=pad_image(self.shown, self.pre),
            metas=[meta],
            pre=self.pre,
            classes=self.classes,
            device=self.images.device,
        )

    def with_network(self, network: nn.Module) -> Context:
        """Copy the context with another network, as sanity checks of attributions need it."""
        return replace(self, network=network)


def pad_image(shown: UInt8[Tensor, "C h w"], pre: Preprocessing) -> UInt8[Tensor, "1 C Hi Wi"]:
    """Make a batch of one, padded at the right and bottom as in prediction."""
    fills = pre.fit in ("center_crop", "instance_crop")
    return shown[None] if fills else pad_images([shown])
