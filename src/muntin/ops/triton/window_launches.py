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
    """What a kernel is compiled for; windows and shifts are in tokens.

    The map was padded before it was rolled if `pad_first`, with `fill` if `filled`; `cosine` scores
    have a temperature. `precision` is that of `triton.language.dot`. `block` is the tile of a
    window of at most 64 tokens, `queries` and `keys` are those of a larger one. The backward pass
    sums the gradients of the bias if `learns_bias`, of the padding if `learns_fill`.
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

    `stages` are the loads that are under way ahead of the loop's arithmetic, plus 1; `programs`,
    for kernels that take one window after another, those of a multiprocessor; `queries` and `keys`
    the tiles of a kernel for large windows.
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
    """Look up how a kernel is launched, for a tile of `find_tile`.

    A `wide` one computes in float32, which takes twice the registers: then the tile is spread over
    twice the warps and nothing is loaded ahead.
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

    Examples:
        >>> find_tile(49), find_tile(144)
        (64, 0)
    """
    if num_tokens > 64:
        return TILED
    return max(16, 1 << (num_tokens - 1).bit_length())


def count_slots(windows: int, programs: int) -> int:
    """Share the windows of a batch among at most so many programs, so that all have about as many.

    Examples:
        >>> count_slots(512, 352)
        256
    """
    # Equal loads: 512 windows on 352 programs take two rounds either way, so use 256.
    turns = -(-windows // max(1, min(windows, programs)))
    return -(-windows // turns)
