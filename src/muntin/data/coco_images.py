# SPDX-License-Identifier: Apache-2.0
"""Which JSONs of a folder are COCO's, of which sets, and where their images are.

`file_name` may be a bare name, hold folders that are there or that were there on another machine,
or be a URL. The longest end of it that fits a file counts; among files that fit equally well, the
one in a folder of the same set, not of masks or drawings, then the one where most others are. Two
files that fit equally well in all of this are refused.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from muntin.data.archives import read_bytes
from muntin.data.mask_layouts import rank_of_images
from muntin.data.objects import AnnotationReport
from muntin.data.readers import Source
from muntin.data.trees import PARTS, Tree, clean_name, fold, part_in, part_of, read_json, take_best
from muntin.errors import DataError, plural, shorten
from muntin.shapes import Size

Row = dict[str, Any]
Id = int | str


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image of a JSON; `path` is empty when it is not there."""

    path: str
    size: Size


class _Place(NamedTuple):
    """A file that may be meant: how many parts of its name fit, and the folder before them."""

    path: str
    fit: int
    root: str


def plain_id(value: object) -> Id | None:
    """Bring an id to one form, whether it was written as 7, 7.0 or "7"; None when it is none.

    Examples:
        >>> plain_id("7"), plain_id(7.0), plain_id("a7"), plain_id(None)
        (7, 7, 'a7', None)
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        return int(value) if str(int(value)) == value else value
    return value if isinstance(value, int | str) else None


def find_images(
    images: Sequence[Any], tree: Tree, json_path: str, part: str, findings: AnnotationReport
) -> dict[Id, ImageRecord]:
    """Find each image of a JSON, by id; `part` is the set that it describes.

    Images that are not there, or are there twice, are noted; two ids of one file share its image.
    """
    rows = _name_rows(images, json_path)
    if len(rows) < len(images):
        keys = Counter(plain_id(row["id"]) for row in images)
        twice = shorten((key for key, count in keys.items() if count > 1), limit=5)
        findings.warn(json_path, f"several images have the id {twice} and one file: taken as one")
    names = [name for name, _ in rows.values()]
    wanted = "" if "trainval" in json_path.lower() else part
    paths = match_names([clean_name(name) for name in names], tree, json_path, wanted)
    missing = [name for name, path in zip(names, paths, strict=True) if not path]
    if missing and len(missing) == len(rows):
        advice = "Give the folder that holds both the JSON and the images."
        if all(re.search(r"#\d+$", name) for name in missing):
            advice = (
                "These are frames of a video, which are no files: muntin predict with --format "
                "coco,yolo writes them, too."
            )
        message = (
            f"The images that {json_path!r} names must lie in {str(tree.source)!r}, got none of "
            f"{len(rows)} there, the first is {missing[0]!r}. {advice}"
        )
        raise DataError(message)
    if missing:
        first = shorten((repr(name) for name in missing), limit=2)
        several = plural(len(missing), "image")
        findings.notes.append(f"{several} of {json_path} not there ({first})")
    findings.named.update(filter(None, paths))
    found: dict[Id, ImageRecord] = {}
    by_path: dict[str, ImageRecord] = {}
    for (key, (name, row)), path in zip(rows.items(), paths, strict=True):
        if not path:
            findings.warn(name, f"not there, left out; {json_path} names it")
            found[key] = ImageRecord("", (0, 0))
        elif path in by_path:
            findings.warn(path, f"twice in images of {json_path}; its annotations are joined")
            found[key] = by_path[path]
        else:
            found[key] = by_path[path] = _measure(row, path, tree, findings)
    return found


def _name_rows(images: Sequence[Any], json_path: str) -> dict[Id, tuple[str, Row]]:
    rows: dict[Id, tuple[str, Row]] = {}
    for number, row in enumerate(images):
        key = plain_id(row.get("id")) if isinstance(row, dict) else None
        # LVIS has the address only.
        name = row.get("file_name", row.get("coco_url")) if isinstance(row, dict) else None
        if key is None or not isinstance(name, str) or not name:
            message = (
                f"Every image must have an id and a file_name, got {row} as images[{number}] of "
                f"{json_path!r}. Correct the file."
            )
            raise DataError(message)
        other = rows.setdefault(key, (name, row))[0]
        if other != name:
            message = (
                f"Every image must have an id of its own, got {key!r} for "
                f"{other!r} and {name!r} in {json_path!r}. Correct the file."
            )
            raise DataError(message)
    return rows


def match_names(names: list[str], tree: Tree, json_path: str, part: str) -> list[str | None]:
    """Find the image of each name, as `clean_name` gives it; None where it is not there.

    `json_path` is the file that holds the names, `part` the set that it describes; or "".
    """
    folded = [fold(name) for name in names]
    alike = Counter(name.rpartition("/")[2] for name in folded)
    places = [_places(name, tree, alone=alike[name.rpartition("/")[2]] == 1) for name in folded]
    fitting = Counter(place.root for found in places for place in found)
    home = json_path.split("/")[:-1]

    def is_foreign(root: str) -> bool:
        other = part_of(root.split("/"))
        return bool(part and other and other != part)

    def near(root: str) -> int:
        return sum(a == b for a, b in zip(root.split("/"), home, strict=False))

    kinds = {root: rank_of_images(root) for root in fitting}
    rivals = [{place.root for place in found} for found in places]
    drawn = {r for many in rivals for r in many if kinds[r] < 0 <= max(kinds[o] for o in many)}
    ranks = {root: (kinds[root], count, near(root)) for root, count in fitting.items()}
    # Names that other sets or masks have too must not be found there when they are missing here.
    places = [
        [p for p in found if not is_foreign(p.root) and p.root not in drawn] for found in places
    ]

    def best(name: str, found: list[_Place]) -> str | None:
        ranked = [((p.path.endswith(name), *ranks[p.root]), p.path) for p in found]
        return take_best(name, ranked, tree.source)

    return [best(name, found) for name, found in zip(names, places, strict=True)]


def _places(name: str, tree: Tree, *, alone: bool) -> list[_Place]:
    """The files whose names fit best, from the end; `alone`: the file name alone is unique."""
    parts = name.split("/")
    found = []
    for path in tree.by_name.get(parts[-1], ()):
        have = path.split("/")
        fit = 1
        for mine, theirs in zip(parts[-2::-1], have[-2::-1], strict=False):
            if mine != fold(theirs):
                break
            fit += 1
        if alone or fit == len(parts) or fit > 1:
            found.append(_Place(path, fit, "/".join(have[: len(have) - fit])))
    most = max((place.fit for place in found), default=0)
    return [place for place in found if place.fit == most]


def _measure(row: Row, path: str, tree: Tree, findings: AnnotationReport) -> ImageRecord:
    sides = plain_id(row.get("height")), plain_id(row.get("width"))
    if all(isinstance(side, int) and side > 0 for side in sides):
        return ImageRecord(path, (int(sides[0] or 0), int(sides[1] or 0)))
    size = findings.size_of(tree.source, path, why="its size is not in the JSON, and ")
    return ImageRecord("", (0, 0)) if size is None else ImageRecord(path, size)


# Other files that lie beside the instances of COCO.
_OTHER_KINDS = ("captions_", "image_info_", "panoptic_", "stuff_")
_MAX_TO_OPEN = 24
_KEYS_OF_OTHERS = (b'"shapes"', b'"regions"', b'"original_width"', b'"rectanglelabels"')
_KEYS = ("images", "annotations", "categories")

Files = tuple[dict[str, list[str]], list[str]]
"""The JSONs of each part, and those that belong to no part."""


def recognise(source: Source, *, keypoints: bool = False) -> Files | None:
    """Find the JSONs of a data set; None if it has none."""
    if not source.is_file:
        files, loose = _find(source.tree, keypoints)
        return (files, loose) if files else None
    if source.suffix != ".json":
        return None
    data = read_bytes(str(source.path.parent), source.path.name)
    if b'"categories"' not in data and any(key in data for key in _KEYS_OF_OTHERS):
        return None
    # Any other file that the user names is read as COCO: errors then name what is missing.
    part = part_in(source.path.stem) or part_of(source.name.split("/")[:-1]) or "train"
    return {part: [source.name]}, []


def _find(tree: Tree, keypoints: bool) -> Files:
    """The JSONs of each set; those of keypoints if wanted."""
    every = [
        name
        for name in tree.with_suffix(".json")
        if not name.rpartition("/")[2].lower().startswith(_OTHER_KINDS)
    ]
    if len(every) > _MAX_TO_OPEN:  # one per image, as LabelMe writes them
        every = [name for name in every if "coco" in name.lower() or _is_named_like_coco(name)]
    found = [name for name in every if _is_named_like_coco(name) or _looks_like_coco(tree, name)]
    by_part: dict[str, list[str]] = defaultdict(list)
    for name in found:
        *folders, file = name.split("/")
        by_part[part_in(file.rpartition(".")[0]) or part_of(folders)].append(name)
    if len(found) == 1:
        (part,) = by_part
        return {part or "train": found}, []
    parts = {part: _choose(by_part[part], keypoints) for part in PARTS if part in by_part}
    loose = by_part[""]
    if loose and not parts:
        parts, loose = {"train": _choose(loose, keypoints)}, []
    return parts, loose


def _is_named_like_coco(path: str) -> bool:
    name = path.rpartition("/")[2].lower()
    return name.startswith(("instances", "person_keypoints")) or name.endswith("coco.json")


def _looks_like_coco(tree: Tree, path: str) -> bool:
    data = read_bytes(tree.source, path)
    return b'"images"' in data and b'"annotations"' in data


def _choose(files: list[str], keypoints: bool) -> list[str]:
    """The files of a part: objects of all classes, unless keypoints are wanted."""
    wanted = "person_keypoints" if keypoints else "instances"
    named = [name for name in files if name.rpartition("/")[2].lower().startswith(wanted)]
    return named or files


def explain(tree: Tree, path: str) -> str:
    """Explain why a JSON is not recognised as COCO."""
    try:
        if not read_bytes(tree.source, path).strip():
            return f"{path!r} is empty"
        values = read_json(tree.source, path)
    except DataError:
        return f"{path!r} is no JSON that is whole"
    if not isinstance(values, dict):
        return f"{path!r} holds a {type(values).__name__}, not an object with images"
    return f"{path!r} has {name_lacking(values)}"


def name_lacking(values: Row) -> str:
    """Name the lists that a COCO JSON must have and this one lacks; "" if none."""
    lacking = [key for key in _KEYS if not isinstance(values.get(key), list)]
    return f"no {' and no '.join(lacking)}" if lacking else ""
