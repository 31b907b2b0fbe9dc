# SPDX-License-Identifier: Apache-2.0
"""A trained network that another one learns from, and what it sees."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from muntin.data.transforms import Preprocessing, denormalise, normalise, resize, to_luminance
from muntin.devices import Autocast
from muntin.errors import ConfigError
from muntin.features import Backbone
from muntin.heads.network import Network
from muntin.samples import Classes
from muntin.shapes import Float, Int, Size
from muntin.tasks.task import Task


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Teacher:
    """A network in evaluation mode, which nothing changes, and how images become its input.

    Attributes:
        source: As the user named it.
        checksum: SHA-256 of its weights in hexadecimal digits.
        network: With its head, or the backbone alone; that of an exported file has no backbone.
        task: None if there is only a backbone.
        license: Of published weights, where it is known.
        autocast: Makes the context that sets its precision.
    """

    source: str
    checksum: str
    network: nn.Module
    preprocessing: Preprocessing
    task: Task | None = None
    classes: Classes | None = None
    license: str = ""
    autocast: Autocast = nullcontext

    @property
    def backbone(self) -> Backbone:
        """The part that computes features.

        Raises:
            ConfigError: The teacher is an exported file.
        """
        body = self.network.backbone if isinstance(self.network, Network) else self.network
        if isinstance(body, Backbone):
            return body
        message = (
            f"distill.kind=features needs a teacher with a backbone, got the exported file "
            f"{self.source}. Give its run folder, or set distill.kind=soft."
        )
        raise ConfigError(message)

    @torch.no_grad()
    def logits(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Compute logits from images in [0, 255], which have its size."""
        if getattr(self.network, "reads_pixels", False):
            pre = self.preprocessing
            images = (pixels.round() if pre.bits == 8 else pixels).clamp(0, 255).to(pre.pixel_type)
        else:
            images = normalise(pixels, self.preprocessing)
        with self.autocast():
            found: Tensor = self.network(images)
        return found.float().to(pixels.device)

    @torch.no_grad()
    def maps(self, pixels: Float[Tensor, "B C H W"], sizes: Int[Tensor, "B 2"]) -> list[Tensor]:
        """Compute the maps, finest first, from images in [0, 255]; `sizes` as in `normalise`."""
        with self.autocast():
            images = normalise(pixels, self.preprocessing, sizes)
            return self.backbone.features(images, sizes=sizes).maps

    def show(
        self, images: Float[Tensor, "B C H W"], seen_by: Preprocessing, sizes: Int[Tensor, "B 2"]
    ) -> tuple[Float[Tensor, "B c h w"], Int[Tensor, "B 2"]]:
        """Convert the input of a student, augmented and perhaps padded, to pixels of its own size.

        Args:
            images: Normalised for the student.
            seen_by: The student's preprocessing.
            sizes: (height, width) of each image inside its padding.

        Returns:
            Values in [0, 255], and sizes inside the padding. Where either reads whole images of
            any proportions, those are kept, and the area is that of the teacher's images.
        """
        pixels, in_chans = denormalise(images, seen_by), self.preprocessing.in_chans
        if pixels.shape[1] != in_chans:  # luminance, or three equal channels
            pixels = to_luminance(pixels) if in_chans == 1 else pixels.expand(-1, in_chans, -1, -1)
        before: Size = (images.shape[2], images.shape[3])
        after = self.preprocessing.img_size
        if not (seen_by.one_size and self.preprocessing.one_size):
            unit = self.backbone.spec.strides[-1]
            factor = math.sqrt(math.prod(after) / math.prod(before))
            rows, columns = (max(unit, round(side * factor / unit) * unit) for side in before)
            after = (rows, columns)
        scale = torch.tensor(after, device=sizes.device) / torch.tensor(before, device=sizes.device)
        # Only rows and columns that hold a part of the image, and at least one of each.
        inside = (sizes * scale).round().long().clamp(min=1)
        return resize(pixels, after, "bilinear"), inside
