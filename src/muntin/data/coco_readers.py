# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""COCO as a layout of objects and as one of keypoints."""

from __future__ import annotations

from muntin.data.annotation import AnnotationReport, ObjectRequest
from muntin.data.coco import find_coco, read_coco
from muntin.data.coco_keypoints import explain_json
from muntin.data.readers import Reader, Source
from muntin.data.trees import part_in, part_of
from muntin.errors import shorten
from muntin.samples import Listing

__all__ = ["COCO", "COCO_KEYPOINTS"]

_Files = tuple[dict[str, str], list[str]]
"""The JSON of each part, and those that belong to no part."""

_MAX_EXPLAINED = 3


def _recognise(source: Source, *, keypoints: bool = False) -> _Files | None:
    if not source.is_file:
        files, loose = find_coco(source.tree, keypoints=keypoints)
        return (files, loose) if files else None
    if source.suffix != ".json":
        return None
    # A file that the user names is read whatever it looks like: errors then name what is missing.
    part = part_in(source.path.stem) or part_of(source.name.split("/")[:-1]) or "train"
    return {part: source.name}, []


def _recognise_keypoints(source: Source) -> _Files | None:
    return _recognise(source, keypoints=True)


def _read(source: Source, found: _Files, request: ObjectRequest) -> dict[str, Listing]:
    files = _files_of(found, request.findings)
    return read_coco(
        source.tree,
        files,
        request.findings,
        class_names=request.class_names,
        masks=request.masks,
    )


def _read_keypoints(
    source: Source, found: _Files, findings: AnnotationReport
) -> dict[str, Listing]:
    return read_coco(source.tree, _files_of(found, findings), findings, keypoints=True)


def _files_of(found: _Files, findings: AnnotationReport) -> dict[str, str]:
    files, loose = found
    if loose:
        findings.notes.append(f"left out, of no set: {shorten(loose)}")
    return files


def _count(source: Source) -> list[str]:
    names = source.tree.with_suffix(".json")
    return [f"{len(names)} .json, none of them COCO"] if names else []


def _explain(source: Source) -> list[str]:
    names = source.tree.with_suffix(".json")
    return [explain_json(source.tree, name) for name in names[:_MAX_EXPLAINED]]


COCO: Reader[ObjectRequest, dict[str, Listing]] = Reader(
    name="COCO",
    recognise=_recognise,
    read=_read,
    looks_for="COCO (a JSON with images, annotations and categories, such as "
    "annotations/instances_train.json)",
    file="a COCO .json",
    reject=_count,
)

COCO_KEYPOINTS: Reader[AnnotationReport, dict[str, Listing]] = Reader(
    name="COCO",
    recognise=_recognise_keypoints,
    read=_read_keypoints,
    looks_for="COCO (a JSON such as annotations/person_keypoints_train.json)",
    file="a COCO .json",
    reject=_explain,
)
