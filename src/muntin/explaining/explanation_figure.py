# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The parts of an explanation: figures with text and data, or the reason why one is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from muntin.errors import ShapeError
from muntin.explaining.sections import Section
from muntin.shapes import Size

__all__ = ["ExplanationFigure", "MissingFigure", "PointLayer"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PointLayer:
    """Attention of one layer from every token, for the clickable image of the page.

    Attributes:
        title: Title of the layer, such as "stage 1, block 2 (shifted), mean of 3 heads".
        grid: (rows, columns) of the tokens that cover the image.
        covered: (height, width) in pixels that the grid covers on the displayed image; larger
            than the image where tokens were padded.
        keys: (T, N) index (row * columns + column) of each key that a token attends to; -1 for
            padding and class tokens. T = rows * columns.
        weights: (T, N) attention to each key, uint8, scaled so that 255 is the row's maximum.
        largest: (T) maximum weight of each row, i.e. the value of 255.
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
        """Check that the shapes of the tables match."""
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
    """One figure of the page with its caption and data.

    Attributes:
        name: Stem of its file names, lower case with hyphens, unique on a page.
        section: Section of the page that contains it.
        title: A short heading.
        text: Caption: what the figure shows and how to read it, in two to five sentences.
        figure: A matplotlib figure made without pyplot's global state, in a colour-blind safe
            palette that is readable on light and dark pages.
        formula: MathML between <math> tags, or empty.
        source: Paper and equation, or empty.
        arrays: The plotted data, written as .npz.
        facts: Numbers and strings, written as .json.
        layers: Attention per token for the clickable image; empty for other figures.
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
    """A figure that is not available for this model.

    Attributes:
        section: Section of the page that would contain it.
        title: Heading of the figure.
        reason: Why it is not available, and which figure to use instead.
    """

    section: Section
    title: str
    reason: str
