# SPDX-License-Identifier: Apache-2.0
"""Views of one image that shall agree, while all images spread as a Gaussian.

Source:
    Balestriero and LeCun 2025, "LeJEPA" (arXiv 2511.08544), section 5: no momentum copy, no
    stop-gradient, one weight. Written from the paper.
    Differs: two views of the whole size, and layer norms in the projector, so that neither the
    batch nor the number of processes changes what is computed for an image.

Letters: V views, B images, C channels of the vector, D dimensions of the projection, M directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from muntin.configs import Range, check_ranges
from muntin.features import Backbone, Features
from muntin.heads.network import HeadConfig, PretrainingHead
from muntin.nn.layers import init_linear_weights
from muntin.ops.gaussian_distance import sketch_gaussian
from muntin.shapes import Float


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewsConfig(HeadConfig):
    """Config of the agreement of views.

    Attributes:
        gaussian_weight: Share of the loss that spreads images; the rest lets views agree.
        directions: Random directions, drawn anew each step, along which the spread is measured.
        dim: Dimensions of the projection.
        hidden_dim: Width of the projector's hidden layers.
    """

    kind: ClassVar[str] = "views"

    gaussian_weight: Annotated[float, Range(1e-4, 0.9999)] = 0.05
    directions: Annotated[int, Range(1, 2**16)] = 256
    dim: Annotated[int, Range(2, 2**15)] = 64
    hidden_dim: Annotated[int, Range(1, 2**15)] = 512

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        check_ranges("head", self)


class ViewsHead(PretrainingHead):
    """A projector on the vector of an image, and the loss of several views."""

    reads = "vector"

    def __init__(self, backbone: Backbone, config: ViewsConfig) -> None:
        super().__init__()
        self.config = config
        widths = (backbone.embed_channels, config.hidden_dim, config.hidden_dim)
        self.projector = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(before, width), nn.LayerNorm(width), nn.GELU())
                for before, width in pairwise(widths)
            ),
            nn.Linear(config.hidden_dim, config.dim),
        )
        init_linear_weights(self)

    def forward(self, features: Features) -> Float[Tensor, "N D"]:
        """Project the vectors."""
        return self.projector(features.vector)

    def losses(
        self, features: Features, num_views: int, directions: Float[Tensor, "D M"]
    ) -> dict[str, Float[Tensor, " B"]]:
        """Losses of each image: "agreement" of its views, and "spread" of the batch.

        Features are those of the first view of all images, then of the second, and so on. Outside
        of autocast, since differences of nearly equal numbers are squared.
        """
        views = self.forward(features).float().unflatten(0, (num_views, -1))  # V, B, D
        with torch.autocast(views.device.type, enabled=False):
            agreement = (views - views.mean(dim=0)).square().mean(dim=(0, 2))  # B
            spread = torch.stack([sketch_gaussian(view, directions) for view in views]).mean()
        part = self.config.gaussian_weight
        return {
            "agreement": (1 - part) * agreement,
            "spread": (part * spread).expand(len(agreement)),
        }
