# SPDX-License-Identifier: Apache-2.0
"""OpenVINO files, inference with OpenVINO on the CPU, and int8 quantisation with NNCF."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

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
    silence_telemetry,
)
from muntin.engines.isolation import try_file
from muntin.engines.onnx_engine import check_finite, write_onnx
from muntin.errors import RunError
from muntin.untrusted import parse_xml, read_regular, reading

NOTE = "muntin"

_BRANCHING = ("TensorIterator", "Loop", "If", "ReadValue", "Assign")

PART = 2
"""Images per request and core, if there are enough images for all cores."""

Model = Any
"""An ``openvino.Model``; OpenVINO is optional."""


def import_openvino() -> Any:  # noqa: ANN401 (a module)
    """Import OpenVINO without its telemetry."""
    silence_telemetry()
    import openvino

    return openvino


@functools.cache
def shared_core() -> Any:  # noqa: ANN401 (openvino.Core)
    """Return the one core of this process, which is never destroyed.

    A core installs an alternate signal stack and restores the previous one when destroyed. Cores
    destroyed in the order of their creation leave a freed stack installed, and the next signal
    (such as SIGCHLD) kills the process.
    """
    return import_openvino().Core()


def to_openvino(graph: Graph, *, any_batch: bool) -> Model:
    """Convert a graph to an OpenVINO model."""
    try:
        model = import_openvino().convert_model(capture(graph, any_batch=any_batch))
    except Exception:  # its ONNX front end supports more operators than its PyTorch front end
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            write_onnx(graph, path, "", any_batch=any_batch)
            model = shared_core().read_model(path)
    places, names = [*model.inputs, *model.outputs], [*graph.inputs, *graph.outputs]
    for place, name in zip(places, names, strict=True):
        place.get_tensor().set_names({name})
    return model


def write_openvino(graph: Graph, path: Path, note: str, precision: Precision) -> None:
    """Write a module as .xml and .bin."""
    save_openvino(to_openvino(graph, any_batch=True), path, note)


def save_openvino(model: Model, path: Path, note: str) -> None:
    """Write a model of OpenVINO as .xml and .bin."""
    model.set_rt_info(note, [NOTE])
    import_openvino().save_model(model, path, compress_to_fp16=False)


def try_openvino(model: Model, precision: str) -> None:
    """Compile and run a model in a process of its own; a crash of OpenVINO is a RunError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        save_openvino(model.clone(), path, "")
        try_file(path, precision)


def open_openvino(path: Path, precision: Precision, *, strange: bool = False) -> tuple[Runner, str]:
    """Open a file; returns its runner and its metadata. A `strange` one is tried apart first."""
    if path.is_file() and not path.with_suffix(".bin").is_file():
        message = f"{path} requires the .bin file next to it, got none. Copy both, or export again."
        raise RunError(message)
    with reading(str(path), ADVICE, RunError):
        xml, weights = read_openvino(path)
    if strange:
        try_file(path, precision, strange=True)
    try:
        model = shared_core().read_model(
            xml, import_openvino().Tensor(np.frombuffer(weights, np.uint8))
        )
        note = model.get_rt_info([NOTE]).astype(str) if model.has_rt_info([NOTE]) else ""
        return compile_openvino(model, precision), note
    except RuntimeError as error:
        raise file_error(path, "an OpenVINO .xml file with its .bin file", error) from error


def list_openvino(path: Path) -> tuple[list[GraphTensor], list[GraphTensor]]:
    """List the inputs and the outputs of a file that was opened before."""
    xml, weights = read_openvino(path)
    model = shared_core().read_model(
        xml, import_openvino().Tensor(np.frombuffer(weights, np.uint8))
    )

    def describe(place: Any) -> GraphTensor:  # noqa: ANN401 (openvino.Output)
        sides = place.partial_shape
        shape = tuple(-1 if side.is_dynamic else side.get_length() for side in sides)
        return GraphTensor(place.any_name, place.element_type.to_dtype().name, shape)

    return [*map(describe, model.inputs)], [*map(describe, model.outputs)]


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


def compile_openvino(model: Model, precision: Precision) -> Runner:
    """Compile an OpenVINO model to a runner.

    Small batches run on all cores together. In larger ones each core runs requests of `PART` images
    (or the fixed batch size of the model, which must divide the batch) on its own: no
    synchronisation between layers, and activations stay in the cache of the core.
    """
    together = functools.cache(lambda: _run_together(model, precision))
    shared = functools.cache(lambda: _run_shared(model, precision))
    batch = model.inputs[0].partial_shape[0]
    if batch.is_dynamic:
        together()  # compile now, so that errors appear early

    def run(inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        count = len(inputs[0])
        part = part_of(count) if batch.is_dynamic else batch.get_length()
        return together()(inputs) if part == count else shared()(inputs, part)

    return run


def start_openvino(graph: Graph, precision: Precision) -> Runner:
    """Convert and compile the graph for the batch size of its example."""
    return compile_openvino(to_openvino(trim_example(graph), any_batch=False), precision)


def trim_example(graph: Graph) -> Graph:
    """Trim the example to the images of one request."""
    part = part_of(len(graph.example[0]))
    return replace(graph, example=tuple(each[:part] for each in graph.example))


def part_of(count: int) -> int:
    """Return the images per request for a batch of `count`."""
    if count < PART * torch.get_num_threads():
        return count
    return PART if count % PART == 0 else 1


def _run_together(model: Model, precision: Precision) -> Runner:
    ov = import_openvino()
    compiled = compile_model(model, precision, {"PERFORMANCE_HINT": "LATENCY"})
    request = compiled.create_infer_request()

    def run(inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        answer = request.infer(
            [ov.Tensor(np.ascontiguousarray(part), shared_memory=True) for part in inputs]
        )
        return list(answer.values())

    return run


def _run_shared(
    model: Model, precision: Precision
) -> Callable[[Sequence[NDArray[Any]], int], list[NDArray[Any]]]:
    """One request per core, each with a part of the batch."""
    ov, threads = import_openvino(), torch.get_num_threads()
    queue = ov.AsyncInferQueue(compile_model(model, precision, {"NUM_STREAMS": threads}), threads)
    answers: dict[int, list[NDArray[Any]]] = {}

    def keep(request: Any, start: int) -> None:  # noqa: ANN401 (openvino.InferRequest)
        answers[start] = [np.array(tensor.data) for tensor in request.output_tensors]

    queue.set_callback(keep)

    def run(inputs: Sequence[NDArray[Any]], part: int) -> list[NDArray[Any]]:
        # Shared memory: must outlive all requests.
        whole = [np.ascontiguousarray(each) for each in inputs]
        answers.clear()
        for start in range(0, len(whole[0]), part):
            rows = [ov.Tensor(each[start : start + part], shared_memory=True) for each in whole]
            queue.start_async(rows, start)
        queue.wait_all()
        columns = zip(*(answers[start] for start in sorted(answers)), strict=True)
        return [np.concatenate(column) for column in columns]

    return run


def compile_model(model: Model, precision: str, more: dict[str, Any]) -> Any:  # noqa: ANN401
    """Compile a model for the threads of PyTorch, with `more` properties."""
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        **more,
    }
    return shared_core().compile_model(model, "CPU", options)


def quantise_int8(
    model: Any,  # noqa: ANN401 (openvino.Model or onnx.ModelProto)
    rows: Sequence[Mapping[str, NDArray[Any]]],
    *,
    kept: Sequence[str] = (),
    smooth: bool = False,
) -> Any:  # noqa: ANN401 (as the model)
    """Quantise a model, which may be modified, to int8, calibrated on rows of inputs.

    `kept` operators stay in floating point. So does padding: OpenVINO 2026.4 dies (SIGSEGV) of a
    `Pad` that is quantised before it and gathered after it, as the tokens of padded windows are;
    NNCF then quantises what was padded. `smooth` applies SmoothQuant, the default of NNCF for
    transformers; it moves scale into the preceding norm, which is folded away in our graphs.
    """
    silence_telemetry()
    import nncf

    # Weights of 7 bits: sums of 8 and 8 bits overflow on CPUs without VNNI, which changes answers.
    overflow = nncf.OverflowFix.ENABLE
    advanced = nncf.AdvancedQuantizationParameters(overflow_fix=overflow)
    if not smooth:
        advanced.smooth_quant_alpha = -1
    with quiet(), _kept_signal_stack():
        return nncf.quantize(
            model,
            nncf.Dataset(list(rows)),
            subset_size=len(rows),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=[*kept], types=["Pad"], validate=False),
            advanced_parameters=advanced,
        )


@contextlib.contextmanager
def _kept_signal_stack() -> Iterator[None]:
    """Restore the signal stack of the thread, which NNCF's OpenVINO cores replace."""
    if os.name != "posix":
        yield
        return
    system = ctypes.CDLL(None)
    place = (ctypes.c_void_p * 3)()  # stack_t: where, flags, size
    system.sigaltstack(None, place)
    try:
        yield
    finally:
        gc.collect()  # destroy remaining cores first
        system.sigaltstack(place, None)
