# SPDX-License-Identifier: Apache-2.0
"""An auxiliary loss for small data sets: predict how far apart two tokens lie.

Source:
    Liu et al. 2021 (arXiv 2106.03746), section 4: pairs of tokens of the last map, a perceptron
    with two hidden layers on both, and the mean absolute error of the distances along both axes in
    parts of the side of the map. Differs: a finer map where the last one has few cells, as it has
    for small images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from muntin.collectives import draw_rows
from muntin.features import Features, FeatureSpec
from muntin.shapes import Float, Size

NUM_PAIRS = 64
"""Pairs drawn in each image, as published."""

MIN_CELLS = 16
"""Least number of cells of the map whose tokens are compared."""


class RelativeLocation(nn.Module):
    """A perceptron that sees two tokens of the coarsest map of at least `MIN_CELLS` cells.

    Args:
        spec: Channels and strides of the maps.
        img_size: (height, width) in pixels of the images that are learnt.
        hidden: Width of both hidden layers.
    """

    def __init__(self, spec: FeatureSpec, img_size: Size, hidden: int = 512) -> None:
        super().__init__()
        cells = [(img_size[0] // stride) * (img_size[1] // stride) for stride in spec.strides]
        self.level = max((i for i, count in enumerate(cells) if count >= MIN_CELLS), default=0)
        """Index of the map that is read."""
        self.predictor = nn.Sequential(
            nn.Linear(2 * spec.channels[self.level], hidden), nn.ReLU(),
            nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, 2),
        )  # fmt: skip

    def forward(self, features: Features) -> Float[Tensor, " B"]:
        """Compute the mean absolute error of each image, for pairs from torch's generator."""
        x = features.maps[self.level]
        batch, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)  # B, N, C
        drawn = draw_rows(
            lambda n: torch.randint(height * width, (2, n, NUM_PAIRS)).transpose(0, 1), batch
        )
        places = drawn.transpose(0, 1).to(x.device)
        pairs = [tokens.gather(1, each[:, :, None].expand(-1, -1, channels)) for each in places]
        predicted = self.predictor(torch.cat(pairs, dim=2)).float()  # B, pairs, 2
        cells = torch.stack([places // width / height, places % width / width], dim=3)
        return (predicted - (cells[0] - cells[1]).abs()).abs().mean(dim=(1, 2))
