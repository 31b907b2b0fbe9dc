# SPDX-License-Identifier: Apache-2.0
"""Which JSONs of a folder are COCO's, and of which sets."""

from __future__ import annotations

from collections import defaultdict

from muntin.data.archives import read_bytes
from muntin.data.coco_images import Row
from muntin.data.readers import Source
from muntin.data.trees import PARTS, Tree, part_in, part_of, read_json
from muntin.errors import DataError

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
