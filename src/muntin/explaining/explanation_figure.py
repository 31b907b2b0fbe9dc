# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What an explanation is made of: figures with words and data, and reasons where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from muntin.errors import ShapeError
from muntin.explaining.sections import SECTIONS, Section
from muntin.shapes import Size

__all__ = ["SECTIONS", "ExplanationFigure", "MissingFigure", "PointLayer", "Section"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PointLayer:
    """How one layer attends, for every point that a reader may click.

    Attributes:
        title: Of the layer, such as "stage 1, block 2 (shifted), mean of 3 heads".
        grid: (rows, columns) of tokens that cover the image.
        covered: (height, width) in pixels of the image as shown that the grid covers; it may
            be more than the image where tokens were padded.
        keys: For each token its keys: (T, N) numbers of the tokens (row * columns + column) it
            attends to; -1 where a key is padding or a class token. T = rows * columns.
        weights: (T, N) attention to each key, uint8; 255 is the largest weight of the row.
        largest: (T) The weight that 255 stands for, in each row.
        elsewhere: What keys of -1 are, such as "the class token" or "padding".
    """

    title: str
    grid: Size
    covered: tuple[float, float]
    keys: NDArray[np.int32]
    weights: NDArray[np.uint8]
    largest: NDArray[np.float32]
    elsewhere: str = ""

    def __post_init__(self) -> None:
        """Refuse tables that do not belong together."""
        tokens = self.grid[0] * self.grid[1]
        shapes = (self.keys.shape, self.weights.shape, self.largest.shape)
        if shapes != ((tokens, self.keys.shape[-1]),) * 2 + ((tokens,),):
            message = (
                f"keys and weights must be (T, N) and largest (T) with T={tokens} tokens, got "
                f"{shapes}."
            )
            raise ShapeError(message)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ExplanationFigure:
    """Something to see.

    Attributes:
        name: Stem of its files, in lower case with hyphens, unique on a page.
        section: Where it stands.
        title: A short heading.
        text: What is seen and how to read it, in two to five plain sentences.
        figure: Drawn with matplotlib objects, without global state, colours that everybody can
            tell apart, readable on light and on dark pages.
        formula: MathML between <math> tags, or empty.
        source: Paper and equation, or empty.
        arrays: The data behind it, written as .npz.
        facts: Plain numbers and texts, written as .json.
        layers: Attention for a point that a reader clicks, if that is what it shows.
    """

    name: str
    section: Section
    title: str
    text: str
    figure: Figure
    formula: str = ""
    source: str = ""
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[PointLayer, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class MissingFigure:
    """Something that cannot be shown of this model.

    Attributes:
        section: Where it would stand.
        title: What it would be.
        reason: Why not, and what can be seen instead.
    """

    section: Section
    title: str
    reason: str
