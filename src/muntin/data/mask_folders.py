# SPDX-License-Identifier: Apache-2.0
"""Masks as files beside the images, and the classes of their values.

Without a table, the values of some masks define them, so that errors are reported before training.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from muntin.data.archives import read_bytes
from muntin.data.mask_layouts import MaskRequest, Pair, Pairs, pair_masks
from muntin.data.mask_levels import (
    MAX_COLORS,
    MAX_SAMPLED,
    NUMBERED,
    WHOLE,
    MaskSample,
    find_levels,
    find_strange,
    gather,
    may_number_objects,
    name_value,
    sample_masks,
    tolerance_of,
)
from muntin.data.mask_tables import (
    MaskTable,
    find_table,
    free_values,
    parse_colors,
    parse_value,
    recognise_camvid,
    table_of_run,
)
from muntin.data.readers import (
    Reader,
    Source,
    count_parts,
    find_reader,
    join_parts,
    name_parts,
    refuse_unknown,
)
from muntin.data.trees import Tree, fold
from muntin.errors import DataError, plural, shorten
from muntin.samples import Classes, DataSets, Entry, Listing, MaskEncoding, Problem, warning

BACKGROUND, FOREGROUND = "background", "foreground"

_KINDS = {"index": "class numbers", "color": "colours", "alpha": "opacities"}

_VOLUMES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd")
_LOSSY = (".jpg", ".jpeg", ".jfif")


def _recognise(source: Source) -> Pairs | None:
    if source.is_file:
        return None
    pairs = pair_masks(source.tree)
    return pairs if pairs.parts else None


def _reject(source: Source) -> list[str]:
    pairs = pair_masks(source.tree)
    reasons = [f"{len(pairs.without_mask)} without a mask, {len(pairs.without_image)} masks alone"]
    if count := len(source.tree.with_suffix(*_VOLUMES)):
        what = "of voxels (NIfTI and the like), which are not read: save their slices as PNG"
        reasons.append(f"{plural(count, 'file')} {what}")
    return reasons


def _read(source: Source, pairs: Pairs, request: MaskRequest) -> DataSets:
    tree, classes, every = source.tree, request.classes, pairs.every
    table = parse_colors(request.colors) or find_table(
        tree, [pair.mask for pair in every], wanted=() if classes is None else classes.names
    )
    if table is None and classes is not None and classes.encoding is not None:
        table = table_of_run(classes, classes.encoding)
    notes: list[str] = []
    seen = _sample(tree.source, every, table, notes)
    table = free_values(table, seen.counts, notes)
    if table is None or (table.values == (0, 1) and classes is not None):
        seen = _merge_objects(tree, every, seen, classes, notes)
    if table is None and seen.kind == "index":
        table = recognise_camvid([pair.mask for pair in every], seen.counts)
    names, encoding = _decide(tree.source, table, seen, notes)
    shifted = _find_shifted(table, seen, encoding.values[:1] == (1,))
    if classes is None or BACKGROUND in classes.names:
        names, encoding = _add_background(names, encoding, seen, notes)
    if extra := tuple(parse_value(value, "data.ignored")[1] for value in request.ignored):
        kept = [i for i, value in enumerate(encoding.values) if value not in extra]
        names = tuple(names[i] for i in kept)
        values = tuple(encoding.values[i] for i in kept)
        encoding = replace(encoding, values=values, ignored=extra)
    if classes is not None:
        names, encoding = follow_classes(names, encoding, classes.names, tree.source)
    listings = {
        part: Listing(
            source=tree.source,
            entries=_entries(found),
            class_names=names,
            multi_label=True,
            encoding=encoding,
        )
        for part, found in pairs.parts.items()
    }
    sizes = count_parts({part: len(found) for part, found in pairs.parts.items()})
    note = f"masks as {_KINDS[encoding.kind]}, {sizes}"
    note += f", {plural(len(names), 'class', 'classes')}: {shorten(names, limit=8)}"
    note += f" (by {table.origin})" if table is not None else ""
    strange = find_strange(seen, encoding) or _find_unlearnable(pairs, seen, encoding)
    said, alone = _name_left_out(pairs)
    left_out = [*(one.what for one in strange), *said]
    return join_parts(
        name_parts(listings),
        [note, *left_out, *pairs.notes, *notes],
        problems=[*strange, *shifted, *alone],
        left_out="; ".join(left_out),
    )


def _name_left_out(pairs: Pairs) -> tuple[list[str], list[Problem]]:
    """Count files that are not read as they are, and name them."""
    alone = [warning(path, "has no mask, left out") for path in pairs.without_mask]
    alone += [warning(path, "is a mask without an image, left out") for path in pairs.without_image]
    said = []
    if pairs.num_channels:
        said.append(f"of several channels _0000 alone is read: {pairs.num_channels} files left out")
        alone.append(warning("imagesTr", said[-1]))
    if count := sum(pair.mask.lower().endswith(_LOSSY) for pair in pairs.every):
        what = "stored as JPEG, which changes values near every edge: store masks as PNG"
        said.append(f"{plural(count, 'mask')} {what}")
        alone.append(warning("masks stored with loss", said[-1]))
    if count := len(pairs.without_mask):
        said.append(f"{plural(count, 'image')} without a mask left out")
    if count := len(pairs.without_image):
        said.append(f"{plural(count, 'mask')} without an image left out")
    return said, alone


def _sample(
    source: str, pairs: Sequence[Pair], table: MaskTable | None, notes: list[str]
) -> MaskSample:
    """Look at the masks; of those that were smoothed or stored with loss, see the levels."""
    kind = table.kind if table is not None and table.kind != "index" else None
    limit = MAX_SAMPLED if table is not None and table.values else 5 * MAX_SAMPLED
    seen = sample_masks(source, [pair.mask for pair in pairs], kind=kind, limit=limit)
    if not seen.counts or (table is not None and table.kind == "index" and seen.kind == "color"):
        return seen
    levels = find_levels(seen, () if table is None else (*table.values, *table.ignored))
    if not levels:
        return seen
    tolerance = tolerance_of(levels, seen.kind)
    shown = shorten((name_value(value, seen.kind) for value in levels), limit=8)
    rule = (
        "each pixel takes the nearer"
        if tolerance == WHOLE
        else (f"a pixel takes one that is at most {tolerance} away, others are ignored")
    )
    notes.append(f"masks were smoothed or stored with loss: of {shown}, {rule}")
    return replace(seen, counts=gather(seen, levels, tolerance), tolerance=tolerance)


def _merge_objects(
    tree: Tree, pairs: Sequence[Pair], seen: MaskSample, classes: Classes | None, notes: list[str]
) -> MaskSample:
    """Make one level of the numbers of objects, where a run did or masks hold nothing else."""
    masks = [pair.mask for pair in pairs]
    texts = [read_bytes(tree.source, name)[:100] for name in tree.with_suffix(".txt")[:1]]
    marked = any("pedmasks" in fold(mask).split("/")[:-1] for mask in masks)
    marked |= any(b"PASCAL Annotation Version" in text for text in texts)
    if classes is not None and classes.encoding is not None:
        merged = classes.encoding.tolerance == NUMBERED
    else:
        merged = may_number_objects(tree.source, masks, seen)
        if merged and not marked and (max(seen.numbers) < 3 or len({*seen.numbers}) == 1):
            merged = False
            notes.append("masks hold 1 to n, one area each: for numbers of objects, use instance")
    if not merged:
        return seen
    notes.append("masks number objects, which are one class here (data.colors gives others)")
    return replace(seen, counts=gather(seen, (0, 1), NUMBERED), tolerance=NUMBERED)


def propose_table(path: str | os.PathLike[str]) -> dict[str, str]:
    """Propose a classes.json: a placeholder name for every colour in masks, most frequent first."""
    _, place, pairs = find_reader(path, (MASK_FOLDERS,), what="masks")
    source = place.tree.source
    seen = sample_masks(source, [pair.mask for pair in pairs.every])
    if seen.kind != "color":
        message = f"Masks in {source!r} must hold colours, got numbers: no table is needed."
        raise DataError(message)
    _refuse_many(seen, source)
    ranked = sorted(seen.counts, key=lambda value: (-seen.counts[value], value))
    return {f"class {number}": name_value(value, "color") for number, value in enumerate(ranked)}


def _decide(
    source: str, table: MaskTable | None, seen: MaskSample, notes: list[str]
) -> tuple[tuple[str, ...], MaskEncoding]:
    if not seen.counts:
        message = (
            f"At least one mask in {source!r} must be readable, got none: "
            f"{next(iter(seen.broken.values()), 'no mask')}"
        )
        raise DataError(message)
    if table is None:
        return _from_values(source, seen, notes)
    if table.kind == "index" and seen.kind == "color":
        held = [name_value(value, seen.kind) for value in sorted(seen.counts)]
        message = (
            f"{table.origin} gives class numbers, but the masks in {source!r} hold colours: "
            f"{shorten(held, limit=6)}. Give each class a colour, in a classes.json beside the "
            f"masks or by --set data.colors=NAME:#RRGGBB,..."
        )
        raise DataError(message)
    unnamed = not {*table.values, *table.ignored} & seen.counts.keys()
    # A number that was written as grey has three equal bytes.
    grey = all(value % 0x010101 == 0 for value in seen.counts)
    if table.kind == "color" and unnamed and grey:
        message = (
            f"{table.origin} gives colours, but the masks in {source!r} hold numbers: "
            f"{shorten(sorted(value & 255 for value in seen.counts), limit=6)}. "
            f"Give numbers: road:1."
        )
        raise DataError(message)
    if not table.values:
        return _number_classes(table, seen, notes)
    ignored = table.ignored
    if table.kind == "index" and 255 not in (*table.values, *ignored) and not seen.tolerance:
        ignored = (*ignored, 255)
    zero = table.kind == "index" and 0 in seen.counts and len(table.values) > 1
    if zero and 0 not in (*table.values, *ignored):
        notes.append(f"0 is in the masks and not in {table.origin}: it is ignored")
        ignored = (*ignored, 0)
    return table.names, _encode(seen, table.values, ignored)


def _encode(
    seen: MaskSample, values: tuple[int, ...], ignored: tuple[int, ...] = ()
) -> MaskEncoding:
    return MaskEncoding(kind=seen.kind, values=values, ignored=ignored, tolerance=seen.tolerance)


def _add_background(
    names: tuple[str, ...], encoding: MaskEncoding, seen: MaskSample, notes: list[str]
) -> tuple[tuple[str, ...], MaskEncoding]:
    """Make a class of the only value beside that of a single class."""
    others = {*seen.counts} - {*encoding.values, *encoding.ignored}
    if len(names) != 1 or len(others) != 1 or names == (BACKGROUND,):
        return names, encoding
    (other,) = others
    shown = name_value(other, encoding.kind)
    notes.append(f"{shown} is all that no class has: it is the class {BACKGROUND}")
    return (BACKGROUND, *names), replace(encoding, values=(other, *encoding.values))


def _number_classes(
    table: MaskTable, seen: MaskSample, notes: list[str]
) -> tuple[tuple[str, ...], MaskEncoding]:
    """Numbers in order; ADE20K and others begin at 1 and keep 0 for what has no class."""
    count, whole = len(table.names), tuple(sorted(seen.counts))
    without = tuple(value for value in whole if value != 255 or seen.tolerance)
    most = max(without, default=0)
    chosen = without if most > count and len(without) == count else whole
    if len(chosen) == count and not any(0 < value < count for value in chosen):
        notes.append(f"{table.origin} names the values {shorten(chosen, limit=8)} in this order")
        rest = () if 255 in chosen or seen.tolerance else (255,)
        return table.names, _encode(seen, chosen, rest)
    if count == 1 and len(whole) == 2:
        return table.names, _encode(seen, whole[1:])
    start = int(most == count)
    if start:
        notes.append(f"values go to {most} and {table.origin} names {count}: 0 is ignored")
    values = tuple(range(start, start + count))
    ignored = tuple(value for value in ((0, 255) if start else (255,)) if value not in values)
    return table.names, _encode(seen, values, ignored)


def _from_values(
    source: str, seen: MaskSample, notes: list[str]
) -> tuple[tuple[str, ...], MaskEncoding]:
    """Classes are the values that occur; of two, the lower or black one is the background."""
    values = tuple(sorted(seen.counts))
    colored = seen.kind == "color"
    if colored:
        _refuse_many(seen, source)
    void = 255 in values and len(values) > 2 and not (colored or seen.tolerance)
    numbers = tuple(value for value in values if value != 255) if void else values
    if not colored and (len(numbers) > MAX_COLORS and len(numbers) < max(numbers) / 2):
        message = (
            f"Masks must hold class numbers, got {len(numbers)} values up to {max(numbers)} in "
            f"{source!r}, such as in {seen.first[max(numbers)]!r}. Are these masks of classes, "
            f"and stored without loss (PNG)?"
        )
        raise DataError(message)
    ignored = () if colored or seen.tolerance or 255 in numbers else (255,)
    shown = [name_value(value, seen.kind) for value in numbers]
    if len(numbers) == 2 and not (colored and numbers[0]):
        advice = f"data.ignored={shown[1]} otherwise"
        if seen.tolerance != NUMBERED:
            both = f"masks hold {shown[0]} and {shown[1]}"
            notes.append(f"{both}: background and foreground ({advice})")
        return (BACKGROUND, FOREGROUND), _encode(seen, numbers, ignored)
    if colored:
        notes.append(
            "classes have the names of their colours; a classes.json beside the images gives "
            f'others: {{"road": "{shown[-1]}", ...}}'
        )
        return tuple(shown), _encode(seen, numbers)
    notes.append(
        "classes have the numbers that occur for names, 0 among them (data.ignored=0 if it is no "
        "class); a classes.txt or classes.json beside the images gives others"
    )
    return tuple(f"class {number}" for number in numbers), _encode(seen, numbers, ignored)


def _refuse_many(seen: MaskSample, source: str) -> None:
    if len(seen.counts) <= MAX_COLORS:
        return
    message = (
        f"Masks must hold a few colours, one a class, got {len(seen.counts)} in {seen.num_masks} "
        f"masks of {source!r}. Store them without loss and without smoothing (PNG, not JPEG)."
    )
    raise DataError(message)


def follow_classes(
    names: tuple[str, ...], encoding: MaskEncoding, wanted: tuple[str, ...], source: str
) -> tuple[tuple[str, ...], MaskEncoding]:
    """Order the classes as a trained run does."""
    advice = "Rename them, or leave out what they are stored as: --set data.ignored=VALUE"
    refuse_unknown([name for name in names if name not in wanted], wanted, repr(source), advice)
    value_of = dict(zip(names, encoding.values, strict=True))
    # A class that this data does not have gets a value that no file holds.
    values = tuple(value_of.get(name, -1 - i) for i, name in enumerate(wanted))
    return wanted, replace(encoding, values=values)


def _entries(pairs: Sequence[Pair]) -> tuple[Entry, ...]:
    several = len({one.folder for one in pairs}) > 1
    return tuple(
        Entry(path=one.image, mask=one.mask, group=one.folder if several else "") for one in pairs
    )


def _find_unlearnable(pairs: Pairs, seen: MaskSample, encoding: MaskEncoding) -> list[Problem]:
    """An error if all masks were looked at, and those to train on have no pixel of a class."""
    part, found = next(iter(pairs.parts.items()))  # train, where there is one
    masks = {pair.mask for pair in found}
    every = seen.num_masks == len(pairs.every) and seen.first.keys() == seen.counts.keys()
    if not every or any(seen.first.get(value) in masks for value in encoding.values):
        return []
    return [Problem(file=part, what="no pixel has a class: nothing to learn", severity="error")]


def _find_shifted(table: MaskTable | None, seen: MaskSample, from_1: bool) -> list[Problem]:
    """A warning where a list has no name for 0: if it lacks another, all names are shifted."""
    if table is None or table.values or not from_1 or not seen.counts.get(0):
        return []
    total = sum(seen.counts.values())
    counts = ((name, seen.counts.get(value, 0)) for value, name in enumerate(table.names, 1))
    shares = shorten((f"{name!r} {count / total:.1%}" for name, count in counts), limit=8)
    what = (
        f"{table.origin} has one name less than there are values, so 0 is ignored and 1 is the "
        f"first: {shares} of the pixels. If another name is missing, these are shifted: add it"
    )
    return [warning("masks", what)]


MASK_FOLDERS: Reader[MaskRequest, DataSets] = Reader(
    name="masks",
    recognise=_recognise,
    read=_read,
    looks_for="folders such as images and masks with the same names below them (also train and "
    "trainannot, imagesTr and labelsTr), names such as 7.jpg and 7_mask.png",
    reject=_reject,
)
