# SPDX-License-Identifier: Apache-2.0
"""ONNX files, and inference with ONNX Runtime on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from muntin.engines.file_checks import read_onnx
from muntin.engines.graphs import ADVICE, Graph, Precision, Runner, capture, file_error, quiet
from muntin.engines.isolation import try_file
from muntin.errors import ConfigError, RunError
from muntin.untrusted import reading

OPSET = 20
"""ONNX opset; the first with exact GELU."""

NOTE = "muntin"


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
        return session.run(None, dict(zip(names, inputs, strict=True)))

    return run, session.get_modelmeta().custom_metadata_map.get(NOTE, "")


def start_onnx(graph: Graph, precision: Precision, *, apart: bool = False) -> Runner:
    """Export the graph to a temporary file and open it; `apart`, in a process of its own first."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(graph, path, "", any_batch=False)
        if apart:
            try_file(path)
        return open_onnx(path, precision)[0]
