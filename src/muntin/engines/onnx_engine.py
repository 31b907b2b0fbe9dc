# SPDX-License-Identifier: Apache-2.0
"""ONNX files, and inference with ONNX Runtime on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from muntin.engines.graphs import (
    ADVICE,
    Graph,
    GraphTensor,
    Precision,
    Runner,
    capture,
    file_error,
    quiet,
)
from muntin.engines.isolation import try_file
from muntin.errors import ConfigError, RunError
from muntin.untrusted import read_regular, reading

OPSET = 20
"""ONNX opset; the first with exact GELU."""

NOTE = "muntin"

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


def write_onnx(
    graph: Graph, path: Path, note: str, precision: Precision = "fp32", *, any_batch: bool = True
) -> None:
    """Write a graph as an ONNX file that contains its weights."""
    from torch.onnx.errors import OnnxExporterError

    try:
        with quiet():
            program = torch.onnx.export(
                capture(graph, any_batch=any_batch),
                (),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                verbose=False,
            )
    except OnnxExporterError as error:
        message = (
            f"all operators of the model must be supported by ONNX opset {OPSET}, got: "
            f"{' '.join(str(error.__cause__ or error).split())[:300]}. Use --format torch."
        )
        raise ConfigError(message) from error
    assert program is not None, "a program was asked for"
    program.model.metadata_props[NOTE] = note
    program.save(path, include_initializers=True, external_data=False)


def open_onnx(path: Path, precision: Precision, *, strange: bool = False) -> tuple[Runner, str]:
    """Open a file; returns its runner and its metadata. A `strange` one is tried apart first."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Threads that spin between two calls hold the cores that decode the next images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with reading(str(path), ADVICE, RunError):
        data = read_onnx(path)
    if strange:
        try_file(path, precision, strange=True)
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base class
        raise file_error(path, "an ONNX file", error) from error
    names = [place.name for place in session.get_inputs()]

    def run(inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        try:
            return session.run(None, dict(zip(names, inputs, strict=True)))
        except Exception as error:
            raise file_error(path, "an ONNX file that runs", error) from error

    return run, session.get_modelmeta().custom_metadata_map.get(NOTE, "")


_ONNX_TYPES = {"float": "float32", "double": "float64"}


def list_onnx(path: Path) -> tuple[list[GraphTensor], list[GraphTensor]]:
    """List the inputs and the outputs of a file that was opened before."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        read_onnx(path), options, providers=["CPUExecutionProvider"]
    )

    def describe(place: Any) -> GraphTensor:  # noqa: ANN401 (onnxruntime.NodeArg)
        kind = place.type.removeprefix("tensor(").removesuffix(")")
        shape = tuple(side if isinstance(side, int) else -1 for side in place.shape)
        return GraphTensor(place.name, _ONNX_TYPES.get(kind, kind), shape)

    return [*map(describe, session.get_inputs())], [*map(describe, session.get_outputs())]


def start_onnx(graph: Graph, precision: Precision, *, apart: bool = False) -> Runner:
    """Export the graph to a temporary file and open it; `apart`, in a process of its own first."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(graph, path, "", any_batch=False)
        if apart:
            try_file(path)
        return open_onnx(path, precision)[0]


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


def check_finite(data: memoryview, name: str) -> None:
    """Refuse float32 values that are NaN; infinities may be masks."""
    if np.isnan(np.frombuffer(data, "<f4")).any():
        message = f"{name!r:.80} contains NaN"
        raise ValueError(message)
