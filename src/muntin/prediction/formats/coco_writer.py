# SPDX-License-Identifier: Apache-2.0
"""COCO: one JSON of all images that ``COCO()`` reads, and a list that its ``loadRes`` reads.

Masks are run lengths. Keypoints end in 2 where they are sure, else in 0; in the list in their
score. Ids of images and annotations count from 1 in the order of the answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from muntin.prediction.formats.items import (
    Answer,
    Answers,
    FormatContext,
    list_items,
    open_text,
    size_of,
    to_line,
)
from muntin.results import DEFAULT_SCORE_THRESHOLD
from muntin.run_lengths import mask_area
from muntin.samples import skeleton_of

Row = dict[str, Any]


def write_coco(answers: Answers, places: Sequence[Path], context: FormatContext) -> None:
    """Write the JSON and the list, in two passes over the answers."""
    with open_text(places[0]) as file:
        about = to_line({"description": f"predicted by {context.scorer}"})
        file.write(f'{{"info": {about},')
        _write_list(file, "images", _list_images(answers(), context))
        _write_list(file, "categories", iter(_list_categories(context)))
        _write_list(file, "annotations", _list_annotations(answers(), context), end="}\n")
    with open_text(places[1]) as file:
        _write_rows(file, map(_as_result, _list_annotations(answers(), context)))


def _write_list(file: IO[str], key: str, rows: Iterator[Row], end: str = ",") -> None:
    file.write(f'\n"{key}": ')
    _write_rows(file, rows)
    file.write(end)


def _write_rows(file: IO[str], rows: Iterator[Row]) -> None:
    start = "[\n"
    for row in rows:
        file.write(start + to_line(row))
        start = ",\n"
    file.write("[]" if start == "[\n" else "\n]")


def _list_images(answers: Iterator[Answer], context: FormatContext) -> Iterator[Row]:
    for number, answer in enumerate(answers, 1):
        height, width = size_of(answer)
        name = context.image_of(answer)
        yield {"id": number, "file_name": name, "height": height, "width": width}


def _list_categories(context: FormatContext) -> list[Row]:
    rows: list[Row] = [
        {"id": number, "name": name, "supercategory": ""}
        for number, name in enumerate(context.classes.names, 1)
    ]
    if context.kind == "keypoints":
        skeleton = skeleton_of(context.classes)
        for row in rows:
            row["keypoints"] = [*skeleton.names]
            row["skeleton"] = [[first + 1, second + 1] for first, second in skeleton.edges]
    return rows


def _list_annotations(answers: Iterator[Answer], context: FormatContext) -> Iterator[Row]:
    number = 0
    for image, answer in enumerate(answers, 1):
        for item in list_items(answer, context):
            number += 1
            left, top, right, bottom = item.box
            row: Row = {
                "id": number,
                "image_id": image,
                "category_id": item.class_id + 1,
                "bbox": [left, top, round(right - left, 3), round(bottom - top, 3)],
                "area": round((right - left) * (bottom - top), 3),
                "iscrowd": 0,
                "score": item.score,
            }
            if item.mask is not None:
                row |= {"segmentation": item.mask, "area": mask_area(item.mask)}
            if item.keypoints:
                row["score"] = answer["poses"][item.number]["score"]
                sure = [s >= DEFAULT_SCORE_THRESHOLD for _, _, s in item.keypoints]
                row["keypoints"] = [
                    value
                    for (x, y, _), there in zip(item.keypoints, sure, strict=True)
                    for value in (x, y, 2 * there)
                ]
                row |= {"num_keypoints": sum(sure), "scores": [s for _, _, s in item.keypoints]}
            if item.track is not None:
                row["track_id"] = item.track
            yield row


def _as_result(row: Row) -> Row:
    left_out = {"id", "iscrowd"}
    if "segmentation" in row or "keypoints" in row:
        left_out |= {"bbox", "area"}  # `loadRes` would take areas from boxes
    if "keypoints" in row:
        row["keypoints"][2::3] = row.pop("scores")
    return {key: value for key, value in row.items() if key not in left_out}
