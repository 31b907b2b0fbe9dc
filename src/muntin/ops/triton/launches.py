# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Sizes of the tiles, warps and stages of every kernel, by shape.

The rules count bytes and registers of one multiprocessor of an H100: 227 KiB of shared memory and
65,536 registers for its blocks together, products of whole warp groups (4 warps) with 64 rows or
more. What measuring finds better for a shape goes into `TUNED`, which is asked first.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "TUNED",
    "Launch",
    "linear_launch",
    "mlp_launch",
    "norm_launch",
    "parts_of",
    "patch_launch",
    "power_of_two",
]

PROCESSORS = 132
"""Multiprocessors of an H100; fewer tiles than these leave some of them idle."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """How a kernel is cut up.

    Attributes:
        rows: Of a tile of the output.
        columns: Of a tile of the output, or hidden channels made at a time.
        depth: Channels multiplied at a time.
        warps: Groups of 32 threads that share a tile.
        stages: Tiles that are on their way at a time.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


TUNED: dict[tuple[str, int, int, int], Launch] = {}
"""Found by measuring: (kernel, K, N, rows rounded up to a power of two) -> launch."""


def power_of_two(number: int) -> int:
    """Round up to a power of two."""
    return 1 << (number - 1).bit_length()


def parts_of(channels: int) -> int:
    """Give 1 for a power of two, 3 for three times one, else 0."""
    for parts in (1, 3):
        width = channels // parts
        if width * parts == channels and width == power_of_two(width):
            return parts
    return 0


def linear_launch(
    rows: int, segment: int, k: int, n: int, *, item_bytes: int, whole: bool
) -> Launch:
    """Choose for a product of M, K with K, N.

    Args:
        rows: M.
        segment: Channels that lie together in a row of the input; a multiple of 16.
        k: K.
        n: N.
        item_bytes: Of an element.
        whole: Whether a tile holds whole rows of the output, as a norm behind needs it.
    """
    tuned = TUNED.get(("linear", k, n, power_of_two(rows)))
    if tuned is not None:
        return tuned
    # DEPTH must divide the segment: a slice never crosses two of the four tokens.
    depth = next(depth for depth in (64, 32, 16) if segment % depth == 0)
    if item_bytes == 4:  # no tensor cores: the sums are what fills the registers
        columns = power_of_two(max(n, 16)) if whole else 64
        return Launch(
            rows=32 if columns > 128 else 64, columns=columns, depth=min(depth, 32), warps=4,
            stages=2,
        )  # fmt: skip
    if whole:
        columns = power_of_two(max(n, 32))
        return Launch(
            rows=64, columns=columns, depth=depth, warps=8 if columns > 128 else 4, stages=3
        )
    widest = min(power_of_two(max(n, 32)), 128)
    for rows_a_tile, columns, warps in ((128, widest, 8), (64, min(widest, 64), 4)):
        if -(-rows // rows_a_tile) * -(-n // columns) >= PROCESSORS:
            return Launch(rows=rows_a_tile, columns=columns, depth=depth, warps=warps, stages=3)
    # Few rows: what counts is how much of the weights is on its way.
    deep = 128 if segment % 128 == 0 else depth
    return Launch(rows=64, columns=32, depth=deep, warps=4, stages=4)


def mlp_launch(rows: int, c: int, d: int, *, item_bytes: int) -> Launch:
    """Choose for an MLP of C channels and D hidden ones; `columns` divides D."""
    tuned = TUNED.get(("mlp", c, d, power_of_two(rows)))
    if tuned is not None:
        return tuned
    hidden = next(hidden for hidden in (64, 32, 16) if d % hidden == 0)
    if item_bytes == 4:
        return Launch(rows=16, columns=min(hidden, 32), depth=c, warps=8, stages=1)
    # Every tile of rows reads all weights, from the second-level cache: so as many rows as the
    # registers hold, while there are enough of them.
    if -(-rows // 128) >= PROCESSORS:
        columns = hidden if c <= 96 else min(hidden, 32)
        return Launch(rows=128, columns=columns, depth=c, warps=8, stages=2)
    return Launch(rows=64, columns=hidden, depth=c, warps=4 if c <= 96 else 8, stages=2)


def patch_launch(rows: int, k: int, n: int, *, item_bytes: int, whole: bool) -> Launch:
    """Choose for patches of K pixel values that become N channels."""
    tuned = TUNED.get(("patches", k, n, power_of_two(rows)))
    if tuned is not None:
        return tuned
    columns = power_of_two(max(n, 32)) if whole else min(power_of_two(max(n, 32)), 128)
    depth = min(power_of_two(max(k, 16)), 64 if item_bytes < 4 else 16)
    return Launch(
        rows=32 if item_bytes == 4 else 64, columns=columns, depth=depth,
        warps=8 if columns > 128 else 4, stages=2,
    )  # fmt: skip


def norm_launch(n: int) -> Launch:
    """Choose for rows of N that are normalised and added."""
    columns = power_of_two(max(n, 32))
    return Launch(rows=max(4096 // columns, 1), columns=columns, depth=1, warps=4, stages=1)
