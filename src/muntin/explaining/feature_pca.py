# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What the maps hold: their cells in colours that are alike where their features are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from muntin.explaining.context import Context
from muntin.explaining.explanation_figure import ExplanationFigure, MissingFigure
from muntin.explaining.image_overlays import INK, panels, to_rgb
from muntin.shapes import Float, Size

__all__ = ["Components", "find_components", "show_features", "title_maps"]

COLOURS = 3
_FORMULA = (
    "<math display='block'><mrow><msub><mi>c</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub><mo>=</mo>"
    "<msub><mi>V</mi><mn>3</mn></msub><msup><mi></mi><mo>&#x22A4;</mo></msup><mo>(</mo><msub>"
    "<mi>A</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub><mo>&#x2212;</mo><mover><mi>A</mi>"
    "<mo>&#x00AF;</mo></mover><mo>)</mo></mrow></math>"
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Components:
    """The directions in which the cells of a map differ most.

    Attributes:
        values: (H, W, 3) How far each cell lies along each of them; 0 where a map has fewer.
        shares: (3) Part of the variance that each one explains.
    """

    values: Float[np.ndarray, "H W 3"]
    shares: Float[np.ndarray, " 3"]

    @property
    def colours(self) -> NDArray[np.float64]:
        """(H, W, 3) The same from 0 to 1; the outermost 1 % at each end is cut off."""
        low, high = np.percentile(self.values, (1, 99), axis=(0, 1))
        there = self.shares > 1e-9
        spread = np.where(there, np.maximum(high - low, 1e-12), 1.0)
        colours: NDArray[np.float64] = np.clip((self.values - low) / spread, 0, 1)
        return np.where(there, colours, 0.5)


def find_components(cells: Float[Tensor, "C H W"]) -> Components:
    """Find the three main components of the cells of a map.

    A component has the sign with which its largest loading is positive, so that two runs, and two
    machines, show the same colours.

    Args:
        cells: One image's map.

    Returns:
        Values and shares.

    Source:
        Principal components by the singular values of the centred cells; compared with
        scikit-learn's PCA in tests/explaining/test_features.py.
    """
    high, wide = cells.shape[1:]
    rows = cells.flatten(1).T.double()  # H*W, C
    rows = rows - rows.mean(dim=0)
    _, lengths, directions = torch.linalg.svd(rows, full_matrices=False)
    count = min(COLOURS, len(lengths))
    directions = directions[:count]
    largest = directions.abs().argmax(dim=1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    values = torch.zeros(high * wide, COLOURS, dtype=torch.float64)
    values[:, :count] = rows @ directions.T
    shares = torch.zeros(COLOURS, dtype=torch.float64)
    total = lengths.square().sum()
    # Beside what the cells are made of, what is left after centring is rounding.
    if total > 1e-12 * max(float(cells.double().square().sum()), 1e-30):
        shares[:count] = lengths[:count].square() / total
    return Components(values=values.view(high, wide, COLOURS).numpy(), shares=shares.numpy())


def show_features(context: Context) -> list[ExplanationFigure | MissingFigure]:
    """Show the maps of a backbone as colours, beside each other.

    Args:
        context: The image and the model.

    Returns:
        One figure; what is missing of an exported file, which gives no maps.
    """
    title = "The maps in colours"
    if context.backbone is None:
        reason = (
            "An exported file gives answers and no maps. They can be seen of the run that it was "
            "exported from."
        )
        return [MissingFigure(section="features", title=title, reason=reason)]
    spec: Any = context.backbone.spec
    with torch.no_grad():
        maps = context.backbone(context.images)
    inside = [
        _without_padding(one[0], stride, context.shown_size)
        for one, stride in zip(maps, spec.strides, strict=True)
    ]
    found = [find_components(one) for one in inside]
    titles = title_maps(context.backbone)
    text = (
        "Each cell of a map is a vector. Its three main components, the directions in which the "
        "cells of this image differ most, are shown as red, green and blue: cells of one colour "
        "have features alike, whatever the colour is. Fine maps part edges and textures, coarse "
        "ones things. The row below is the first component alone, dark to bright. Colours of "
        "different maps cannot be compared."
    )
    if not context.trained:
        text += " The weights are fresh ones: what is seen is the image itself, not learnt."
    return [
        ExplanationFigure(
            name="features-maps",
            section="features",
            title=title,
            text=text,
            figure=_draw(context, titles, found, spec.strides),
            formula=_FORMULA,
            source="Principal component analysis of each map's cells (Pearson 1901)",
            arrays={
                f"map_{number}_stride_{stride}": one.values.astype(np.float32)
                for number, (one, stride) in enumerate(zip(found, spec.strides, strict=True))
            },
            facts={
                "strides": list(spec.strides),
                "channels": list(spec.channels),
                "grids": [list(one.shape[1:]) for one in inside],
                "explained": [[round(float(v), 4) for v in one.shares] for one in found],
            },
        )
    ]


def title_maps(backbone: Any) -> list[str]:  # noqa: ANN401 (any backbone)
    """Name the maps of a backbone: by their strides, or by blocks where all have one stride."""
    strides = backbone.spec.strides
    if len(set(strides)) == len(strides):
        return [f"stride {stride}" for stride in strides]
    blocks = getattr(backbone.config, "blocks_out", None) or range(len(strides))
    what = "block" if hasattr(backbone.config, "blocks_out") else "map"
    pairs = zip(blocks, strides, strict=True)
    return [f"{what} {block + 1}, stride {stride}" for block, stride in pairs]


def _without_padding(cells: Float[Tensor, "C H W"], stride: int, shown: Size) -> Tensor:
    high, wide = (-(-side // stride) for side in shown)
    return cells[:, : max(high, 1), : max(wide, 1)]


def _draw(
    context: Context, titles: Sequence[str], found: Sequence[Components], strides: Sequence[int]
) -> Figure:
    image = to_rgb(context.shown)
    high, wide = context.shown_size
    columns = 1 + len(found)
    figure, axes = panels(2 * columns, context.shown_size, columns=columns, width=8.9 / columns)
    axes[0].imshow(image)
    axes[0].set_title("the image", fontsize=9, color=INK)
    axes[columns].axis("off")
    axes[columns].text(
        0.98, 0.5, "first component\nalone, and its\npart of the\nvariance", ha="right",
        va="center", fontsize=9, color=INK, transform=axes[columns].transAxes,
    )  # fmt: skip
    for place, (title, one, stride) in enumerate(zip(titles, found, strides, strict=True), 1):
        extent = (
            -0.5,
            one.values.shape[1] * stride - 0.5,
            one.values.shape[0] * stride - 0.5,
            -0.5,
        )
        colours = one.colours
        axes[place].imshow(colours, extent=extent, interpolation="nearest")
        axes[place].set_title(title, fontsize=9, color=INK)
        below = axes[columns + place]
        below.imshow(
            colours[..., 0], extent=extent, interpolation="nearest", cmap="cividis", vmin=0, vmax=1
        )
        below.set_title(f"{100 * one.shares[0]:.0f} %", fontsize=9, color=INK)
        for panel in (axes[place], below):
            panel.set_xlim(-0.5, wide - 0.5)
            panel.set_ylim(high - 0.5, -0.5)
    return figure
