# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Which places of an image a number of the output comes from, in three ways.

- `hires_cam`: gradient times activation on the maps of the backbone, one backward pass;
- `integrated_gradients`: integrated gradients, which add up to what the number differs from that of an empty
  image (the axiom of completeness);
- `occlusion`: patches are covered one after the other, which needs nothing but the output.

Source:
    Selvaraju et al. 2017, "Grad-CAM" (arXiv 1610.02391), with the gradient of each place instead of
    its mean over the map (Draelos and Carin 2020, arXiv 2011.08891, "HiResCAM"), so that one box or
    one region of many is told apart. Both are equal where the map's mean is classified, as in Swin
    and Hiera. Sundararajan et al. 2017, "Axiomatic Attribution" (arXiv 1703.01365), by captum.
    Zeiler and Fergus 2014 (arXiv 1311.2901), section 4.2: occlusion.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muntin.explaining.activation_recorder import as_map, find_map, record, tensors_in
from muntin.outside_errors import missing_extra
from muntin.shapes import Float, Size, UInt8

__all__ = [
    "MapAttribution",
    "PixelAttribution",
    "has_captum",
    "hires_cam",
    "integrated_gradients",
    "occlusion",
    "upsample_map",
]

STEPS = 24
"""Images between the empty and the real one that are looked at, at 224 x 224 pixels."""

MIN_STEPS, MAX_STEPS = 8, 64
AT_ONCE = 224 * 224 * 4
"""Pixels of the images whose gradients are computed together."""

CELLS = 10
"""Patches that are covered along the longer side."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MapAttribution:
    """What one map says.

    Attributes:
        stride: Pixels of a cell.
        name: The module that gave the map.
        signed: (H, W) Gradient times activation, summed over the channels.
        early: Whether it is the map before the last block, since the class token alone is read
            after it.
    """

    stride: int
    name: str
    signed: Float[Tensor, "H W"]
    early: bool = False

    @property
    def heat(self) -> Float[Tensor, "H W"]:
        """What speaks for the number."""
        return self.signed.clamp(min=0)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PixelAttribution:
    """What integrated gradients say.

    Attributes:
        pixels: (C, Hi, Wi) share of each value of the image in the number.
        start: The number of the empty image.
        end: That of the image.
        steps: Images in between.
    """

    pixels: Float[Tensor, "C Hi Wi"]
    start: float
    end: float
    steps: int

    @property
    def total(self) -> float:
        """What the shares add up to."""
        return float(self.pixels.double().sum())

    @property
    def error(self) -> float:
        """By how much they miss the difference that they should add up to."""
        return self.total - (self.end - self.start)

    @property
    def relative_error(self) -> float:
        """The same as a part of the difference."""
        return abs(self.error) / max(abs(self.end - self.start), 1e-6)


def hires_cam(
    backbone: nn.Module, measure: Callable[[Tensor], Tensor], images: Float[Tensor, "1 C Hi Wi"]
) -> list[MapAttribution]:
    """Multiply the maps of a backbone with the gradients of a number.

    Args:
        backbone: Follows `muntin.features.Backbone`; `measure` runs it.
        measure: From images to one number each.
        images: Normalised.

    Returns:
        One a map, finest first; none for a map that no module gives as it is.
    """
    spec: Any = backbone.spec
    with torch.no_grad():
        maps = backbone(images)
    names = {module: name for name, module in backbone.named_modules()}
    with record(backbone.modules()) as outputs:
        score = measure(images.detach().clone().requires_grad_())
    given = [(names[m], tensor) for m, output in outputs for tensor in tensors_in(output)]
    found = [find_map(wanted, outputs) for wanted in maps]
    sources = [tensor for tensor in found if tensor is not None]
    slopes = iter(torch.autograd.grad(score.sum(), sources, retain_graph=True, allow_unused=True))
    rows = []
    for wanted, stride, tensor in zip(maps, spec.strides, found, strict=True):
        if tensor is None:
            continue
        grid = (wanted.shape[2], wanted.shape[3])
        signed = _multiply(tensor, next(slopes), grid, wanted.shape[1])
        early = signed is None
        if signed is None:
            tensor, signed = _find_earlier(tensor, given, score, grid, wanted.shape[1])
        name = next(name for name, other in given if other is tensor)
        rows.append(MapAttribution(stride=stride, name=name, signed=signed, early=early))
    return rows


def _multiply(tensor: Tensor, slope: Tensor | None, grid: Size, channels: int) -> Tensor | None:
    """(H, W) Gradient times activation; None where the number does not depend on the map."""
    if slope is None:
        return None
    values, slopes = as_map(tensor.detach(), grid, channels), as_map(slope, grid, channels)
    assert values is not None, "it was seen as a map before"
    assert slopes is not None, "a gradient has the shape of its tensor"
    return (values * slopes)[0].sum(dim=0) if bool(slopes.any()) else None


def _find_earlier(
    last: Tensor, given: Sequence[tuple[str, Tensor]], score: Tensor, grid: Size, channels: int
) -> tuple[Tensor, Tensor]:
    """The latest tokens of the same kind that the number depends on, and what they say."""
    alike = [t for _, t in given if t.shape == last.shape and t.requires_grad]
    slopes = torch.autograd.grad(score.sum(), alike, retain_graph=True, allow_unused=True)
    for tensor, slope in zip(reversed(alike), reversed(slopes), strict=True):
        signed = _multiply(tensor, slope, grid, channels)
        if signed is not None:
            return tensor, signed
    return last, last.new_zeros(grid)


def has_captum() -> bool:
    """Whether captum is installed."""
    return importlib.util.find_spec("captum") is not None


def integrated_gradients(
    measure: Callable[[Tensor], Tensor], images: Float[Tensor, "1 C Hi Wi"], steps: int = 0
) -> PixelAttribution:
    """Integrate gradients along the way from the mean colour to the image.

    Args:
        measure: From images to one number each.
        images: Normalised, so that zero is the mean colour.
        steps: Images on the way; 0 chooses fewer for larger images.

    Raises:
        MissingExtra: captum is not installed.
    """
    if not has_captum():
        library, extra, purpose = "captum", "explain", "Integrated gradients"
        raise missing_extra(library, extra, purpose)
    from captum.attr import IntegratedGradients

    area = images.shape[2] * images.shape[3]
    steps = steps or min(max(round(STEPS * 224 * 224 / area), MIN_STEPS), MAX_STEPS)
    empty = torch.zeros_like(images)
    shares = IntegratedGradients(measure).attribute(
        images.detach().clone().requires_grad_(),
        baselines=empty,
        n_steps=steps,
        internal_batch_size=max(1, AT_ONCE // area),
    )
    with torch.no_grad():
        start, end = measure(torch.cat([empty, images])).tolist()
    return PixelAttribution(pixels=shares[0].detach(), start=start, end=end, steps=steps)


def occlusion(
    measure: Callable[[Tensor], Tensor],
    shown: UInt8[Tensor, "C h w"],
    colour: Sequence[int],
    *,
    cells: int = CELLS,
    at_once: int = 8,
) -> Float[Tensor, "rows columns"]:
    """Cover patches of an image, one at a time.

    Args:
        measure: From images (B, C, h, w) uint8 to one number each.
        shown: The image.
        colour: What a patch is covered with, one value a channel.
        cells: Patches along the longer side.
        at_once: Images at a time.

    Returns:
        By how much the number falls when each patch is covered.
    """
    high, wide = shown.shape[1:]
    side = max(1, -(-max(high, wide) // cells))
    rows, columns = -(-high // side), -(-wide // side)
    paint = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    whole = measure(shown[None])[0]
    places = [(row * side, column * side) for row in range(rows) for column in range(columns)]
    numbers = []
    for start in range(0, len(places), at_once):
        part = places[start : start + at_once]
        covered = shown[None].repeat(len(part), 1, 1, 1)
        for image, (top, left) in zip(covered, part, strict=True):
            image[:, top : top + side, left : left + side] = paint
        numbers.append(measure(covered))
    return (whole - torch.cat(numbers)).view(rows, columns).float()


def upsample_map(
    heat: Float[Tensor, "H W"], stride: float, size: Size, *, smooth: bool = True
) -> Float[Tensor, "h w"]:
    """Lay a map over the image.

    Args:
        heat: The map.
        stride: Pixels of a cell.
        size: (height, width) of the image in pixels; what the map covers beyond is cut off, and
            where it ends before, nothing is.
        smooth: Whether values between the middles of cells are interpolated.
    """
    covered = (round(heat.shape[0] * stride), round(heat.shape[1] * stride))
    mode: dict[str, Any] = {"mode": "bilinear", "align_corners": False} if smooth else {}
    large = F.interpolate(heat[None, None].float(), covered, **mode)[0, 0]
    rest = (0, max(0, size[1] - covered[1]), 0, max(0, size[0] - covered[0]))
    return F.pad(large, rest)[: size[0], : size[1]]
