# SPDX-License-Identifier: Apache-2.0
"""Images that must not be on both sides of a split: of one patient or video, or copies.

Groups that the user gives (a column `group`, a groups.csv, a pattern) and copies are never parted:
images of equal pixels, and versions of one original (the name before `.rf.`, as Roboflow writes
it). Frames of one video, by their names, and images that are alike (`duplicates`) stay together
too, unless that leaves no choice: where more than half of the images are such a group, or all
images of a class, it is cut into runs of neighbours by name, a video into scenes.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from muntin.data.archives import is_packed
from muntin.data.duplicates import ImageHash, find_alike, hash_files
from muntin.data.splitting import describe_split, split
from muntin.data.trees import by_numbers, clean_name, open_tree, part_in, read_text
from muntin.errors import ConfigError, DataError, plural, shorten
from muntin.samples import Listing

MAX_HASHED = 100_000
"""Images up to which a split looks for those that are alike; of more, names alone are compared."""

TABLE = "groups.csv"
IDENTICAL, VERSIONS = "with equal pixels", "versions of one original (.rf.)"
FRAMES, ALIKE = "frames of one video, by their names", "that look alike"

_FIRMLY = (IDENTICAL, VERSIONS)
_FEWEST = 8  # images of a class from which a group that holds them all is cut

_VERSION = re.compile(r"(.+)\.rf\.[0-9A-Za-z_-]+")
_SUFFIX_IN_NAME = re.compile(r"_(?:jpe?g|png|bmp|webp|tiff?)$", re.IGNORECASE)
_LAST_NUMBER = re.compile(r"(.*?)\d+\D*")
_FRAME = re.compile(
    r"(?:(?<![a-z])(?:frames?|frm)[\W_]*|[\W_](?:mp4|avi|mov|mkv|webm|m4v|mpe?g)[\W_]+"
    r"|(?<![a-z])(?:videos?|vid|clip|movie|sequence|seq)[\W_]*\d+[\W_]+)$"
)
_VIDEO_FOLDER = re.compile(r"(?:videos?|vid|clip|movie|sequence|seq)[\W_]*\d+")

Keys = Sequence[Hashable | None]
"""Images with equal keys belong together; None belongs to none."""


def find_relations(
    paths: Sequence[str], hashes: Sequence[ImageHash | None]
) -> dict[str, list[Hashable | None]]:
    """Give the keys of images, for each kind of relation between them."""
    seen: dict[bytes, int] = {}
    for one in hashes:
        if one is not None:
            seen.setdefault(one.digest, len(seen))
    unique = {one.digest: one.values for one in hashes if one is not None}
    alike: list[Hashable | None] = [None] * len(paths)
    if unique:
        numbers = find_alike(np.stack([*unique.values()])).tolist()
        common = {number for number, count in Counter(numbers).items() if count > 1}
        of_digest = {d: n for d, n in zip(unique, numbers, strict=True) if n in common}
        alike = [None if one is None else of_digest.get(one.digest) for one in hashes]
    return {
        IDENTICAL: [None if one is None else one.digest for one in hashes],
        VERSIONS: [original_of(path) for path in paths],
        FRAMES: [video_of(path) for path in paths],
        ALIKE: alike,
    }


def original_of(path: str) -> str | None:
    """Name the original of a version, whatever set its folder is of; None for other names.

    Examples:
        >>> original_of("train/images/cow_jpg.rf.0a1b2c.jpg"), original_of("train/cow.jpg")
        ('images/cow_jpg', None)
    """
    folder, stem = _place_of(path)
    found = _VERSION.fullmatch(stem)
    return f"{folder}{found[1]}" if found else None


def video_of(path: str) -> str | None:
    """Name the video whose frame an image is, if its name says so.

    Examples:
        >>> video_of("val/cow_frame_0012.png"), video_of("clip 3/07.png"), video_of("IMG_012.png")
        ('cow_frame_', 'clip 3/', None)
    """
    folder, stem = _place_of(path)
    if version := _VERSION.fullmatch(stem):
        stem = version[1]
    number = _LAST_NUMBER.fullmatch(_SUFFIX_IN_NAME.sub("", stem))
    if number is None:
        return None
    if _VIDEO_FOLDER.fullmatch(folder.rstrip("/").rpartition("/")[2].lower()):
        return folder
    start = f"{folder}{number[1]}"
    return start if _FRAME.search(start.lower()) else None


def _place_of(path: str) -> tuple[str, str]:
    """The folders of a path that do not name a set, and its name without the ending."""
    *folders, name = path.split("/")
    kept = "".join(f"{folder}/" for folder in folders if not part_in(folder))
    return kept, name.rpartition(".")[0]


def give_groups(listing: Listing, groups: str, notes: list[str]) -> Listing:
    """Set the groups that a groups.csv or a pattern gives; those of annotations stay otherwise.

    `groups` is "auto", "none" or a regular expression for paths: what its brackets hold, or all
    that fits, is the group. A groups.csv has the columns path and group.
    """
    paths = dict.fromkeys(entry.path for entry in listing.entries)
    if groups in ("auto", "none"):
        found, origin = _read_table(listing.source, paths), TABLE
    else:
        found, origin = _match(groups, paths), "data.groups"
    if not found:
        return listing
    if lacking := [path for path in paths if path not in found]:
        notes.append(f"{origin} names no group for {len(lacking)}: {shorten(lacking, limit=3)}")
    count = plural(len(set(found.values())), "group")
    notes.append(f"{count} of images from {origin}")
    entries = (replace(one, group=found.get(one.path, one.group)) for one in listing.entries)
    return replace(listing, entries=tuple(entries))


def _match(pattern: str, paths: Iterable[str]) -> dict[str, str]:
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        message = (
            f"data.groups must be auto, none or a regular expression, got {pattern!r}: {error}."
        )
        raise ConfigError(message) from error
    found = {path: hit for path in paths if (hit := wanted.search(path))}
    if not found:
        message = (
            f"data.groups must fit the paths of images, got {pattern!r}, which fits none of "
            f"{shorten(paths, limit=3)}. Example: ([^/]+)_[0-9]+"
        )
        raise ConfigError(message)
    return {path: "/".join(filter(None, hit.groups())) or hit[0] for path, hit in found.items()}


def _read_table(source: str, paths: Iterable[str]) -> dict[str, str]:
    """The group of each image that a groups.csv names, by its path or the end of it."""
    if is_packed(source):  # the groups are in its index
        return {}
    tree = open_tree(source)
    place = next((name for name in tree.files if name.rpartition("/")[2].lower() == TABLE), None)
    if place is None:
        return {}
    rows = csv.DictReader(io.StringIO(read_text(source, place)))
    columns = {name.strip().lower(): name for name in rows.fieldnames or () if name}
    if not {"path", "group"} <= columns.keys():
        message = (
            f"{place!r} must have the columns path and group, got {shorten(columns) or 'none'}. "
            f"Correct its first line."
        )
        raise DataError(message)
    named = {
        clean_name(row[columns["path"]] or ""): (row[columns["group"]] or "").strip()
        for row in rows
    }
    ends: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        parts = path.split("/")
        for start in range(len(parts)):
            ends["/".join(parts[start:])].append(path)
    found = {ends[name][0]: group for name, group in named.items() if len(ends[name]) == 1}
    if not found:
        message = (
            f"{place!r} must name images by their paths, got {shorten(named, limit=3) or 'none'}; "
            f"the images are {shorten(paths, limit=3)}. Correct its column path."
        )
        raise DataError(message)
    return found


def split_apart(
    listing: Listing,
    *,
    groups: str,
    fraction: float,
    seed: int,
    hashes: Mapping[str, ImageHash | None] | None = None,
) -> tuple[Listing, Listing, list[str]]:
    """Split as `split` does, but keep groups and copies on one side; give notes on what was kept.

    Where copies leave no split that keeps every class, as few of them as possible are parted.
    `hashes` are those of images by path; without, the files are read.
    """
    notes: list[str] = []
    given = give_groups(listing, groups, notes)
    paths = list(dict.fromkeys(entry.path for entry in given.entries))
    if groups == "none" or len(paths) < 2:
        train, val = split(given, fraction=fraction, seed=seed)
        return train, val, [*notes, describe_split(train, val)]
    if hashes is None and len(paths) > MAX_HASHED:
        notes.append(f"more than {MAX_HASHED} images: copies are recognised by their names alone")
        hashes = {}
    if hashes is None:
        hashes = dict(zip(paths, hash_files(given.source, paths), strict=True))
    relations = find_relations(paths, [hashes.get(path) for path in paths])
    group_of = {entry.path: entry.group or None for entry in given.entries}
    firm = _join([[group_of[path] for path in paths], *(relations[kind] for kind in _FIRMLY)])
    every = _join([firm, relations[FRAMES], relations[ALIKE]])
    cut = list(_cut(paths, firm, every, _class_of(given), fraction))
    ways = [(cut, ""), (firm, "there are too few others: images that look alike are on both sides")]
    for numbers, caution in ways:
        try:
            train, val = split(_with_groups(given, paths, numbers), fraction=fraction, seed=seed)
        except DataError:
            continue
        counts = ", ".join(_describe(relations, paths))
        if not caution and cut != every:
            caution = "most images are alike: cut into runs of neighbours by name"
        notes += [f"kept on one side of the split: {counts}"] if counts else []
        notes += [f"{caution} (give groups or --val)"] if caution else []
        return train, val, [*notes, describe_split(train, val)]
    train, val = split(given, fraction=fraction, seed=seed)
    notes.append("there are too few images: copies may be on both sides of the split (--val)")
    return train, val, [*notes, describe_split(train, val)]


def fold_apart(
    listing: Listing, *, groups: str, folds: int, fold: int, seed: int
) -> tuple[Listing, Listing, list[str]]:
    """Divide into `folds` parts of about one size, as `split_apart` does; `fold` is the second.

    One part after the other is split off: the same ones, whichever of them is asked for.
    """
    paths = list(dict.fromkeys(entry.path for entry in listing.entries))
    hashes: Mapping[str, ImageHash | None] = {}
    if groups != "none" and len(paths) <= MAX_HASHED:
        hashes = dict(zip(paths, hash_files(listing.source, paths), strict=True))
    rest, notes = listing, list[str]()
    parts = []
    for left in range(folds, 1, -1):
        rest, part, said = split_apart(
            rest, groups=groups, fraction=1 / left, seed=seed, hashes=hashes
        )
        parts.append(part)
        notes = notes or said[:-1]
    parts.append(rest)
    taken = {(entry.path, entry.instance) for entry in parts[fold - 1].entries}
    rows = enumerate(listing.entries)
    train, val = listing.divide({n for n, one in rows if (one.path, one.instance) in taken})
    return train, val, [*notes, f"fold {fold} of {folds}: {describe_split(train, val)}"]


def _describe(relations: Mapping[str, Keys], paths: Sequence[str]) -> Iterator[str]:
    """Count the images that belong together, for each kind of relation, and name some."""
    for kind, keys in relations.items():
        counts = Counter(key for key in keys if key is not None)
        found = [n for n, key in enumerate(keys) if key is not None and counts[key] > 1]
        if found:
            names = [paths[n] for n in found if keys[n] == keys[found[0]]]
            yield f"{len(found)} images {kind} ({shorten(names, limit=3)})"


def _with_groups(listing: Listing, paths: Sequence[str], numbers: Sequence[int]) -> Listing:
    """The listing with a group for all that are not alone."""
    sizes = Counter(numbers)
    names = {
        path: f"copies {number}"
        for path, number in zip(paths, numbers, strict=True)
        if sizes[number] > 1
    }
    entries = (replace(one, group=names.get(one.path, one.group)) for one in listing.entries)
    return replace(listing, entries=tuple(entries))


def _join(every: Sequence[Keys]) -> list[int]:
    """Number the images such that those which share a key of any kind have one number."""
    numbers = list(range(len(every[0])))

    def root(place: int) -> int:
        while numbers[place] != place:
            numbers[place] = numbers[numbers[place]]
            place = numbers[place]
        return place

    for keys in every:
        first: dict[Hashable, int] = {}
        for place, key in enumerate(keys):
            if key is not None:
                one, other = root(first.setdefault(key, place)), root(place)
                numbers[max(one, other)] = min(one, other)
    return [root(place) for place in range(len(numbers))]


def _class_of(listing: Listing) -> Mapping[str, int]:
    """The class of each image, where images have one each."""
    if listing.multi_label:
        return {}
    return {entry.path: entry.class_ids[0] for entry in listing.entries if entry.class_ids}


def _cut(
    paths: Sequence[str],
    firm: Sequence[int],
    every: Sequence[int],
    class_of: Mapping[str, int],
    fraction: float,
) -> list[int]:
    """Cut the groups that hold too much into runs of what belongs together firmly."""
    numbers = list(every)
    totals = Counter(class_of.values())
    members: dict[int, list[int]] = defaultdict(list)
    for place, number in enumerate(every):
        members[number].append(place)
    for found in members.values():
        counts = Counter(class_of.get(paths[place]) for place in found)
        whole = any(c is not None and n == totals[c] >= _FEWEST for c, n in counts.items())
        if not whole and 2 * len(found) <= len(paths):
            continue
        units: dict[int, list[int]] = defaultdict(list)
        for place in sorted(found, key=lambda place: by_numbers(paths[place])):
            units[firm[place]].append(place)
        run, size = -1, 0
        for unit in units.values():
            if run < 0 or size + len(unit) > max(1, len(found) * fraction):
                run, size = unit[0], 0
            size += len(unit)
            for place in unit:
                numbers[place] = run
    return numbers
