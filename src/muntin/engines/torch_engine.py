# SPDX-License-Identifier: Apache-2.0
"""Eager and compiled PyTorch, on the CPU or recorded for a GPU, and torch.export files."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from muntin.engines.graphs import ADVICE, Graph, Precision, Runner, capture, to_arrays
from muntin.engines.torch_program import read_program
from muntin.errors import RunError
from muntin.heads.detector import FixedDetector
from muntin.ops.triton.window_support import find_missing
from muntin.untrusted import reading

NOTE = "muntin.json"

BUCKETS = (1, 2, 4, 8, 16, 32, 64)
"""Batch sizes that are compiled; a batch is filled up to the next one."""

_CPU = torch.device("cpu")

# PyTorch replays recorded launches only in the thread that recorded them.
_THREAD = ThreadPoolExecutor(max_workers=1, thread_name_prefix="muntin-cuda")


def start_eager(graph: Graph, precision: Precision) -> Runner:
    """Call the module."""
    return make_runner(graph.module, precision)


def start_compiled(graph: Graph, precision: Precision) -> Runner:
    """Compile the module with frozen weights; the first call takes about a minute."""
    from torch._inductor import config as inductor

    runner = make_runner(torch.compile(graph.module, dynamic=False), precision)
    with inductor.patch(freezing=True):
        runner([part.numpy() for part in graph.example])
    return runner


def write_torch(graph: Graph, path: Path, note: str, precision: Precision) -> None:
    """Write a torch.export file."""
    if precision == "bf16":
        module = copy.deepcopy(graph.module).to(torch.bfloat16)
        graph = replace(graph, module=module)
    program = capture(graph, any_batch=True)
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={NOTE: note})


def open_torch(path: Path, precision: Precision, *, strange: bool = False) -> tuple[Runner, str]:
    """Open a file, which is trusted in nothing; returns its runner and its metadata."""
    with reading(str(path), ADVICE, RunError):
        program, note = read_program(path)
    run = make_runner(program, "fp32")

    def run_tried(inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        if not program.tried and len(inputs[0]) > 1:
            run([part[:1] for part in inputs])  # the budget of memory is that of one image
        return run(inputs)

    return run_tried, note


def make_runner(
    module: Callable[..., Any], precision: Precision, device: torch.device = _CPU
) -> Runner:
    """Call a module on a device with arrays; "bf16" is autocast."""

    def run(inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        half = precision == "bf16"
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            return to_arrays(module(*(torch.from_numpy(part).to(device) for part in inputs)))

    return run


def find_unavailable() -> str:
    """Return why CUDA is unavailable; empty if it is available."""
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    if not torch.cuda.is_available():
        return "PyTorch finds no NVIDIA GPU on this machine"
    return ""


def start_cuda(graph: Graph, precision: Precision) -> Runner:
    """Compile the graph for the current GPU; each batch size takes about a minute once."""
    return start_recorded(graph, precision, torch.device("cuda", torch.cuda.current_device()))


def start_recorded(
    graph: Graph,
    precision: Precision,
    device: torch.device,
    compiler: Callable[[nn.Module], Callable[..., Any]] | None = None,
) -> Runner:
    """Compile the graph for a device, by default with `compile_recorded`.

    The runner takes any number of images, and calls from any thread, which take turns. It raises a
    `RunError` where the memory of the device is too small for a batch.
    """
    # Fused attention reads maps, which the folded graph no longer has.
    fused = precision == "bf16" and not find_missing(device.type, device.index)
    module = graph.fused() if fused and graph.fused else copy.deepcopy(graph.module)
    if isinstance(module, FixedDetector):
        # Numbers of boxes differ from image to image: suppression would compile again and again.
        module.decode_fixed = torch.compiler.disable(module.decode_fixed)
    call = make_runner((compiler or compile_recorded)(module.to(device)), precision, device)

    def run(inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        parts = []
        for start in range(0, len(inputs[0]), BUCKETS[-1]):
            part = [each[start : start + BUCKETS[-1]] for each in inputs]
            parts.append(_THREAD.submit(_fill_and_call, call, part, device).result())
        return [np.concatenate(rows) for rows in zip(*parts, strict=True)]

    return run


def compile_recorded(module: nn.Module) -> Callable[..., Any]:
    """Compile with frozen weights, which folds their casts, and record launches as CUDA graphs."""
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor

    # Of regions, detectors of two stages have another number for each image.
    dynamic = None if isinstance(module, FixedDetector) else False
    compiled = torch.compile(module, dynamic=dynamic, mode="reduce-overhead")
    known: set[tuple[torch.Size, ...]] = set()

    def call(*inputs: Tensor) -> Any:  # noqa: ANN401 (as the network)
        shapes = tuple(part.shape for part in inputs)
        if shapes in known:
            return compiled(*inputs)
        # The compiler counts versions by code, which all networks of the process share.
        with dynamo.patch(recompile_limit=256), inductor.patch(freezing=True):
            answer = compiled(*inputs)
        known.add(shapes)
        return answer

    return call


def _fill_and_call(
    call: Runner, inputs: list[NDArray[Any]], device: torch.device
) -> list[NDArray[Any]]:
    count = len(inputs[0])
    bucket = next(size for size in BUCKETS if size >= count)
    if count < bucket:
        # The last image again: any image will do, but no size of 0.
        inputs = [
            np.concatenate([part, np.repeat(part[-1:], bucket - count, 0)]) for part in inputs
        ]
    try:
        return [part[:count] for part in call(inputs)]
    except torch.OutOfMemoryError as error:
        message = (
            f"a batch of {bucket} images must fit into the memory of {device}, but does not: "
            f"{str(error).splitlines()[0]} Use smaller batches or images."
        )
        raise RunError(message) from error
