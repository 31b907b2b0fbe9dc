# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Cost of global attention (MSA) and window attention (W-MSA) against image size.

Counted on real models built on the meta device, next to the formulas of the Swin paper, and timed
for one layer.

Letters: h, w sides of the map in tokens, C channels, M window side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from muntin.explaining.activation_memory import (
    activation_bytes,
    msa_macs,
    window_msa_macs,
    with_global_windows,
)
from muntin.explaining.context import Context
from muntin.explaining.explanation_figure import ExplanationFigure, MissingFigure
from muntin.explaining.model_cost import finish_axes, show_model_cost
from muntin.models.swin import SWIN_TINY, WindowAttention
from muntin.models.vit import SelfAttention, ViTConfig
from muntin.ops.size_rules import SIZE_RULES
from muntin.ops.windows import lay_out
from muntin.zoo.costs import Costs, count_costs
from muntin.zoo.families import BackboneConfig
from muntin.zoo.model_building import model_config

__all__ = ["show_cost"]

SIDES = (224, 448, 896)
"""Image sides in pixels; every map of Swin-T divides into whole windows at these."""

MAP_SIDES = (14, 28, 56, 84, 112)
"""Sides in tokens of the maps on which a single layer is timed."""

MAX_SECONDS = 0.8
"""A layer slower than this is neither timed again nor on larger maps."""

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SOURCE = "Liu et al. 2021 (arXiv 2103.14030), section 3.2, equations 1 and 2"
_OPEN, _CLOSE = "<mo stretchy='false'>(</mo>", "<mo stretchy='false'>)</mo>"
_TOKENS = "<mi>h</mi><mi>w</mi>"
_TOKENS_SQUARED = f"<msup><mrow>{_OPEN}{_TOKENS}{_CLOSE}</mrow><mn>2</mn></msup>"
_PROJECTIONS = f"<mo>=</mo><mn>4</mn>{_TOKENS}<msup><mi>C</mi><mn>2</mn></msup><mo>+</mo><mn>2</mn>"
_WINDOW = "<msup><mi>M</mi><mn>2</mn></msup>"
FORMULA = (
    "<math display='block'><mtable columnalign='left'>"
    f"<mtr><mtd><mi>&#937;</mi>{_OPEN}<mtext>MSA</mtext>{_CLOSE}{_PROJECTIONS}"
    f"{_TOKENS_SQUARED}<mi>C</mi></mtd></mtr>"
    f"<mtr><mtd><mi>&#937;</mi>{_OPEN}<mtext>W-MSA</mtext>{_CLOSE}{_PROJECTIONS}"
    f"{_WINDOW}{_TOKENS}<mi>C</mi></mtd></mtr></mtable></math>"
)
FORMULA_OF_WEIGHTS = (
    "<math display='block'><mrow><mtext>weights per head:</mtext><mspace width='0.6em'/>"
    f"{_TOKENS_SQUARED}<mspace width='0.6em'/><mtext>vs.</mtext><mspace width='0.6em'/>"
    f"{_WINDOW}{_TOKENS}</mrow></math>"
)


def show_cost(
    context: Context, *, sides: Sequence[int] = SIDES, map_sides: Sequence[int] = MAP_SIDES
) -> list[ExplanationFigure | MissingFigure]:
    """Show the cost of global and window attention, and the cost of this model.

    Args:
        context: Its model is counted from its config and not run.
        sides: Image sides in pixels at which models are counted.
        map_sides: Sides in tokens of the maps on which a single layer is timed.

    Returns:
        The model's own cost (a reason for an exported file), multiply-adds, memory and time.

    Source:
        Liu et al. 2021 (arXiv 2103.14030), equations 1 and 2. Counts and formulas are compared in
        tests/explaining/test_attention_cost.py; they are equal for sides that are whole windows.
    """
    general: list[ExplanationFigure | MissingFigure] = [
        _show_macs(sides),
        _show_memory(sides),
        _show_time(map_sides),
    ]
    config = getattr(context.backbone, "config", None)
    if config is None:
        reason = (
            "An exported file is a graph of a fixed size, which cannot be rebuilt at other sizes. "
            "Explain the run that it was exported from; the general cost of attention is shown "
            "above."
        )
        return [
            *general,
            MissingFigure(section="cost", title=f"Cost of {context.name}", reason=reason),
        ]
    return [show_model_cost(context.name, config, context), *general]


def _of_attention(costs: Costs) -> int:
    return costs.of("attention") + costs.of("projections")


def _swin_macs(side: int, *, global_attention: bool) -> int:
    total = 0
    for stage, depth in enumerate(SWIN_TINY.depths):
        cells, dim = side // (4 * 2**stage), SWIN_TINY.dim(stage)
        window = SWIN_TINY.windows[stage]
        each = (
            msa_macs(cells, cells, dim)
            if global_attention
            else window_msa_macs(cells, cells, dim, window)
        )
        total += depth * each
    return total


def _vit_small() -> ViTConfig:
    config = model_config("vit_small")
    assert isinstance(config, ViTConfig), "vit_small is a ViT"
    return config


def _show_macs(sides: Sequence[int]) -> ExplanationFigure:
    vit = _vit_small()
    rows = {
        "msa": [_of_attention(count_costs(with_global_windows(SWIN_TINY, s), s)) for s in sides],
        "window_msa": [_of_attention(count_costs(SWIN_TINY, s)) for s in sides],
        "vit_small": [_of_attention(count_costs(vit, s)) for s in sides],
    }
    fine = np.linspace(sides[0], sides[-1], 60)
    side = np.array([round(value / 32) * 32 for value in fine])
    lines = {
        "msa": [_swin_macs(int(s), global_attention=True) for s in side],
        "window_msa": [_swin_macs(int(s), global_attention=False) for s in side],
        "vit_small": [
            vit.depth * msa_macs((int(s) // 16) ** 2 + 1, 1, vit.embed_dim) for s in side
        ],
    }
    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        for name, (label, colour, mark) in _LABELS.items():
            axes.plot(side, np.array(lines[name]) / 1e9, color=colour, label=label)
            axes.plot(sides, np.array(rows[name]) / 1e9, mark, color=colour, ms=6)
        finish_axes(axes, "image side in pixels", "multiply-adds of attention layers (billions)")
    left.set_title("linear scale", fontsize=10)
    left.set_ylim(0, 1.15 * max(rows["vit_small"]) / 1e9)
    right.set_yscale("log")
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    right.set_title("logarithmic scale", fontsize=10)
    right.legend(
        frameon=False, fontsize=8, loc="lower right", title="lines: formula; markers: counted"
    )
    times = rows["msa"][0] / rows["window_msa"][0], rows["msa"][-1] / rows["window_msa"][-1]
    return ExplanationFigure(
        name="cost-multiply-adds",
        section="cost",
        title="Global and window attention: multiply-adds",
        text=(
            "Global attention (MSA) grows quadratically with the number of tokens; attention in "
            "windows of M x M (W-MSA) grows linearly. Lines are the formulas, markers are counted "
            "on the real networks: Swin-T, the same Swin-T with windows as large as its maps, and "
            f"ViT-S. Windows save a factor of {times[0]:.0f} at {sides[0]} pixels and of "
            f"{times[1]:.0f} at {sides[-1]}. ViT-S has patches of 16 pixels instead of 4, hence 16 "
            "times fewer tokens, and no fine feature maps."
        ),
        formula=FORMULA,
        source=SOURCE,
        figure=figure,
        arrays={"img_side": np.array(sides), **{k: np.array(v) for k, v in rows.items()}},
        facts={
            "unit": "multiply-adds of attention layers, one image",
            "img_side": tuple(sides),
            **rows,
        },
    )


_LABELS = {
    "msa": ("MSA in Swin-T", ORANGE, "s"),
    "window_msa": ("W-MSA: Swin-T", BLUE, "o"),
    "vit_small": ("MSA: ViT-S/16", GREEN, "^"),
}


def _show_memory(sides: Sequence[int]) -> ExplanationFigure:
    builders: dict[str, Callable[[int], BackboneConfig]] = {
        "msa": lambda side: with_global_windows(SWIN_TINY, side),
        "window_msa": lambda side: SWIN_TINY,
        "vit_small": lambda side: _vit_small(),
    }
    plain = {
        name: [activation_bytes(build(s), (s, s)) / 2**30 for s in sides]
        for name, build in builders.items()
    }
    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    axes = figure.subplots()
    for name, (label, colour, mark) in _LABELS.items():
        axes.plot(sides, plain[name], marker=mark, color=colour, label=label)
        axes.annotate(
            f"{plain[name][-1]:,.1f} GiB", (sides[-1], plain[name][-1]), fontsize=8,
            xytext=(6, 0), textcoords="offset points", va="center", color=colour,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(sides[0] - 30, sides[-1] + 150)
    finish_axes(axes, "image side in pixels", "activations saved for backward (GiB)")
    axes.legend(frameon=False, fontsize=8)
    return ExplanationFigure(
        name="cost-memory",
        section="cost",
        title="Global and window attention: activation memory",
        text=(
            "Activations that a training step saves per image (float32) when attention weights "
            "are materialised, counted tensor by tensor on the real networks. Global attention "
            "saves (hw)^2 weights per head, one per pair of tokens; window attention saves M^2 per "
            "token. Fused attention recomputes these weights in the backward pass instead."
        ),
        formula=FORMULA_OF_WEIGHTS,
        source=SOURCE,
        figure=figure,
        arrays={"img_side": np.array(sides), **{k: np.array(v) for k, v in plain.items()}},
        facts={"unit": "GiB, one image, float32", "img_side": tuple(sides), **plain},
    )


def _show_time(map_sides: Sequence[int]) -> ExplanationFigure:
    dim, heads, window = SWIN_TINY.dim(0), SWIN_TINY.num_heads[0], SWIN_TINY.windows[0]
    with torch.random.fork_rng(devices=[]):
        global_attention = SelfAttention(
            replace(_vit_small(), embed_dim=dim, num_heads=heads)
        ).eval()
        inside = WindowAttention(dim, heads, window, qkv_bias=True).eval()
    rule = SIZE_RULES[SWIN_TINY.size_rule]

    def run_window(side: int) -> None:
        layout = lay_out((side, side), (window, window), False, rule, built_size=(side, side))
        inside(torch.zeros(1, side, side, dim), layout)

    def run_global(side: int) -> None:
        global_attention(torch.zeros(1, side * side, dim), (side, side))

    with torch.inference_mode():
        timed = {"msa": _time(run_global, map_sides), "window_msa": _time(run_window, map_sides)}
    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    macs = {
        "msa": [msa_macs(s, s, dim) for s in map_sides],
        "window_msa": [window_msa_macs(s, s, dim, window) for s in map_sides],
    }
    for name, label, colour in (("msa", "MSA", ORANGE), ("window_msa", "W-MSA, 7 x 7", BLUE)):
        timed_sides = map_sides[: len(timed[name])]
        left.plot(timed_sides, 1000 * np.array(timed[name]), "o-", color=colour, label=label)
        right.plot(map_sides, np.array(macs[name]) / 1e9, "o-", color=colour, label=label)
    for axes, title, unit in (
        (left, "measured on this machine", "time (ms)"),
        (right, "formulas", "multiply-adds (billions)"),
    ):
        axes.set_title(title, fontsize=10)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        finish_axes(axes, "side of the map in tokens", unit)
    left.legend(frameon=False, fontsize=8)
    return ExplanationFigure(
        name="cost-time",
        section="cost",
        title="Time of one attention layer",
        text=(
            f"Time of one attention layer ({dim} channels, {heads} heads, one image) on this "
            f"machine with {_count_threads()}, the fastest of a few runs, next to the "
            "multiply-adds. The first stage of Swin-T has a map of 56 x 56 tokens at 224 pixels. "
            "On small maps overhead (copies, many small matrix products) dominates; on large maps "
            "the quadratic term does."
        ),
        source=SOURCE,
        figure=figure,
        arrays={
            "map_side": np.array(map_sides),
            **{f"{name}_s": np.array(values) for name, values in timed.items()},
            **{f"{name}_macs": np.array(values) for name, values in macs.items()},
        },
        facts={
            "unit": "seconds",
            "map_side": tuple(map_sides),
            "threads": torch.get_num_threads(),
            **timed,
        },
    )


def _count_threads() -> str:
    count = torch.get_num_threads()
    return "1 thread" if count == 1 else f"{count} threads"


def _time(run: Callable[[int], None], map_sides: Sequence[int]) -> list[float]:
    """Fastest run in seconds for each side, until one exceeds `MAX_SECONDS`."""
    seconds = []
    for side in map_sides:
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            run(side)
            taken.append(time.perf_counter() - start)
            if taken[-1] > MAX_SECONDS / 4:
                break
        seconds.append(min(taken))
        if taken[-1] > MAX_SECONDS:
            break
    return seconds
