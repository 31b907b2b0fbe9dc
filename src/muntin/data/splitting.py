# SPDX-License-Identifier: Apache-2.0
"""Take a part of a listing away for validation, the same part each time.

Chance comes from a hash of (seed, path), not from a stream of random numbers: the order in which
the disk names the files does not matter, and an image that is added later moves few others.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass

from muntin.data.entry_images import is_readable
from muntin.errors import ConfigError, DataError, plural
from muntin.samples import Entry, Listing

_TRIALS = 8  # orders that are tried for small sets
_EFFORT = 40_000  # units looked at, in all orders; large sets come out even in one


@dataclass(frozen=True, kw_only=True, slots=True)
class _Unit:
    """Images that stay together, and how many of each class they hold."""

    members: tuple[int, ...]
    counts: tuple[tuple[int, int], ...]  # class, images; every image counts for _ANY too


_ANY = -1  # an image of any class


def split(listing: Listing, *, fraction: float, seed: int) -> tuple[Listing, Listing]:
    """Part a listing in two, in its order, every class in about the same proportion.

    Every class keeps at least one image in the first part. Images of one group go to the same part;
    then, as for multi-label data, the proportions are met as nearly as a search finds. `fraction`
    goes to the second part; that nothing can be taken without emptying a class is a DataError.

    Examples:
        >>> entries = tuple(Entry(path=f"{i}.png", class_ids=(i % 2,)) for i in range(10))
        >>> whole = Listing(source="set", entries=entries, class_names=("a", "b"))
        >>> [part.class_counts for part in split(whole, fraction=0.2, seed=0)]
        [(4, 4), (1, 1)]
    """
    if not 0 < fraction < 1:
        message = f"fraction must lie between 0 and 1, got {fraction}. Try 0.1."
        raise ConfigError(message)
    grouped = any(entry.group for entry in listing.entries)
    if grouped or listing.multi_label:
        taken = _take_units(listing, fraction, seed)
    else:
        taken = _take_by_class(listing, fraction, seed)
    if not taken:
        count = len({entry.group for entry in listing.entries}) if grouped else len(listing)
        what = "group" if grouped else "image"
        message = (
            f"{plural(len(listing), 'image')} in {listing.source!r} cannot be split for "
            f"validation: every class must keep one {what} to learn from, got "
            f"{plural(count, what)} in all. Add images, or give a validation set yourself (--val)."
        )
        raise DataError(message)
    return listing.divide(taken)


def hold_out(listing: Listing, *, count: int, seed: int) -> tuple[Listing, Listing]:
    """Part a listing without labels in two, in its order, with `count` images in the second.

    If none of these can be read, the second holds as many more as there are up to one that can.
    """
    ranked = sorted(range(len(listing)), key=lambda i: _rank(seed, listing.entries[i].path))
    source, entries = listing.source, [listing.entries[i] for i in ranked]
    first = next((n for n, one in enumerate(entries[:-1]) if is_readable(source, one)), 0)
    taken = set(ranked[: max(count, first + 1)])
    return listing.divide(taken)


def describe_split(train: Listing, val: Listing) -> str:
    """Describe a split in one line."""
    total = len(train) + len(val)
    without = sum(
        not taken and kept > 0
        for kept, taken in zip(train.class_counts, val.class_counts, strict=True)
    )
    groups = [{entry.group for entry in part.entries} - {""} for part in (train, val)]
    text = (
        f"{len(train)} {train.unit} to train on, {len(val)} to validate "
        f"({len(val) / max(total, 1):.1%}), {plural(train.num_classes, 'class', 'classes')}"
    )
    if any(groups):
        text += f", {len(groups[0])} + {len(groups[1])} whole groups"
    if without:
        text += f", {plural(without, 'class', 'classes')} too small to validate"
    return text


def _rank(seed: int, text: str, trial: int = 0) -> bytes:
    key = f"{seed}/{trial}/{text}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(key, digest_size=16).digest()


def _take_by_class(listing: Listing, fraction: float, seed: int) -> set[int]:
    members: dict[int, list[int]] = defaultdict(list)
    for index, entry in enumerate(listing.entries):
        members[entry.class_ids[0]].append(index)
    most = {class_id: len(found) - 1 for class_id, found in members.items()}
    exact = {class_id: len(found) * fraction for class_id, found in members.items()}
    counts = {class_id: min(int(exact[class_id]), most[class_id]) for class_id in members}
    # Largest remainders first, so that the total is right however small the classes are.
    wanted = max(1, round(len(listing) * fraction))
    open_classes = [class_id for class_id in members if counts[class_id] < most[class_id]]
    names = listing.class_names
    open_classes.sort(key=lambda c: (counts[c] - exact[c], _rank(seed, names[c])))
    for class_id in open_classes[: max(0, wanted - sum(counts.values()))]:
        counts[class_id] += 1
    taken: set[int] = set()
    for class_id, found in members.items():
        found.sort(key=lambda index: _rank(seed, listing.entries[index].path))
        taken.update(found[: counts[class_id]])
    return taken


def _take_units(listing: Listing, fraction: float, seed: int) -> set[int]:
    units = _gather_units(listing.entries)
    totals: Counter[int] = Counter()
    for unit in units.values():
        totals.update(dict(unit.counts))
    trials = (
        _search(units, totals, fraction, _order(units, totals, seed, trial))
        for trial in range(max(1, min(_TRIALS, _EFFORT // max(1, len(units)))))
    )
    _, chosen = min(trials, key=lambda result: result[0])
    return {index for name in chosen for index in units[name].members}


def _gather_units(entries: tuple[Entry, ...]) -> dict[str, _Unit]:
    members: dict[str, list[int]] = defaultdict(list)
    for index, entry in enumerate(entries):
        members[f"group {entry.group}" if entry.group else f"path {entry.path}"].append(index)
    units = {}
    for name, found in members.items():
        counts = Counter(class_id for index in found for class_id in entries[index].class_ids)
        counts[_ANY] = len(found)
        units[name] = _Unit(members=tuple(found), counts=tuple(sorted(counts.items())))
    return units


def _order(units: dict[str, _Unit], totals: Counter[int], seed: int, trial: int) -> list[str]:
    """By chance, but units of the rarest classes first, while there is still a choice."""
    rarity = {
        name: min(totals[class_id] for class_id, _ in unit.counts) for name, unit in units.items()
    }
    return sorted(units, key=lambda name: (rarity[name], _rank(seed, name, trial)))


def _search(
    units: dict[str, _Unit], totals: Counter[int], fraction: float, order: list[str]
) -> tuple[float, list[str]]:
    """Take what fits, then what brings the counts nearer all the same; return the distance left."""
    taken: Counter[int] = Counter()
    chosen: dict[str, None] = {}

    def gain(name: str) -> float:
        return sum(
            _miss(taken[c] + count, totals[c], fraction) - _miss(taken[c], totals[c], fraction)
            for c, count in units[name].counts
        )

    def fits(name: str) -> bool:
        return all(
            taken[c] + count <= fraction * totals[c] + 0.5 for c, count in units[name].counts
        )

    def leaves_some(name: str) -> bool:
        return all(taken[c] + count < totals[c] for c, count in units[name].counts)

    for wanted in (fits, lambda name: gain(name) < 0):
        for name in order:
            if name not in chosen and wanted(name) and leaves_some(name):
                taken.update(dict(units[name].counts))
                chosen[name] = None
    if not chosen:
        # All units are large: one is better than none.
        possible = [name for name in order if leaves_some(name)]
        for name in sorted(possible, key=gain)[:1]:
            taken.update(dict(units[name].counts))
            chosen[name] = None
    return sum((_miss(taken[c], totals[c], fraction) for c in totals), 0.0), list(chosen)


def _miss(count: int, total: int, fraction: float) -> float:
    return (count - fraction * total) ** 2 / total
