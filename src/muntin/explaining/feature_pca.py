# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Principal components of a backbone's feature maps, shown as colours."""

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
    """The first three principal components of the cells of a feature map.

    Attributes:
        values: (H, W, 3) Projection of each cell on each component; 0 where a map has fewer than
            three.
        shares: (3) Fraction of the variance that each component explains.
    """

    values: Float[np.ndarray, "H W 3"]
    shares: Float[np.ndarray, " 3"]

    @property
    def colours(self) -> NDArray[np.float64]:
        """(H, W, 3) `values` scaled to [0, 1]; the outer 1 % at both ends is clipped."""
        low, high = np.percentile(self.values, (1, 99), axis=(0, 1))
        present = self.shares > 1e-9
        span = np.where(present, np.maximum(high - low, 1e-12), 1.0)
        colours: NDArray[np.float64] = np.clip((self.values - low) / span, 0, 1)
        return np.where(present, colours, 0.5)


def find_components(cells: Float[Tensor, "C H W"]) -> Components:
    """Compute the first three principal components of the cells of a feature map.

    The sign of each component makes its largest loading positive, so that colours are the same in
    every run and on every machine.

    Args:
        cells: The map of one image.

    Source:
        Singular value decomposition of the centred cells; compared with
        scikit-learn's PCA in tests/explaining/test_features.py.
    """
    high, wide = cells.shape[1:]
    rows = cells.flatten(1).T.double()  # H*W, C
    rows = rows - rows.mean(dim=0)
    # In float64, so that colours do not depend on the order in which a machine sums.
    _, lengths, directions = torch.linalg.svd(rows, full_matrices=False)
    count = min(COLOURS, len(lengths))
    directions = directions[:count]
    largest = directions.abs().argmax(dim=1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    values = torch.zeros(high * wide, COLOURS, dtype=torch.float64)
    values[:, :count] = rows @ directions.T
    shares = torch.zeros(COLOURS, dtype=torch.float64)
    total = lengths.square().sum()
    # If all cells are equal, only rounding errors remain after centring: no component then.
    if total > 1e-12 * max(float(cells.double().square().sum()), 1e-30):
        shares[:count] = lengths[:count].square() / total
    return Components(values=values.view(high, wide, COLOURS).numpy(), shares=shares.numpy())


def show_features(context: Context) -> list[ExplanationFigure | MissingFigure]:
    """Show the principal components of every feature map of a backbone.

    Args:
        context: The image and the model.

    Returns:
        One figure; a reason for an exported file, which has no feature maps.
    """
    title = "Principal components of the feature maps"
    if context.backbone is None:
        reason = (
            "An exported file does not expose its feature maps. Explain the run that it was "
            "exported from to see them."
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
        "Each cell of a feature map is a vector. Its first three principal components over the "
        "cells of this image are shown as red, green and blue: cells of similar colour have "
        "similar features; the colour itself has no meaning. Fine maps separate edges and "
        "textures, coarse maps separate objects. The bottom row shows the first component alone, "
        "from dark to bright. Colours of different maps are not comparable."
    )
    if not context.trained:
        text += (
            " The weights are freshly initialised: the structure comes from the image, not from "
            "training."
        )
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
    """Title each feature map by its stride, or by its block where strides repeat."""
    strides = backbone.spec.strides
    if len(set(strides)) == len(strides):
        return [f"stride {stride}" for stride in strides]
    blocks = getattr(backbone.config, "blocks_out", None) or range(len(strides))
    unit = "block" if hasattr(backbone.config, "blocks_out") else "map"
    pairs = zip(blocks, strides, strict=True)
    return [f"{unit} {block + 1}, stride {stride}" for block, stride in pairs]


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
    axes[0].set_title("image", fontsize=9, color=INK)
    axes[columns].axis("off")
    axes[columns].text(
        0.98, 0.5, "first component\nand its share\nof the variance", ha="right",
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
