# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What a model knows of places: position embeddings, and biases of relative position.

Letters: N tokens of a grid, P tokens without a place before them, C channels, S positions that are
compared, h heads, H, W sides of a table of offsets.
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
from muntin.ops.windows import SIZE_RULES
from muntin.shapes import Float, Int, Size

__all__ = ["PositionEmbedding", "compare_positions", "find_positions", "show_positions"]

_MOST_SAMPLES = 8  # down and across
_COSINE = (
    "<math display='block'><mrow><msub><mi>S</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub><mo>=</mo>"
    "<mfrac><mrow><msub><mi>p</mi><mi>i</mi></msub><mo>&#183;</mo><msub><mi>p</mi><mi>j</mi></msub>"
    "</mrow><mrow><mo>&#8214;</mo><msub><mi>p</mi><mi>i</mi></msub><mo>&#8214;</mo>"
    "<mo>&#8214;</mo><msub><mi>p</mi><mi>j</mi></msub><mo>&#8214;</mo></mrow></mfrac></mrow></math>"
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PositionEmbedding:
    """Position embeddings of a model.

    Attributes:
        table: Tokens without a place, then the grid row by row.
        grid: Tokens down and across that it was made for.
        prefix: Tokens of the table that have no place.
        how: How the model resizes it.
        learned: Whether it is part of what was trained.
    """

    table: Float[Tensor, "1 N C"]
    grid: Size
    prefix: int
    how: Resampling
    learned: bool = True

    def resize(self, grid: Size) -> Float[Tensor, "N2 C"]:
        """Give the embeddings of another grid, as the model makes them; those of the grid only."""
        table = resample_grid(
            self.table, old=self.grid, new=grid, num_prefix=self.prefix, how=self.how
        )
        return table[0, self.prefix :]


def find_positions(backbone: nn.Module) -> PositionEmbedding | None:
    """Find the position embeddings that a backbone adds to its tokens; None if it adds none."""
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
    net = getattr(backbone, "net", None)
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
    """Compare some positions with all: cosines of their embeddings, from -1 to 1."""
    unit = F.normalize(embeddings.float(), dim=1)
    return unit[chosen] @ unit.t()


def show_positions(context: Context) -> list[ExplanationFigure | MissingFigure]:
    """Show what a model knows of places before it has seen anything.

    Args:
        context: The model; of the image only the size counts.

    Returns:
        Similarity of position embeddings, at the size they were made for and at another; of the
        class token's with them; biases of relative position, each as far as the model has it.

    Raises:
        ShapeError: The backbone refuses this height and width.
    """
    title = "Position embeddings"
    if context.backbone is None:
        reason = (
            "An exported file does not tell its position embeddings apart from other numbers. "
            "Explain the run that it was exported from."
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
            f"{context.name} has no table of positions that can be read. What a token looks at, "
            f"or what decided, can be seen."
        )
        return [MissingFigure(section="positions", title=title, reason=reason)]
    return shown


def _sample(grid: Size) -> tuple[Size, Int[Tensor, " S"]]:
    """Positions spread evenly over a grid: how many down and across, and their numbers."""
    rows, columns = (
        np.unique(np.linspace(0, side - 1, min(side, _MOST_SAMPLES)).round().astype(np.int64))
        for side in grid
    )
    numbers = rows[:, None] * grid[1] + columns[None]
    return (len(rows), len(columns)), torch.from_numpy(numbers.ravel())


def _show_similarity(
    context: Context, positions: PositionEmbedding, layers: Sequence[AttentionLayer]
) -> list[ExplanationFigure | MissingFigure]:
    seen = layers[-1].grid if isinstance(context.backbone, T2TViT) else None
    seen = seen or (layers[0].grid if layers else positions.grid)
    other = seen if seen != positions.grid else (2 * positions.grid[0], 2 * positions.grid[1])
    why = "of this image" if seen == other else "of an image of twice the side"
    parts = []
    for grid, words in ((positions.grid, "as made"), (other, why)):
        samples, numbers = _sample(grid)
        found = compare_positions(positions.resize(grid), numbers).numpy()
        parts.append((grid, samples, found, f"{grid[0]} x {grid[1]} tokens, {words}"))
    kind = "learned" if positions.learned else "fixed (sines and cosines, numbered row by row)"
    shown: list[ExplanationFigure | MissingFigure] = [
        ExplanationFigure(
            name="positions-similarity",
            section="positions",
            title="Which positions resemble each other",
            text=(
                f"Every small map belongs to one position and shows how much its embedding "
                f"resembles those of all others: 1 is itself. The embeddings are {kind}. In "
                f"trained models neighbours are alike, and whole rows and columns are too: the "
                f"model has found out that the image has two dimensions. On the right the same "
                f"after resizing to another grid, as the model does for such an image."
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
    lowest = min(float(found.min()) for _, _, found, _ in parts)
    ratio = float(np.clip(parts[0][0][0] / parts[0][0][1], 0.4, 2))
    figure = Figure(figsize=(9, 4.0 * ratio + 0.9), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, (grid, samples, found, words) in zip(panels, parts, strict=True):
        mosaic = _join_maps(found.reshape(*samples, *grid))
        axes.imshow(
            np.ma.masked_invalid(mosaic), cmap="viridis", vmin=lowest, vmax=1,
            interpolation="nearest",
        )  # fmt: skip
        axes.set_title(words, fontsize=9, color=INK)
        _label_samples(axes, grid, samples)
    bar = figure.colorbar(panels[0].images[0], ax=panels, fraction=0.025, pad=0.01)
    bar.set_label("cosine similarity", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def _join_maps(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Put maps (rows, columns, H, W) beside each other with gaps of NaN."""
    rows, columns, high, wide = maps.shape
    gap = max(1, round(0.1 * max(high, wide)))
    padded = np.pad(maps, ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=np.nan)
    joined = padded.swapaxes(1, 2).reshape(rows * (high + gap), columns * (wide + gap))
    return joined[:-gap, :-gap]


def _label_samples(axes: Axes, grid: Size, samples: Size) -> None:
    """Write row and column of the position that each small map belongs to."""
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
    names = ["added to all patches"] if shared else names
    names += [f"extra token {number}" for number in range(1, positions.prefix)]
    figure = Figure(figsize=(min(9.0, 3.6 * len(maps) + 0.8), 3.3), layout="constrained")
    for number, (found, name) in enumerate(zip(maps, names, strict=False)):
        axes = figure.add_subplot(1, len(maps), number + 1)
        image = axes.imshow(found, cmap="viridis", interpolation="nearest")
        axes.set_title(name, fontsize=9, color=INK)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.plot(*np.unravel_index(found.argmax(), found.shape)[::-1], "o", mfc="none", mec=RED)
        bar = figure.colorbar(image, ax=axes, fraction=0.046)
        bar.set_label("cosine similarity", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    return ExplanationFigure(
        name="positions-class-token",
        section="positions",
        title="The class token's position beside those of the patches",
        text=(
            "The class token has a position embedding too, though it lies nowhere. The map shows "
            "how much it resembles that of each patch; the ring marks the most alike. Usually it "
            "resembles none (values near 0, or all of one sign), so attention can tell it apart. "
            "Mind the scale: it is the map's own." + note_on_weights(context)
        ),
        figure=figure,
        formula=_COSINE,
        source="Dosovitskiy et al. 2021, arXiv 2010.11929, section 3.1, equation 1",
        arrays={"similarity": maps},
        facts={"tokens": names[: len(maps)], "mean": [float(found.mean()) for found in maps]},
    )
