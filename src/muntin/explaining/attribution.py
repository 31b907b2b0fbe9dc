# SPDX-License-Identifier: Apache-2.0
"""Attribution figures: which locations of the image one output of the network depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from muntin.data.transforms import to_shown
from muntin.drawing.style import YELLOW
from muntin.explaining import plotting as kit
from muntin.explaining.attribution_methods import (
    MapAttribution,
    has_captum,
    hires_cam,
    integrated_gradients,
    occlusion,
    upsample_map,
    with_gradients,
)
from muntin.explaining.context import Context
from muntin.explaining.figures import Result, Results, find_text, make_figure, make_missing
from muntin.explaining.output_target import EmptyPrediction, OutputTarget, select_output


def show_attribution(context: Context, *, steps: int = 0) -> Results:
    """Show which locations of an image the target output depends on.

    Gradient-weighted activation on every feature map, and integrated gradients of the pixels, in
    `steps` (see `integrated_gradients`). For an exported file, which has no gradients, occlusion.
    """
    try:
        if context.backbone is None:
            with torch.no_grad():
                output = select_output(context, context.network, context.shown[None])
                return [_show_occlusion(context, output)]
        with torch.inference_mode(False), torch.enable_grad():
            maps = context.recording.maps
            context = replace(context, network=with_gradients(context.network))
            images = context.images.detach().clone()
            output = select_output(context, context.network, images)
            return [
                _show_activation(context, output, images, maps),
                _show_integral(context, output, images, steps),
            ]
    except EmptyPrediction as nothing:
        return [make_missing("decision-empty", problem=nothing)]


def _show_activation(
    context: Context, output: OutputTarget, images: Tensor, given: Sequence[Tensor]
) -> Result:
    backbone: Any = context.backbone
    maps = hires_cam(backbone, output.measure, images, given)
    if not maps:
        return make_missing("decision-no-maps")
    name, main = "decision-activation", maps[-1]
    heats = [upsample_map(one.heat, one.stride, context.shown_size).numpy() for one in maps]
    distilled = getattr(getattr(backbone, "net", None), "dist_token", None) is not None
    distilled = distilled or backbone.spec.embed_parts > 1
    parts = (
        "text",
        output.region is not None and "region",
        "cells",
        "classifier" if context.task.dense is None else "dense",
        main.early and "early",
        not heats[-1].any() and "empty",
        context.fresh,
    )
    return make_figure(
        name,
        _draw_activation(context, output, maps, heats),
        parts,
        arrays={
            f"map_{number}_stride_{one.stride}": one.signed.numpy()
            for number, one in enumerate(maps)
        },
        facts={
            **_output_facts(output),
            "strides": [one.stride for one in maps],
            "modules": [one.name for one in maps],
            "peak": _find_peak(heats[-1]),
        },
        target=output.title,
        value=output.value,
        stride=main.stride,
        module=main.name,
        tokens=find_text(name, "distilled" if distilled else "class_token"),
    )


def _draw_activation(
    context: Context, output: OutputTarget, maps: list[MapAttribution], heats: list[NDArray[Any]]
) -> Figure:
    figure, axes = _start_figure(context, output, 1 + len(maps))
    titled = [(f"stride {one.stride}", heat) for one, heat in zip(maps, heats, strict=True)]
    titled[-1] = (f"{titled[-1][0]} (main)", heats[-1])
    image = to_shown(context.shown)
    for panel, (title, heat) in zip(axes[1:], reversed(titled), strict=True):
        blended = kit.blend_heat(image, heat / max(float(heat.max()), 1e-12))
        kit.set_panel(panel, blended, title + ("" if heat.any() else ": all zero"))
    axes[1].title.set_fontweight("bold")
    label = "increases the output: fraction of the map's maximum"
    _finish(figure, axes, output, label, "inferno", (0, 1))
    return figure


def _show_integral(context: Context, output: OutputTarget, images: Tensor, steps: int) -> Result:
    if not has_captum():
        return make_missing("decision-captum")
    integral = integrated_gradients(output.measure, images, steps)
    high, wide = context.shown_size
    signed = integral.pixels.sum(dim=0)[:high, :wide]
    patches = _smooth(signed)
    return make_figure(
        "decision-pixels",
        _draw_integral(context, output, signed.numpy(), patches.numpy(), integral.total),
        (
            "text",
            output.region is not None and "region",
            "pixels",
            integral.relative_error > 0.05 and "error",
            context.fresh,
        ),
        arrays={"pixels": integral.pixels[:, :high, :wide].numpy()},
        facts={
            **_output_facts(output),
            "steps": integral.steps,
            "value_of_empty_picture": integral.start,
            "sum_of_pixels": integral.total,
            "completeness_error": integral.error,
            "relative_completeness_error": integral.relative_error,
            "peak": _find_peak(patches.clamp(min=0).numpy()),
        },
        target=output.title,
        steps=integral.steps,
        start=integral.start,
        end=integral.end,
        total=integral.total,
    )


def _smooth(signed: Tensor) -> Tensor:
    """Average over a tenth of the shorter side, ignoring values beyond the edges."""
    side = max(1, min(signed.shape) // 10) | 1
    return F.avg_pool2d(
        signed[None, None], side, stride=1, padding=side // 2, count_include_pad=False
    )[0, 0]


def _draw_integral(
    context: Context,
    output: OutputTarget,
    signed: NDArray[np.float32],
    patches: NDArray[np.float32],
    total: float,
) -> Figure:
    figure, axes = _start_figure(context, output, 3)
    limit = max(float(np.percentile(np.abs(signed), 99.5)), 1e-12)
    colours: dict[str, Any] = {"cmap": "PuOr_r", "vmin": -limit, "vmax": limit}
    kit.set_panel(axes[1], signed, f"per pixel: 1 is {limit:.2g}", **colours)
    limit = max(float(np.abs(patches).max()), 1e-12)
    strength = np.sqrt(np.clip(np.abs(patches) / limit, 0, 1))
    _draw_signed(axes[2], context, patches, strength, f"local average: 1 is {limit:.2g}")
    label = f"decreases | increases: fraction of each scale    (all pixels: {total:+.2f})"
    _finish(figure, axes, output, label, "PuOr_r", (-1, 1))
    return figure


def _draw_signed(
    axes: Axes, context: Context, heat: NDArray[Any], strength: NDArray[Any], title: str
) -> None:
    """Overlay a signed map, as opaque as its strength, on the pale grey image."""
    grey = to_shown(context.shown).mean(axis=2)
    limit = max(float(np.abs(heat).max()), 1e-12)
    kit.set_panel(axes, grey, cmap="gray", vmin=-255, vmax=255)
    kit.set_panel(axes, heat, title, cmap="PuOr_r", vmin=-limit, vmax=limit, alpha=strength)


def _show_occlusion(context: Context, output: OutputTarget) -> Result:
    colour = [round(255 * value) for value in context.pre.mean]
    falls = occlusion(output.measure, context.shown, colour)
    size = context.shown_size
    side = -(-max(size) // max(falls.shape))
    heat = upsample_map(falls, side, size, smooth=False).numpy()
    figure, axes = _start_figure(context, output, 2)
    limit = max(float(np.abs(heat).max()), 1e-12)
    strength = np.clip(np.abs(heat) / limit, 0, 0.85)
    _draw_signed(axes[1], context, heat, strength, "occluded patches")
    label = "increases | decreases when occluded"
    _finish(figure, axes, output, label, "PuOr_r", (-limit, limit))
    return make_figure(
        "decision-occlusion",
        figure,
        ("text", output.region is not None and "region", "run"),
        arrays={"falls": falls.numpy()},
        facts={**_output_facts(output), "patch_px": side, "peak": _find_peak(heat)},
        side=side,
        target=output.title,
        value=output.value,
    )


def _start_figure(context: Context, output: OutputTarget, count: int) -> tuple[Figure, list[Axes]]:
    """Create panels, the first of which shows the image with the target marked."""
    columns, ratio = min(count, 6), kit.panel_ratio(context.shown_size)
    width = min(9.0, columns * max(1.4, min(2.9, 3.2 / ratio)))
    figure, made = kit.panels(-(-count // columns), columns, ratio=ratio, width=width)
    axes: list[Axes] = list(made.flat[:count])
    image, title = to_shown(context.shown), "image"
    if output.region is not None:
        tint = (0.4 * output.region + 0.6 * _find_edge(output.region))[..., None]
        image = np.round((1 - tint) * image + 255 * tint * to_rgb(YELLOW)).astype(np.uint8)
        title += "; yellow: predicted class"
    kit.set_panel(axes[0], image, title)
    if output.point is not None:  # of the middle of a pixel
        kit.mark_point(axes[0], output.point[0] + 0.5, output.point[1] + 0.5)
    return figure, axes


def _find_edge(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels on the boundary of a region; the image border is not a boundary."""
    padded = np.pad(region, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return region & ~inner


def _finish(
    figure: Figure,
    axes: list[Axes],
    output: OutputTarget,
    label: str,
    colours: str,
    limits: tuple[float, float],
) -> None:
    """Mark the box in every panel, and add the scale of the colours below them."""
    if output.box is not None:
        for panel in axes:
            kit.mark_box(panel, output.box)
    scale = ScalarMappable(Normalize(*limits), colours)
    placing = {"location": "bottom", "aspect": 45, "shrink": 0.5, "pad": 0.03}
    kit.add_colour_bar(figure, scale, axes, label, **placing)
    figure.set_figheight(figure.get_figheight() + 0.55)


def _output_facts(output: OutputTarget) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "asked": output.title, "number": output.number, "value": output.value,
    }  # fmt: skip
    if output.box is not None:
        facts["box_xyxy"] = list(output.box)
    if output.point is not None:
        facts["keypoint"] = list(output.point)
    return facts


def _find_peak(heat: NDArray[Any]) -> list[float]:
    """(x, y) of the maximum, in [0, 1] of the displayed image; its centre if all values are 0."""
    if not heat.any():
        return [0.5, 0.5]
    height, width = heat.shape
    row, column = divmod(int(heat.argmax()), width)
    return [(column + 0.5) / width, (row + 0.5) / height]
