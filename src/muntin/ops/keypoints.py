# SPDX-License-Identifier: Apache-2.0
"""Keypoints: heatmap encoding and decoding, similarity (OKS), suppression of duplicate poses.

Each keypoint is a Gaussian on its own map. "msra" centres it on the nearest cell and decodes the
argmax, shifted by a quarter of a cell towards the higher neighbour. "udp" centres it on the exact
position and decodes the maximum of a paraboloid fitted to the logarithm of the smoothed map (DARK).
OKS is exp(-d^2 / (2 area (2 sigma)^2)), averaged over keypoints, as in COCO's evaluation.

Source:
    msra: Xiao et al. 2018 (arXiv 1804.06208), section 3. udp: Huang et al. 2020 (arXiv 1911.07524).
    DARK: Zhang et al. 2020 (arXiv 1910.06278), blurred with 11 cells as ViTPose does. Compared with
    transformers 5.23 in tests/ops/test_heatmaps.py. Differs: near the border, where the blur would
    read padding, DARK fits the unsmoothed map, and the three outermost cells if the maximum lies on
    the border. OKS is compared with pycocotools in tests/metrics/test_pose.py.

Letters: B images, P keypoints, h and w cells. Points of heatmaps are (x, y) in cells; (0, 0) is the
centre of the first cell.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from muntin.shapes import Bool, Float, Size

Coding = Literal["msra", "udp"]

REACH = 3
"""Radius of a drawn Gaussian, in sigmas."""

_KERNEL = 11
_BLUR_SIGMA = 2.0  # the default of OpenCV for a kernel of 11
_LEAST, _MOST = 1e-3, 50.0  # clamp of heights before the logarithm
_BEYOND = 3.0  # maximum distance of a decoded point outside the map, in cells


class Peaks(NamedTuple):
    """Decoded keypoints, x and y in cells, and the value of each maximum."""

    points: Float[Tensor, "B P 2"]
    scores: Float[Tensor, "B P"]


def draw_heatmaps(
    points: Float[Tensor, "B P 2"],
    known: Bool[Tensor, "B P"],
    size: Size,
    *,
    sigma: float,
    coding: Coding,
) -> tuple[Float[Tensor, "B P h w"], Bool[Tensor, "B P"]]:
    """Draw a Gaussian of height 1, 0 beyond 3 sigma (in cells), for each keypoint.

    "msra" centres it on the nearest cell. Also tells which maps are useful: known, and not entirely
    outside the map.
    """
    height, width = size
    here = torch.where(known[..., None], points, 0.0)
    cells = (here + 0.5).floor()
    centres = cells if coding == "msra" else here
    reach = float(int(sigma * REACH))

    def profile(length: int, axis: int) -> Tensor:
        line = torch.arange(length, device=points.device, dtype=points.dtype)
        distance = line - centres[..., axis, None]
        near = (line - cells[..., axis, None]).abs() <= reach
        return torch.exp(-(distance**2) / (2 * sigma**2)) * near

    # A Gaussian is separable: two profiles of B, P, w and B, P, h instead of a full map.
    across, down = profile(width, 0), profile(height, 1)
    # A Gaussian whose support misses the map carries no signal.
    limits = cells.new_tensor([width - 1, height - 1])
    useful = ((cells + reach >= 0) & (cells - reach <= limits)).all(dim=-1) & known
    maps = down[..., :, None] * across[..., None, :]
    return maps * useful[..., None, None], useful


def read_heatmaps(maps: Float[Tensor, "B P h w"], *, coding: Coding) -> Peaks:
    """Find the maximum of each map with sub-cell precision.

    A map without positive values gives its first cell, with the value there as the score.
    """
    width = maps.shape[3]
    scores, places = maps.flatten(2).max(dim=2)
    cells = torch.stack([places % width, places // width], dim=-1)
    points = _quarter(maps, cells) if coding == "msra" else _dark(maps, cells)
    return Peaks(torch.where(scores[..., None] > 0, points, cells.to(maps.dtype)), scores)


def mirror_heatmaps(
    maps: Float[Tensor, "B P h w"], partners: tuple[int, ...], *, coding: Coding
) -> Float[Tensor, "B P h w"]:
    """Flip the maps of mirrored images back; `partners` are the flip partners of keypoints.

    The cells of "msra" are not symmetric about the image centre: the result is shifted by one cell,
    as published.
    """
    back = maps[:, list(partners)].flip(3)
    if coding == "msra":
        back = torch.cat([back[..., :1], back[..., :-1]], dim=3)
    return back


def to_cells(points: Tensor, image: Size, size: Size, *, coding: Coding) -> Tensor:
    """Convert points (..., 2), x and y, from pixels of an image to cells of its heatmaps.

    "udp" maps the first and last pixel centres to those of the cells; "msra" divides by the stride.
    """
    return points * points.new_tensor(_steps(size, image, coding))


def to_pixels(points: Tensor, image: Size, size: Size, *, coding: Coding) -> Tensor:
    """Convert points (..., 2) from cells to pixels; see `to_cells`."""
    return points * points.new_tensor(_steps(image, size, coding))


def _steps(after: Size, before: Size, coding: Coding) -> list[float]:
    less = 1 if coding == "udp" else 0
    return [(after[axis] - less) / max(before[axis] - less, 1) for axis in (1, 0)]


def _quarter(maps: Tensor, cells: Tensor) -> Tensor:
    """Shift by a quarter cell towards the higher neighbour; not on the border, as published."""
    around = _around(maps, cells)
    # Sign of the difference of the neighbours, along x and y.
    slope = torch.stack(
        [around[..., 1, 2] - around[..., 1, 0], around[..., 2, 1] - around[..., 0, 1]], dim=-1
    )
    limits = cells.new_tensor([maps.shape[3] - 1, maps.shape[2] - 1])
    inner = ((cells > 0) & (cells < limits)).all(dim=-1, keepdim=True)
    return cells + torch.sign(slope) * 0.25 * inner


def _dark(maps: Tensor, cells: Tensor) -> Tensor:
    """Fit a paraboloid to the logarithm around the maximum (DARK)."""
    height, width = maps.shape[2:]
    if min(height, width) < 3:  # too small for a paraboloid
        return cells.to(maps.dtype)
    last = cells.new_tensor([width - 1, height - 1])
    reach = _KERNEL // 2 + 1
    inside = ((cells >= reach) & (cells <= last - reach)).all(dim=-1)
    # Three cells in a row determine a parabola wherever its top is, so the middle one may move.
    middle = torch.minimum(cells.clamp(min=1), last - 1)
    plain = _top(_around(maps, middle))
    smooth = _top(_around(_blur(maps), cells))
    points = torch.where(inside[..., None], cells + smooth, middle + plain)
    near = ((points - cells).abs() <= torch.where(inside, 1.0, _BEYOND)[..., None]).all(dim=-1)
    return torch.where(near[..., None], points, cells.to(maps.dtype))


def _top(heights: Float[Tensor, "B P 3 3"]) -> Float[Tensor, "B P 2"]:
    """Offset from the middle cell to the maximum of the fit; 0 if the fit has no maximum."""
    # log of a Gaussian is a paraboloid: one Newton step from the middle cell is exact.
    v = heights.clamp(_LEAST, _MOST).log()
    middle = v[..., 1, 1]
    dx, dy = (v[..., 1, 2] - v[..., 1, 0]) / 2, (v[..., 2, 1] - v[..., 0, 1]) / 2
    dxx = v[..., 1, 2] - 2 * middle + v[..., 1, 0]
    dyy = v[..., 2, 1] - 2 * middle + v[..., 0, 1]
    dxy = (
        v[..., 2, 2] - v[..., 1, 2] - v[..., 2, 1] + 2 * middle
        - v[..., 1, 0] - v[..., 0, 1] + v[..., 0, 0]
    ) / 2  # fmt: skip
    # Negative definite Hessian: a maximum, not a saddle or a ridge.
    determinant = dxx * dyy - dxy**2
    is_hill = (determinant > 1e-12) & (dxx < 0)
    steps = torch.stack([dyy * dx - dxy * dy, dxx * dy - dxy * dx], dim=-1)
    shift = -steps / torch.where(is_hill, determinant, 1.0)[..., None]
    return torch.where(is_hill[..., None], shift, 0.0)


def _around(maps: Tensor, cells: Tensor) -> Float[Tensor, "B P 3 3"]:
    """The 3 x 3 neighbourhood of each cell, with replicated borders."""
    # Replicated borders, so that slopes at the border are one-sided.
    padded = F.pad(maps, (1, 1, 1, 1), mode="replicate")
    wide = padded.shape[3]
    corner = cells[..., 1] * wide + cells[..., 0]
    offsets = torch.tensor(
        [row * wide + column for row in range(3) for column in range(3)], device=maps.device
    )
    found = padded.flatten(2).gather(2, corner[..., None] + offsets)
    return found.view(*cells.shape[:2], 3, 3)


def _blur(maps: Tensor) -> Tensor:
    """Gaussian blur with a kernel of 11; zero-padded, so values near the border are not used."""
    reach = _KERNEL // 2
    line = torch.arange(-reach, reach + 1, device=maps.device, dtype=maps.dtype)
    kernel = torch.exp(-(line**2) / (2 * _BLUR_SIGMA**2))
    kernel = kernel / kernel.sum()
    single = maps.flatten(0, 1)[:, None]
    across = F.conv2d(single, kernel.view(1, 1, 1, -1), padding=(0, reach))
    return F.conv2d(across, kernel.view(1, 1, -1, 1), padding=(reach, 0)).view(maps.shape)


DEFAULT_SIGMA = 0.05
"""Sigma of keypoints for which the data set defines none."""

_SHARE = 0.53  # area of a person / area of its box in COCO, as in OpenMMLab
_MIN_SIDE = 0.05  # of the image's diagonal
# Published systems use 0.9, which two slightly different boxes of one small instance do not reach.
_MAX_SIMILARITY = 0.6


def similarity(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    area: float,
    sigmas: NDArray[np.float64],
) -> float:
    """OKS of two poses (P, 2); `area` in square pixels. NaN keypoints of either do not count."""
    distance = ((first - second) ** 2).sum(axis=1)
    valid = np.isfinite(distance)
    if not valid.any():
        return 0.0
    variance = (2 * sigmas[valid]) ** 2
    return float(np.exp(-distance[valid] / variance / (area + 1e-9) / 2).mean())


def estimate_area(
    points: NDArray[np.float64], box: NDArray[np.float64] | None, diagonal: float
) -> float:
    """Estimate the area of an instance without annotated area: 0.53 of its box (x1, y1, x2, y2).

    Without a box it is that of the points, with sides of at least 0.05 of the image's diagonal.
    """
    if box is not None:
        return _SHARE * float((box[2:] - box[:2]).prod())
    sides = np.ptp(points, axis=0) if len(points) else np.zeros(2)
    return _SHARE * float(np.maximum(sides, _MIN_SIDE * diagonal).prod())


def clip_points(points: NDArray[np.float64], size: Size) -> NDArray[np.float64]:
    """Clip points (..., 2) to the pixels of an image of (height, width)."""
    return np.clip(points, 0.0, [size[1] - 1.0, size[0] - 1.0])


def suppress_poses(
    points: NDArray[np.float64],
    scores: NDArray[np.float64],
    areas: NDArray[np.float64],
    sigmas: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Remove poses (N, P, 2) that duplicate a better one (OKS-NMS); gives indices, best first."""
    # Greedy, as NMS: a pose survives if it is unlike every better one.
    kept: list[int] = []
    for place in np.argsort(-scores, kind="stable"):
        area = areas[place]
        if all(
            similarity(points[place], points[other], (area + areas[other]) / 2, sigmas)
            <= _MAX_SIMILARITY
            for other in kept
        ):
            kept.append(int(place))
    return np.array(kept, np.int64)
