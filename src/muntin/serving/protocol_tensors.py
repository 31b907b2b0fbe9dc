# SPDX-License-Identifier: Apache-2.0
"""Outputs of the Open Inference Protocol: tensors of results, made from their JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muntin.run_lengths import decode_mask
from muntin.serving.uploads import refuse
from muntin.staging import finite

JSON_OUTPUT = "json"
LABELS = "labels"
MOST_LISTED = 500_000
"""Pixels of `labels` that are written as a list of numbers; more are given in binary form only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputTensor:
    """What is said of an output: name, type of its elements, and sides, -1 where they vary."""

    name: str
    datatype: str
    shape: tuple[int, ...]


def _tensor(name: str, datatype: str, *shape: int) -> OutputTensor:
    return OutputTensor(name=name, datatype=datatype, shape=shape)


_TENSORS = {
    "classification": (_tensor("scores", "FP32", -1, -1), _tensor("class_ids", "INT64", -1, -1)),
    "detection": (
        _tensor("boxes", "FP32", -1, -1, 4),
        _tensor("scores", "FP32", -1, -1),
        _tensor("class_ids", "INT64", -1, -1),
        _tensor("num_detections", "INT64", -1),
    ),
    "segmentation": (_tensor(LABELS, "INT16", -1, -1, -1),),
    "keypoints": (
        _tensor("keypoints", "FP32", -1, -1, -1, 3),
        _tensor("scores", "FP32", -1, -1),
        _tensor("num_instances", "INT64", -1),
    ),
}
_TYPES = {"FP32": "<f4", "INT64": "<i8", "INT16": "<i2"}
_DATATYPES = {kind: name for name, kind in _TYPES.items()}

Results = Sequence[Mapping[str, Any]]
"""JSON of the result of each image."""


def outputs_of(model: Mapping[str, Any]) -> tuple[OutputTensor, ...]:
    """Outputs of a model, which `GET /models` describes."""
    return (_tensor(JSON_OUTPUT, "BYTES", -1), *_TENSORS.get(model["kind"], ()))


def check_maps(pixels: Sequence[int], *, binary: bool) -> None:
    """Refuse maps that cannot be answered, before anything is predicted.

    Args:
        pixels: Those of each image.
        binary: Whether the maps are wanted in binary form.

    Raises:
        RefusedError: The images have different sizes, or too many pixels for a list of numbers.
    """
    _check_equal(pixels)
    if not binary and sum(pixels) > MOST_LISTED:
        message = (
            f"{LABELS} must have at most {MOST_LISTED} pixels in JSON, got {sum(pixels)}. Ask for "
            f'it in binary form: "parameters": {{"binary_data": true}}'
        )
        raise refuse(400, message, "protocol")


def _check_equal(sizes: Iterable[Any]) -> None:
    known = list(dict.fromkeys(sizes))
    if len(known) > 1:
        message = (
            f"images must have one size for the output {LABELS}, got {known[0]} and {known[1]} "
            f"pixels. Ask for one image at a time, or for the output {JSON_OUTPUT} alone."
        )
        raise refuse(400, message, "protocol")


def make_tensors(
    model: Mapping[str, Any], texts: Sequence[str], names: Iterable[str]
) -> dict[str, NDArray[Any] | list[bytes]]:
    """Make the outputs that are asked for.

    Args:
        model: Description of the model.
        texts: JSON of the result of each image.
        names: Names of outputs of `outputs_of`.

    Raises:
        RefusedError: Maps of images of different sizes cannot be one tensor.
    """
    wanted = list(names)
    made: dict[str, NDArray[Any] | list[bytes]] = {JSON_OUTPUT: [text.encode() for text in texts]}
    if wanted != [JSON_OUTPUT]:
        made |= _MAKERS[model["kind"]]([json.loads(text) for text in texts])
    return {name: made[name] for name in wanted}


def _pad(
    rows: Sequence[Sequence[Any]], datatype: str, *inner: int, empty: float = 0
) -> NDArray[Any]:
    """Join rows of different lengths, filled up with `empty`: (n, longest, *inner)."""
    longest = max((len(row) for row in rows), default=0)
    joined = np.full((len(rows), longest, *inner), empty, _TYPES[datatype])
    for place, row in enumerate(rows):
        if row:
            joined[place, : len(row)] = np.array(row, float)  # null becomes nan
    return joined


def _ids(rows: Sequence[Sequence[Mapping[str, Any]]]) -> NDArray[Any]:
    return _pad([[each["id"] for each in row] for row in rows], "INT64", empty=-1)


def _scores(rows: Sequence[Sequence[Mapping[str, Any]]]) -> NDArray[Any]:
    return _pad([[each["score"] for each in row] for row in rows], "FP32")


def _count(rows: Sequence[Sequence[Any]]) -> NDArray[Any]:
    return np.array([len(row) for row in rows], _TYPES["INT64"])


def _classes(results: Results) -> dict[str, Any]:
    rows = [result["classes"] for result in results]
    return {"scores": _scores(rows), "class_ids": _ids(rows)}


def _objects(results: Results) -> dict[str, Any]:
    rows = [result["boxes"] for result in results]
    return {
        "boxes": _pad([[each["xyxy"] for each in row] for row in rows], "FP32", 4),
        "scores": _scores(rows),
        "class_ids": _ids(rows),
        "num_detections": _count(rows),
    }


def _poses(results: Results) -> dict[str, Any]:
    rows = [result["poses"] for result in results]
    points = [[each["keypoints"] for each in row] for row in rows]
    num_keypoints = len(results[0]["keypoint_names"])
    return {
        "keypoints": _pad(points, "FP32", num_keypoints, 3),
        "scores": _scores(rows),
        "num_instances": _count(rows),
    }


def _maps(results: Results) -> dict[str, Any]:
    _check_equal("{} x {}".format(*result["size"]) for result in results)
    height, width = results[0]["size"]
    labels = np.full((len(results), height, width), -1, _TYPES["INT16"])
    for place, result in enumerate(results):
        for each in result["semantic"]:
            labels[place][decode_mask(each["mask"])] = each["id"]
    return {LABELS: labels}


_MAKERS = {
    "classification": _classes,
    "detection": _objects,
    "segmentation": _maps,
    "keypoints": _poses,
}


def encode_outputs(
    head: Mapping[str, Any],
    tensors: Mapping[str, NDArray[Any] | list[bytes]],
    binary: Mapping[str, bool],
) -> tuple[bytes, bytes]:
    """Write an answer: its JSON, and what follows it of outputs in binary form.

    Args:
        head: What the JSON says besides its outputs.
        tensors: Outputs by name; texts in a list.
        binary: Whether each is wanted in binary form.
    """
    described, parts = [], []
    for name, values in tensors.items():
        texts = isinstance(values, list)
        shape = [len(values)] if texts else list(np.shape(values))
        datatype = "BYTES" if isinstance(values, list) else _DATATYPES[values.dtype.str]
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
        if binary[name]:
            part = _pack(values)
            parts.append(part)
            entry["parameters"] = {"binary_data_size": len(part)}
        else:
            entry["data"] = _list(values)
        described.append(entry)
    text = json.dumps({**head, "outputs": described}, allow_nan=False)
    return text.encode(), b"".join(parts)


def _pack(values: NDArray[Any] | list[bytes]) -> bytes:
    if isinstance(values, list):
        return b"".join(len(each).to_bytes(4, "little") + each for each in values)
    return values.tobytes()


def _list(values: NDArray[Any] | list[bytes]) -> list[Any]:
    if isinstance(values, list):
        return [each.decode() for each in values]
    listed: list[Any] = values.ravel().tolist()
    return finite(listed) if values.dtype.kind == "f" else listed
