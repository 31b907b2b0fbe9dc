# SPDX-License-Identifier: Apache-2.0
"""The values that masks were drawn with, found from those that their files hold.

Smoothing and lossy formats (JPEG) add values along edges. The values that areas have are the levels
that were drawn. Of two levels each pixel takes the nearer; of more, a pixel takes one that is near
enough and is ignored otherwise: between a dark and a light area lie the values of all between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muntin.data.archives import read_bytes
from muntin.data.mask_values import MaskContent, Stored, look_into, measure_distances, read_values
from muntin.errors import DataError, shorten
from muntin.samples import MaskEncoding, Problem

MAX_SAMPLED = 200
"""Masks that are sampled to check their values against a table; without one, five times as many."""

MAX_COLORS = 64
"""More colours than this are not classes: masks were stored lossily, or are photographs."""

NUMBERED = 2**16  # a tolerance: all that is not 0 is an object
WHOLE = 255  # a tolerance: whatever the value, the nearest is taken
_TOLERANCE, _MIN_TOLERANCE = 16, 7
_MIN_SHARE = 0.0002  # of all pixels lie inside areas of a level
_ROUNDING = 2  # decoders round; a value so near to a level is no other one
_MAX_INSIDE = 0.1  # of the pixels that smoothing adds lie inside areas by chance
_MIN_SMOOTHED = 3  # values that no area has
_MAX_CONNECTED, _MOSTLY, _MAX_SIDE = 24, 0.9, 128  # masks; share of areas; cells


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskSample:
    """Some masks of a set: their values as `kind` reads them, and masks that are broken.

    Attributes:
        counts: Pixels of each value; of each level where masks are `smoothed`.
        first: A first mask that holds the value.
        tolerance: As in `MaskEncoding`; 0 where values are as they were drawn.
        numbers: n of each mask whose values are 0 and 1 to n; -1 of others.
    """

    kind: Stored
    counts: Mapping[int, int]
    inside: Mapping[int, int]
    first: Mapping[int, str]
    broken: Mapping[str, str]
    num_masks: int
    lossy: bool
    tolerance: int = 0
    numbers: Sequence[int] = ()


def sample_masks(
    source: str, masks: Sequence[str], *, kind: Stored | None = None, limit: int = MAX_SAMPLED
) -> MaskSample:
    """Look at masks, evenly chosen; without `kind`, they are read in the way that tells most."""
    chosen = masks[:: max(1, len(masks) // limit)]
    broken: dict[str, str] = {}

    def look(mask: str) -> MaskContent | None:
        try:
            return look_into(read_bytes(source, mask), where=mask)
        except (DataError, OSError) as error:
            broken[mask] = str(error)
            return None

    with ThreadPoolExecutor(max_workers=2) as pool:
        looked = zip(chosen, pool.map(look, chosen), strict=True)
        found = {mask: content for mask, content in looked if content is not None}
    kind = kind or _choose_kind([*found.values()])
    counts: Counter[int] = Counter()
    inside: Counter[int] = Counter()
    first: dict[int, str] = {}
    numbers = []
    for mask, content in found.items():
        # Opacity is whole where no channel says otherwise.
        pixels = content.pixels.get(kind) or Counter({255: content.pixels["color"].total()})
        counts.update(pixels)
        inside.update(content.inside.get(kind, {}))
        first = dict.fromkeys(pixels, mask) | first
        drawn = pixels.keys() - {0}
        known = 0 in pixels and drawn == set(range(1, len(drawn) + 1))
        numbers.append(len(drawn) if known else -1)
    return MaskSample(
        kind=kind, counts=counts, inside=inside, first=first, broken=broken,
        num_masks=len(found), lossy=any(content.lossy for content in found.values()),
        numbers=numbers,
    )  # fmt: skip


def _choose_kind(found: Sequence[MaskContent]) -> Stored:
    colors = {color for one in found for color in one.pixels["color"]}
    alphas = {value for one in found for value in one.pixels.get("alpha", ())}
    if len(alphas) > 1 and not 1 < len(colors) <= MAX_COLORS:
        return "alpha"
    palette: dict[int, int] = {}
    for one in found:
        if any(palette.setdefault(index, color) != color for index, color in one.palette.items()):
            return "color"
    return "index" if all("index" in one.pixels for one in found) else "color"


def find_levels(seen: MaskSample, known: Sequence[int] = ()) -> tuple[int, ...]:
    """Give the values that the masks were drawn with; () where they hold no others.

    `known` are those of a table. Masks whose levels cannot be told apart are refused.
    """
    if len(seen.counts) <= 2 or ({*seen.counts} <= {*known} and not seen.lossy):
        return ()
    levels = _find_peaks(seen) if not known else [*known]
    others = [value for value in seen.counts if value not in levels]
    if not seen.lossy:
        inside = sum(seen.inside.get(value, 0) for value in others)
        thin = inside <= _MAX_INSIDE * sum(seen.counts[value] for value in others)
        smoothed = thin and len(others) >= _MIN_SMOOTHED and len(levels) > 1
        return tuple(sorted(levels)) if smoothed and tolerance_of(levels, seen.kind) else ()
    if len(levels) == 1 and seen.kind != "color":  # thin lines have no inside
        levels = [min(seen.counts), max(seen.counts)]
    unsure = seen.kind == "color" and not known  # colour is stored at half the resolution
    if unsure or len(levels) < 2 or not tolerance_of(levels, seen.kind):
        message = (
            f"Masks that are stored with loss (JPEG) must have classes of far different values, "
            f"got {shorten(sorted(levels), limit=8)} with {len(seen.counts)} values around them, "
            f"such as in {next(iter(seen.first.values()))!r}: classes cannot be told apart. Store "
            f"masks without loss (PNG), from their source"
            f"{', or name the colours in a classes.json' if unsure else ''}."
        )
        raise DataError(message)
    return tuple(sorted(levels))


def _find_peaks(seen: MaskSample) -> list[int]:
    """Values that areas have, the largest first."""
    total = sum(seen.counts.values())
    peaks: list[int] = []
    for value, count in Counter(seen.inside).most_common():
        if count < _MIN_SHARE * total or len(peaks) > MAX_COLORS:
            break
        if not peaks or measure_distances([value], peaks, seen.kind).min() > _ROUNDING:
            peaks.append(value)
    return peaks


def tolerance_of(levels: Sequence[int], kind: Stored) -> int:
    """Give the tolerance that tells levels apart; 0 where they lie too close."""
    distances = measure_distances(levels, levels, kind)
    apart = min((int(d) for row, ds in enumerate(distances) for d in ds[row + 1 :]), default=WHOLE)
    if (apart - 1) // 2 < _MIN_TOLERANCE:
        return 0
    return WHOLE if len(levels) == 2 else min(_TOLERANCE, (apart - 1) // 2)


def gather(seen: MaskSample, levels: Sequence[int], tolerance: int) -> dict[int, int]:
    """Give the pixels of each level, and of values farther from all that areas have."""
    values = [*seen.counts]
    distances = measure_distances(values, levels, seen.kind)
    gathered: Counter[int] = Counter()
    least = _MIN_SHARE * sum(seen.counts.values())
    for value, near, distance in zip(
        values, distances.argmin(axis=1).tolist(), distances.min(axis=1).tolist(), strict=True
    ):
        if distance <= tolerance:
            gathered[levels[near]] += seen.counts[value]
        elif seen.inside.get(value, 0) > least:
            gathered[value] += seen.counts[value]
    return dict(gathered)


def may_number_objects(source: str, masks: Sequence[str], seen: MaskSample) -> bool:
    """Whether every mask holds 1 to n, and nearly each of them is one connected area."""
    if seen.kind != "index" or seen.lossy or min(seen.numbers, default=-1) < 0:
        return False
    if max(seen.numbers) < 2:
        return False
    whole: list[bool] = []
    for mask in masks[:: max(1, len(masks) // _MAX_CONNECTED)]:
        with suppress(DataError, OSError):
            values = read_values(read_bytes(source, mask), where=mask, kind="index")
            whole += [_is_connected(values == value) for value in np.unique(values[values > 0])]
    return sum(whole) >= _MOSTLY * len(whole)


def _is_connected(area: NDArray[np.bool_]) -> bool:
    rows, columns = (np.flatnonzero(area.any(axis=axis)) for axis in (1, 0))
    part = area[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    step = -(-max(part.shape) // _MAX_SIDE)
    for axis in (0, 1):  # a cell is set where any of its pixels is
        part = np.maximum.reduceat(part, np.arange(0, part.shape[axis], step), axis=axis)
    part = np.pad(part, 1)
    reached = np.zeros_like(part)
    reached.flat[part.argmax()] = True
    count = 0
    while (now := int(reached.sum())) > count:
        count = now
        for axis in (0, 1):
            reached |= np.roll(reached, 1, axis) | np.roll(reached, -1, axis)
        reached &= part
    return count == int(part.sum())


def name_value(value: int, kind: str) -> str:
    """Write a value of a mask as people know it.

    Examples:
        >>> name_value(0x3C1098, "color"), name_value(7, "index")
        ('#3C1098', '7')
    """
    return f"#{value:06X}" if kind == "color" else str(value)


def find_strange(seen: MaskSample, encoding: MaskEncoding) -> list[Problem]:
    """A problem if sampled masks have values of no class, or no others."""
    known = {*encoding.values, *encoding.ignored}
    strange = sorted(value for value in seen.counts if value not in known)
    if not strange:
        if any(seen.counts.get(value) for value in encoding.values):
            return []
        what = "no pixel of the sampled masks has a class: nothing to train on or to evaluate"
        return [Problem(file="masks", what=what, severity="error")]
    shown = [name_value(value, encoding.kind) for value in strange]
    share = sum(seen.counts[value] for value in strange) / sum(seen.counts.values())
    what = (
        f"{share:.1%} of the pixels of the sampled masks have values of no "
        f"class, and are ignored: {shorten(shown, limit=8)}, such as {shown[0]} in "
        f"{seen.first[strange[0]]!r}. "
    )
    if len(strange) > MAX_COLORS:
        what += "So many values are the mark of masks stored with loss: store them as PNG"
    else:
        what += f"Name them, or leave them out: data.ignored={shown[0]}"
    return [Problem(file="masks", what=what, severity="error" if share > 0.5 else "warning")]
