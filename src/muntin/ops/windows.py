# SPDX-License-Identifier: Apache-2.0
"""Window partition of a feature map: window size, cyclic shift and padding.

Letters: B images, H and W sides of the map in tokens, M window side, N = M*M tokens of a window, nW
windows of an image, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from muntin.ops.positions import SizeRule
from muntin.shapes import Float, Int, Size

MASKED = -100.0
"""Added to the score of a pair that must not attend. Every published Swin uses -100, not -inf."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowLayout:
    """Window partition of one map; numbers are tokens, (height, width).

    The map is shifted cyclically up and left (0 = not) and padded below and at the right to whole
    windows, before the shift if `pad_first`. `built_window` is that of the map at `img_size`.
    """

    size: Size
    window: Size
    shift: Size
    pad: Size
    pad_first: bool
    built_window: Size

    @property
    def grid(self) -> Size:
        """Windows down and across."""
        return (
            (self.size[0] + self.pad[0]) // self.window[0],
            (self.size[1] + self.pad[1]) // self.window[1],
        )

    @property
    def num_windows(self) -> int:
        """Windows of one image, nW."""
        return self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        """Tokens of one window, N."""
        return self.window[0] * self.window[1]


def lay_out(
    size: Size, window: Size, shifted: bool, rule: SizeRule, *, built_size: Size | None = None
) -> WindowLayout:
    """Compute window, shift and padding for a map; sizes are (height, width) in tokens.

    `shifted` blocks shift by half a window, rounded down. `built_size` is the map that the block
    was built for, for rules that shrink "built" and for `built_window`; default: `size`. Rules read
    from timm 1.0.31, torchvision 0.29.2, transformers 5.23 and microsoft/Swin-Transformer@f82860b;
    the first three compared live in tests/parity/test_swin_parity.py, tolerance 1e-5.
    """
    # "built" rules decide from the map the block was built for, whatever map comes.
    built_size = built_size or size
    decisive = built_size if rule.shrink == "built" else size
    fits = min(decisive) <= min(window)
    wh, ww = _shrink(window, decisive, rule)
    # Python: -a % b is what a lacks to the next multiple of b.
    pad = (-size[0] % wh, -size[1] % ww)
    sh, sw = (window[0] // 2, window[1] // 2) if shifted else (0, 0)
    if rule.shift == "side":
        padded = (size[0] + pad[0], size[1] + pad[1])
        covered = decisive if rule.shrink == "built" else padded
        # One window covers the axis: a shift would only wrap it around.
        sh = 0 if covered[0] <= wh else sh
        sw = 0 if covered[1] <= ww else sw
    elif rule.shift == "both" and fits:
        sh = sw = 0
    return WindowLayout(
        size=size,
        window=(wh, ww),
        shift=(sh, sw),
        pad=pad,
        pad_first=rule.pad == "before_shift",
        built_window=_shrink(window, built_size, rule),
    )


def _shrink(window: Size, size: Size, rule: SizeRule) -> Size:
    """The window on a map of this size."""
    if rule.shrink in ("side", "built"):
        return min(window[0], size[0]), min(window[1], size[1])
    if rule.shrink == "both" and min(size) <= min(window):
        return min(size), min(size)
    return window


def shift_mask(
    layout: WindowLayout, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> Float[Tensor, "nW N N"] | None:
    """Attention mask between tokens that are neighbours only because of the cyclic shift.

    0 where a pair may attend, `MASKED` elsewhere; None without shift.
    """
    if layout.shift == (0, 0):
        return None
    regions = []
    for axis in (0, 1):
        length = layout.size[axis] + layout.pad[axis]
        position = torch.arange(length, device=device)
        # Only the last window of an axis holds tokens of both ends of the map.
        wrapped = position >= length - layout.shift[axis]
        regions.append(wrapped.long().view(layout.grid[axis], layout.window[axis]))
    rows, columns = regions
    # Four regions per map: (top, bottom) x (left, right) of the wrapped part.
    region = rows[:, None, :, None] * 2 + columns[None, :, None, :]  # nH, nW, M, M
    region = region.reshape(layout.num_windows, layout.num_tokens)
    apart = region[:, :, None] != region[:, None, :]  # nW, N, N
    return apart.to(dtype or torch.float32) * MASKED


def add_mask(bias: Tensor, layout: WindowLayout) -> Float[Tensor, "nW h N N"]:
    """Bias plus shift mask; a single matrix for all windows without shift."""
    mask = shift_mask(layout, device=bias.device, dtype=bias.dtype)
    return bias[None] if mask is None else bias + mask[:, None]


def cut_heads(
    x: Float[Tensor, "B H W C"],
    layout: WindowLayout,
    parts: int,
    heads: int,
    fill: Float[Tensor, " C"] | None = None,
) -> Float[Tensor, "parts B nW h N d"]:
    """Pad, shift and partition a map into windows, and its channels into parts and heads.

    Channels are ordered by part (3 of them for queries, keys and values), then head; windows and
    their tokens are in row-major order. `fill` is the value of padded tokens; default: zeros. One
    contiguous copy.
    """
    if layout.pad_first:
        x = _roll(pad_map(x, layout.pad, fill), layout.shift, -1)
    else:
        x = pad_map(_roll(x, layout.shift, -1), layout.pad, fill)
    batch, _, _, channels = x.shape
    (rows, columns), (wh, ww) = layout.grid, layout.window
    width = channels // (parts * heads)
    x = x.reshape(batch, rows, wh, columns, ww, parts, heads, width)
    x = x.permute(5, 0, 1, 3, 6, 2, 4, 7)  # parts, B, rows, columns, h, M, M, d
    return x.reshape(parts, batch, rows * columns, heads, wh * ww, width).contiguous()


def join_heads(
    windows: Float[Tensor, "parts B nW h N d"], layout: WindowLayout
) -> Float[Tensor, "B H W C"]:
    """Inverse of `cut_heads`; padding is dropped."""
    x = _join(windows, layout)[:, : layout.size[0], : layout.size[1]]
    return x if layout.pad_first else _roll(x, layout.shift, 1)


def _join(windows: Tensor, layout: WindowLayout) -> Tensor:
    """The padded map, shifted back if padding came first."""
    parts, batch, _, heads, _, width = windows.shape
    (rows, columns), (wh, ww) = layout.grid, layout.window
    x = windows.reshape(parts, batch, rows, columns, heads, wh, ww, width)
    x = x.permute(1, 2, 5, 3, 6, 0, 4, 7)  # B, rows, M, columns, M, parts, h, d
    x = x.reshape(batch, rows * wh, columns * ww, parts * heads * width)
    return _roll(x, layout.shift, 1) if layout.pad_first else x


def cut_windows(
    x: Float[Tensor, "B H W C"], layout: WindowLayout, fill: Float[Tensor, " C"] | None = None
) -> Float[Tensor, "B nW N C"]:
    """Pad, shift and partition a map into windows; `cut_heads` with one part and one head."""
    return cut_heads(x, layout, 1, 1, fill)[0, :, :, 0]


def join_windows(
    windows: Float[Tensor, "B nW N C"], layout: WindowLayout
) -> Float[Tensor, "B H W C"]:
    """Inverse of `cut_windows`; padding is dropped."""
    return join_heads(windows[None, :, :, None], layout)


# The same few layouts come in every block and step.
@lru_cache(maxsize=32)
@torch.inference_mode(False)
def window_order(layout: WindowLayout) -> Int[Tensor, "nW N"]:
    """Row-major place on the map of each token of each window; -1 for padding."""
    # Counted from 1: padding is filled with 0, which becomes -1.
    count = layout.size[0] * layout.size[1]
    places = torch.arange(1, count + 1, dtype=torch.float64, device="cpu")
    return cut_windows(places.view(1, *layout.size, 1), layout)[0, :, :, 0].long() - 1


def merge_neighbours(x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B h w C4"]:
    """Stack each 2 x 2 neighbourhood along the channels; odd sides are padded with zeros."""
    # Channel order of published weights: x(0,0), x(1,0), x(0,1), x(1,1).
    batch, height, width, channels = x.shape
    if height % 2 or width % 2:
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        height, width = x.shape[1:3]
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    x = x.permute(0, 1, 3, 4, 2, 5)  # B, H/2, W/2, column, row, C
    return x.reshape(batch, height // 2, width // 2, 4 * channels)


def pad_map(
    x: Float[Tensor, "B H W C"], pad: Size, fill: Float[Tensor, " C"] | None
) -> Float[Tensor, "B Hp Wp C"]:
    """Add rows below and columns at the right, of zeros or `fill`."""
    if pad == (0, 0):
        return x
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, pad[1], 0, pad[0]))
    if fill is None:
        return x
    rows = torch.arange(x.shape[1], device=x.device) >= height
    columns = torch.arange(x.shape[2], device=x.device) >= width
    outside = (rows[:, None] | columns[None, :]).to(x.dtype)  # H, W
    return x + outside[..., None] * fill.to(x.dtype)


def _roll(x: Tensor, shift: Size, direction: int) -> Tensor:
    if shift == (0, 0):
        return x
    return x.roll((direction * shift[0], direction * shift[1]), (1, 2))
