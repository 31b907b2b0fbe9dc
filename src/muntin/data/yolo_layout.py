# SPDX-License-Identifier: Apache-2.0
"""Which images a YOLO data set has, by its `data.yaml` or by its folders.

A `data.yaml` names the classes and, for each set, a folder, a text that lists images, or several
of these, relative to its `path:` or to itself. Its paths are often those of another machine, or
begin with `../` where they should not: what does not exist as it is written is looked for by the
end of its path below the folder of the `data.yaml`.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from muntin.data.image_formats import is_image
from muntin.data.readers import clean_class_name
from muntin.data.trees import (
    Tree,
    clean_name,
    open_tree,
    read_text,
    sort_into_parts,
)
from muntin.errors import DataError, plural, shorten
from muntin.untrusted import parse_yaml

_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_EMPTY = ("", "null", "~")
_NAME_LISTS = ("classes.txt", "obj.names")


class PartLayout(NamedTuple):
    """The images of one part, sorted, where they and their texts are, and how many are absent."""

    tree: Tree
    images: tuple[str, ...]
    absent: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A YOLO data set before its texts are read; `notes` say what was passed over.

    Classes have the numbers that rows give them, in ascending order, perhaps with gaps. With
    `has_keypoints`, rows go on behind the box.
    """

    parts: Mapping[str, PartLayout]
    class_names: Mapping[int, str]
    has_keypoints: bool = False
    notes: tuple[str, ...] = ()


def find_yolo(tree: Tree) -> str | None:
    """Give the `data.yaml` of a data set; "" if it has texts only; None if it is not YOLO."""
    named = [name for name in tree.with_suffix(".yaml", ".yml") if _is_settings(tree, name)]
    usual = [name for name in named if name.rpartition("/")[2] in ("data.yaml", "dataset.yaml")]
    named = usual if len(usual) == 1 else named
    if len(named) > 1:
        message = (
            f"There must be one data.yaml, got {shorten(named)} in {tree.source!r}. "
            f"Give the one that is meant."
        )
        raise DataError(message)
    if named:
        return named[0]
    return "" if any(label_of(image, tree) for image in tree.images) else None


def read_layout(tree: Tree, settings: str) -> Layout:
    """Find the images and class names of a data set; `settings` is its `data.yaml`, or ""."""
    if not settings:
        return Layout(parts=_parts_by_folder(tree), class_names=_read_name_list(tree))
    values = read_settings(tree, settings)
    parts: dict[str, PartLayout] = {}
    notes = []
    for part, keys in _KEYS.items():
        written = _first_of(values, keys)
        if written is None:
            continue
        found = _named_part(part, written, values, tree, settings)
        if found is not None:
            parts[part] = found
            if found.absent:
                notes.append(f"{plural(found.absent, 'image')} listed for {part} not there")
        else:
            notes.append(f"{settings} names {written} for test, which is not there")
    named = {part: _written(_first_of(values, keys)) for part, keys in _KEYS.items()}
    if _same_images(parts) and set(named["val"]) <= set(named["train"]):
        notes.append(f"{settings} names all images of val for train too: figures of val say little")
    elif _same_images(parts):
        parts = _parts_by_folder(tree)
        if len(parts) < 2:
            message = (
                f"train and val of {settings!r} must be different folders below {tree.source!r}, "
                f"got paths that are not there, or the same images for both. Correct the paths."
            )
            raise DataError(message)
        notes.append(f"the paths in {settings} are not there; sets by the names of the folders")
    names = _read_names(values.get("names"), settings, tree.source)
    if values.get("nc", str(len(names))) not in (str(len(names)), str(max(names) + 1)):
        notes.append(
            f"{settings} has nc: {values['nc']} and names {len(names)} classes; names count"
        )
    return Layout(
        parts=parts or _parts_by_folder(tree),
        class_names=names,
        has_keypoints="kpt_shape" in values,
        notes=tuple(notes),
    )


def _first_of(values: Mapping[str, Any], keys: Sequence[str]) -> Any:  # noqa: ANN401
    return next((values[key] for key in keys if values.get(key, "null") not in _EMPTY), None)


def _written(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def _same_images(parts: Mapping[str, PartLayout]) -> bool:
    """Whether all of val is in train: paths of another machine fit too much."""
    train, val = parts.get("train"), parts.get("val")
    if train is None or val is None or train.tree.source != val.tree.source:
        return False
    return set(val.images) <= set(train.images)


def label_of(image: str, tree: Tree) -> str | None:
    """Find the text of an image: its path with labels for images, else the one beside it."""
    stem = posixpath.splitext(image)[0]
    parts = stem.split("/")
    for place in range(len(parts) - 2, -1, -1):
        if parts[place].lower() in ("images", "jpegimages"):
            found = tree.find("/".join((*parts[:place], "labels", *parts[place + 1 :])) + ".txt")
            if found:
                return found
    return tree.find(f"{stem}.txt")


def read_settings(tree: Tree, settings: str) -> dict[str, Any]:
    """Read the values of a `data.yaml`, all scalars as text."""
    try:
        # Every scalar stays a text: a class may be called no, and yes.
        values = parse_yaml(read_text(tree.source, settings), yaml.BaseLoader)
    except ValueError as error:
        message = (
            f"{settings!r} in {tree.source!r} must be YAML that can be read, got: {error}. "
            f"Correct the file."
        )
        raise DataError(message) from error
    return values if isinstance(values, dict) else {}


def _is_settings(tree: Tree, path: str) -> bool:
    text = read_text(tree.source, path)
    return "names:" in text and any(f"{key}:" in text for key in ("train", "val", "path", "nc"))


def _read_names(names: object, settings: str, source: str) -> dict[int, str]:
    rows = dict(enumerate(names)) if isinstance(names, list) else names
    rows = rows if isinstance(rows, dict) else {}
    cleaned = {
        int(number): clean_class_name(name)
        for number, name in rows.items()
        if str(number).isdecimal()
    }
    if not cleaned or len(cleaned) < len(rows) or len(set(cleaned.values())) < len(cleaned):
        message = (
            f"{settings!r} must give each class a name of its own under names, as a list or by "
            f"number, got {names!r} in {source!r}. Correct the file."
        )
        raise DataError(message)
    return dict(sorted(cleaned.items()))


def _read_name_list(tree: Tree) -> dict[int, str]:
    found = [name for name in tree.files if name.rpartition("/")[2].lower() in _NAME_LISTS]
    lists = {tuple(read_text(tree.source, name).split("\n")) for name in found}
    cleaned = {tuple(name for line in lines if (name := clean_class_name(line))) for lines in lists}
    cleaned.discard(())
    if len(cleaned) != 1:
        got = f"several that differ: {shorten(found)}" if cleaned else "neither"
        message = (
            f"YOLO labels need the names of their classes: a data.yaml with names, or a "
            f"classes.txt with one name a line, got {got} in {tree.source!r}. Write one."
        )
        raise DataError(message)
    (names,) = cleaned
    return _read_names(list(names), found[0], tree.source)


def _parts_by_folder(tree: Tree) -> dict[str, PartLayout]:
    parts, _ = sort_into_parts(tree.images, str)
    return {part: PartLayout(tree, tuple(images)) for part, images in parts.items()}


def _named_part(
    part: str, value: object, values: Mapping[str, Any], tree: Tree, settings: str
) -> PartLayout | None:
    """The images that a `data.yaml` names for a part; None where a test set is not there."""
    written = _written(value)
    base = str(values.get("path") or "")
    images: dict[str, None] = {}
    trees: dict[str, Tree] = {}
    absent = 0
    for one in written:
        outside = _outside(tree, settings, base, one)
        where, found = outside or (tree, _inside(tree, settings, base, one))
        trees[where.source] = where
        absent += found.count("")
        images.update(dict.fromkeys(filter(None, found)))
    if not images and part == "test":  # exporters name one whether there is one or not
        return None
    if not images or len(trees) > 1:
        got = "no image there" if not images else f"several: {shorten(trees)}"
        message = (
            f"{settings!r} names {shorten(written)} for {part}, which must be a folder with "
            f"images or a text that lists them, below one folder, got {got} in {tree.source!r}. "
            f"Correct the path; it is relative to {repr(base) if base else 'the file'}."
        )
        raise DataError(message)
    return PartLayout(trees.popitem()[1], tuple(sorted(images)), absent)


def _outside(
    tree: Tree, settings: str, base: str, written: str
) -> tuple[Tree, Sequence[str]] | None:
    """The images of a folder that exists as written and not below that of the data set."""
    root = Path(os.path.realpath(tree.source))
    if not root.is_dir():
        return None
    named = (root / settings).parent.joinpath(base, written)
    place = Path(os.path.realpath(named))
    inside = Path(os.path.normpath(named)).is_relative_to(root)  # perhaps by a link
    if not place.is_dir() or inside or place.is_relative_to(root):
        return None
    above = [folder for folder in (place, *place.parents) if folder.name.lower() == "images"]
    # Texts lie beside the folder of the images, not in it.
    top = above[0].parent if above else place
    other = open_tree(top)
    return other, other.below(place.relative_to(top).as_posix())


def _inside(tree: Tree, settings: str, base: str, written: str) -> Sequence[str]:
    """The images of a folder or a list below that of the data set; "" for one that is absent."""
    home = settings.rpartition("/")[0]
    literal = posixpath.normpath(posixpath.join(home, base, written))
    found: str | None = literal
    if literal not in tree.folders and literal != "." and literal not in tree.files:
        found = _locate(tree, home, clean_name(f"{base}/{written}"))
    if found is None or not found.lower().endswith(".txt"):
        return tree.below(found) if found is not None else ()
    lines = [*filter(None, map(clean_name, read_text(tree.source, found).splitlines()))]
    folder = found.rpartition("/")[0]
    places = [_locate(tree, home, line) or _locate(tree, folder, line) for line in lines]
    return [place if place and is_image(place) else "" for place in places]


def _locate(tree: Tree, home: str, path: str) -> str | None:
    """The longest end of a path that is a folder or a file below `home`."""
    parts = [part for part in path.split("/") if part]
    for start in range(len(parts)):
        name = "/".join((*([home] if home else []), *parts[start:]))
        if name in tree.folders:
            return name
        if found := tree.find(name):
            return found
    return None
