# SPDX-License-Identifier: Apache-2.0
"""The images of a data set for semantic segmentation, and their masks.

Masks are files, or are drawn from annotated objects: COCO's polygons and run lengths, YOLO's
polygons. Pixels of no object are "background" then, the first class unless it is ignored.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from muntin.data.checking import CheckedImage, Parts, Report, Summary, check
from muntin.data.data_config import DEFAULTS, DataConfig
from muntin.data.detection import OUTLINED, list_detect
from muntin.data.duplicates import look_in_threads
from muntin.data.mask_folders import BACKGROUND, MASK_FOLDERS
from muntin.data.mask_folders import propose_table as propose_table
from muntin.data.mask_layouts import MaskRequest
from muntin.data.mask_levels import name_value
from muntin.data.mask_values import count_values, read_mask
from muntin.data.packed_sets import PACKED_MASKS
from muntin.data.readers import Reader, Source, find_reader, join_parts, read_layout
from muntin.errors import DataError, plural, shorten
from muntin.samples import Classes, DataSets, Listing, MaskEncoding, Problem, warning


def _recognise(source: Source) -> str | None:
    """The name of the layout of objects."""
    named = (reader.name for reader in OUTLINED if reader.recognise(source) is not None)
    return next(named, None)


def _read(source: Source, found: str, request: MaskRequest) -> DataSets:
    classes, ignored = request.classes, request.ignored
    wrong = [value for value in ignored if value != BACKGROUND]
    if wrong:
        message = (
            f"data.ignored of annotated objects can be {BACKGROUND!r} only, got {shorten(wrong)}. "
            f"Remove the category from the annotations instead."
        )
        raise DataError(message)
    wanted = None if classes is None else classes.names
    if wanted is not None and BACKGROUND not in wanted and not ignored:
        message = (
            f"Classes must be among the {len(wanted)} that the run was trained on "
            f"({shorten(wanted, limit=12)}), but in {str(source.path)!r} what no object covers is "
            f"{BACKGROUND!r}. Leave it out: --set data.ignored={BACKGROUND}"
        )
        raise DataError(message)
    data = list_detect(source.path, class_names=wanted, masks=True)
    parts = {
        part: _as_maps(listing, classes, bool(ignored)) for part, listing in data.parts.items()
    }
    notes = [data.note, "classes of pixels are drawn from the masks of the objects"]
    return join_parts(parts, notes, problems=data.problems, left_out=data.left_out)


def _as_maps(listing: Listing, classes: Classes | None, without_background: bool) -> Listing:
    names = listing.class_names
    if classes is None and not without_background and BACKGROUND not in names:
        names = (BACKGROUND, *names)
    # Objects are numbered as `list_detect` did; a value is the number that an object has.
    value_of = {name: number for number, name in enumerate(listing.class_names)}
    values = tuple(value_of.get(name, -1) for name in names)
    if BACKGROUND in names and not without_background:
        place = names.index(BACKGROUND)
        values = (*values[:place], -1, *values[place + 1 :])
    return replace(listing, class_names=names, encoding=MaskEncoding(kind="objects", values=values))


OBJECT_MASKS: Reader[MaskRequest, DataSets] = Reader(
    name="masks of objects",
    recognise=_recognise,
    read=_read,
    looks_for=f"outlines of objects ({', '.join(one.name for one in OUTLINED if one.looks_for)})",
    file="a COCO .json or a data.yaml",
)

READERS: tuple[Reader[MaskRequest, DataSets], ...] = (
    PACKED_MASKS,
    MASK_FOLDERS,
    OBJECT_MASKS,
)
"""Layouts of masks, in the order in which they are tried."""


def list_semantic(
    path: str | os.PathLike[str],
    *,
    classes: Classes | None = None,
    colors: Sequence[str] = (),
    ignored: Sequence[str] = (),
) -> DataSets:
    """List the images of a data set and their masks.

    `path` is a folder, a .zip or .tar with images and masks; or what `list_detect` takes, where
    objects have masks. `classes` are those of a trained run, by whose names (and, where the data
    has no table, values) masks are read. `colors` and `ignored` are as in `DataConfig`; 255 is
    ignored by default for indices. A single set is in `train`, whatever its name. What is wrong
    with the sampled masks is in `problems`.
    """
    reader, source, found = find_reader(path, READERS, what="masks")
    request = MaskRequest(classes=classes, colors=colors, ignored=ignored)
    data = read_layout(reader, source, found, request)
    names = next(iter(data.parts.values())).class_names
    if classes is None and len(names) == 1:
        what = f"all that has a class is {names[0]!r}: one class is no task, give another a value"
        single = Problem(file="masks", what=what, severity="error")
        return replace(data, problems=(single, *data.problems))
    return data


Pixels = Counter[int]
"""Pixels of each class number; -1 for ignored ones."""


def check_semantic(path: str | os.PathLike[str], reading: DataConfig = DEFAULTS) -> Report:
    """Check a data set of masks, given as to `list_semantic`."""

    def look_at(parts: Parts, seen: Iterable[CheckedImage]) -> Summary:
        problems: list[Problem] = []
        pixels: dict[str, Pixels] = {part: Counter() for part in parts}
        images: dict[str, Counter[int]] = {part: Counter() for part in parts}  # with each class
        looked = look_in_threads(lambda one: (one.part, *_look(parts[one.part], one)), seen)
        for part, counts, found in looked:
            problems += found
            pixels[part] += counts
            images[part].update(counts.keys())
        lines = [_describe(part, one, pixels[part], images[part]) for part, one in parts.items()]
        problems += _judge_classes(parts, pixels)
        num_classes = next(iter(parts.values())).num_classes
        return Summary(problems=problems, lines=lines, counts=[("classes", num_classes)])

    def list_data() -> DataSets:
        return list_semantic(path, colors=reading.colors, ignored=reading.ignored)

    return check("semantic", path, list_data, look_at, reading)


def _look(listing: Listing, one: CheckedImage) -> tuple[Pixels, list[Problem]]:
    entry, encoding = one.entry, listing.encoding
    file = entry.mask or entry.path
    assert encoding is not None, "masks have an encoding"
    try:
        found = read_mask(listing, entry)
    except DataError as error:
        return Counter(), [Problem(file=file, what=str(error), severity="error")]
    problems = []
    high, wide = found.labels.shape
    # Made before the image was turned by its orientation, which is then not applied.
    as_stored = one.facts is not None and one.facts.orientation >= 5 and (wide, high) == one.size
    if (high, wide) != one.size and not as_stored:
        what = (
            f"{high} x {wide} pixels (height x width), its image {entry.path!r} has "
            f"{one.size[0]} x {one.size[1]}: make one of them again"
        )
        problems.append(Problem(file=file, what=what, severity="error"))
    if found.strange:
        total = sum(found.strange.values()) / found.labels.size
        values = shorten(name_value(value, encoding.kind) for value in sorted(found.strange))
        what = f"{total:.1%} of the pixels have a value of no class, ignored: {values}"
        problems.append(warning(file, what))
    counts = Counter(count_values(found.labels))
    if set(counts) <= {-1}:
        problems.append(warning(file, "every pixel is ignored: nothing to learn"))
    return counts, problems


def _judge_classes(parts: Parts, pixels: dict[str, Pixels]) -> Iterator[Problem]:
    part, listing = next(iter(parts.items()))  # train, where there is one
    without = [name for number, name in enumerate(listing.class_names) if not pixels[part][number]]
    if len(without) == len(listing.class_names):
        what = "no pixel has a class: nothing to learn"
        yield Problem(file=part, what=what, severity="error")
    elif without:
        what = f"no pixels in {part} of {shorten(without, limit=12)}: nothing to learn for them"
        yield warning(part, what)


def _describe(part: str, listing: Listing, pixels: Pixels, images: Counter[int]) -> str:
    total = max(pixels.total(), 1)
    shares = (
        f"{name} {pixels[number] / total:.1%} (in {images[number]})"
        for number, name in enumerate(listing.class_names)
    )
    return (
        f"{part}: {plural(len(listing), 'image')}; pixels: {shorten(shares, limit=16)}; ignored "
        f"{pixels[-1] / total:.1%}"
    )
