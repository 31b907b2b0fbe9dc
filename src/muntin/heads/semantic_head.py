# SPDX-License-Identifier: Apache-2.0
"""Semantic segmentation head: a decoder, a classifier, and an auxiliary one for training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from muntin.configs import Range, check_ranges
from muntin.errors import ConfigError
from muntin.features import Backbone, Features
from muntin.heads.necks import LightDecoder, UPerNet, build_plain_neck
from muntin.heads.network import Head, HeadConfig
from muntin.nn.conv_norm import ConvNorm, NormName, init_before_relu
from muntin.ops.dense_losses import map_losses
from muntin.shapes import Float, Int, Size
from muntin.targets import IGNORED


@dataclass(frozen=True, kw_only=True, slots=True)
class SemanticConfig(HeadConfig):
    """Config of a semantic head.

    Attributes:
        decoder: "upernet", or "light": maps are added and smoothed once.
        finest: Stride in pixels of the finest map that is read.
        channels: Of the decoder.
        pool_sides: Of UPerNet: cells along each side of the pooled maps.
        norm: After each convolution.
        dropout: Probability of dropping a channel before the classifier, in training.
        aux_channels: Of the auxiliary classifier; 0 = none.
        aux_level: Map that it reads, from 0 = finest.
        aux_weight: Of its loss.
        dice_weight: Of the Dice loss beside the cross-entropy; 0 = off.
    """

    kind: ClassVar[str] = "semantic"

    decoder: Literal["upernet", "light"] = "upernet"
    finest: int = 4
    channels: Annotated[int, Range(1, 4096)] = 512
    pool_sides: Annotated[tuple[int, ...], Range(1, 1000)] = (1, 2, 3, 6)
    norm: NormName = "batch"
    dropout: Annotated[float, Range(0, 0.99)] = 0.1
    aux_channels: Annotated[int, Range(0, 4096)] = 256
    aux_level: int = 2
    aux_weight: Annotated[float, Range(0, 100)] = 0.4
    dice_weight: Annotated[float, Range(0, 100)] = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        check_ranges("head", self)


class SemanticHead(Head):
    """Logits of each class for every cell of the finest map; of the backbone, the spec is read."""

    def __init__(self, backbone: Backbone, num_classes: int, config: SemanticConfig) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        widths: tuple[int, ...] = backbone.spec.channels
        self.stride = int(backbone.spec.strides[0])
        """Pixels of a cell of the logits."""
        self._step = int(backbone.spec.strides[-1])
        self.neck = build_plain_neck(backbone.spec, config.channels, config.finest)
        if self.neck is not None:
            widths = (config.channels,) * len(self.neck.strides)
            self.stride = int(self.neck.strides[0])
        if config.decoder == "upernet":
            self.decoder: nn.Module = UPerNet(
                widths, config.channels, config.pool_sides, norm=config.norm
            )
        else:
            self.decoder = LightDecoder(widths, config.channels, norm=config.norm)
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = nn.Conv2d(config.channels, num_classes, 1)
        self.aux: nn.Sequential | None = None
        if config.aux_channels:
            if not 0 <= config.aux_level < len(widths):
                message = (
                    f"head.aux_level must be from 0 to {len(widths) - 1}, the last map of this "
                    f"backbone, got {config.aux_level}."
                )
                raise ConfigError(message)
            width = widths[config.aux_level]
            self.aux = nn.Sequential(
                ConvNorm(width, config.aux_channels, 3, norm=config.norm, activation=True),
                nn.Dropout2d(config.dropout),
                nn.Conv2d(config.aux_channels, num_classes, 1),
            )
        init_before_relu(self.decoder)
        if self.aux is not None:
            init_before_relu(self.aux)
        for classifier in (self.classifier, *([] if self.aux is None else [self.aux[-1]])):
            nn.init.normal_(classifier.weight, std=0.01)  # type: ignore[arg-type]
            nn.init.zeros_(classifier.bias)  # type: ignore[arg-type]

    def class_layers(self) -> dict[str, tuple[int, int]]:
        """The classifier, and the auxiliary one."""
        return {"classifier": (1, 0), "aux.2": (1, 0)}

    def forward(self, features: Features) -> Float[Tensor, "B K h w"]:
        """Compute logits at the resolution of the finest map: image size / stride, rounded up.

        Over a body of timm whose maps round down, they have the size of its finest map.
        """
        logits = self._classify(self._read(features)[0])
        high, wide = (-(-side // self.stride) for side in features.image_size)
        return logits if self.neck is None else _fit_cells(logits, (high, wide))

    def _read(self, features: Features) -> tuple[list[Tensor], Size]:
        """The maps to decode, and the (height, width) in pixels that they cover."""
        maps = features.maps
        if self.neck is None:
            return maps, features.image_size
        # Patches may cover more or less than the image.
        covered = (maps[-1].shape[2] * self._step, maps[-1].shape[3] * self._step)
        return self.neck(maps), covered

    def _classify(self, maps: list[Tensor]) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(self.decoder(maps)))
        return logits

    def losses(
        self,
        features: Features,
        labels: Int[Tensor, "B H W"],
        *,
        class_weights: Float[Tensor, " K"] | None = None,
        label_smoothing: float = 0.0,
    ) -> dict[str, Float[Tensor, " B"]]:
        """Give the losses of each image, by name; pixels of class `IGNORED` have none."""
        logits, covered = self.all_logits(features)
        return self.compare(
            logits, covered, labels, class_weights=class_weights, label_smoothing=label_smoothing
        )

    def all_logits(self, features: Features) -> tuple[list[Tensor], Size]:
        """Logits of the classifier and of the auxiliary one, if any; what they cover in pixels."""
        maps, covered = self._read(features)
        logits = [self._classify(maps)]
        if self.aux is not None and self.config.aux_weight:
            # Deep supervision: gradients reach the middle of the backbone directly.
            logits.append(self.aux(maps[self.config.aux_level]))
        return logits, covered

    def compare(
        self,
        logits: list[Tensor],
        covered: Size,
        labels: Int[Tensor, "B H W"],
        *,
        class_weights: Float[Tensor, " K"] | None = None,
        label_smoothing: float = 0.0,
    ) -> dict[str, Float[Tensor, " B"]]:
        """Give the losses of what `all_logits` gives."""
        if covered != tuple(labels.shape[1:]):
            # Pad or crop the labels, never resize: a pixel must keep its cell.
            rest = (0, covered[1] - labels.shape[2], 0, covered[0] - labels.shape[1])
            labels = F.pad(labels, rest, value=IGNORED)
        measure = partial(map_losses, class_weights=class_weights, smoothing=label_smoothing)
        found = measure(logits[0], labels)
        losses = {"pixels": found.cross_entropy}
        # Dice weighs classes by regions, not pixels, which helps small ones.
        if self.config.dice_weight:
            losses["dice"] = self.config.dice_weight * found.dice
        if len(logits) > 1:
            losses["aux"] = self.config.aux_weight * measure(logits[1], labels).cross_entropy
        return losses


def _fit_cells(logits: Float[Tensor, "B K h w"], size: Size) -> Float[Tensor, "B K high wide"]:
    """Drop the cells that only cover padding; repeat the last where the image was cropped."""
    logits = logits[:, :, : size[0], : size[1]]
    short = (size[0] - logits.shape[2], size[1] - logits.shape[3])
    return F.pad(logits, (0, short[1], 0, short[0]), mode="replicate") if any(short) else logits


MAP_HEADS: dict[str, SemanticConfig] = {
    "upernet": SemanticConfig(),
    # Group norm depends on the whole window, which would leave seams between windows.
    "light": SemanticConfig(decoder="light", channels=256, norm="layer", aux_channels=0),
    "light_small": SemanticConfig(
        decoder="light", channels=96, norm="layer", aux_channels=0, dropout=0.0
    ),
}
"""Semantic heads."""
