# SPDX-License-Identifier: Apache-2.0
"""What writers of every format see: an answer (`to_dict` of a result), and the things in it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from muntin.results import DEFAULT_SCORE_THRESHOLD
from muntin.run_lengths import Edges, RunLengths, box_of
from muntin.samples import Classes, TaskKind
from muntin.shapes import Size
from muntin.staging import finite

Answer = Mapping[str, Any]
"""What `to_dict` of a result gives; of a frame of a video with `frame` and `time` in seconds."""

Answers = Callable[[], Iterator[Answer]]
"""Gives the answers of a call from the first one on, each time that it is called."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FormatContext:
    """Where files are written, and what answers do not say of themselves.

    Attributes:
        folder: Where the files lie; paths in them are seen from it.
        scorer: Name of the run.
        min_score: What scores less is not drawn, cut out or written as an annotation.
        bands: What drawings show of images with more than three, see `open_bands`.
        frames: Folder in which the frames of a video are images, None where they are not.
    """

    folder: Path
    kind: TaskKind
    classes: Classes
    scorer: str
    min_score: float = 0.0
    frames: Path | None = None
    bands: tuple[int, ...] = ()

    def image_of(self, answer: Answer) -> str:
        """Give the path of the image of an answer as seen from here: of a frame its own image."""
        if self.frames is None or "frame" not in answer:
            return self.seen_from_here(answer["path"])
        return self.seen_from_here(str(self.frames / f"{answer['frame']:06}.png"))

    def seen_from_here(self, path: str) -> str:
        """Give a path as seen from the folder, with forward slashes; addresses stay as they are."""
        if "://" in path:
            return path
        try:
            return Path(os.path.relpath(path, self.folder)).as_posix()
        except ValueError:  # on another drive
            return Path(os.path.realpath(path)).as_posix()


class Item(NamedTuple):
    """One object, instance, or area of a class.

    `number` is its place in the answer. `edges` are left, top, right and bottom in pixels as
    predicted, None where the whole image or a mask is all that is known; `box` is there always.
    Keypoints are x, y and score; (0, 0) is the centre of the first pixel. `track` is its id in a
    video.
    """

    number: int
    class_id: int
    name: str
    score: float
    box: Edges
    edges: Edges | None = None
    mask: RunLengths | None = None
    keypoints: tuple[tuple[float, float, float], ...] = ()
    track: int | None = None

    @property
    def sure_points(self) -> list[tuple[float, float] | None]:
        """The keypoints whose score is high enough for drawings, None for others."""
        return [(x, y) if s >= DEFAULT_SCORE_THRESHOLD else None for x, y, s in self.keypoints]


def to_line(values: Any) -> str:  # noqa: ANN401 (whatever JSON can hold)
    """Format JSON in one line, with null for what is no finite number."""
    return json.dumps(finite(values), ensure_ascii=False)


def open_text(path: Path) -> IO[str]:
    """Open a text to be written; halves of pairs of surrogates become escapes, as JSON has them."""
    return path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n")


def size_of(answer: Answer) -> Size:
    """Give the (height, width) of an image in pixels."""
    height, width = answer["size"]
    return height, width


def sure_items(answer: Answer, context: FormatContext) -> list[Item]:
    """Give the items at or above the score threshold; instances with a keypoint that is drawn."""
    return [
        item
        for item in list_items(answer, context)
        if item.score >= context.min_score
        if not item.keypoints or any(item.sure_points)
    ]


def list_items(answer: Answer, context: FormatContext) -> list[Item]:
    """Give all items of an answer; where nothing says where one is, it is the whole image."""
    height, width = size_of(answer)
    whole = (0.0, 0.0, float(width), float(height))
    items = []
    for key in ("boxes", "poses", "semantic", "classes"):
        for number, row in enumerate(answer.get(key, ())):
            mask = row.get("mask")
            around = box_of(mask, (height, width)) if mask else whole
            items.append(
                Item(
                    number=number,
                    class_id=row.get("id", 0),
                    name=row.get("name", context.classes.names[0]),
                    score=row.get("box_score", row.get("score", 1.0)),
                    box=tuple(row.get("xyxy", around)),
                    edges=tuple(row["xyxy"]) if "xyxy" in row else None,
                    mask=mask,
                    keypoints=tuple(map(tuple, row.get("keypoints", ()))),
                    track=row.get("track"),
                )
            )
    return items
