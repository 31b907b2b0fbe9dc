# SPDX-License-Identifier: Apache-2.0
"""Tables of all images of a call: JSON; CSV and Parquet, with a row a class, object or keypoint.

An image in which nothing was found has one row, with empty cells. Parquet needs pyarrow
(``pip install 'muntin[parquet]'``).
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from muntin.errors import missing_extra
from muntin.prediction.formats.items import (
    Answer,
    Answers,
    FormatContext,
    list_items,
    open_text,
    size_of,
)
from muntin.staging import finite, format_json, list_json

_IMAGE = {"path": str, "image_height": int, "image_width": int}
_FRAME = {"frame": int, "time": float}
_CLASS = {"class": str, "class_id": int}
_BOX = {"xmin": float, "ymin": float, "xmax": float, "ymax": float}
_COLUMNS: dict[str, dict[str, type]] = {
    "classification": {**_CLASS, "score": float},
    "detection": {**_CLASS, "score": float, **_BOX, "mask": str, "track": int},
    "segmentation": {**_CLASS, "share": float},
    "keypoints": {
        "instance": int, "instance_score": float, **_BOX, "track": int,
        "keypoint": str, "x": float, "y": float, "score": float,
    },
}  # fmt: skip
"""Names and types of the columns behind those of the image, by kind of task."""
_GROUP = 10_000  # rows of Parquet in memory


def write_json(answers: Answers, places: Sequence[Path], context: FormatContext) -> None:
    """Write the list that ``--json`` prints."""
    with open_text(places[0]) as file:
        file.writelines(list_json(format_json(finite(answer)) for answer in answers()))


def write_csv(answers: Answers, places: Sequence[Path], context: FormatContext) -> None:
    """Write a CSV whose first row names the columns."""
    with open_text(places[0]) as file:
        writer = csv.DictWriter(file, columns_of(answers, context), lineterminator="\n")
        writer.writeheader()
        writer.writerows(list_rows(answers(), context))


def write_parquet(answers: Answers, places: Sequence[Path], context: FormatContext) -> None:
    """Write the rows of the CSV with types."""
    arrow = import_arrow()
    types = {str: arrow.string(), int: arrow.int64(), float: arrow.float64()}
    columns = columns_of(answers, context)
    schema = arrow.schema([(name, types[kind]) for name, kind in columns.items()])
    rows = list_rows(answers(), context)
    with arrow.parquet.ParquetWriter(places[0], schema) as writer:
        while group := list(itertools.islice(rows, _GROUP)):
            writer.write_table(arrow.Table.from_pylist(group, schema))


def import_arrow(feature: str = "--format parquet") -> Any:  # noqa: ANN401 (a module without types)
    """Import pyarrow with its Parquet, which a feature needs.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        missing = missing_extra("pyarrow", "parquet", feature)
        raise missing from error
    return pyarrow


def columns_of(answers: Answers, context: FormatContext) -> dict[str, type]:
    """Give names and types of the columns; those of masks and videos only where there are some."""
    columns = {**_IMAGE, **_FRAME, **_COLUMNS[context.kind]}
    rows = list_rows(answers(), context)
    first = next(rows, {})
    # One row of an object tells of all; those of empty images, which may come first, do not.
    every = itertools.chain([first], rows)
    filled = next((row for row in every if row.keys() - {*_IMAGE, *_FRAME}), first)
    optional = {*_FRAME, "mask", "track"} - filled.keys()
    return {name: kind for name, kind in columns.items() if name not in optional}


def list_rows(answers: Iterable[Answer], context: FormatContext) -> Iterator[dict[str, Any]]:
    """Give the rows of answers; what a row does not have is empty."""
    for answer in answers:
        height, width = size_of(answer)
        image = {
            "path": context.seen_from_here(answer["path"]),
            "image_height": height,
            "image_width": width,
            **{name: answer[name] for name in _FRAME if name in answer},
        }
        empty = True
        for row in _list_cells(answer, context):
            empty = False
            yield {**image, **row}
        if empty:
            yield image


def _list_cells(answer: Answer, context: FormatContext) -> Iterator[dict[str, Any]]:
    """The cells of each row behind those of the image."""
    if context.kind == "segmentation":
        for area in answer["semantic"]:
            yield {"class": area["name"], "class_id": area["id"], "share": area["share"]}
        return
    for item in list_items(answer, context):
        cells: dict[str, Any] = {} if item.track is None else {"track": item.track}
        if item.edges is not None:
            cells |= dict(zip(_BOX, item.edges, strict=True))
        if context.kind != "keypoints":
            cells |= {"class": item.name, "class_id": item.class_id, "score": item.score}
            yield cells if item.mask is None else {**cells, "mask": item.mask["counts"]}
            continue
        cells |= {"instance": item.number}
        cells |= {"instance_score": answer["poses"][item.number]["score"]}
        points = zip(answer["keypoint_names"], item.keypoints, strict=True)
        for name, (x, y, score) in points:
            yield {**cells, "keypoint": name, "x": x, "y": y, "score": score}
