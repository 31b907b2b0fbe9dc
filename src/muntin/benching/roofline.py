# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What this machine could do at best: products of matrices, and copies."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from muntin.engines.openvino_engine import shared_core
from muntin.engines.table import is_installed

__all__ = ["measure_ceilings"]

SHAPES = ((6272, 384, 1536), (1568, 768, 3072), (4096, 1024, 1024))
"""Rows, channels in and channels out: as in an MLP of a small model, and square."""


def measure_ceilings(*, seconds: float = 0.4) -> dict[str, float]:
    """Measure GFLOP/s of products by precision, and GB/s of a copy.

    The best of PyTorch's and, where it is installed, OpenVINO's products over several shapes is
    the ceiling; numbers of both are given. A copy counts what is read and what is written.

    Args:
        seconds: Time for each shape and library.
    """
    found: dict[str, float] = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        found[f"torch_{precision}"] = max(
            _rate(_multiply_torch(shape, dtype), shape, seconds) for shape in SHAPES
        )
    if is_installed("openvino"):
        for precision in ("fp32", "bf16", "int8"):
            found[f"openvino_{precision}"] = max(
                _rate(_multiply_openvino(shape, precision), shape, seconds) for shape in SHAPES
            )
    for precision in ("fp32", "bf16", "int8"):
        best = [value for name, value in found.items() if name.endswith(f"_{precision}")]
        if best:
            found[precision] = max(best)
    source = torch.ones(64 * 2**20, dtype=torch.float32)
    target = torch.empty_like(source)
    turns = _turns(lambda: target.copy_(source), seconds)
    found["copy_gb_s"] = turns * 2 * source.numel() * 4 / 1e9
    return found


def _rate(multiply: Callable[[], object], shape: tuple[int, int, int], seconds: float) -> float:
    rows, inner, columns = shape
    return _turns(multiply, seconds) * 2 * rows * inner * columns / 1e9


def _turns(work: Callable[[], object], seconds: float) -> float:
    """Turns a second; the best of four parts of the time."""
    work()
    best = 0.0
    for _ in range(4):
        begun, count = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds / 4:
            work()
            count += 1
        best = max(best, count / (time.perf_counter() - begun))
    return best


def _multiply_torch(shape: tuple[int, int, int], dtype: torch.dtype) -> Callable[[], object]:
    rows, inner, columns = shape
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(columns, inner, dtype=dtype)

    @torch.inference_mode()
    def work() -> object:
        return F.linear(left, right)

    return work


def _multiply_openvino(shape: tuple[int, int, int], precision: str) -> Callable[[], object]:
    import openvino as ov
    from openvino import opset13 as ops

    rows, inner, columns = shape
    left = ops.parameter([rows, inner], np.float32)
    node, weights = left, ops.constant(np.ones((columns, inner), np.float32))
    if precision == "int8":
        bounds = [ops.constant(np.float32(edge)) for edge in (-1.28, 1.27)]
        node = ops.fake_quantize(left, *bounds, *bounds, 256)
        edges = [ops.constant(np.float32(edge)) for edge in (-1.27, 1.27)]
        weights = ops.fake_quantize(weights, *edges, *edges, 255)
    # Only a sum comes out: writing a large result is not what is measured.
    product = ops.reduce_max(ops.matmul(node, weights, False, True), [1])
    hint = "bf16" if precision == "bf16" else "f32"
    compiled = shared_core().compile_model(
        ov.Model([product], [left]),
        "CPU",
        {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()},
    )
    request = compiled.create_infer_request()
    data = ov.Tensor(np.ones((rows, inner), np.float32), shared_memory=True)

    def work() -> object:
        return request.infer([data], share_inputs=True, share_outputs=True)

    return work
