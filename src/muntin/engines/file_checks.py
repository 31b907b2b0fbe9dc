# SPDX-License-Identifier: Apache-2.0
"""ONNX and OpenVINO files of strangers, checked before an engine parses them.

They hold their weights themselves or in the .bin file beside them, and no loops or branches.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from muntin.untrusted import parse_xml, read_regular

# Messages of ONNX, and their fields (onnx/onnx.proto) that hold others.
_INNER = {
    ("model", 7): "graph", ("graph", 1): "node", ("graph", 5): "tensor", ("node", 5): "attribute",
    ("attribute", 5): "tensor", ("attribute", 10): "tensor",
}  # fmt: skip
_REFUSED = {
    ("model", 20): "training", ("model", 25): "functions", ("graph", 15): "sparse weights",
    ("attribute", 6): "a loop or branch", ("attribute", 11): "loops or branches",
    ("attribute", 22): "sparse weights", ("attribute", 23): "sparse weights",
    ("tensor", 13): "weights in another file",
}  # fmt: skip
_BRANCHING = ("TensorIterator", "Loop", "If", "ReadValue", "Assign")


def read_onnx(path: Path) -> bytes:
    """Read an ONNX file of standard operators, without control flow or files beside it.

    Raises:
        ValueError, OSError: It is another file, or holds something else.
    """
    data = read_regular(path)
    if not any(number == 7 for number, _ in _fields(memoryview(data))):
        message = "no graph in it"
        raise ValueError(message)
    _check_message(memoryview(data), "model")
    return data


def _check_message(data: memoryview, kind: str) -> None:
    numbers: dict[int, int] = {}
    for number, value in _fields(data):
        if (kind, number) in _REFUSED:
            message = f"{_REFUSED[kind, number]}, which muntin never writes"
            raise ValueError(message)
        if isinstance(value, int):
            numbers[number] = value
        elif (kind, number) in _INNER:
            _check_message(value, _INNER[kind, number])
        elif (kind, number) == ("node", 7) and value.tobytes() not in (b"", b"ai.onnx"):
            message = f"an operator of {value.tobytes()!r:.80}, not of ONNX itself"
            raise ValueError(message)
        elif kind == "tensor" and number in (4, 9) and numbers.get(2) == 1:
            check_finite(value, "a weight")
    if kind == "tensor" and numbers.get(14):
        message = "weights in another file, which muntin never writes"
        raise ValueError(message)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Numbers and values of the fields of a message of Protocol Buffers."""
    place = 0
    while place < len(data):
        key, place = _number(data, place)
        value: int | memoryview
        if key & 7 == 0:
            value, place = _number(data, place)
        else:
            size = {1: 8, 5: 4}.get(key & 7)
            if size is None:
                size, place = _number(data, place) if key & 7 == 2 else (len(data) + 1, place)
            value, place = data[place : place + size], place + size
        if place > len(data):
            message = "it is damaged or cut off"
            raise ValueError(message)
        yield key >> 3, value


def _number(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[place]
        value, place, shift = value | (byte & 127) << shift, place + 1, shift + 7
        if byte < 128:
            return value, place
    message = "a number of more than ten bytes"
    raise ValueError(message)


def read_openvino(path: Path) -> tuple[bytes, bytes]:
    """Read an OpenVINO .xml file, written anew from its elements, and its .bin file.

    Raises:
        ValueError, OSError: It is another file, its weights lie outside the .bin file or are NaN.
    """
    root = parse_xml(read_regular(path))
    weights = read_regular(path.with_suffix(".bin"))
    if root.tag != "net" or root.find("layers/layer") is None:
        message = "no graph in it"
        raise ValueError(message)
    for layer in root.iter("layer"):
        if layer.get("type") in _BRANCHING:
            message = f"a layer of the type {layer.get('type')}, which muntin never writes"
            raise ValueError(message)
        data = layer.find("data")
        if layer.get("type") == "Const" and data is not None:
            start, size = int(data.get("offset", "")), int(data.get("size", ""))
            if min(start, size) < 0 or start + size > len(weights):
                message = f"weights outside the {len(weights)} bytes of {path.stem}.bin"
                raise ValueError(message)
            if data.get("element_type") == "f32":
                check_finite(memoryview(weights)[start : start + size], str(layer.get("name")))
    return ElementTree.tostring(root), weights


def check_finite(data: memoryview, name: str) -> None:
    """Refuse float32 values that are NaN; infinities may be masks."""
    if np.isnan(np.frombuffer(data, "<f4")).any():
        message = f"{name!r:.80} contains NaN"
        raise ValueError(message)
