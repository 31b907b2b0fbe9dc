# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Which subjects a data set has and where their keypoints are, found by looking at it.

COCO keypoints and the CSV files of DeepLabCut are told apart by their files. An entry is about one
subject: of a person in COCO, its box; in a CSV that does not tell individuals apart, the picture.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muntin.data.archives import is_archive
from muntin.data.coco import find_coco, read_coco
from muntin.data.coco_keypoints import explain_json
from muntin.data.deeplabcut import Frame, LabelTable, explain_table, find_tables, read_table
from muntin.data.objects import Annotation, Findings, gather_objects, make_entry
from muntin.data.skeletons import build_skeleton
from muntin.data.trees import PARTS, Tree, open_tree, part_in, part_of, read_size
from muntin.errors import DataError, shorten
from muntin.samples import Classes, DataSets, Entry, Listing, Problem, Skeleton
from muntin.shapes import Size

__all__ = ["is_whole", "list_pose"]

SUBJECT = "subject"
"""Name of the class of a data set that names none."""

_MARGIN = 0.1  # around the points of an individual, relative to their extent


def list_pose(
    path: str | os.PathLike[str], *, classes: Classes | None = None, whole: bool = False
) -> DataSets:
    """List the subjects of a data set and their keypoints.

    What cannot be right is left out and named in `problems`: what `list_detect` leaves out,
    subjects with a wrong number of keypoints or none that is visible, frames that are labelled
    twice, rows with cells that are no numbers. Points outside their picture are not used.

    Args:
        path: A folder, a .zip or .tar, a COCO .json with keypoints, or a CSV of DeepLabCut.
        classes: Those of a trained run, whose order the keypoints follow by name.
        whole: Whether there is one entry a picture, with all its subjects, pictures without any
            included, instead of one a subject.

    Returns:
        The sets; one that stands alone is in `train`, whatever its name. Coordinates are pixels.

    Raises:
        DataError: The path or the layout is wrong, or the keypoints are others than the run's.
    """
    place = Path(path)
    if not str(path).strip() or not place.exists():
        message = (
            f"DATA must be a folder, an archive, a COCO .json or a CSV of DeepLabCut, found "
            f"nothing at {str(path)!r}. Check the path."
        )
        raise DataError(message)
    findings = Findings()
    kind, tree, listings = _read(place, findings)
    skeleton = _finish(tree, listings, findings.notes)
    if classes is not None and classes.skeleton is not None:
        listings = {part: _follow(one, classes, place) for part, one in listings.items()}
    else:
        listings = {part: replace(one, skeleton=skeleton) for part, one in listings.items()}
    if not whole:
        listings = {part: _expand(one) for part, one in listings.items()}
    return _join(kind, listings, findings, whole)


def is_whole(listing: Listing) -> bool:
    """Whether every subject is a whole picture."""
    return all(
        entry.size is not None and entry.box == (0, 0, entry.size[1], entry.size[0])
        for entry in listing.entries
    )


def _read(place: Path, findings: Findings) -> tuple[str, Tree, dict[str, Listing]]:
    """Kind, tree and listings, one entry a picture."""
    suffix = place.suffix.lower()
    if place.is_file() and suffix in (".json", ".csv"):
        tree, name = _tree_of(place)
        if suffix == ".csv":
            return "DeepLabCut", tree, _read_tables(tree, [name], findings)
        part = part_in(place.stem) or part_of(name.split("/")[:-1]) or "train"
        return "COCO", tree, read_coco(tree, {part: name}, findings, keypoints=True)
    if place.is_file() and not is_archive(place):
        message = (
            f"DATA must be a folder, an archive, a COCO .json or a CSV of DeepLabCut, got the file "
            f"{str(place)!r}. Give the folder that holds the annotations and the pictures."
        )
        raise DataError(message)
    tree = open_tree(place)
    jsons, loose = find_coco(tree, keypoints=True)
    if jsons:
        if loose:
            findings.notes.append(f"left out, of no set: {shorten(loose)}")
        return "COCO", tree, read_coco(tree, jsons, findings, keypoints=True)
    if tables := find_tables(tree):
        return "DeepLabCut", tree, _read_tables(tree, tables, findings)
    raise DataError(_describe_nothing(tree))


_EXPLAINED = 3
"""Files of which it is said why they are of no use."""


def _describe_nothing(tree: Tree) -> str:
    jsons, tables = tree.with_suffix(".json"), tree.with_suffix(".csv")
    found = [explain_table(tree, name) for name in tables[:_EXPLAINED]]
    found += [explain_json(tree, name) for name in jsons[: _EXPLAINED - len(found)]]
    why = f": {'; '.join(found)}" if found else ""
    return (
        f"No keypoints in {tree.source!r} ({len(tree.pictures)} pictures, {len(jsons)} .json, "
        f"{len(tables)} .csv){why}. Looked for COCO (a JSON such as "
        f"annotations/person_keypoints_train.json) and DeepLabCut (a CSV whose rows begin with "
        f"scorer, bodyparts and coords). Give the folder that holds the annotations and the "
        f"pictures."
    )


def _tree_of(place: Path) -> tuple[Tree, str]:
    """The folder of a file or one above, where its pictures are, and the file in it."""
    folder = Path(os.path.abspath(place)).parent
    tree = open_tree(folder)
    if tree.pictures or folder.parent == folder:
        return tree, place.name
    return open_tree(folder.parent), f"{folder.name}/{place.name}"


def _read_tables(tree: Tree, paths: Sequence[str], findings: Findings) -> dict[str, Listing]:
    tables = [read_table(tree, path, findings) for path in paths]
    first = tables[0]
    for table in tables[1:]:
        if table.keypoints != first.keypoints:
            message = (
                f"every CSV must have the same body parts, got {shorten(table.keypoints)} in "
                f"{table.path!r} and {shorten(first.keypoints)} in {first.path!r}."
            )
            raise DataError(message)
    by_part: dict[str, list[Entry]] = defaultdict(list)
    seen: dict[str, str] = {}
    for table in tables:
        *folders, file = table.path.split("/")
        part = part_in(file.rpartition(".")[0]) or part_of(folders)
        for frame in table.frames:
            if frame.path in seen:
                detail = f"{frame.path} is in {seen[frame.path]} too"
                findings.leave_out(table.path, frame.where, "duplicate", detail)
                continue
            seen[frame.path] = table.path
            by_part[part].append(_read_frame(tree, table, frame, findings))
    parts = {part: by_part[part] for part in PARTS if part in by_part}
    if "" in by_part:  # what is of no part is learnt from
        parts["train"] = parts.get("train", []) + by_part[""]
    if not parts:
        parts = {"train": []}
    return {
        part: Listing(
            source=tree.source,
            entries=tuple(sorted(entries, key=lambda entry: entry.path)),
            class_names=(SUBJECT,),
            multi_label=True,
            skeleton=Skeleton(names=first.keypoints),
        )
        for part, entries in parts.items()
    }


def _read_frame(tree: Tree, table: LabelTable, frame: Frame, findings: Findings) -> Entry:
    size = read_size(tree.source, frame.path)
    annotations = []
    for number, points in enumerate(frame.subjects):
        if table.individuals and not (points[:, 2] > 0).any():
            continue  # this one is not in the picture
        where = f"{frame.where}, individual {number + 1}" if table.individuals else frame.where
        whole = (0.0, 0.0, float(size[1]), float(size[0]))
        annotations.append(
            Annotation(
                where=where,
                class_id=0,
                box=_box_around(points, size) if table.individuals else whole,
                keypoints=points.ravel().tolist(),
            )
        )
    objects = gather_objects(
        annotations,
        size=size,
        file=table.path,
        findings=findings,
        keypoint_names=table.keypoints,
    )
    return make_entry(frame.path, size, objects)


def _box_around(points: NDArray[np.float64], size: Size) -> tuple[float, float, float, float]:
    """The box of the points and a margin, inside the picture; boxes end where pixels do."""
    known = points[points[:, 2] > 0, :2]
    low, high = known.min(axis=0), known.max(axis=0) + 1
    margin = np.maximum(_MARGIN * (high - low), 0.02 * max(size))
    left, top = np.maximum(low - margin, 0).tolist()
    right, bottom = np.minimum(high + margin, [size[1], size[0]]).tolist()
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _finish(tree: Tree, listings: dict[str, Listing], notes: list[str]) -> Skeleton:
    raw = next(iter(listings.values())).skeleton
    assert raw is not None, "readers of keypoints give their names"
    return build_skeleton(raw.names, raw.links, tree, notes)


def _follow(listing: Listing, classes: Classes, place: Path) -> Listing:
    """Order the keypoints as a trained run does."""
    wanted, have = classes.skeleton, listing.skeleton
    assert wanted is not None, "asked before"
    assert have is not None, "readers of keypoints give their names"
    if sorted(wanted.names) != sorted(have.names):
        missing = [name for name in wanted.names if name not in have.names]
        extra = [name for name in have.names if name not in wanted.names]
        message = (
            f"Keypoints must be the {len(wanted.names)} that the run was trained on, got others in "
            f"{str(place)!r}: missing {shorten(missing) or 'none'}, unknown "
            f"{shorten(extra) or 'none'}."
        )
        raise DataError(message)
    order = [have.names.index(name) for name in wanted.names]
    entries = []
    for entry in listing.entries:
        assert entry.objects is not None, "readers of keypoints give objects"
        assert entry.objects.keypoints is not None, "with keypoints"
        objects = replace(entry.objects, keypoints=entry.objects.keypoints[:, order])
        entries.append(replace(entry, objects=objects))
    return replace(listing, entries=tuple(entries), skeleton=wanted)


def _expand(listing: Listing) -> Listing:
    """One entry a subject that has a visible keypoint; those of a picture stay together."""
    folders = {entry.path.rpartition("/")[0] for entry in listing.entries}
    videos = len(folders) > 1
    entries = []
    for entry in listing.entries:
        rows = list(_subjects_of(entry))
        folder = entry.path.rpartition("/")[0]
        group = folder if videos else entry.path if len(rows) > 1 else ""
        entries += [
            replace(entry, class_ids=(class_id,), group=group, subject=row)
            for row, class_id in rows
        ]
    return replace(listing, entries=tuple(entries))


def _subjects_of(entry: Entry) -> Iterator[tuple[int, int]]:
    """Row and class of each subject that can be learnt from."""
    objects = entry.objects
    if objects is None or objects.keypoints is None:
        return
    visible = (objects.keypoints[:, :, 2] > 0).any(axis=1)
    for row in np.flatnonzero(visible & ~objects.crowd):
        yield int(row), int(objects.class_ids[row])


def _join(kind: str, listings: dict[str, Listing], findings: Findings, whole: bool) -> DataSets:
    sets = dict(listings)
    if len(sets) == 1:
        sets = {"train": next(iter(sets.values()))}
    first = next(iter(sets.values()))
    assert first.skeleton is not None, "set before"
    counts = {part: len({e.path for e in one.entries}) for part, one in listings.items()}
    told = ", ".join(f"{part} {count}" for part, count in counts.items())
    subjects = " + ".join(str(len(listing)) for listing in listings.values())
    note = f"{kind}, {told} picture{'s' * ([*counts.values()] != [1])}"
    if not whole:
        names = first.skeleton.names
        note += f", {subjects} subject{'s' * (subjects != '1')} of {len(names)} keypoints"
    if findings.num_apart:
        boxes = "box holds" if findings.num_apart == 1 else "boxes hold"
        findings.notes.append(f"{findings.num_apart} {boxes} none of the subject's keypoints")
    problems = list(findings.problems())
    subjects_learnt = sum(1 for entry in first.entries for _ in _subjects_of(entry))
    if "train" in sets and not subjects_learnt:
        what = "no subject with a visible keypoint to learn from or to score on: label some"
        problems.insert(0, Problem(file="train", what=what, severity="error"))
    return DataSets(
        train=sets.get("train"),
        val=sets.get("val"),
        test=sets.get("test"),
        note="; ".join(filter(None, [note, findings.summary(), *findings.notes])),
        problems=tuple(problems),
        left_out=findings.summary(),
    )
