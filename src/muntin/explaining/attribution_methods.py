# SPDX-License-Identifier: Apache-2.0
"""Attribution of one output to locations of the image, by three methods.

- `hires_cam`: gradient times activation on the feature maps, in one backward pass;
- `integrated_gradients`: attribution of pixels, which sums to the difference between the outputs
  of the image and of the baseline (the completeness axiom);
- `occlusion`: occludes one patch at a time; needs only the output.

Source:
    Selvaraju et al. 2017, "Grad-CAM" (arXiv 1610.02391), with the gradient of each cell instead of
    its mean over the map (Draelos and Carin 2020, arXiv 2011.08891, "HiResCAM"), so that one box or
    region can be attributed among many. Both are equal where the mean of the map is classified, as
    in Swin and Hiera.
    Sundararajan et al. 2017, "Axiomatic Attribution" (arXiv 1703.01365), by captum.
    Zeiler and Fergus 2014 (arXiv 1311.2901), section 4.2: occlusion.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muntin.explaining.context import MAX_PREFIX, record, tensors_in
from muntin.shapes import Float, Real, Size

STEPS = 24
"""Integration steps between baseline and image, at 224 x 224 pixels."""

MIN_STEPS, MAX_STEPS = 8, 64
MAX_BATCH_PIXELS = 224 * 224 * 4
"""Maximum number of pixels in one batch of integrated gradients."""

CELLS = 10
"""Occluded patches along the longer side."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MapAttribution:
    """Attribution of one feature map, the output of the module `name`, summed over the channels.

    `early`: it is the input of the last block, from whose output only the class token is read.
    """

    stride: int
    name: str
    signed: Float[Tensor, "H W"]
    early: bool = False

    @property
    def heat(self) -> Float[Tensor, "H W"]:
        """Positive part of the attribution."""
        return self.signed.clamp(min=0)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PixelAttribution:
    """Integrated gradients of the pixels, from the output of the baseline to that of the image."""

    pixels: Float[Tensor, "C Hi Wi"]
    start: float
    end: float
    steps: int

    @property
    def total(self) -> float:
        """Sum of the attributions, which should be `end` minus `start`."""
        return float(self.pixels.double().sum())

    @property
    def error(self) -> float:
        """Difference of `total` from what it should be."""
        return self.total - (self.end - self.start)

    @property
    def relative_error(self) -> float:
        """Absolute `error` relative to the difference of the outputs."""
        return abs(self.error) / max(abs(self.end - self.start), 1e-6)


def hires_cam(
    backbone: nn.Module,
    measure: Callable[[Tensor], Tensor],
    images: Float[Tensor, "1 C Hi Wi"],
    maps: Sequence[Tensor],
) -> list[MapAttribution]:
    """Compute gradient times activation on every feature map of a backbone, finest first.

    `measure` runs the backbone and gives one scalar for each image; `maps` are what the backbone
    gives for them. Maps that are no module's output are skipped.
    """
    spec: Any = backbone.spec
    names = {module: name for name, module in backbone.named_modules()}
    # Maps may be views or normalised copies, so the tensor to differentiate is looked up among the
    # recorded module outputs by its values.
    with record(backbone.modules()) as outputs:
        score = measure(images.detach().clone().requires_grad_())
    given = [(names[m], tensor) for m, output in outputs for tensor in tensors_in(output)]
    found = [_find_map(wanted, [tensor for _, tensor in given]) for wanted in maps]
    sources = [tensor for tensor in found if tensor is not None]
    if not sources:  # as of a whole model of another library, whose only map is its input
        return []
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
    """(H, W) gradient times activation; None if the output does not depend on the map."""
    if slope is None:
        return None
    values, slopes = _as_map(tensor.detach(), grid, channels), _as_map(slope, grid, channels)
    assert values is not None, "_find_map found the tensor in this layout"
    assert slopes is not None, "a gradient has the shape of its tensor"
    return (values * slopes)[0].sum(dim=0) if bool(slopes.any()) else None


def _find_earlier(
    last: Tensor, given: Sequence[tuple[str, Tensor]], score: Tensor, grid: Size, channels: int
) -> tuple[Tensor, Tensor]:
    """The last tensor of the same shape that the output depends on, and its attribution."""
    # A classifier on the class token ignores the patch tokens of the last block; those that it
    # reads through attention are the input of that block.
    same_shape = [t for _, t in given if t.shape == last.shape and t.requires_grad]
    slopes = torch.autograd.grad(score.sum(), same_shape, retain_graph=True, allow_unused=True)
    for tensor, slope in zip(reversed(same_shape), reversed(slopes), strict=True):
        signed = _multiply(tensor, slope, grid, channels)
        if signed is not None:
            return tensor, signed
    return last, last.new_zeros(grid)


def _as_map(tensor: Tensor, grid: Size, channels: int) -> Float[Tensor, "B C H W"] | None:
    """View tokens as a feature map without padding and prefix tokens; None if none fits.

    They are (B, H, W, C), possibly padded at the right and bottom; (B, C, H, W); or (B, N, C),
    possibly with prefix tokens.
    """
    high, wide = grid
    if tensor.ndim == 4 and tensor.shape[3] == channels:
        padded = (tensor.shape[1], tensor.shape[2])
        if padded == grid or (padded[0] >= high and padded[1] >= wide):
            return tensor[:, :high, :wide].permute(0, 3, 1, 2)
    if tensor.ndim == 4 and tuple(tensor.shape[1:]) == (channels, high, wide):
        return tensor
    if tensor.ndim == 3 and tensor.shape[2] == channels:
        prefix = tensor.shape[1] - high * wide
        if 0 <= prefix <= MAX_PREFIX:
            return tensor[:, prefix:].transpose(1, 2).unflatten(2, grid)
    return None


def _find_map(feature_map: Float[Tensor, "B C H W"], tensors: Sequence[Tensor]) -> Tensor | None:
    """Find the module output that a map was made of: the first with equal or close values."""
    grid = (feature_map.shape[2], feature_map.shape[3])
    candidates = []
    for tensor in tensors:
        view = _as_map(tensor.detach(), grid, feature_map.shape[1])
        if view is not None and view.shape == feature_map.shape:
            if torch.equal(view, feature_map):
                return tensor
            candidates.append((tensor, view))
    near = (t for t, view in candidates if torch.allclose(view, feature_map, rtol=1e-4, atol=1e-5))
    return next(near, None)


def with_gradients(network: nn.Module) -> nn.Module:
    """Give the network, or a copy if it was built under `torch.inference_mode`.

    Inference tensors can never require gradients.
    """
    tensors = [*network.parameters(), *network.buffers()]
    if not any(tensor.is_inference() for tensor in tensors):
        return network
    with torch.inference_mode(False):
        memo: dict[int, Any] = {
            id(tensor): nn.Parameter(tensor.clone(), requires_grad=tensor.requires_grad)
            if isinstance(tensor, nn.Parameter)
            else tensor.clone()
            for tensor in tensors
        }
        return copy.deepcopy(network, memo)


def has_captum() -> bool:
    """Whether captum is installed."""
    return importlib.util.find_spec("captum") is not None


def integrated_gradients(
    measure: Callable[[Tensor], Tensor], images: Float[Tensor, "1 C Hi Wi"], steps: int = 0
) -> PixelAttribution:
    """Integrate gradients along the straight path from the mean colour, 0, to the image.

    0 steps pick a default that shrinks with the image area.
    """
    from captum.attr import IntegratedGradients

    area = images.shape[2] * images.shape[3]
    steps = steps or min(max(round(STEPS * 224 * 224 / area), MIN_STEPS), MAX_STEPS)
    empty = torch.zeros_like(images)
    shares = IntegratedGradients(measure).attribute(
        images.detach().clone().requires_grad_(),
        baselines=empty,
        n_steps=steps,
        internal_batch_size=max(1, MAX_BATCH_PIXELS // area),
    )
    with torch.no_grad():
        start, end = measure(torch.cat([empty, images])).tolist()
    return PixelAttribution(pixels=shares[0].detach(), start=start, end=end, steps=steps)


def occlusion(
    measure: Callable[[Tensor], Tensor],
    image: Real[Tensor, "C h w"],
    colour: Sequence[int],
) -> Float[Tensor, "rows columns"]:
    """Occlude one patch of an image at a time; the output falls by so much.

    `colour` fills the patches, of which there are `CELLS` along the longer side.
    """
    high, wide = image.shape[1:]
    side = max(1, -(-max(high, wide) // CELLS))
    rows, columns = -(-high // side), -(-wide // side)
    fill = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    reference = measure(image[None])[0]
    places = [(row * side, column * side) for row in range(rows) for column in range(columns)]
    numbers = []
    for start in range(0, len(places), 8):
        part = places[start : start + 8]
        occluded = image[None].repeat(len(part), 1, 1, 1)
        for one, (top, left) in zip(occluded, part, strict=True):
            one[:, top : top + side, left : left + side] = fill
        numbers.append(measure(occluded))
    return (reference - torch.cat(numbers)).view(rows, columns).float()


def upsample_map(
    heat: Float[Tensor, "H W"], stride: float, size: Size, *, smooth: bool = True
) -> Float[Tensor, "h w"]:
    """Upsample a map to the image, bilinearly if `smooth`.

    A larger map is cropped, a smaller one padded with zeros.
    """
    # Upsampled to the area that the cells cover, then cropped: padding shifts no cell.
    covered = (round(heat.shape[0] * stride), round(heat.shape[1] * stride))
    mode: dict[str, Any] = {"mode": "bilinear", "align_corners": False} if smooth else {}
    large = F.interpolate(heat[None, None].float(), covered, **mode)[0, 0]
    rest = (0, max(0, size[1] - covered[1]), 0, max(0, size[0] - covered[0]))
    return F.pad(large, rest)[: size[0], : size[1]]
