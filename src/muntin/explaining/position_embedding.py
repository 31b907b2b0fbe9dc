# SPDX-License-Identifier: Apache-2.0
"""Position embeddings, and relative position biases: tables (Swin, SimMIM), or an MLP (Swin V2).

Letters: N tokens of a grid, C channels, S sampled positions, h heads, H, W height and width of a
grid or of a bias table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from muntin.drawing.style import INK, LINE_COLOURS, VERMILION
from muntin.explaining import plotting as kit
from muntin.explaining.attention_layers import AttentionLayer
from muntin.explaining.context import Context
from muntin.explaining.figures import Result, Results, find_text, make_figure, make_missing
from muntin.models.hiera import Hiera
from muntin.models.swin import Swin, WindowAttention
from muntin.models.swin_v2 import CosineWindowAttention
from muntin.models.t2t_vit import T2TViT
from muntin.models.vit import SelfAttention, ViT
from muntin.ops.positions import (
    SIZE_RULES,
    Resampling,
    expand_relative_position_bias,
    resample_grid,
)
from muntin.shapes import Float, Int, Size

_MAX_SAMPLES = 8  # per axis


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PositionEmbedding:
    """Absolute position embedding of a model.

    The table is that of `prefix` tokens, such as the class token, then of the grid, row by row;
    `how` the model resizes it. An embedding that is not learned is sinusoidal.
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
    net: Any = getattr(backbone, "net", backbone)  # of the adapter around a timm model
    table = getattr(net, "pos_embed", getattr(net, "absolute_pos_embed", None))
    grid = getattr(getattr(net, "patch_embed", None), "grid_size", None)
    how: Resampling = "antialiased"
    if isinstance(backbone, T2TViT):
        grid, how = backbone.config.grid, backbone.config.resampling
    elif isinstance(backbone, ViT | Swin | Hiera):
        grid, how = backbone.config.grid, SIZE_RULES[backbone.config.size_rule].positions
    if not isinstance(table, Tensor) or table.ndim != 3 or grid is None:
        return None
    prefix = table.shape[1] - grid[0] * grid[1]
    if prefix < 0:
        return None
    learned = not isinstance(backbone, T2TViT)
    return PositionEmbedding(
        table=table.detach(), grid=tuple(grid), prefix=prefix, how=how, learned=learned
    )


def compare_positions(
    embeddings: Float[Tensor, "N C"], chosen: Int[Tensor, " S"]
) -> Float[Tensor, "S N"]:
    """Cosine similarity of the chosen embeddings with all embeddings."""
    unit = F.normalize(embeddings.float(), dim=1)
    return unit[chosen] @ unit.t()


def show_positions(context: Context) -> Results:
    """Show the position information in the weights, independent of the image content."""
    if context.backbone is None:
        return [make_missing("positions-exported")]
    layers = context.recording.layers
    positions = find_positions(context.backbone)
    shown: list[Result] = []
    if positions is not None:
        shown.append(_show_similarity(context, positions, layers))
        if positions.prefix:
            shown.append(_show_prefix(context, positions))
    biases = find_biases(context.backbone, layers)
    if biases:
        shown.append(_show_tables(context, biases))
    cosine = [bias.layer for bias in biases if bias.layer.scores == "cosine"]
    if cosine:
        shown.append(_show_continuous(context, cosine))
    return shown or [make_missing("positions-none", name=context.name)]


def _sample(grid: Size) -> tuple[Size, Int[Tensor, " S"]]:
    """Evenly spaced positions of a grid: (rows, columns), and their row-major indices."""
    rows, columns = (torch.tensor(kit.spread(side, _MAX_SAMPLES)) for side in grid)
    numbers = rows[:, None] * grid[1] + columns
    return (len(rows), len(columns)), numbers.flatten()


def _show_similarity(
    context: Context, positions: PositionEmbedding, layers: Sequence[AttentionLayer]
) -> Result:
    # T2T-ViT adds the embedding after its tokens-to-token steps, so its last layer has the grid.
    used = layers[-1].grid if isinstance(context.backbone, T2TViT) else None
    used = used or (layers[0].grid if layers else positions.grid)
    other = used if used != positions.grid else (2 * positions.grid[0], 2 * positions.grid[1])
    label = "this image" if used == other else "an image of twice the height and width"
    parts = []
    for grid, title in ((positions.grid, "original"), (other, label)):
        samples, numbers = _sample(grid)
        similarity = compare_positions(positions.resize(grid), numbers)
        maps = similarity.view(*samples, *grid).numpy()
        parts.append((maps, f"{grid[0]} x {grid[1]} tokens, {title}"))
    kind = "learned" if positions.learned else "fixed"
    return make_figure(
        "positions-similarity",
        _draw_similarity(parts),
        ("text", positions.learned and context.fresh),
        arrays={"native": parts[0][0], "resized": parts[1][0]},
        facts={
            "native grid": list(positions.grid),
            "resized grid": list(other),
            "resampling": positions.how,
            "tokens without a place": positions.prefix,
        },
        kind=find_text("positions-similarity", kind),
    )


def _draw_similarity(parts: Sequence[tuple[NDArray[np.float32], str]]) -> Figure:
    """Draw maps (rows, columns, H, W), one of each sampled position, under a title."""
    lowest = min(float(maps.min()) for maps, _ in parts)
    high, wide = parts[0][0].shape[2:]
    figure, panels = kit.start_plots(2, 4.0 * float(np.clip(high / wide, 0.4, 2)) + 0.9)
    for axes, (maps, title) in zip(panels, parts, strict=True):
        axes.imshow(
            np.ma.masked_invalid(_join_maps(maps)), cmap="viridis", vmin=lowest, vmax=1,
            interpolation="nearest",
        )  # fmt: skip
        axes.set_title(title, fontsize=9, color=INK)
        _label_samples(axes, maps.shape[2:], maps.shape[:2])
    bar = {"fraction": 0.025, "pad": 0.01}
    kit.add_colour_bar(figure, panels[0].images[0], panels, "cosine similarity", **bar)
    return figure


def _join_maps(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Tile maps (rows, columns, H, W) into one, separated by NaN."""
    rows, columns, high, wide = maps.shape
    gap = max(1, round(0.1 * max(high, wide)))
    padded = np.pad(maps, ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=np.nan)
    joined = padded.swapaxes(1, 2).reshape(rows * (high + gap), columns * (wide + gap))
    return joined[:-gap, :-gap]


def _label_samples(axes: Axes, grid: Sequence[int], samples: Sequence[int]) -> None:
    gap = max(1, round(0.1 * max(grid)))
    places = []
    for side, count in zip(grid, samples, strict=True):
        names = [str(number + 1) for number in kit.spread(side, count)]
        places.append((np.arange(count) * (side + gap) + (side - 1) / 2, names))
    axes.set_yticks(*places[0], fontsize=8)
    axes.set_xticks(*places[1], fontsize=8)
    axes.set_ylabel("row of the position", fontsize=8)
    axes.set_xlabel("column of the position", fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _show_prefix(context: Context, positions: PositionEmbedding) -> Result:
    table = positions.table[0]
    cosines = compare_positions(table, torch.arange(positions.prefix))
    maps = cosines[:, positions.prefix :].unflatten(1, positions.grid).numpy()
    shared = bool(getattr(getattr(context.backbone, "config", None), "shared_position", False))
    names = ["class token", "distillation token"]
    names = ["shared by all patches"] if shared else names
    names += [f"extra token {number}" for number in range(1, positions.prefix)]
    figure, panels = kit.start_plots(len(maps), 3.3, width=min(9.0, 3.6 * len(maps) + 0.8))
    for axes, similarity, name in zip(panels, maps, names, strict=False):
        image = axes.imshow(similarity, cmap="viridis", interpolation="nearest")
        axes.set_title(name, fontsize=9, color=INK)
        axes.set(xticks=[], yticks=[])
        y, x = np.unravel_index(similarity.argmax(), similarity.shape)
        axes.plot(x, y, "o", mfc="none", mec=VERMILION)
        kit.add_colour_bar(figure, image, axes, "cosine similarity", fraction=0.046)
    return make_figure(
        "positions-class-token",
        figure,
        ("text", context.fresh),
        arrays={"similarity": maps},
        facts={
            "tokens": names[: len(maps)],
            "mean": [float(similarity.mean()) for similarity in maps],
        },
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BiasTable:
    """Bias of each head of a layer by offset from query to key; the query is the centre."""

    layer: AttentionLayer
    values: Float[Tensor, "h H W"]


def find_biases(backbone: Any, layers: Sequence[AttentionLayer]) -> list[BiasTable]:  # noqa: ANN401
    """Read the bias tables of the layers that have one."""
    tables = []
    for layer in layers:
        module = backbone.get_submodule(layer.name)
        module = getattr(module, "attn", module)  # timm's reader hooks the block, not its attention
        values = _read_table(module, layer)
        if values is not None:
            tables.append(BiasTable(layer=layer, values=values))
    return tables


@torch.no_grad()
def _read_table(module: Any, layer: AttentionLayer) -> Tensor | None:  # noqa: ANN401
    if isinstance(module, CosineWindowAttention):
        bias = module.relative_position_bias(layer.windows).detach()
        return _table_from_pairs(bias, layer.windows.window)
    table = getattr(module, "relative_position_bias_table", None)
    if table is None:
        return None
    if isinstance(module, SelfAttention):
        table, window = table[:-3], module.grid
    elif isinstance(module, WindowAttention):
        window = (module.window, module.window)
    else:
        window = tuple(module.window_size)
    grid = table.detach().float().t().unflatten(1, (2 * window[0] - 1, 2 * window[1] - 1))
    return grid.flip(1, 2)  # the table is indexed by query minus key


def _table_from_pairs(bias: Float[Tensor, "h N N"], window: Size) -> Float[Tensor, "h H W"]:
    """Recover the table from the matrix of all pairs, in which an offset has one value."""
    rows, columns = (2 * side - 1 for side in window)
    numbers = torch.arange(rows * columns, dtype=torch.float64)[:, None]
    # Expanding the numbers of the cells tells from which cell each pair got its value.
    index = expand_relative_position_bias(numbers, table_window=window, window=window)[0]
    table = bias.new_zeros(len(bias), rows * columns)
    table[:, index.long().flatten()] = bias.flatten(1)
    return table.unflatten(1, (rows, columns)).flip(1, 2)


def _show_tables(context: Context, biases: Sequence[BiasTable]) -> Result:
    cosine = biases[0].layer.scores == "cosine"
    kind = "computed" if cosine else "learned"
    return make_figure(
        "positions-relative-bias",
        _draw_tables(biases),
        ("text", context.fresh),
        formula="continuous-bias" if cosine else None,
        arrays={f"table_{n:02}": bias.values.numpy() for n, bias in enumerate(biases, 1)},
        facts={
            "tables": [
                {"layer": bias.layer.title, "array": f"table_{number:02}"}
                for number, bias in enumerate(biases, 1)
            ]
        },
        kind=find_text("positions-relative-bias", kind),
    )


def _draw_tables(biases: Sequence[BiasTable]) -> Figure:
    stages = {bias.layer.stage: bias for bias in biases}
    if len(stages) == 1:
        stages = {place: biases[place] for place in kit.spread(len(biases), 4)}
    layers = []
    for bias in stages.values():
        x, y = bias.values.shape[2] // 2, bias.values.shape[1] // 2
        low, high = float(bias.values.min()), float(bias.values.max())
        layers.append(
            kit.HeadMaps(
                title=bias.layer.title,
                maps=bias.values.numpy(),
                words=f"; {low:.2g} to {high:.2g}",
                options={"mark": (x, y, x + 1, y + 1), "limits": (low, high)},
            )
        )
    return kit.show_heads(layers, ratio=1.0, ends=("lowest", "highest"))


def _show_continuous(context: Context, layers: Sequence[AttentionLayer]) -> Result:
    stages = list({layer.stage: layer for layer in layers}.values())
    curves = [_sample_bias(context.backbone, layer) for layer in stages]
    figure, panels = kit.start_plots(len(stages), 2.9)
    for axes, layer, (offsets, values) in zip(panels, stages, curves, strict=True):
        edge = layer.windows.window[1] - 1
        axes.axvspan(-edge, edge, color="#EEEEEE", zorder=0)
        for head, line in enumerate(values[: len(LINE_COLOURS)]):
            axes.plot(
                offsets, line, color=LINE_COLOURS[head], linewidth=1.4, label=f"head {head + 1}"
            )
            whole = offsets % 1 == 0
            axes.plot(offsets[whole], line[whole], ".", color=LINE_COLOURS[head], ms=3.5)
        axes.set_title(f"stage {layer.stage}", fontsize=9, color=INK)
        kit.label_axes(axes, "offset to the right, tokens")
    panels[0].set_ylabel("bias", fontsize=9)
    panels[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return make_figure(
        "positions-continuous-bias",
        figure,
        ("text", context.fresh),
        arrays={
            f"{name}_stage_{layer.stage}": values
            for layer, pair in zip(stages, curves, strict=True)
            for name, values in zip(("offsets", "bias"), pair, strict=True)
        },
    )


@torch.no_grad()
def _sample_bias(backbone: Any, layer: AttentionLayer) -> tuple[np.ndarray, np.ndarray]:  # noqa: ANN401
    """Sample the bias of each head along a row, up to twice the window."""
    module = backbone.get_submodule(layer.name)
    known = module.pretrained_window or layer.windows.built_window[1]
    reach = 2 * layer.windows.window[1]
    offsets = torch.linspace(-reach, reach, 16 * reach + 1)
    scaled = 8 * offsets / max(known - 1, 1)
    logs = scaled.sign() * torch.log2(scaled.abs() + 1) / 3
    # The MLP's input is (down, right), query minus key: hence the sign.
    pairs = torch.stack([torch.zeros_like(logs), -logs], dim=1)
    weight = next(module.cpb_mlp.parameters())
    values = 16 * torch.sigmoid(module.cpb_mlp(pairs.to(weight)))  # n, h
    return offsets.numpy(), values.float().t().contiguous().numpy()
