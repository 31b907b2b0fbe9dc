# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Position information of a model: position embeddings and relative position biases.

Letters: N tokens of a grid, C channels, S sampled positions, H, W height and width of a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from muntin.explaining.attention_trace import trace
from muntin.explaining.context import Context
from muntin.explaining.explanation_figure import ExplanationFigure, MissingFigure
from muntin.explaining.layers import AttentionLayer
from muntin.explaining.relative_position_bias import show_relative_bias
from muntin.explaining.token_plotting import INK, RED, note_on_weights
from muntin.models.hiera import Hiera
from muntin.models.swin import Swin
from muntin.models.t2t_vit import T2TViT
from muntin.models.vit import ViT
from muntin.ops.positions import Resampling, resample_grid
from muntin.ops.size_rules import SIZE_RULES
from muntin.shapes import Float, Int, Size

__all__ = ["PositionEmbedding", "compare_positions", "find_positions", "show_positions"]

_MAX_SAMPLES = 8  # per axis
_COSINE = (
    "<math display='block'><mrow><msub><mi>S</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub><mo>=</mo>"
    "<mfrac><mrow><msub><mi>p</mi><mi>i</mi></msub><mo>&#183;</mo><msub><mi>p</mi><mi>j</mi></msub>"
    "</mrow><mrow><mo>&#8214;</mo><msub><mi>p</mi><mi>i</mi></msub><mo>&#8214;</mo>"
    "<mo>&#8214;</mo><msub><mi>p</mi><mi>j</mi></msub><mo>&#8214;</mo></mrow></mfrac></mrow></math>"
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PositionEmbedding:
    """Absolute position embedding of a model.

    Attributes:
        table: Prefix tokens, then the grid row by row.
        grid: (rows, columns) of tokens that it was built for.
        prefix: Number of prefix tokens, such as the class token, which have no position.
        how: Interpolation by which the model resizes it.
        learned: False for a fixed sinusoidal embedding.
    """

    table: Float[Tensor, "1 N C"]
    grid: Size
    prefix: int
    how: Resampling
    learned: bool = True

    def resize(self, grid: Size) -> Float[Tensor, "N2 C"]:
        """Resize to another grid as the model does; prefix tokens are dropped."""
        table = resample_grid(
            self.table, old=self.grid, new=grid, num_prefix=self.prefix, how=self.how
        )
        return table[0, self.prefix :]


def find_positions(backbone: nn.Module) -> PositionEmbedding | None:
    """Find the absolute position embedding of a backbone; None if it has none."""
    if isinstance(backbone, T2TViT):
        return PositionEmbedding(
            table=backbone.pos_embed.detach(),
            grid=backbone.config.grid,
            prefix=1,
            how="bicubic",
            learned=False,
        )
    if isinstance(backbone, ViT | Swin | Hiera):
        config = backbone.config
        table = getattr(backbone, "pos_embed", getattr(backbone, "absolute_pos_embed", None))
        if table is None:
            return None
        how = SIZE_RULES[config.size_rule].positions
        prefix = table.shape[1] - config.grid[0] * config.grid[1]
        return PositionEmbedding(table=table.detach(), grid=config.grid, prefix=prefix, how=how)
    net = getattr(backbone, "net", None)  # the adapter around a timm model
    table = getattr(net, "pos_embed", None)
    grid = getattr(getattr(net, "patch_embed", None), "grid_size", None)
    if not isinstance(table, Tensor) or table.ndim != 3 or grid is None:
        return None
    prefix = table.shape[1] - grid[0] * grid[1]
    if prefix < 0:
        return None
    return PositionEmbedding(
        table=table.detach(), grid=tuple(grid), prefix=prefix, how="antialiased"
    )


def compare_positions(
    embeddings: Float[Tensor, "N C"], chosen: Int[Tensor, " S"]
) -> Float[Tensor, "S N"]:
    """Cosine similarity of the chosen embeddings with all embeddings."""
    unit = F.normalize(embeddings.float(), dim=1)
    return unit[chosen] @ unit.t()


def show_positions(context: Context) -> list[ExplanationFigure | MissingFigure]:
    """Show the position information in the weights, independent of the image content.

    Args:
        context: The model; only the size of the image matters.

    Returns:
        Similarity of the position embeddings at their own and at another grid size, similarity of
        the class token's embedding to them, and relative position biases, where available.

    Raises:
        ShapeError: The backbone does not accept this height and width.
    """
    title = "Position embeddings"
    if context.backbone is None:
        reason = (
            "The graph of an exported file does not identify its position embeddings. Explain the "
            "run that it was exported from instead."
        )
        return [MissingFigure(section="positions", title=title, reason=reason)]
    layers = trace(context.backbone, context.images)
    positions = find_positions(context.backbone)
    shown: list[ExplanationFigure | MissingFigure] = []
    if positions is not None:
        shown += _show_similarity(context, positions, layers)
    shown += show_relative_bias(context, layers)
    if not shown:
        reason = (
            f"{context.name} has neither a position embedding nor a relative position bias that "
            f"can be read. Attention and attribution are still available."
        )
        return [MissingFigure(section="positions", title=title, reason=reason)]
    return shown


def _sample(grid: Size) -> tuple[Size, Int[Tensor, " S"]]:
    """Evenly spaced positions of a grid: (rows, columns) sampled, and their row-major indices."""
    rows, columns = (
        np.unique(np.linspace(0, side - 1, min(side, _MAX_SAMPLES)).round().astype(np.int64))
        for side in grid
    )
    numbers = rows[:, None] * grid[1] + columns[None]
    return (len(rows), len(columns)), torch.from_numpy(numbers.ravel())


def _show_similarity(
    context: Context, positions: PositionEmbedding, layers: Sequence[AttentionLayer]
) -> list[ExplanationFigure | MissingFigure]:
    # T2T-ViT adds the embedding after its tokens-to-token steps, so its last layer has the grid.
    used = layers[-1].grid if isinstance(context.backbone, T2TViT) else None
    used = used or (layers[0].grid if layers else positions.grid)
    other = used if used != positions.grid else (2 * positions.grid[0], 2 * positions.grid[1])
    label = "this image" if used == other else "an image of twice the height and width"
    parts = []
    for grid, title in ((positions.grid, "original"), (other, label)):
        samples, numbers = _sample(grid)
        similarity = compare_positions(positions.resize(grid), numbers).numpy()
        parts.append((grid, samples, similarity, f"{grid[0]} x {grid[1]} tokens, {title}"))
    kind = "learned" if positions.learned else "fixed (sinusoidal, in row-major order)"
    shown: list[ExplanationFigure | MissingFigure] = [
        ExplanationFigure(
            name="positions-similarity",
            section="positions",
            title="Similarity of position embeddings",
            text=(
                f"Each small map shows the cosine similarity of one position's embedding to the "
                f"embeddings of all positions; 1 is the position itself. The embeddings are "
                f"{kind}. In trained models, neighbouring positions and those of the same row or "
                f"column are similar: the model has learned the 2D layout. Right: the same after "
                f"interpolation to another grid, as the model does for such an image."
                + (note_on_weights(context) if positions.learned else "")
            ),
            figure=_draw_similarity(parts),
            formula=_COSINE,
            source="Dosovitskiy et al. 2021, arXiv 2010.11929, figure 7 (middle)",
            arrays={
                "native": parts[0][2].reshape(*parts[0][1], *parts[0][0]),
                "resized": parts[1][2].reshape(*parts[1][1], *parts[1][0]),
            },
            facts={
                "native grid": list(positions.grid),
                "resized grid": list(other),
                "resampling": positions.how,
                "tokens without a place": positions.prefix,
            },
        )
    ]
    if positions.prefix:
        shown.append(_show_prefix(context, positions))
    return shown


def _draw_similarity(
    parts: Sequence[tuple[Size, Size, NDArray[np.float32], str]],
) -> Figure:
    lowest = min(float(similarity.min()) for _, _, similarity, _ in parts)
    ratio = float(np.clip(parts[0][0][0] / parts[0][0][1], 0.4, 2))
    figure = Figure(figsize=(9, 4.0 * ratio + 0.9), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, (grid, samples, similarity, title) in zip(panels, parts, strict=True):
        mosaic = _join_maps(similarity.reshape(*samples, *grid))
        axes.imshow(
            np.ma.masked_invalid(mosaic), cmap="viridis", vmin=lowest, vmax=1,
            interpolation="nearest",
        )  # fmt: skip
        axes.set_title(title, fontsize=9, color=INK)
        _label_samples(axes, grid, samples)
    bar = figure.colorbar(panels[0].images[0], ax=panels, fraction=0.025, pad=0.01)
    bar.set_label("cosine similarity", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def _join_maps(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Tile maps (rows, columns, H, W) into one, separated by NaN."""
    rows, columns, high, wide = maps.shape
    gap = max(1, round(0.1 * max(high, wide)))
    padded = np.pad(maps, ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=np.nan)
    joined = padded.swapaxes(1, 2).reshape(rows * (high + gap), columns * (wide + gap))
    return joined[:-gap, :-gap]


def _label_samples(axes: Axes, grid: Size, samples: Size) -> None:
    """Label each small map with the row and column of its position."""
    gap = max(1, round(0.1 * max(grid)))
    places = []
    for side, count in zip(grid, samples, strict=True):
        names = np.linspace(0, side - 1, count).round().astype(int) + 1
        places.append((np.arange(count) * (side + gap) + (side - 1) / 2, names))
    axes.set_yticks(places[0][0], [str(n) for n in places[0][1]], fontsize=8)
    axes.set_xticks(places[1][0], [str(n) for n in places[1][1]], fontsize=8)
    axes.set_ylabel("row of the position", fontsize=8)
    axes.set_xlabel("column of the position", fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _show_prefix(context: Context, positions: PositionEmbedding) -> ExplanationFigure:
    table = positions.table[0]
    cosines = compare_positions(table, torch.arange(positions.prefix))
    maps = cosines[:, positions.prefix :].unflatten(1, positions.grid).numpy()
    shared = bool(getattr(getattr(context.backbone, "config", None), "shared_position", False))
    names = ["class token", "distillation token"]
    names = ["shared by all patches"] if shared else names
    names += [f"extra token {number}" for number in range(1, positions.prefix)]
    figure = Figure(figsize=(min(9.0, 3.6 * len(maps) + 0.8), 3.3), layout="constrained")
    for number, (similarity, name) in enumerate(zip(maps, names, strict=False)):
        axes = figure.add_subplot(1, len(maps), number + 1)
        image = axes.imshow(similarity, cmap="viridis", interpolation="nearest")
        axes.set_title(name, fontsize=9, color=INK)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.plot(
            *np.unravel_index(similarity.argmax(), similarity.shape)[::-1], "o", mfc="none", mec=RED
        )
        bar = figure.colorbar(image, ax=axes, fraction=0.046)
        bar.set_label("cosine similarity", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    return ExplanationFigure(
        name="positions-class-token",
        section="positions",
        title="Position embedding of the class token",
        text=(
            "The class token has a position embedding although it has no position. The map shows "
            "its cosine similarity to the embedding of each patch; the ring marks the maximum. "
            "Usually it is similar to none (values near 0, or all of one sign), so attention can "
            "distinguish it. Each map has its own colour scale." + note_on_weights(context)
        ),
        figure=figure,
        formula=_COSINE,
        source="Dosovitskiy et al. 2021, arXiv 2010.11929, section 3.1, equation 1",
        arrays={"similarity": maps},
        facts={
            "tokens": names[: len(maps)],
            "mean": [float(similarity.mean()) for similarity in maps],
        },
    )
