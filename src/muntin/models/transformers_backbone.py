# SPDX-License-Identifier: Apache-2.0
"""Whole models of the transformers library: their images, as the map that their head reads.

Such a model cannot be divided into a backbone and a head: queries, denoising and losses reach into
its encoder. So its head is all of it, and this backbone has no parameters (docs/adr/0041).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor

from muntin.errors import ConfigError
from muntin.features import Backbone, Features, FeatureSpec, TokenMask
from muntin.shapes import Int, Size


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformersConfig:
    """Configuration of a whole model of the transformers library.

    Attributes:
        name: Its `model_type` in the library, such as "rt_detr_v2".
        settings: Fields of its ``config.json`` that differ from the library's defaults, as JSON.
        img_size: (height, width) in pixels of the images it is meant for.
        in_chans: Channels of an image.
        reads_mask: Whether it is told which pixels are padding.
        fixed_size: Whether images must have exactly `img_size`; others are padded to it.
        padding: What padded pixels are, a value a channel after normalisation; () = 0.
    """

    name: str
    settings: str = "{}"
    img_size: Size = (640, 640)
    in_chans: int = 3
    reads_mask: bool = False
    fixed_size: bool = False
    padding: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Validate the fields."""
        if re.fullmatch(r"[\w-]+", self.name) is None:
            message = f"TransformersConfig: name must be a model_type, got {self.name!r}."
            raise ConfigError(message)
        if min(*self.img_size, self.in_chans) < 1:
            message = (
                f"TransformersConfig: img_size and in_chans must be at least 1, got "
                f"{self.img_size} and {self.in_chans}."
            )
            raise ConfigError(message)


class TransformersBackbone(Backbone):
    """The identity: the only map is the images, of stride 1; it has neither vector nor blocks."""

    def __init__(self, config: TransformersConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = ()

    @property
    def spec(self) -> FeatureSpec:
        """One map: the images."""
        return FeatureSpec(channels=(self.config.in_chans,), strides=(1,))

    def features(
        self,
        images: Tensor,
        *,
        sizes: Int[Tensor, "B 2"] | None = None,
        mask: TokenMask | None = None,
    ) -> Features:
        """Pass the images on."""
        self._refuse_mask(mask)
        return Features(images, sizes=sizes, maps=lambda: [images], vector=self._refuse_vector)

    def _refuse_vector(self) -> Tensor:
        message = (
            f"a vector of each image requires a backbone, got hf:{self.config.name}, a whole model "
            f"of the transformers library, which gives answers only. Choose another model."
        )
        raise ConfigError(message)
