# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""OpenVINO's files, and OpenVINO on the processor."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from muntin.engines.graphs import Graph, Precision, Runner, capture, file_error
from muntin.engines.onnx_engine import write_onnx

__all__ = [
    "compile_openvino",
    "open_openvino",
    "shared_core",
    "start_openvino",
    "to_openvino",
    "write_openvino",
]

NOTE = "muntin"


@functools.cache
def shared_core() -> Any:  # noqa: ANN401 (openvino.Core)
    """Give the one core of this process, which is never dropped.

    A core gives the thread a stack for signals and, when dropped, the one that it found. Cores
    that are dropped in the order of their making leave a stack that is gone, and the next signal
    (a child that ends) kills the process.
    """
    import openvino as ov

    return ov.Core()


def to_openvino(graph: Graph, *, any_batch: bool) -> Any:  # noqa: ANN401 (openvino.Model)
    """Give a module as OpenVINO holds it."""
    import openvino as ov

    try:
        model = ov.convert_model(capture(graph, any_batch=any_batch))
    except Exception:  # it reads more operators of ONNX than of PyTorch
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            write_onnx(graph, path, "", any_batch=any_batch)
            model = shared_core().read_model(path)
    for place, name in zip(model.inputs, graph.inputs, strict=True):
        place.get_tensor().set_names({name})
    for place, name in zip(model.outputs, graph.outputs, strict=True):
        place.get_tensor().set_names({name})
    return model


def write_openvino(graph: Graph, path: Path, note: str, precision: Precision) -> None:
    """Write a module as .xml and .bin."""
    save_openvino(to_openvino(graph, any_batch=True), path, note)


def save_openvino(model: Any, path: Path, note: str) -> None:  # noqa: ANN401 (openvino.Model)
    """Write a model of OpenVINO as .xml and .bin."""
    import openvino as ov

    model.set_rt_info(note, [NOTE])
    ov.save_model(model, path, compress_to_fp16=False)


def open_openvino(path: Path, precision: Precision) -> tuple[Runner, str]:
    """Give a runner for a file, and the note in it.

    Raises:
        RunError: It is no such file, or the .bin beside it is missing.
    """
    try:
        model = shared_core().read_model(path)
        note = model.get_rt_info([NOTE]).astype(str) if model.has_rt_info([NOTE]) else ""
        return compile_openvino(model, precision), note
    except RuntimeError as error:
        raise file_error(path, "an .xml of OpenVINO with its .bin beside it", error) from error


def compile_openvino(model: Any, precision: Precision) -> Runner:  # noqa: ANN401 (openvino.Model)
    """Give a runner for a model of OpenVINO."""
    import openvino as ov

    compiled = shared_core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        },
    )
    request = compiled.create_infer_request()

    def run(inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        answer = request.infer(
            [ov.Tensor(np.ascontiguousarray(part), shared_memory=True) for part in inputs]
        )
        return list(answer.values())

    return run


def start_openvino(graph: Graph, precision: Precision) -> Runner:
    """Convert and compile the module."""
    return compile_openvino(to_openvino(graph, any_batch=False), precision)
