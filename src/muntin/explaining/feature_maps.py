# SPDX-License-Identifier: Apache-2.0
"""Feature maps: their principal components as colours, and the similarity of two models'."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from muntin.data.transforms import to_shown
from muntin.drawing.style import INK
from muntin.explaining.context import MAX_PREFIX, Context
from muntin.explaining.figures import Results, make_figure, make_missing
from muntin.explaining.plotting import panel_ratio, panels, set_panel
from muntin.features import name_blocks
from muntin.ops.similarity import MIN_EXAMPLES, centred_gram, compare_grams
from muntin.shapes import Float, Size

COLOURS = 3
MAX_CELLS = 8
"""Maximum side of the grid to which feature maps are pooled for the comparison."""

MAX_EXAMPLES = 1024


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Components:
    """The first three principal components of the cells of a feature map.

    Values are the projections of each cell, 0 where a map has fewer than three; shares are the
    fractions of the variance.
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

    Source:
        Singular value decomposition of the centred cells; compared with
        scikit-learn's PCA in tests/explaining/test_features.py.
    """
    values, shares = project_rows(cells.flatten(1).T, COLOURS)
    return Components(values=values.reshape(*cells.shape[1:], COLOURS), shares=shares)


def project_rows(
    given: Float[Tensor, "N C"], count: int
) -> tuple[Float[np.ndarray, "N count"], Float[np.ndarray, " count"]]:
    """Project rows to their first principal components; also give their shares of the variance.

    The sign of each component makes its largest loading positive, so that pictures are the same in
    every run and on every machine. Components that rows of few channels lack are 0.
    """
    # In float64, so that the result does not depend on the order in which a machine sums.
    rows = given.double() - given.double().mean(dim=0)
    _, lengths, directions = torch.linalg.svd(rows, full_matrices=False)
    lengths, directions = lengths[:count], directions[:count]
    largest = directions.abs().argmax(dim=1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    missing = (0, count - len(lengths))
    total = rows.square().sum()
    # If all rows are equal, only rounding errors remain after centring: no component then.
    varied = total > 1e-12 * max(float(given.double().square().sum()), 1e-30)
    shares = lengths.square() / total if varied else torch.zeros_like(lengths)
    return F.pad(rows @ directions.T, missing).numpy(), F.pad(shares, missing).numpy()


def show_features(context: Context) -> Results:
    """Show the principal components of every feature map."""
    backbone: Any = context.backbone
    if backbone is None:
        return [make_missing("features-exported")]
    strides, (high, wide) = backbone.spec.strides, context.shown_size
    inside = [  # without padding
        one[0, :, : max(-(-high // stride), 1), : max(-(-wide // stride), 1)]
        for one, stride in zip(context.recording.maps, strides, strict=True)
    ]
    found = [find_components(one) for one in inside]
    figure = make_figure(
        "features-maps",
        _draw(context, title_maps(backbone), found, strides),
        ("text", not context.trained and "untrained"),
        arrays={
            f"map_{number}_stride_{stride}": one.values.astype(np.float32)
            for number, (one, stride) in enumerate(zip(found, strides, strict=True))
        },
        facts={
            "strides": list(strides),
            "channels": list(backbone.spec.channels),
            "grids": [list(one.shape[1:]) for one in inside],
            "explained": [[round(float(v), 4) for v in one.shares] for one in found],
        },
    )
    return [figure]


def title_maps(backbone: Any) -> list[str]:  # noqa: ANN401 (any backbone)
    """Title each feature map by its stride, or by its block where strides repeat."""
    strides = backbone.spec.strides
    if len(set(strides)) == len(strides):
        return [f"stride {stride}" for stride in strides]
    blocks = getattr(backbone.config, "blocks_out", None) or range(len(strides))
    unit = "block" if hasattr(backbone.config, "blocks_out") else "map"
    pairs = zip(blocks, strides, strict=True)
    return [f"{unit} {block + 1}, stride {stride}" for block, stride in pairs]


def _draw(
    context: Context, titles: Sequence[str], found: Sequence[Components], strides: Sequence[int]
) -> Figure:
    ratio, columns = panel_ratio(context.shown_size), 1 + len(found)
    width = min(9.0, columns * 3.2 / ratio)
    figure, (above, below) = panels(2, columns, ratio=ratio, width=width)
    set_panel(above[0], to_shown(context.shown), "image")
    words = "first component\nand its share\nof the variance"
    below[0].text(
        0.98, 0.5, words, ha="right", va="center", fontsize=9, color=INK,
        transform=below[0].transAxes,
    )  # fmt: skip
    for place, (title, one, stride) in enumerate(zip(titles, found, strides, strict=True), 1):
        shown: dict[str, Any] = {"stride": stride, "size": context.shown_size}
        colours, share = one.colours, f"{100 * one.shares[0]:.0f} %"
        set_panel(above[place], colours, title, **shown)
        grey: dict[str, Any] = {"cmap": "cividis", "vmin": 0, "vmax": 1}
        set_panel(below[place], colours[..., 0], share, **shown, **grey)
    return figure


def compare_layers(
    first: Sequence[Context], second: Sequence[Context]
) -> tuple[list[str], list[str], NDArray[np.float64], int] | None:
    """Compare every block of a model with every block of another.

    Gives the block names of both, the linear CKA of each pair, and the number of cells used; None
    if they are fewer than `MIN_EXAMPLES`.
    """
    per_side = min(MAX_CELLS, max(1, math.isqrt(MAX_EXAMPLES // len(first))))
    sides: tuple[dict[str, list[Tensor]], ...] = ({}, {})
    for pair in zip(first, second, strict=True):
        layers = [block_maps(context) for context in pair]
        grids = [tuple(one.shape[1:]) for side in layers for one in side.values()]
        # Blocks of both models are pooled to one grid, so that rows of the Gram matrices match.
        high, wide = (min(per_side, *(sizes[axis] for sizes in grids)) for axis in (0, 1))
        for pooled, side in zip(sides, layers, strict=True):
            for name, one in side.items():
                cells = F.adaptive_avg_pool2d(one[None].float(), (high, wide))[0]
                pooled.setdefault(name, []).append(cells.flatten(1).T)
        for context in pair:
            context.forget()
    count = sum(len(part) for part in next(iter(sides[0].values())))
    if count < MIN_EXAMPLES:
        return None
    grams = [
        {name: centred_gram(torch.cat(parts)) for name, parts in side.items()} for side in sides
    ]
    values = [[compare_grams(a, b) for b in grams[1].values()] for a in grams[0].values()]
    return [*grams[0]], [*grams[1]], np.array(values), count


def block_maps(context: Context) -> dict[str, Float[Tensor, "C H W"]]:
    """Find the feature map after every block, by number, such as "3.2": stage 3, block 2.

    The maps that the backbone returns ("map 1", ...) if it has no blocks, or if its blocks reorder
    tokens.
    """
    backbone: Any = context.backbone
    names = dict(zip(backbone.blocks, _number_blocks(name_blocks(backbone)), strict=True))
    recording = context.recording
    image = (context.images.shape[2], context.images.shape[3])
    grids = [(one.shape[2], one.shape[3]) for one in recording.maps]
    maps = {names[block]: _to_map(output, image, grids) for block, output in recording.blocks}
    found = {name: one for name, one in maps.items() if one is not None}
    # Flattened tokens may be permuted (Hiera's mask units). They are in raster order only if one
    # of them equals a map that the backbone returns.
    flat = len(grids) > 1 and any(output.ndim == 3 for _, output in recording.blocks)
    if not found or (
        flat and not any(_is_one_of(one[0], found.values()) for one in recording.maps)
    ):
        return {f"map {number}": one[0] for number, one in enumerate(recording.maps, 1)}
    return found


def _number_blocks(names: Sequence[str]) -> list[str]:
    """Numbers in the block names, from 1; a running count if these are not unique."""
    numbers = [[int(word) + 1 for word in name.split(".") if word.isdigit()] for name in names]
    labels = [".".join(map(str, one)) for one in numbers]
    return labels if len(set(labels)) == len(names) else [str(n + 1) for n in range(len(names))]


def _is_one_of(wanted: Tensor, layers: Iterable[Tensor]) -> bool:
    """Whether a map equals the output of a block, ignoring padding at the right and bottom."""
    high, wide = wanted.shape[1:]
    return any(torch.equal(one[:, :high, :wide], wanted) for one in layers)


def _to_map(tensor: Tensor, image: Size, grids: Sequence[Size]) -> Tensor | None:
    """(C, H, W) map of a block's output for one image, in the layout whose cells are squarest."""
    if tensor.ndim == 4:
        last, first = tensor[0].permute(2, 0, 1), tensor[0]
        return min((last, first), key=lambda one: _skew(image, (one.shape[1], one.shape[2])))
    if tensor.ndim == 3:
        for grid in grids:
            prefix = tensor.shape[1] - grid[0] * grid[1]
            if 0 <= prefix <= MAX_PREFIX:
                return tensor[0, prefix:].T.unflatten(1, grid)
    return None


def _skew(image: Size, grid: Size) -> float:
    return abs(math.log(image[0] * grid[1] / (image[1] * grid[0])))
