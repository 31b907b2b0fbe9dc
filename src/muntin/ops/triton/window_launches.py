# SPDX-License-Identifier: Apache-2.0
"""How each kernel of window attention is launched: one table, which a measurement may overwrite.

Nothing is tuned while a model runs: a launch inside a CUDA graph must not measure, and a kernel
must be the same for every batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

TILED = 0
"""Stands for the tile of a window that is too large for one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowSpec:
    """What a kernel is compiled for.

    Attributes:
        heads: Heads of the attention.
        head_dim: Width of a head.
        window_h: Height of a window in tokens.
        window_w: Width of a window in tokens.
        shift_h: Rows that windows are shifted by.
        shift_w: Columns that windows are shifted by.
        pad_first: Whether the map was padded before it was rolled.
        filled: Whether there is padding that holds `fill`.
        cosine: Whether scores are cosines times a temperature.
        precision: How float32 is multiplied, as in `triton.language.dot`.
        block: Tile of a window of at most 64 tokens.
        queries: Tile of queries of a larger window.
        keys: Tile of keys of a larger window.
        stages: As in `Launch`.
        learns_bias: Whether the backward pass sums the gradient of the bias.
        learns_fill: Whether it sums that of the padding.
    """

    heads: int
    head_dim: int
    window_h: int
    window_w: int
    shift_h: int
    shift_w: int
    pad_first: bool
    filled: bool
    cosine: bool
    precision: str
    block: int = TILED
    queries: int = 0
    keys: int = 0
    stages: int = 1
    learns_bias: bool = False
    learns_fill: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """One launch.

    Attributes:
        num_warps: Warps of a program.
        stages: Loads that are under way ahead of the loop's arithmetic, plus 1.
        programs: Of the kernels that take one window after another: programs a multiprocessor.
        queries: Tile of queries of a kernel for large windows.
        keys: Tile of keys of a kernel for large windows.
    """

    num_warps: int = 4
    stages: int = 1
    programs: int = 8
    queries: int = 64
    keys: int = 64


LaunchTable = Mapping[tuple[str, int, int], Launch]

LAUNCHES: LaunchTable = {
    ("attend_whole", 16, 0): Launch(num_warps=1, stages=2, programs=16),
    ("attend_whole", 32, 0): Launch(num_warps=2, stages=2, programs=6),
    ("attend_whole", 64, 0): Launch(num_warps=4, stages=2, programs=3),
    ("attend_whole_backward", 16, 0): Launch(num_warps=1, stages=2, programs=12),
    ("attend_whole_backward", 32, 0): Launch(num_warps=2, stages=2, programs=4),
    ("attend_whole_backward", 64, 0): Launch(num_warps=4, stages=2, programs=2),
    ("attend_tiled", TILED, 0): Launch(stages=2),
    ("attend_tiled_backward_queries", TILED, 0): Launch(stages=2),
    ("attend_tiled_backward_keys", TILED, 0): Launch(stages=2),
    ("attend_tiled_backward_bias", TILED, 0): Launch(stages=2, programs=8),
}
"""(kernel, tile, width of a head) -> launch; a width of 0 stands for every width not listed."""


def find_launch(
    kernel: str, tile: int, head_dim: int, *, wide: bool = False, launches: LaunchTable = LAUNCHES
) -> Launch:
    """Look up how a kernel is launched.

    Args:
        kernel: Its name.
        tile: What `find_tile` gives.
        head_dim: Width of a head.
        wide: Whether it computes in float32, which takes twice the registers: then the tile is
            spread over twice the warps and nothing is loaded ahead.
        launches: Where to look.
    """
    # A measured width of head first, then the default of the tile.
    launch = launches.get((kernel, tile, head_dim)) or launches[kernel, tile, 0]
    if not wide:
        return launch
    return replace(
        launch,
        num_warps=2 * launch.num_warps,
        stages=1,
        programs=max(1, launch.programs // 2),
        keys=max(16, launch.keys // 2),
    )


def find_tile(num_tokens: int) -> int:
    """Choose the tile for the tokens of a window: 16, 32 or 64, or `TILED`.

    Example:
        >>> find_tile(49), find_tile(144)
        (64, 0)
    """
    if num_tokens > 64:
        return TILED
    return max(16, 1 << (num_tokens - 1).bit_length())


def count_slots(windows: int, programs: int) -> int:
    """Share windows among at most so many programs, so that all have about as many.

    Args:
        windows: Windows of the whole batch, 1 or more.
        programs: The most that may be used.

    Returns:
        The programs to use, at least 1 and at most one a window.

    Example:
        >>> count_slots(512, 352)
        256
    """
    # Equal loads: 512 windows on 352 programs take two rounds either way, so use 256.
    turns = -(-windows // max(1, min(windows, programs)))
    return -(-windows // turns)
