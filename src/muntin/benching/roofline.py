# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Peak rates of this machine: matrix products and memory copies."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from muntin.engines.engine_table import is_installed
from muntin.engines.openvino_engine import import_openvino, shared_core

__all__ = ["measure_roofline"]

Shape = tuple[int, int, int]

SHAPES: tuple[Shape, ...] = ((6272, 384, 1536), (1568, 768, 3072), (4096, 1024, 1024))
"""Rows, input channels and output channels: MLPs of a small model, and a square product."""


def measure_roofline(*, seconds: float = 0.4) -> dict[str, float]:
    """Measure GFLOP/s of matrix products by precision, and GB/s of a memory copy.

    The limit of a precision is the best rate of PyTorch and, if installed, OpenVINO over several
    shapes, each measured for `seconds`; the rates of both are returned as well. A copy counts
    bytes read plus bytes written.
    """
    makers = {f"torch_{precision}": (_torch_matmul, precision) for precision in ("fp32", "bf16")}
    if is_installed("openvino"):
        for precision in ("fp32", "bf16", "int8"):
            makers[f"openvino_{precision}"] = (_openvino_matmul, precision)
    found: dict[str, float] = {}
    for name, (make, precision) in makers.items():
        found[name] = max(
            _calls_per_s(make(shape, precision), seconds) * 2 * np.prod(shape).item() / 1e9
            for shape in SHAPES
        )
    for precision in ("fp32", "bf16", "int8"):
        best = [value for name, value in found.items() if name.endswith(f"_{precision}")]
        if best:
            found[precision] = max(best)
    source = torch.ones(64 * 2**20, dtype=torch.float32)
    target = torch.empty_like(source)
    copies_per_s = _calls_per_s(lambda: target.copy_(source), seconds)
    found["copy_gb_s"] = copies_per_s * 2 * source.numel() * 4 / 1e9
    return found


def _calls_per_s(work: Callable[[], object], seconds: float) -> float:
    """Calls per second; the best of four intervals, as other processes only ever slow one down."""
    work()
    best = 0.0
    for _ in range(4):
        begun, count = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds / 4:
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
    hint = "bf16" if precision == "bf16" else "f32"
    compiled = shared_core().compile_model(
        ov.Model([product], [left]),
        "CPU",
        {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()},
    )
    request = compiled.create_infer_request()
    data = ov.Tensor(np.ones((rows, inner), np.float32), shared_memory=True)
    return lambda: request.infer([data], share_inputs=True, share_outputs=True)
