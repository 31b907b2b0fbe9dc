# SPDX-License-Identifier: Apache-2.0
"""Regions of Label Studio, made from the JSON of a result: what the control tags ask for.

Positions are percent of the width and height of the image, from its upper left corner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from muntin.results import DEFAULT_SCORE_THRESHOLD
from muntin.run_lengths import RunLengths, decode_mask
from muntin.serving.label_config import (
    BRUSHES,
    CHOICES,
    KEYPOINTS,
    POLYGONS,
    RECTANGLES,
    ControlTag,
)
from muntin.serving.region_encoding import pack_mask, trace_mask

MULTIPLE_SCORE = 0.5
"""Score from which on one of several choices is taken, where the model can give several."""

_POINT_WIDTH = 0.5
_OF_OBJECTS = (RECTANGLES, POLYGONS, BRUSHES)
Part = tuple[str, str, dict[str, Any], float | None]
"""Name of an object and of the part of it, its value, and its score."""


def make_regions(
    result: Mapping[str, Any],
    model: Mapping[str, Any],
    tags: Iterable[ControlTag],
    threshold: float,
) -> list[dict[str, Any]]:
    """Make the regions of an image.

    Args:
        result: What `/predict` answers for it.
        model: Description of the model, as of `GET /models`.
        tags: Control tags of the image that the model can answer.
        threshold: Minimum score of objects where their tag sets none.
    """
    chosen = list(tags)
    boxes = {tag.image: tag.name for tag in chosen if tag.kind == RECTANGLES}
    regions: dict[str, dict[str, Any]] = {}
    for tag in sorted(chosen, key=lambda tag: tag.kind != RECTANGLES):
        least = threshold if tag.threshold is None else tag.threshold
        for owner, part, value, score in _MAKERS[tag.kind](result, model, tag):
            if tag.kind in _OF_OBJECTS and score is not None and score < least:
                continue
            region = _describe(f"{tag.name}-{owner}{part}", tag, value, result["size"])
            if score is not None:
                region["score"] = score
            parent = f"{boxes.get(tag.image)}-{owner}"
            if tag.kind == KEYPOINTS and parent in regions:
                region["parentID"] = parent
            regions[region["id"]] = region
    return list(regions.values())


def _describe(
    number: str, tag: ControlTag, value: dict[str, Any], size: Iterable[int]
) -> dict[str, Any]:
    height, width = size
    return {
        "id": number,
        "from_name": tag.name,
        "to_name": tag.image,
        "type": tag.kind,
        "value": value,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
    }


def mean_score(regions: Iterable[Mapping[str, Any]]) -> float | None:
    """Mean score of regions; None if none has a score."""
    scores = [region["score"] for region in regions if "score" in region]
    return sum(scores) / len(scores) if scores else None


def _percent(position: float, side: float) -> float:
    return round(min(max(100 * position / side, 0.0), 100.0), 4)


def _box(xyxy: Iterable[float], size: Iterable[int], label: str) -> dict[str, Any]:
    height, width = size
    left, top, right, bottom = xyxy
    x, y = _percent(left, width), _percent(top, height)
    return {
        "x": x,
        "y": y,
        "width": round(_percent(right, width) - x, 4),
        "height": round(_percent(bottom, height) - y, 4),
        "rotation": 0,
        RECTANGLES: [label],
    }


def _rectangles(
    result: Mapping[str, Any], model: Mapping[str, Any], tag: ControlTag
) -> Iterator[Part]:
    if "poses" in result:
        label = _only_label(tag, model)
        for owner, pose in enumerate(result["poses"]):
            if label and "xyxy" in pose:
                box = _box(pose["xyxy"], result["size"], label)
                yield str(owner), "", box, pose.get("box_score", pose["score"])
    for owner, row in enumerate(result.get("boxes", ())):
        if label := tag.label_of(row["name"]):
            yield str(owner), "", _box(row["xyxy"], result["size"], label), row["score"]


def _only_label(tag: ControlTag, model: Mapping[str, Any]) -> str | None:
    """Label of the subject of a pose: its class, or the only label that there is."""
    names = model["class_names"]
    found = tag.label_of(names[0]) if len(names) == 1 else None
    labels = set(tag.labels.values())
    return found or (labels.pop() if len(labels) == 1 else None)


def _masks(
    result: Mapping[str, Any], tag: ControlTag
) -> Iterator[tuple[str, str, RunLengths, float | None]]:
    rows = result.get("semantic") or result.get("boxes") or ()
    for owner, row in enumerate(rows):
        label = tag.label_of(row["name"])
        if label and "mask" in row:
            yield str(owner), label, row["mask"], row.get("score")


def _polygons(
    result: Mapping[str, Any], model: Mapping[str, Any], tag: ControlTag
) -> Iterator[Part]:
    height, width = result["size"]
    for owner, label, mask, score in _masks(result, tag):
        for number, corners in enumerate(trace_mask(mask)):
            points = [[_percent(x, width), _percent(y, height)] for x, y in corners.tolist()]
            value = {"points": points, "closed": True, POLYGONS: [label]}
            yield owner, f"-{number}", value, score


def _brushes(
    result: Mapping[str, Any], model: Mapping[str, Any], tag: ControlTag
) -> Iterator[Part]:
    for owner, label, mask, score in _masks(result, tag):
        packed = pack_mask(decode_mask(mask))
        yield owner, "", {"format": "rle", "rle": packed, BRUSHES: [label]}, score


def _keypoints(
    result: Mapping[str, Any], model: Mapping[str, Any], tag: ControlTag
) -> Iterator[Part]:
    height, width = result["size"]
    least = DEFAULT_SCORE_THRESHOLD if tag.threshold is None else tag.threshold
    for owner, pose in enumerate(result["poses"]):
        named = zip(result["keypoint_names"], pose["keypoints"], strict=True)
        for number, (name, (x, y, score)) in enumerate(named):
            label = tag.label_of(name)
            if label is None or score is None or score < least:
                continue
            # Ours count from the centre of the first pixel.
            place = {"x": _percent(x + 0.5, width), "y": _percent(y + 0.5, height)}
            value = {**place, "width": _POINT_WIDTH, KEYPOINTS: [label]}
            yield str(owner), f"-{number}", value, score


def _choices(
    result: Mapping[str, Any], model: Mapping[str, Any], tag: ControlTag
) -> Iterator[Part]:
    """The best class that the project knows; all that are likely, where there may be several."""
    found = [
        (label, row["score"])
        for row in result["classes"]
        if (label := tag.label_of(row["name"])) is not None
    ]
    least = MULTIPLE_SCORE if tag.threshold is None else tag.threshold
    if tag.multiple and model.get("multi_label"):
        found = [(label, score) for label, score in found if score >= least]
    else:
        found = [each for each in found[:1] if each[1] >= (tag.threshold or 0.0)]
    if found:
        labels = list(dict.fromkeys(label for label, _ in found))
        yield "0", "", {CHOICES: labels}, max(score for _, score in found)


_MAKERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any], ControlTag], Iterator[Part]]] = {
    RECTANGLES: _rectangles,
    POLYGONS: _polygons,
    BRUSHES: _brushes,
    KEYPOINTS: _keypoints,
    CHOICES: _choices,
}
