# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What decided: the places of the image that one number of the output comes from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from muntin.explaining.activation_recorder import with_gradients
from muntin.explaining.attribution_methods import (
    MapAttribution,
    PixelAttribution,
    has_captum,
    hires_cam,
    integrated_gradients,
    occlusion,
    upsample_map,
)
from muntin.explaining.context import Context
from muntin.explaining.explanation_figure import ExplanationFigure, MissingFigure
from muntin.explaining.image_overlays import INK, blend, mark_box, mark_point, panels, to_rgb
from muntin.explaining.scores import NothingFound, OutputTarget, ask
from muntin.shapes import Size

__all__ = ["show_attribution"]

_ACTIVATION_FORMULA = (
    "<math display='block'><mrow><msub><mi>L</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub><mo>=</mo>"
    "<mo>max</mo><mo>(</mo><mn>0</mn><mo>,</mo><munder><mo>&#x2211;</mo><mi>k</mi></munder>"
    "<mfrac><mrow><mo>&#x2202;</mo><mi>y</mi></mrow><mrow><mo>&#x2202;</mo><msubsup><mi>A</mi>"
    "<mrow><mi>i</mi><mi>j</mi></mrow><mi>k</mi></msubsup></mrow></mfrac><msubsup><mi>A</mi><mrow>"
    "<mi>i</mi><mi>j</mi></mrow><mi>k</mi></msubsup><mo>)</mo></mrow></math>"
)
_INTEGRAL_FORMULA = (
    "<math display='block'><mrow><msub><mi>a</mi><mi>i</mi></msub><mo>=</mo><mo>(</mo><msub>"
    "<mi>x</mi><mi>i</mi></msub><mo>&#x2212;</mo><msubsup><mi>x</mi><mi>i</mi><mo>&#x2032;</mo>"
    "</msubsup><mo>)</mo><msubsup><mo>&#x222B;</mo><mn>0</mn><mn>1</mn></msubsup><mfrac><mrow>"
    "<mo>&#x2202;</mo><mi>y</mi><mo>(</mo><msup><mi>x</mi><mo>&#x2032;</mo></msup><mo>+</mo>"
    "<mi>t</mi><mo>(</mo><mi>x</mi><mo>&#x2212;</mo><msup><mi>x</mi><mo>&#x2032;</mo></msup>"
    "<mo>)</mo><mo>)</mo></mrow><mrow><mo>&#x2202;</mo><msub><mi>x</mi><mi>i</mi></msub></mrow>"
    "</mfrac><mi>d</mi><mi>t</mi><mo>,</mo><mspace width='1.5em'/><munder><mo>&#x2211;</mo>"
    "<mi>i</mi></munder><msub><mi>a</mi><mi>i</mi></msub><mo>=</mo><mi>y</mi><mo>(</mo><mi>x</mi>"
    "<mo>)</mo><mo>&#x2212;</mo><mi>y</mi><mo>(</mo><msup><mi>x</mi><mo>&#x2032;</mo></msup>"
    "<mo>)</mo></mrow></math>"
)
_OCCLUSION_FORMULA = (
    "<math display='block'><mrow><msub><mi>d</mi><mi>p</mi></msub><mo>=</mo><mi>y</mi><mo>(</mo>"
    "<mi>x</mi><mo>)</mo><mo>&#x2212;</mo><mi>y</mi><mo>(</mo><mi>x</mi><mspace width='0.3em'/>"
    "<mtext>without patch</mtext><mspace width='0.3em'/><mi>p</mi><mo>)</mo></mrow></math>"
)
YELLOW = np.array([240, 228, 66])
"""Of Okabe and Ito."""

_FRESH = " The weights are fresh ones, so nothing here was learnt."


def show_attribution(
    context: Context, *, steps: int = 0
) -> list[ExplanationFigure | MissingFigure]:
    """Show which places of an image decided.

    Args:
        context: Its target says what is asked about: a class, box or keypoint; what the network
            is surest of without one.
        steps: Of the integral; 0 chooses fewer for larger images.

    Returns:
        Gradient-weighted activation on every map of the backbone, and integrated gradients of the
        pixels. Of an exported file, which has no gradients, what covered patches change.

    Raises:
        ConfigError: There is no such class, box or keypoint.

    Source:
        See `muntin.explaining.attribution_methods`.
    """
    try:
        if context.backbone is None:
            with torch.no_grad():
                return [
                    _show_occlusion(context, ask(context, context.network, context.shown[None]))
                ]
        with torch.inference_mode(False), torch.enable_grad():
            network = with_gradients(context.network)
            context = context.with_network(network)
            images = context.images.detach().clone()
            asked = ask(context, network, images)
            return [
                _show_activation(context, asked, images),
                _show_integral(context, asked, images, steps),
            ]
    except NothingFound as nothing:
        reason = f"{nothing}. What the maps hold, below, needs no answer."
        return [MissingFigure(section="decision", title="What decided", reason=_sentence(reason))]


def _show_activation(
    context: Context, asked: OutputTarget, images: Tensor
) -> ExplanationFigure | MissingFigure:
    backbone = context.backbone
    assert backbone is not None, "an exported file is shown otherwise"
    maps = hires_cam(backbone, asked.measure, images)
    title = "Where the maps speak for it"
    if not maps:
        reason = (
            "No module of this backbone gives its maps as they are, so they have no gradients. "
            "Integrated gradients of the pixels show what decided."
        )
        return MissingFigure(section="decision", title=title, reason=reason)
    main = maps[-1]
    size = context.shown_size
    heats = [upsample_map(one.heat, one.stride, size).numpy() for one in maps]
    return ExplanationFigure(
        name="decision-activation",
        section="decision",
        title=title,
        text=_tell_activation(context, asked, main, empty=not heats[-1].any()),
        figure=_draw_activation(context, asked, maps, heats),
        formula=_ACTIVATION_FORMULA,
        source=(
            "Selvaraju et al. 2017, Grad-CAM, arXiv 1610.02391, equations 1 and 2, with the "
            "gradient of each place (Draelos and Carin 2020, arXiv 2011.08891)"
        ),
        arrays={
            f"map_{number}_stride_{one.stride}": one.signed.numpy()
            for number, one in enumerate(maps)
        },
        facts={
            **_asked_facts(asked),
            "strides": [one.stride for one in maps],
            "modules": [one.name for one in maps],
            "peak": _find_peak(heats[-1]),
        },
    )


def _tell_activation(
    context: Context, asked: OutputTarget, main: MapAttribution, *, empty: bool
) -> str:
    text = (
        f"Asked about {asked.title}, which is {asked.value:.2f}. {_tell_region(asked)}"
        f"Every cell of a map is multiplied with the gradient of that number: bright places speak "
        f"for it, and would lower it if they were gone. Each map is scaled to its maximum. "
    )
    if context.task.dense is None:
        text += (
            f"The coarsest map (stride {main.stride}) is what the answer is made of; finer maps "
            f"show edges and texture on the way there. Attention carries what it saw from cell to "
            f"cell, so the brightest cell may lie beside the object; what each pixel adds tells."
        )
    else:
        text += (
            f"The answer is made of all maps; the coarsest (stride {main.stride}) says what is "
            f"there, finer ones say where exactly."
        )
    if main.early:
        text += (
            f" The answer is read from {_name_tokens(context)} alone, so the last map has no say; "
            f"shown is what the last block reads ({main.name})."
        )
    if empty:
        text += " Here nothing in the coarsest map speaks for it."
    return text if context.trained else text + _FRESH


def _name_tokens(context: Context) -> str:
    """The learned tokens that a classifier reads."""
    spec: Any = getattr(context.backbone, "spec", None)
    distilled = getattr(getattr(context.backbone, "net", None), "dist_token", None) is not None
    if distilled or getattr(spec, "embed_parts", 1) > 1:
        return "the class token and the distillation token"
    return "the class token"


def _draw_activation(
    context: Context, asked: OutputTarget, maps: list[MapAttribution], heats: list[NDArray[Any]]
) -> Figure:
    image = to_rgb(context.shown)
    figure, axes = panels(1 + len(maps), context.shown_size, width=min(2.6, 8.9 / (1 + len(maps))))
    _draw_asked(axes[0], image, asked)
    shown = [(f"stride {one.stride}", heat) for one, heat in zip(maps, heats, strict=True)]
    for panel, (title, heat) in zip(axes[1:], reversed(shown), strict=True):
        panel.imshow(blend(image, heat / max(float(heat.max()), 1e-12)))
        panel.set_title(title + ("" if heat.any() else ": nothing"), fontsize=9, color=INK)
        if asked.box is not None:
            mark_box(panel, asked.box)
    main = f"{shown[-1][0]} (main)" + ("" if heats[-1].any() else ": nothing")
    axes[1].set_title(main, fontsize=9, color=INK, fontweight="bold")
    _add_scale(figure, axes, "speaks for it: part of the map's maximum", "inferno", (0, 1))
    return figure


def _show_integral(
    context: Context, asked: OutputTarget, images: Tensor, steps: int
) -> ExplanationFigure | MissingFigure:
    title = "How much each pixel adds"
    if not has_captum():
        reason = (
            "Integrated gradients need captum, which is not installed. Run: pip install "
            "'muntin[explain]'. The gradient-weighted maps show what decided without it."
        )
        return MissingFigure(section="decision", title=title, reason=reason)
    integral = integrated_gradients(asked.measure, images, steps)
    high, wide = context.shown_size
    signed = integral.pixels.sum(dim=0)[:high, :wide]
    patches = _smooth(signed)
    text = (
        f"Asked about {asked.title}. {_tell_region(asked)}"
        f"The image is faded in from an empty one in one colour, the mean colour of the "
        f"preprocessing (which becomes zero), in {integral.steps} steps, and what each pixel adds "
        f"on the way is summed up: orange adds, purple takes away, and what differs much from that "
        f"colour weighs more. All of it together must be what the number gained "
        f"(completeness): {integral.start:.2f} became {integral.end:.2f}, and the pixels add up to "
        f"{integral.total:.2f}."
    )
    if integral.relative_error > 0.05:
        text += " They miss it by more than 5 %: so many steps are few for this network."
    return ExplanationFigure(
        name="decision-pixels",
        section="decision",
        title=title,
        text=text if context.trained else text + _FRESH,
        figure=_draw_integral(context, asked, signed.numpy(), patches.numpy(), integral),
        formula=_INTEGRAL_FORMULA,
        source="Sundararajan et al. 2017, arXiv 1703.01365, equation 1 and proposition 1",
        arrays={"pixels": integral.pixels[:, :high, :wide].numpy()},
        facts={
            **_asked_facts(asked),
            "steps": integral.steps,
            "value_of_empty_image": integral.start,
            "sum_of_pixels": integral.total,
            "completeness_error": integral.error,
            "relative_completeness_error": integral.relative_error,
            "peak": _find_peak(patches.clamp(min=0).numpy()),
        },
    )


def _smooth(signed: Tensor) -> Tensor:
    """Average over about a tenth of the shorter side, without what is beyond the edges."""
    side = max(1, min(signed.shape) // 10) | 1
    return F.avg_pool2d(
        signed[None, None], side, stride=1, padding=side // 2, count_include_pad=False
    )[0, 0]


def _draw_integral(
    context: Context,
    asked: OutputTarget,
    signed: NDArray[np.float32],
    patches: NDArray[np.float32],
    integral: PixelAttribution,
) -> Figure:
    image = to_rgb(context.shown)
    figure, axes = panels(3, context.shown_size, width=2.8)
    _draw_asked(axes[0], image, asked)
    limit = max(float(np.percentile(np.abs(signed), 99.5)), 1e-12)
    axes[1].imshow(signed, cmap="PuOr_r", vmin=-limit, vmax=limit)
    axes[1].set_title(f"every pixel: 1 is {limit:.2g}", fontsize=9, color=INK)
    limit = max(float(np.abs(patches).max()), 1e-12)
    axes[2].imshow(image.mean(axis=2), cmap="gray", vmin=-255, vmax=255)
    strength = np.sqrt(np.clip(np.abs(patches) / limit, 0, 1))
    axes[2].imshow(patches, cmap="PuOr_r", vmin=-limit, vmax=limit, alpha=strength)
    axes[2].set_title(f"averaged around: 1 is {limit:.2g}", fontsize=9, color=INK)
    if asked.box is not None:
        for panel in axes[1:]:
            mark_box(panel, asked.box)
    label = f"takes away | adds: part of each panel's scale    (all pixels: {integral.total:+.2f})"
    _add_scale(figure, axes, label, "PuOr_r", (-1, 1))
    return figure


def _show_occlusion(context: Context, asked: OutputTarget) -> ExplanationFigure:
    """Cover patches in the mean colour: all that can be done without looking inside."""
    colour = [round(255 * value) for value in context.pre.mean]
    falls = occlusion(asked.measure, context.shown, colour)
    size = context.shown_size
    side = -(-max(size) // max(falls.shape))
    heat = upsample_map(falls, side, size, smooth=False).numpy()
    text = (
        f"An exported file holds no gradients, so patches of {side} pixels are covered one after "
        f"the other, in the mean colour of the preprocessing. Asked about {asked.title}, which is "
        f"{asked.value:.2f}: it falls most where the covered patch is orange, and rises where it "
        f"is purple. {_tell_region(asked)}Maps and gradients can be seen of the run that the file "
        f"was exported from."
    )
    return ExplanationFigure(
        name="decision-occlusion",
        section="decision",
        title="What it cannot do without",
        text=text,
        figure=_draw_occlusion(context, asked, heat),
        formula=_OCCLUSION_FORMULA,
        source="Zeiler and Fergus 2014, arXiv 1311.2901, section 4.2",
        arrays={"falls": falls.numpy()},
        facts={**_asked_facts(asked), "patch_px": side, "peak": _find_peak(heat)},
    )


def _draw_occlusion(context: Context, asked: OutputTarget, heat: NDArray[Any]) -> Figure:
    image = to_rgb(context.shown)
    figure, axes = panels(2, context.shown_size, width=3.0)
    _draw_asked(axes[0], image, asked)
    limit = max(float(np.abs(heat).max()), 1e-12)
    axes[1].imshow(image.mean(axis=2), cmap="gray", vmin=-255, vmax=255)
    strength = np.clip(np.abs(heat) / limit, 0, 0.85)
    axes[1].imshow(heat, cmap="PuOr_r", vmin=-limit, vmax=limit, alpha=strength)
    axes[1].set_title("covered patches", fontsize=9, color=INK)
    if asked.box is not None:
        mark_box(axes[1], asked.box)
    _add_scale(figure, axes, "rises | falls when covered", "PuOr_r", (-limit, limit))
    return figure


def _tell_region(asked: OutputTarget) -> str:
    return "" if asked.region is None else "Yellow in the image: the pixels that it won. "


def _draw_asked(axes: Axes, image: NDArray[np.uint8], asked: OutputTarget) -> None:
    """The image with what is asked about."""
    title = "the image"
    if asked.region is not None:
        tint = (0.4 * asked.region + 0.6 * _find_edge(asked.region))[..., None]
        image = np.round((1 - tint) * image + tint * YELLOW).astype(np.uint8)
        title += "; yellow: where it won"
    axes.imshow(image)
    if asked.box is not None:
        mark_box(axes, asked.box)
    if asked.point is not None:
        mark_point(axes, *asked.point)
    axes.set_title(title, fontsize=9, color=INK)


def _find_edge(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a region beside which another begins; the image's own edges are none."""
    padded = np.pad(region, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge: NDArray[np.bool_] = region & ~inner
    return edge


def _add_scale(
    figure: Figure, axes: list[Axes], label: str, colours: str, limits: tuple[float, float]
) -> None:
    scale = ScalarMappable(Normalize(*limits), colours)
    bar = figure.colorbar(scale, ax=axes, location="bottom", aspect=45, shrink=0.5, pad=0.03)
    bar.set_label(label, fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=8)
    high = figure.get_figheight()
    figure.set_figheight(high + 0.55)


def _asked_facts(asked: OutputTarget) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "asked": asked.title, "number": asked.number, "value": asked.value,
    }  # fmt: skip
    if asked.box is not None:
        facts["box_xyxy"] = list(asked.box)
    if asked.point is not None:
        facts["keypoint"] = list(asked.point)
    return facts


def _find_peak(heat: NDArray[Any]) -> list[float]:
    """X and y of the highest place, from 0 to 1 of the image as shown; its middle if all is 0."""
    size: Size = (heat.shape[0], heat.shape[1])
    if not heat.any():
        return [0.5, 0.5]
    row, column = divmod(int(heat.argmax()), size[1])
    return [(column + 0.5) / size[1], (row + 0.5) / size[0]]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
