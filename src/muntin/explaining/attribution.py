# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Attribution figures: which locations of the image one output of the network depends on."""

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
from muntin.explaining.output_target import EmptyPrediction, OutputTarget, select_output
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

_FRESH = " The weights are freshly initialised, so nothing here was learned."


def show_attribution(
    context: Context, *, steps: int = 0
) -> list[ExplanationFigure | MissingFigure]:
    """Show which locations of an image the target output depends on.

    Args:
        context: Its target is the explained class, box or keypoint. Default: the highest-scoring
            prediction.
        steps: Integration steps; 0 picks a default that shrinks with the image area.

    Returns:
        Gradient-weighted activation on every feature map, and integrated gradients of the pixels.
        For an exported file, which has no gradients, occlusion.

    Raises:
        ConfigError: The class, box or keypoint does not exist.

    Source:
        See `muntin.explaining.attribution_methods`.
    """
    try:
        if context.backbone is None:
            with torch.no_grad():
                return [
                    _show_occlusion(
                        context, select_output(context, context.network, context.shown[None])
                    )
                ]
        with torch.inference_mode(False), torch.enable_grad():
            network = with_gradients(context.network)
            context = context.with_network(network)
            images = context.images.detach().clone()
            output = select_output(context, network, images)
            return [
                _show_activation(context, output, images),
                _show_integral(context, output, images, steps),
            ]
    except EmptyPrediction as nothing:
        reason = f"{nothing}. The feature maps below do not depend on a prediction."
        return [MissingFigure(section="decision", title="Attribution", reason=_sentence(reason))]


def _show_activation(
    context: Context, output: OutputTarget, images: Tensor
) -> ExplanationFigure | MissingFigure:
    backbone = context.backbone
    assert backbone is not None, "exported files are explained by occlusion"
    maps = hires_cam(backbone, output.measure, images)
    title = "Gradient-weighted feature maps"
    if not maps:
        reason = (
            "No module of this backbone outputs its feature maps, so their gradients are not "
            "available. Use the integrated gradients of the pixels instead."
        )
        return MissingFigure(section="decision", title=title, reason=reason)
    main = maps[-1]
    size = context.shown_size
    heats = [upsample_map(one.heat, one.stride, size).numpy() for one in maps]
    return ExplanationFigure(
        name="decision-activation",
        section="decision",
        title=title,
        text=_describe_activation(context, output, main, empty=not heats[-1].any()),
        figure=_draw_activation(context, output, maps, heats),
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
            **_output_facts(output),
            "strides": [one.stride for one in maps],
            "modules": [one.name for one in maps],
            "peak": _find_peak(heats[-1]),
        },
    )


def _describe_activation(
    context: Context, output: OutputTarget, main: MapAttribution, *, empty: bool
) -> str:
    text = (
        f"Explained output: {output.title}, {output.value:.2f}. {_describe_region(output)}"
        f"Each cell of a feature map is multiplied by the gradient of this output: bright cells "
        f"increase it, and removing them would lower it. Each map is scaled to its maximum. "
    )
    if context.task.dense is None:
        text += (
            f"The classifier reads the coarsest map (stride {main.stride}); finer maps show "
            f"intermediate edges and textures. Attention moves information between cells, so the "
            f"brightest cell may lie beside the object; the attribution of pixels is more precise."
        )
    else:
        text += (
            f"The head reads all maps: the coarsest (stride {main.stride}) determines the class, "
            f"finer ones the exact location."
        )
    if main.early:
        text += (
            f" The classifier reads only {_name_tokens(context)}, so the last map has no gradient; "
            f"the input of the last block is shown instead ({main.name})."
        )
    if empty:
        text += " Here no cell of the coarsest map increases the output."
    return text if context.trained else text + _FRESH


def _name_tokens(context: Context) -> str:
    """Display name of the tokens that the classifier reads."""
    spec: Any = getattr(context.backbone, "spec", None)
    distilled = getattr(getattr(context.backbone, "net", None), "dist_token", None) is not None
    if distilled or getattr(spec, "embed_parts", 1) > 1:
        return "the class token and the distillation token"
    return "the class token"


def _draw_activation(
    context: Context, output: OutputTarget, maps: list[MapAttribution], heats: list[NDArray[Any]]
) -> Figure:
    image = to_rgb(context.shown)
    figure, axes = panels(1 + len(maps), context.shown_size, width=min(2.6, 8.9 / (1 + len(maps))))
    _draw_image(axes[0], image, output)
    titled = [(f"stride {one.stride}", heat) for one, heat in zip(maps, heats, strict=True)]
    for panel, (title, heat) in zip(axes[1:], reversed(titled), strict=True):
        panel.imshow(blend(image, heat / max(float(heat.max()), 1e-12)))
        panel.set_title(title + ("" if heat.any() else ": all zero"), fontsize=9, color=INK)
        if output.box is not None:
            mark_box(panel, output.box)
    main = f"{titled[-1][0]} (main)" + ("" if heats[-1].any() else ": all zero")
    axes[1].set_title(main, fontsize=9, color=INK, fontweight="bold")
    _add_scale(
        figure, axes, "increases the output: fraction of the map's maximum", "inferno", (0, 1)
    )
    return figure


def _show_integral(
    context: Context, output: OutputTarget, images: Tensor, steps: int
) -> ExplanationFigure | MissingFigure:
    title = "Integrated gradients of the pixels"
    if not has_captum():
        reason = (
            "Integrated gradients require captum, which is not installed. Run: pip install "
            "'muntin[explain]'. The gradient-weighted feature maps do not need it."
        )
        return MissingFigure(section="decision", title=title, reason=reason)
    integral = integrated_gradients(output.measure, images, steps)
    high, wide = context.shown_size
    signed = integral.pixels.sum(dim=0)[:high, :wide]
    patches = _smooth(signed)
    text = (
        f"Explained output: {output.title}. {_describe_region(output)}"
        f"Gradients are integrated in {integral.steps} steps from a uniform baseline in the mean "
        f"colour of the preprocessing (zero after normalisation) to the image: orange pixels "
        f"increase the output, purple pixels decrease it, and pixels that differ more from the "
        f"baseline weigh more. By completeness, the attributions sum to the change of the output: "
        f"it goes from {integral.start:.2f} to {integral.end:.2f}, and the pixels sum to "
        f"{integral.total:.2f}."
    )
    if integral.relative_error > 0.05:
        text += " The sum is off by more than 5 %: this network needs more integration steps."
    return ExplanationFigure(
        name="decision-pixels",
        section="decision",
        title=title,
        text=text if context.trained else text + _FRESH,
        figure=_draw_integral(context, output, signed.numpy(), patches.numpy(), integral),
        formula=_INTEGRAL_FORMULA,
        source="Sundararajan et al. 2017, arXiv 1703.01365, equation 1 and proposition 1",
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
    integral: PixelAttribution,
) -> Figure:
    image = to_rgb(context.shown)
    figure, axes = panels(3, context.shown_size, width=2.8)
    _draw_image(axes[0], image, output)
    limit = max(float(np.percentile(np.abs(signed), 99.5)), 1e-12)
    axes[1].imshow(signed, cmap="PuOr_r", vmin=-limit, vmax=limit)
    axes[1].set_title(f"per pixel: 1 is {limit:.2g}", fontsize=9, color=INK)
    limit = max(float(np.abs(patches).max()), 1e-12)
    axes[2].imshow(image.mean(axis=2), cmap="gray", vmin=-255, vmax=255)
    strength = np.sqrt(np.clip(np.abs(patches) / limit, 0, 1))
    axes[2].imshow(patches, cmap="PuOr_r", vmin=-limit, vmax=limit, alpha=strength)
    axes[2].set_title(f"local average: 1 is {limit:.2g}", fontsize=9, color=INK)
    if output.box is not None:
        for panel in axes[1:]:
            mark_box(panel, output.box)
    label = f"decreases | increases: fraction of each scale    (all pixels: {integral.total:+.2f})"
    _add_scale(figure, axes, label, "PuOr_r", (-1, 1))
    return figure


def _show_occlusion(context: Context, output: OutputTarget) -> ExplanationFigure:
    """Occlusion in the mean colour; needs only the outputs of an exported file."""
    colour = [round(255 * value) for value in context.pre.mean]
    falls = occlusion(output.measure, context.shown, colour)
    size = context.shown_size
    side = -(-max(size) // max(falls.shape))
    heat = upsample_map(falls, side, size, smooth=False).numpy()
    text = (
        f"An exported file has no gradients, so patches of {side} pixels are occluded one at a "
        f"time with the mean colour of the preprocessing. Explained output: {output.title}, "
        f"{output.value:.2f}. Occluding an orange patch decreases it, occluding a purple patch "
        f"increases it. {_describe_region(output)}Explain the run that the file was exported from "
        f"to see feature maps and gradients."
    )
    return ExplanationFigure(
        name="decision-occlusion",
        section="decision",
        title="Occlusion",
        text=text,
        figure=_draw_occlusion(context, output, heat),
        formula=_OCCLUSION_FORMULA,
        source="Zeiler and Fergus 2014, arXiv 1311.2901, section 4.2",
        arrays={"falls": falls.numpy()},
        facts={**_output_facts(output), "patch_px": side, "peak": _find_peak(heat)},
    )


def _draw_occlusion(context: Context, output: OutputTarget, heat: NDArray[Any]) -> Figure:
    image = to_rgb(context.shown)
    figure, axes = panels(2, context.shown_size, width=3.0)
    _draw_image(axes[0], image, output)
    limit = max(float(np.abs(heat).max()), 1e-12)
    axes[1].imshow(image.mean(axis=2), cmap="gray", vmin=-255, vmax=255)
    strength = np.clip(np.abs(heat) / limit, 0, 0.85)
    axes[1].imshow(heat, cmap="PuOr_r", vmin=-limit, vmax=limit, alpha=strength)
    axes[1].set_title("occluded patches", fontsize=9, color=INK)
    if output.box is not None:
        mark_box(axes[1], output.box)
    _add_scale(figure, axes, "increases | decreases when occluded", "PuOr_r", (-limit, limit))
    return figure


def _describe_region(output: OutputTarget) -> str:
    return "" if output.region is None else "Yellow: the pixels predicted as this class. "


def _draw_image(axes: Axes, image: NDArray[np.uint8], output: OutputTarget) -> None:
    """Show the image, with the target marked."""
    title = "image"
    if output.region is not None:
        tint = (0.4 * output.region + 0.6 * _find_edge(output.region))[..., None]
        image = np.round((1 - tint) * image + tint * YELLOW).astype(np.uint8)
        title += "; yellow: predicted class"
    axes.imshow(image)
    if output.box is not None:
        mark_box(axes, output.box)
    if output.point is not None:
        mark_point(axes, *output.point)
    axes.set_title(title, fontsize=9, color=INK)


def _find_edge(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels on the boundary of a region; the image border is not a boundary."""
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
    size: Size = (heat.shape[0], heat.shape[1])
    if not heat.any():
        return [0.5, 0.5]
    row, column = divmod(int(heat.argmax()), size[1])
    return [(column + 0.5) / size[1], (row + 0.5) / size[0]]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
