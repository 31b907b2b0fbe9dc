# SPDX-License-Identifier: Apache-2.0
"""Compute and memory: of the explained model, and of global (MSA) and window attention (W-MSA).

The general costs were counted and timed once, by benchmarks/measure_attention_cost.py; the model's
own are counted for its image size on the meta device, without running it.

Letters: h, w sides of the map in tokens, C channels, M window side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from muntin.drawing.style import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from muntin.errors import MuntinError
from muntin.explaining.context import Context
from muntin.explaining.figures import Result, Results, make_figure, make_missing, translate
from muntin.explaining.plotting import label_axes, start_plots
from muntin.models.swin import SWIN_TINY
from muntin.shapes import Size
from muntin.zoo.costs import Costs, Part, count_costs
from muntin.zoo.model_zoo import BackboneConfig, build_backbone

COSTS = Path(__file__).with_name("attention_cost.json")
"""Costs of attention by image side: multiply-adds, bytes, and seconds of one layer."""

_LABELS = {
    "msa": ("MSA in Swin-T", VERMILION, "s"),
    "window_msa": ("W-MSA: Swin-T", BLUE, "o"),
    "vit_small": ("MSA: ViT-S/16", GREEN, "^"),
}
_PART_COLOURS = (BLUE, SKY, GREEN, ORANGE, VERMILION, PURPLE, "#999999")


def msa_macs(height: int, width: int, dim: int) -> int:
    """Multiply-adds of global attention over a map, including projections (equation 1).

    Examples:
        >>> msa_macs(56, 56, 96)
        2003828736
    """
    tokens = height * width
    return 4 * tokens * dim**2 + 2 * tokens**2 * dim


def window_msa_macs(height: int, width: int, dim: int, window: int) -> int:
    """Multiply-adds of window attention over a map, including projections (equation 2).

    Examples:
        >>> window_msa_macs(56, 56, 96, 7)
        145108992
    """
    return 4 * height * width * dim**2 + 2 * window**2 * height * width * dim


def activation_bytes(config: BackboneConfig, size: Size) -> int:
    """Count the activations that autograd saves for the backward pass of one image.

    In float32, on the meta device. Attention is computed as in the papers, with its weights saved;
    a step of `muntin train` saves less. Each storage is counted once; parameters are excluded.
    """
    fields: dict[str, Any] = {"drop_path_rate": 0.0, "attention": "reference"}
    known = {name: value for name, value in fields.items() if hasattr(config, name)}
    with torch.device("meta"):
        body = build_backbone(replace(config, **known))
    own = {parameter.untyped_storage()._cdata for parameter in body.parameters()}
    saved: dict[int, Any] = {}

    def record(tensor: Tensor) -> Tensor:
        # Views share one storage, which autograd holds once however often it is saved.
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    # Only the math backend materialises attention weights as the papers' formulas assume.
    hooks = torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor)
    with torch.enable_grad(), hooks, sdpa_kernel(SDPBackend.MATH):
        body(torch.empty(1, config.in_chans, *size, device="meta"))
    return sum(storage.nbytes() for storage in saved.values())


def show_cost(context: Context) -> Results:
    """Show the cost of this model, and of global and window attention.

    Source:
        Liu et al. 2021 (arXiv 2103.14030), equations 1 and 2. Counts and formulas are compared in
        tests/explaining/test_attention_cost.py; they are equal for sides that are whole windows.
    """
    general = [_show_macs(), _show_memory(), _show_time()]
    config = getattr(context.backbone, "config", None)
    if config is None:
        return [*general, make_missing("cost-exported", name=context.name)]
    size = (context.images.shape[2], context.images.shape[3])
    return [_show_model(context.name, config, size), *general]


@cache
def _load_costs() -> Mapping[str, Any]:
    return json.loads(COSTS.read_text("utf-8"))


def _show_model(name: str, config: BackboneConfig, base: Size) -> Result:
    """Multiply-adds by part, at an image size and at twice that size."""
    twice = [max(32, round(2 * side / 32) * 32) for side in base]
    counted: dict[Size, Costs] = {}
    refused = ""
    for size in (base, (twice[0], twice[1])):
        try:
            counted[size] = count_costs(config, size)
        except MuntinError as error:
            refused = str(error)
    if base not in counted:
        return make_missing("cost-refused", name=name, problem=refused)
    try:
        saved = activation_bytes(config, base) / 2**20
    except RuntimeError:  # the model cannot run on the meta device
        saved = None
    sizes = sorted(counted)
    every: tuple[Part, ...] = get_args(Part)
    parts = [part for part in every if any(counted[size].of(part) for size in sizes)]
    table = np.array([[counted[size].of(part) for size in sizes] for part in parts])
    macs = counted[base].macs
    return make_figure(
        "cost-of-the-model",
        _draw_model(parts, sizes, base, table),
        ("text", saved is not None and "memory", "bars"),
        arrays={"sizes": sizes, "macs": table},
        facts={"parts": parts, "img_size": base, "macs": macs, "kept_mib": saved},
        name=name,
        height=base[0],
        width=base[1],
        macs=macs / 1e9,
        memory=saved,
    )


def _draw_model(
    parts: Sequence[str], sizes: Sequence[Size], base: Size, table: np.ndarray
) -> Figure:
    figure, (left, right) = start_plots(2, width_ratios=(3, 2))
    bottom = np.zeros(len(sizes))
    places = np.arange(len(sizes))
    for part, row, colour in zip(parts, table / 1e9, _PART_COLOURS, strict=False):
        left.bar(places, row, bottom=bottom, color=colour, label=part, width=0.7)
        bottom += row
    for place, total in enumerate(bottom):
        left.text(place, total, f"{total:.3g}", ha="center", va="bottom", fontsize=8)
    left.set_xticks(places, [f"{size[0]} x {size[1]}" for size in sizes])
    label_axes(left, "image size (height x width)", "multiply-adds (billions)")
    left.legend(frameon=False, fontsize=8)
    here = table[:, sizes.index(base)]
    shares = here / here.sum()
    order: list[int] = np.argsort(here).tolist()
    colours = [_PART_COLOURS[i] for i in order]
    right.barh([parts[i] for i in order], shares[order], color=colours)
    for row, number in enumerate(order):
        share = shares[number]
        right.text(share + 0.01, row, f"{share:.1%}", va="center", fontsize=8)
    right.set_xlim(0, 1.15 * here.max() / here.sum())
    right.set_title(f"shares at {base[0]} x {base[1]}", fontsize=10)
    right.tick_params(labelsize=8)
    right.spines[["top", "right"]].set_visible(False)
    return figure


def _formula_macs(name: str, side: int) -> int:
    """Multiply-adds of all attention layers by the formulas; image side in pixels."""
    if name == "vit_small":
        return 12 * msa_macs((side // 16) ** 2 + 1, 1, 384)
    total = 0
    for stage, depth in enumerate(SWIN_TINY.depths):
        cells, dim = side // (4 * 2**stage), SWIN_TINY.dim(stage)
        window = cells if name == "msa" else SWIN_TINY.windows[stage]
        total += depth * window_msa_macs(cells, cells, dim, window)
    return total


def _show_macs() -> Result:
    sides, rows = _load_costs()["img_side"], _load_costs()["macs"]
    side = [round(value / 32) * 32 for value in np.linspace(sides[0], sides[-1], 60)]
    figure, (left, right) = start_plots(2)
    for axes in (left, right):
        for name, (label, colour, mark) in _LABELS.items():
            line = [_formula_macs(name, one) / 1e9 for one in side]
            axes.plot(side, line, color=colour, label=label)
            axes.plot(sides, np.array(rows[name]) / 1e9, mark, color=colour, ms=6)
        label_axes(axes, "image side in pixels", "multiply-adds of attention layers (billions)")
    left.set_title("linear scale", fontsize=10)
    left.set_ylim(0, 1.15 * max(rows["vit_small"]) / 1e9)
    _scale_by_log(right)
    right.set_title("logarithmic scale", fontsize=10)
    title = "lines: formula; markers: counted"
    right.legend(frameon=False, fontsize=8, loc="lower right", title=title)
    return make_figure(
        "cost-multiply-adds",
        figure,
        arrays={"img_side": sides, **rows},
        facts={"unit": "multiply-adds of attention layers, one image", "img_side": sides, **rows},
        first=rows["msa"][0] / rows["window_msa"][0],
        last=rows["msa"][-1] / rows["window_msa"][-1],
        first_side=sides[0],
        last_side=sides[-1],
    )


def _show_memory() -> Result:
    sides, counted = _load_costs()["img_side"], _load_costs()["activation_bytes"]
    rows = {name: [count / 2**30 for count in counts] for name, counts in counted.items()}
    figure, (axes,) = start_plots()
    for name, (label, colour, mark) in _LABELS.items():
        axes.plot(sides, rows[name], marker=mark, color=colour, label=label)
        axes.annotate(
            f"{rows[name][-1]:,.1f} GiB", (sides[-1], rows[name][-1]), fontsize=8,
            xytext=(6, 0), textcoords="offset points", va="center", color=colour,
        )  # fmt: skip
    _scale_by_log(axes)
    axes.set_xlim(sides[0] - 30, sides[-1] + 150)
    label_axes(axes, "image side in pixels", "activations saved for backward (GiB)")
    axes.legend(frameon=False, fontsize=8)
    return make_figure(
        "cost-memory",
        figure,
        arrays={"img_side": sides, **rows},
        facts={"unit": "GiB, one image, float32", "img_side": sides, **rows},
    )


def _show_time() -> Result:
    sides, seconds = _load_costs()["map_side"], _load_costs()["seconds"]
    dim, window = SWIN_TINY.dim(0), SWIN_TINY.windows[0]
    macs = {
        "msa": [msa_macs(side, side, dim) for side in sides],
        "window_msa": [window_msa_macs(side, side, dim, window) for side in sides],
    }
    figure, (left, right) = start_plots(2)
    for name, label, colour in (("msa", "MSA", VERMILION), ("window_msa", "W-MSA, 7 x 7", BLUE)):
        left.plot(sides, 1000 * np.array(seconds[name]), "o-", color=colour, label=label)
        right.plot(sides, np.array(macs[name]) / 1e9, "o-", color=colour, label=label)
    for axes, title, unit in (
        (left, "measured", "time (ms)"),
        (right, "formulas", "multiply-adds (billions)"),
    ):
        axes.set_title(title, fontsize=10)
        _scale_by_log(axes)
        label_axes(axes, "side of the map in tokens", unit)
    left.legend(frameon=False, fontsize=8)
    machine = _load_costs()["machine"]
    return make_figure(
        "cost-time",
        figure,
        arrays={
            "map_side": sides,
            **{f"{name}_s": values for name, values in seconds.items()},
            **{f"{name}_macs": values for name, values in macs.items()},
        },
        facts={"unit": "seconds", "map_side": sides, "machine": machine, **seconds},
        channels=dim,
        heads=SWIN_TINY.num_heads[0],
        machine=translate(machine),
    )


def _scale_by_log(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
