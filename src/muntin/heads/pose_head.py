# SPDX-License-Identifier: Apache-2.0
"""Keypoint heatmaps of one instance.

Source:
    Xiao et al. 2018 (arXiv 1804.06208), as mmpose has it on Swin; Xu et al. 2022, "ViTPose" (arXiv
    2204.12484), classic and simple decoder, compared live in tests/heads/test_pose_parity.py.

Letters: B instances, P keypoints, H and W sides of the image, h and w those of a heatmap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from muntin.configs import Range, check_ranges
from muntin.features import Backbone, Features
from muntin.heads.necks import LightDecoder, SimplePyramid, build_plain_neck
from muntin.heads.network import Head, HeadConfig
from muntin.nn.conv_norm import NormName
from muntin.ops.keypoints import Coding, draw_heatmaps, to_cells
from muntin.shapes import Bool, Float

SHARPNESS = 10.0
"""Factor on the logits before the softmax: it makes distributions peaked sooner."""

STRIDE = 4
"""Pixels of a cell of the heatmaps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoseConfig(HeadConfig):
    """Config of a heatmap head.

    Attributes:
        decoder: "deconv": the coarsest map is doubled by transposed convolutions until a cell has
            4 pixels; "simple": it is enlarged at once; "light": all maps are added and smoothed
            once.
        finest: Stride in pixels of the finest map that is read.
        channels: Of the decoder.
        norm: After each convolution of "light".
        loss: "square": the mean square of the heatmaps' errors, as published; "entropy": what a
            heatmap holds, made a distribution over its cells, lacks of the wanted one
            (Kullback-Leibler), which learns much faster from nothing.
        coding: How keypoints become heatmaps and back (`muntin.ops.keypoints`).
        sigma: Width of the Gaussians in cells.
    """

    kind: ClassVar[str] = "heatmap"

    decoder: Literal["deconv", "simple", "light"] = "deconv"
    finest: Annotated[int, Range(1, 64)] = 32
    channels: Annotated[int, Range(1, 4096)] = 256
    norm: NormName = "layer"
    loss: Literal["square", "entropy"] = "square"
    coding: Coding = "udp"
    sigma: Annotated[float, Range(0.1, 100)] = 2.0

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        check_ranges("head", self)


class PoseHead(Head):
    """Heatmaps of the one instance of each crop, on a backbone of which only the spec is read."""

    def __init__(self, backbone: Backbone, num_keypoints: int, config: PoseConfig) -> None:
        super().__init__()
        self.config = config
        self.num_keypoints = num_keypoints
        width, stride = backbone.spec.channels[-1], backbone.spec.strides[-1]
        # Doublings from the coarsest map to a stride of 4 pixels.
        times = max(0, round(math.log2(stride / STRIDE)))
        self.neck: SimplePyramid | None = None
        if config.decoder == "deconv":
            self.decoder: nn.Module = _Deconvolutions(width, config.channels, times)
            self.classifier = nn.Conv2d(config.channels if times else width, num_keypoints, 1)
        elif config.decoder == "simple":
            self.decoder = _Upsampling(2**times)
            self.classifier = nn.Conv2d(width, num_keypoints, 3, padding=1)
        else:
            widths: tuple[int, ...] = backbone.spec.channels
            self.neck = build_plain_neck(backbone.spec, config.channels, config.finest)
            if self.neck is not None:
                widths = (config.channels,) * len(self.neck.strides)
            self.decoder = LightDecoder(widths, config.channels, norm=config.norm)
            self.classifier = nn.Conv2d(config.channels, num_keypoints, 1)
        # Small, so that the first heatmaps are near 0, as targets are almost everywhere.
        nn.init.normal_(self.classifier.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def class_layers(self) -> dict[str, tuple[int, int]]:
        """The heatmap of each keypoint."""
        return {"classifier": (1, 0)}

    def forward(self, features: Features) -> Float[Tensor, "B P h w"]:
        """Compute heatmaps; a confident keypoint peaks at 1."""
        found = self._logits(features)
        return self._normalise_heatmaps(found) if self.config.loss == "entropy" else found

    def _logits(self, features: Features) -> Float[Tensor, "B P h w"]:
        """Heatmaps, or the logits of their cells where the loss is "entropy"."""
        maps = features.maps
        if self.config.decoder == "light":
            maps = maps if self.neck is None else self.neck(maps)
            decoded = self.decoder(maps)
        else:
            decoded = self.decoder(maps[-1])
        found: Tensor = self.classifier(decoded)
        return SHARPNESS * found if self.config.loss == "entropy" else found

    def losses(
        self, features: Features, points: Float[Tensor, "B P 2"], known: Bool[Tensor, "B P"]
    ) -> dict[str, Float[Tensor, " B"]]:
        """Give the loss of each instance: the mean over its known keypoints.

        Points are x and y in pixels of the images, one instance an image.
        """
        config = self.config
        found = self._logits(features)
        size = (found.shape[2], found.shape[3])
        cells = to_cells(points, features.image_size, size, coding=config.coding)
        wanted, useful = draw_heatmaps(
            cells.float(), known, size, sigma=config.sigma, coding=config.coding
        )
        if config.loss == "entropy":
            # KL divergence needs a target distribution; keypoints outside have an empty map.
            shares = wanted / wanted.sum(dim=(2, 3), keepdim=True).clamp(min=1e-6)
            logs = found.float().flatten(2).log_softmax(dim=2)
            errors = F.kl_div(logs, shares.flatten(2), reduction="none").sum(dim=2)
        else:
            errors = (found.float() - wanted).square().mean(dim=(2, 3))
        return {"heatmaps": (errors * useful).mean(dim=1)}

    def _normalise_heatmaps(self, logits: Tensor) -> Float[Tensor, "B P h w"]:
        """Softmax over cells, scaled so that the target Gaussian would peak at 1."""
        # A Gaussian of sum 1 has its peak at 1 / (2 pi sigma^2).
        shares = logits.float().flatten(2).softmax(dim=2).view(logits.shape)
        return shares * (2 * math.pi * self.config.sigma**2)


class _Deconvolutions(nn.Module):
    def __init__(self, width: int, channels: int, times: int) -> None:
        super().__init__()
        widths = [width, *(channels for _ in range(times))]
        self.deconv = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False)
            for before, after in pairwise(widths)
        )
        self.norm = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(times))
        for module in self.deconv:
            nn.init.normal_(module.weight, std=0.001)  # type: ignore[arg-type]

    def forward(self, maps: Float[Tensor, "B C h w"]) -> Tensor:
        for deconv, norm in zip(self.deconv, self.norm, strict=True):
            maps = F.relu(norm(deconv(maps)), inplace=True)
        return maps


class _Upsampling(nn.Module):
    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, maps: Float[Tensor, "B C h w"]) -> Tensor:
        maps = F.relu(maps)
        if self.factor == 1:
            return maps
        return F.interpolate(maps, scale_factor=self.factor, mode="bilinear", align_corners=False)


POSE_HEADS: dict[str, PoseConfig] = {
    "simple_baseline": PoseConfig(coding="msra"),
    "vitpose": PoseConfig(),
    "vitpose_simple": PoseConfig(decoder="simple"),
    "light_pose": PoseConfig(decoder="light", finest=4, loss="entropy"),
    "light_pose_small": PoseConfig(decoder="light", finest=4, channels=96, loss="entropy"),
}
"""Keypoint heads."""
