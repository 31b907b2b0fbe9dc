# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Cost of the explained model: multiply-adds by part and activation memory."""

from __future__ import annotations

from typing import get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from muntin.errors import MuntinError
from muntin.explaining.activation_memory import activation_bytes
from muntin.explaining.context import Context
from muntin.explaining.explanation_figure import ExplanationFigure, MissingFigure
from muntin.shapes import Size
from muntin.zoo.costs import Costs, Part, count_costs
from muntin.zoo.families import BackboneConfig

__all__ = ["finish_axes", "show_model_cost"]

_PART_COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#999999")


def show_model_cost(
    name: str, config: BackboneConfig, context: Context
) -> ExplanationFigure | MissingFigure:
    """Show multiply-adds by part, at the image size of the context and at twice that size.

    Args:
        name: Display name of the model.
        config: Config of its backbone, which is counted and not run.
        context: Provides the image size.
    """
    base: Size = (context.images.shape[2], context.images.shape[3])
    counted: dict[Size, Costs] = {}
    refused = ""
    for factor in (1.0, 2.0):
        size = base
        if factor != 1:
            size = tuple(max(32, round(factor * side / 32) * 32) for side in base)  # type: ignore[assignment]
        try:
            counted[size] = count_costs(config, size)
        except MuntinError as error:
            refused = str(error)
    if base not in counted:
        return MissingFigure(section="cost", title=f"Cost of {name}", reason=refused)
    saved = _saved_mib(config, base)
    return _draw_model(name, base, counted, saved)


def _saved_mib(config: BackboneConfig, size: Size) -> float | None:
    """Saved activations in MiB; None if the model cannot run on the meta device."""
    try:
        return activation_bytes(config, size) / 2**20
    except (RuntimeError, NotImplementedError):
        return None


def _draw_model(
    name: str, base: Size, counted: dict[Size, Costs], saved: float | None
) -> ExplanationFigure:
    sizes = sorted(counted)
    every: tuple[Part, ...] = get_args(Part)
    parts = [part for part in every if any(counted[size].of(part) for size in sizes)]
    table = np.array([[counted[size].of(part) for size in sizes] for part in parts])
    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    bottom = np.zeros(len(sizes))
    places = np.arange(len(sizes))
    for part, row, colour in zip(parts, table / 1e9, _PART_COLOURS, strict=False):
        left.bar(places, row, bottom=bottom, color=colour, label=part, width=0.7)
        bottom += row
    for place, total in zip(places, bottom, strict=True):
        left.text(place, total, f"{total:.3g}", ha="center", va="bottom", fontsize=8)
    left.set_xticks(places, [f"{size[0]} x {size[1]}" for size in sizes])
    finish_axes(left, "image size (height x width)", "multiply-adds (billions)")
    left.legend(frameon=False, fontsize=8)
    here = table[:, sizes.index(base)]
    order: list[int] = np.argsort(here).tolist()
    right.barh(
        [parts[i] for i in order], here[order] / here.sum(), color=[_PART_COLOURS[i] for i in order]
    )
    for row, number in enumerate(order):
        share = here[number] / here.sum()
        right.text(share + 0.01, row, f"{share:.1%}", va="center", fontsize=8)
    right.set_xlim(0, 1.15 * here.max() / here.sum())
    right.set_title(f"shares at {base[0]} x {base[1]}", fontsize=10)
    right.tick_params(labelsize=8)
    right.spines[["top", "right"]].set_visible(False)
    costs = counted[base]
    memory = (
        ""
        if saved is None
        else f" A plain training step saves {saved:,.0f} MiB of activations for the backward pass."
    )
    return ExplanationFigure(
        name="cost-of-the-model",
        section="cost",
        title=f"Cost of {name}",
        text=(
            f"One image of {base[0]} x {base[1]} pixels takes {costs.macs / 1e9:.2f} billion "
            f"multiply-adds in the backbone and a classifier.{memory} Bars show the breakdown by "
            "image size: projections and MLP grow linearly with the number of tokens; the matrix "
            "products of attention do so only in windows."
        ),
        figure=figure,
        arrays={"sizes": np.array(sizes), "macs": table},
        facts={"parts": parts, "img_size": base, "macs": costs.macs, "kept_mib": saved},
    )


def finish_axes(axes: Axes, x: str, y: str) -> None:
    """Label the axes and remove the frame."""
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, axis="y", alpha=0.3)
