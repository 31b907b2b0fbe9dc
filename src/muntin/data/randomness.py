# SPDX-License-Identifier: Apache-2.0
"""Random numbers that are computed from their place (seed, epoch, index), not drawn from a stream.

What happens to an image must not depend on which process reads it, in which batch, or whether the
run was stopped in between.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al. 2014): every input bit reaches every output."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _fold(places: tuple[int, ...]) -> NDArray[np.uint64]:
    state = np.zeros(1, np.uint64)
    for place in places:
        state = _mix(state + _STEP + np.uint64(place & 0xFFFFFFFFFFFFFFFF))
    return state


def derive_seed(*places: int) -> int:
    """Give a seed of 63 bits for a place such as (seed, epoch, step)."""
    return int(_fold(places)[0] >> np.uint64(1))


def draw_uniforms(
    seed: int, epoch: int, indices: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    """Draw `count` numbers in [0, 1) for each image of a batch: (images, count)."""
    state = _mix(_fold((seed, epoch)) + _STEP * (indices.astype(np.uint64) + np.uint64(1)))
    steps = _STEP * np.arange(1, count + 1, dtype=np.uint64)
    bits = _mix(state[:, None] + steps[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw_order(
    seed: int, epoch: int, count: int, shares: NDArray[np.float64] | None = None
) -> NDArray[np.int64]:
    """Give the order in which an epoch shows `count` images.

    With `shares`, how often each is wanted relative to the others, they are drawn with replacement.
    """
    generator = np.random.default_rng([seed, epoch, 0x6F72])
    if shares is None:
        return generator.permutation(count)
    return generator.choice(count, size=count, p=shares / shares.sum())
