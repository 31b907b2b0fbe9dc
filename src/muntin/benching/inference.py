# SPDX-License-Identifier: Apache-2.0
"""Inference compared with peers, interleaved, and with the peak rates of the machine."""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from muntin.benching.peers import PEERS, BenchRequest, build_peers
from muntin.benching.result_rows import (
    OURS,
    BenchmarkCase,
    Timing,
    compare_rows,
    summarize,
    time_interleaved,
)
from muntin.engines.engine_table import ENGINES, is_installed
from muntin.engines.graphs import Graph, Precision, Runner
from muntin.engines.onnx_engine import start_onnx
from muntin.engines.openvino_engine import (
    compile_model,
    compile_openvino,
    import_openvino,
    quantise_int8,
    to_openvino,
    trim_example,
    try_openvino,
)
from muntin.inference.inference_network import build_inference
from muntin.zoo.costs import count_costs
from muntin.zoo.model_building import create_model

NUM_CALIBRATION_BATCHES = 8
"""Batches of noise for int8 calibration; speed does not depend on the values."""

Shape = tuple[int, int, int]

SHAPES: tuple[Shape, ...] = ((6272, 384, 1536), (1568, 768, 3072), (4096, 1024, 1024))
"""Rows, input and output channels of matrix products: MLPs of a small model, and a square."""


def bench_inference(request: BenchRequest) -> dict[str, Any]:
    """Measure images per second of a classifier in every engine, for muntin and its peers.

    ONNX Runtime and OpenVINO run timm's model too; OpenVINO also in int8 if NNCF is installed.
    The result holds the machine's limits and the cost per image. Rows marked ``aside`` run a
    peer's model in OpenVINO as muntin runs its own, with the batch split over the cores; they are
    excluded from comparison.
    """
    size, log = request.img_size, request.log
    torch.manual_seed(0)
    network = create_model(request.model).eval().requires_grad_(False)
    images = torch.randn(request.batch_size, 3, *size)
    chosen = request.select_peers(PEERS)
    log("measuring the machine's peak rates")
    ceilings = _measure_roofline()
    with torch.no_grad():
        truth = copy.deepcopy(network).double()(images.double()).numpy()
    plain = ["eager", "compile"] if request.compiled else ["eager"]
    modules: dict[str, nn.Module] = {
        OURS: build_inference(network, size),
        **build_peers(request, [name for name in chosen if name not in ENGINES], network),
    }
    engines = dict.fromkeys(modules, plain)
    engines[OURS] = [*plain, "onnxruntime", "openvino"]
    engines["timm"] = plain + [name for name in chosen if name in ENGINES]
    cases: list[BenchmarkCase] = []
    for owner, module in modules.items():
        graph = Graph(module=module, example=(images,), inputs=("images",), outputs=("logits",))
        cases += _make_cases(owner, graph, engines[owner], log)
    timings = time_interleaved(cases, rounds=request.rounds, truth=truth)
    gmacs = count_costs(network, size).macs / 1e9
    rows = [_row(timing, request.batch_size, gmacs, ceilings) for timing in timings]
    return request.describe("inference", compare_rows(rows), gmacs=gmacs, ceilings=ceilings)


def _start(name: str, graph: Graph, precision: Precision, *, ours: bool) -> Runner:
    """Start as the library's users would: muntin by torch.export, peers by OpenVINO's guide."""
    if name == "onnxruntime":
        return start_onnx(graph, precision, apart=True)
    if name != "openvino":
        return ENGINES[name].start(graph, precision)
    ov = import_openvino()
    if ours:
        graph = trim_example(graph)
        model = to_openvino(graph, any_batch=False)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = ov.convert_model(graph.module, example_input=graph.example[0])
        model.reshape(list(graph.example[0].shape))
        model.inputs[0].get_tensor().set_names({"images"})
    if precision == "int8":
        rows = [
            {"images": torch.randn(graph.example[0].shape).numpy()}
            for _ in range(NUM_CALIBRATION_BATCHES)
        ]
        model = quantise_int8(model, rows, smooth=not ours)
    try_openvino(model, precision)
    return compile_openvino(model, precision)


def _make_cases(
    owner: str,
    graph: Graph,
    engines: Sequence[str],
    log: Callable[[str], None],
    start: Callable[..., Runner] = _start,
) -> Iterator[BenchmarkCase]:
    cut, inputs = trim_example(graph), [graph.example[0].numpy()]
    for name in engines:
        engine = ENGINES[name]
        if not engine.installed:
            log(f"skipped {owner} in {name}: not installed")
            continue
        precisions: list[Precision] = [*engine.precisions]
        if name == "openvino" and is_installed("nncf"):
            precisions.append("int8")
        for precision in precisions:
            log(f"starting {owner} {name} {precision}")
            graphs = {name: graph}
            if name == "openvino" and owner != OURS and len(cut.example[0]) < len(graph.example[0]):
                graphs[f"{name} split batch"] = cut
            for variant, shown in graphs.items():
                try:
                    runner = start(name, shown, precision, ours=owner == OURS)
                    runner(inputs)
                except Exception as error:  # of an engine; the other rows are wanted nevertheless
                    said = " ".join(str(error).split())[:200]
                    log(f"skipped {owner} {variant} {precision}: it cannot run this model: {said}")
                    continue
                yield BenchmarkCase(
                    owner=owner,
                    variant=variant,
                    precision=precision,
                    run=partial(_logits, runner, inputs),
                    aside=variant != name,
                )


def _logits(runner: Runner, inputs: list[NDArray[Any]]) -> NDArray[np.float32]:
    return runner(inputs)[0]


def _row(
    timing: Timing, batch_size: int, gmacs: float, ceilings: dict[str, float]
) -> dict[str, Any]:
    rates = summarize([batch_size / seconds for seconds in timing.seconds])
    ceiling = ceilings.get(timing.case.precision)
    return timing.to_row(
        aside=timing.case.aside,
        images_per_s=rates,
        ms=statistics.median(timing.seconds) * 1e3,
        of_ceiling=2 * gmacs * rates["median"] / ceiling if ceiling else None,
        max_error=timing.error,
        agreement=timing.agreement,
    )


def _measure_roofline() -> dict[str, float]:
    """Measure GFLOP/s of matrix products by precision, and GB/s of a memory copy.

    The limit of a precision is the best rate of PyTorch and, if installed, OpenVINO over several
    shapes; the rates of both are returned as well. A copy counts bytes read plus bytes written.
    """
    makers = {f"torch_{precision}": (_torch_matmul, precision) for precision in ("fp32", "bf16")}
    if is_installed("openvino"):
        for precision in ("fp32", "bf16", "int8"):
            makers[f"openvino_{precision}"] = (_openvino_matmul, precision)
    found: dict[str, float] = {}
    for name, (make, precision) in makers.items():
        found[name] = max(
            _calls_per_s(make(shape, precision)) * 2 * np.prod(shape).item() / 1e9
            for shape in SHAPES
        )
    for precision in ("fp32", "bf16", "int8"):
        best = [value for name, value in found.items() if name.endswith(f"_{precision}")]
        if best:
            found[precision] = max(best)
    source = torch.ones(64 * 2**20, dtype=torch.float32)
    target = torch.empty_like(source)
    copies_per_s = _calls_per_s(lambda: target.copy_(source))
    found["copy_gb_s"] = copies_per_s * 2 * source.numel() * 4 / 1e9
    return found


def _calls_per_s(work: Callable[[], object]) -> float:
    """The best of four intervals of 0.1 s, as other processes only ever slow one down."""
    work()
    best = 0.0
    for _ in range(4):
        begun, count = time.perf_counter(), 0
        while time.perf_counter() - begun < 0.1:
            work()
            count += 1
        best = max(best, count / (time.perf_counter() - begun))
    return best


def _torch_matmul(shape: Shape, precision: str) -> Callable[[], object]:
    rows, inner, columns = shape
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(columns, inner, dtype=dtype)
    return torch.inference_mode()(lambda: F.linear(left, right))


def _openvino_matmul(shape: Shape, precision: str) -> Callable[[], object]:
    ov = import_openvino()
    ops = ov.opset13

    rows, inner, columns = shape
    left = ops.parameter([rows, inner], np.float32)
    node, weights = left, ops.constant(np.ones((columns, inner), np.float32))
    if precision == "int8":
        bounds = [ops.constant(np.float32(edge)) for edge in (-1.28, 1.27)]
        node = ops.fake_quantize(left, *bounds, *bounds, 256)
        edges = [ops.constant(np.float32(edge)) for edge in (-1.27, 1.27)]
        weights = ops.fake_quantize(weights, *edges, *edges, 255)
    # Reduced to a vector: writing a large result would be measured too.
    product = ops.reduce_max(ops.matmul(node, weights, False, True), [1])
    request = compile_model(ov.Model([product], [left]), precision, {}).create_infer_request()
    data = ov.Tensor(np.ones((rows, inner), np.float32), shared_memory=True)
    return lambda: request.infer([data], share_inputs=True, share_outputs=True)
