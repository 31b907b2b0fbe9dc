# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs of a function of tensors, one graph per batch size.

A recorded graph has static input and output memory and a fixed batch size. Images are copied into
the next larger of a few batch sizes, and the outputs are sliced.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from muntin.errors import ConfigError, RunError, ShapeError

__all__ = ["BUCKETS", "Capture", "GraphRunner", "call_directly", "capture_cuda"]

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Batch sizes for which graphs are recorded."""

_WARM_UPS = 3

Outputs = tuple[Tensor, ...]

Capture = Callable[[Callable[[], Outputs]], tuple[Outputs, Callable[[], Outputs]]]
"""Runs a function without arguments; returns its outputs and a function that replays it into the
same memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Recorded:
    """A graph and its static inputs."""

    inputs: Outputs
    replay: Callable[[], Outputs]


class GraphRunner:
    """Calls a function through recorded graphs. Thread-safe; calls are serialised.

    Args:
        function: From tensors, whose first side counts images, to a tensor or to a sequence of
            tensors of the same first side. Images must not see each other, shapes must depend on
            the shapes of the inputs only, and nothing may wait for the GPU inside.
        device: Where it computes; inputs may come from anywhere.
        buckets: Numbers of images that graphs are made for, rising. More images than the last
            one are shown in parts.
        max_graphs: Graphs that are kept; the one that was not used for longest goes.
        capture: What records; None takes CUDA graphs.

    Raises:
        ConfigError: `buckets` do not rise from 1 or more, or `max_graphs` is less than 1.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        device: torch.device,
        *,
        buckets: Sequence[int] = BUCKETS,
        max_graphs: int = 16,
        capture: Capture | None = None,
    ) -> None:
        if [*buckets] != sorted(set(buckets)) or not buckets or buckets[0] < 1 or max_graphs < 1:
            message = (
                f"buckets must be increasing batch sizes and max_graphs at least 1, got "
                f"{tuple(buckets)} and {max_graphs}. Leave them out for {BUCKETS}."
            )
            raise ConfigError(message)
        self.function, self.device = function, device
        self.buckets, self.max_graphs = tuple(buckets), max_graphs
        if capture is None:
            # Graphs never run concurrently, so they share one memory pool.
            capture = functools.partial(capture_cuda, pool=torch.cuda.graph_pool_handle())
        self._capture = capture
        self._graphs: OrderedDict[tuple[object, ...], _Recorded] = OrderedDict()
        self._lock = threading.Lock()
        self._single = True
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor | Outputs:
        """Give what the function gives, in memory of its own.

        Args:
            inputs: Of the same first side, which may be any, 0 included.

        Raises:
            ShapeError: Their first sides differ.
            RunError: The memory of the GPU is too small for a batch.
        """
        counts = {len(part) for part in inputs}
        if len(counts) != 1:
            message = (
                f"inputs must have the same batch size, got {[len(part) for part in inputs]}. "
                f"Pass all images in every input."
            )
            raise ShapeError(message)
        count, largest = counts.pop(), self.buckets[-1]
        with self._lock:
            parts = [
                self._on_own_stream([part[start : start + largest] for part in inputs])
                for start in range(0, max(count, 1), largest)
            ]
        outputs = parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))
        return outputs[0] if self._single else outputs

    @property
    def num_graphs(self) -> int:
        """Graphs that are recorded now."""
        return len(self._graphs)

    def _on_own_stream(self, inputs: list[Tensor]) -> Outputs:
        """Run on one stream, so that the static memory of graphs is used in order."""
        if self._stream is None:
            return self._run(inputs)
        caller = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(caller)
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            for part in inputs:
                if part.is_cuda:
                    part.record_stream(self._stream)
            outputs = self._run(inputs)
            for part in outputs:
                part.record_stream(caller)
        caller.wait_stream(self._stream)
        return outputs

    def _run(self, inputs: list[Tensor]) -> Outputs:
        count = len(inputs[0])
        bucket = next(size for size in self.buckets if size >= count)
        key = (bucket, *((tuple(part.shape[1:]), part.dtype) for part in inputs))
        recorded = self._graphs.get(key) or self._record(bucket, inputs)
        self._graphs[key] = recorded
        self._graphs.move_to_end(key)
        while len(self._graphs) > self.max_graphs:
            self._graphs.popitem(last=False)
        for held, part in zip(recorded.inputs, inputs, strict=True):
            held[:count].copy_(part, non_blocking=True)
        return tuple(part[:count].clone() for part in recorded.replay())

    def _record(self, bucket: int, inputs: list[Tensor]) -> _Recorded:
        try:
            return self._try_to_record(bucket, inputs)
        except torch.OutOfMemoryError:
            self._graphs.clear()  # free other graphs and retry once
        try:
            return self._try_to_record(bucket, inputs)
        except torch.OutOfMemoryError as error:
            sides = "x".join(map(str, inputs[0].shape[1:]))
            said = str(error).splitlines()[0]
            message = (
                f"a batch of {bucket} images ({sides}) must fit into the memory of {self.device}, "
                f"but does not: {said} Use smaller batches, with buckets up to "
                f"{max(bucket // 2, 1)}."
            )
            raise RunError(message) from error

    def _try_to_record(self, bucket: int, inputs: list[Tensor]) -> _Recorded:
        held = tuple(
            torch.zeros((bucket, *part.shape[1:]), dtype=part.dtype, device=self.device)
            for part in inputs
        )

        def call() -> Outputs:
            answer = self.function(*held)
            self._single = isinstance(answer, Tensor)
            return (answer,) if isinstance(answer, Tensor) else tuple(answer)

        _, replay = self._capture(call)
        return _Recorded(inputs=held, replay=replay)


def capture_cuda(
    call: Callable[[], Outputs],
    pool: Any = None,  # noqa: ANN401 (torch's own)
) -> tuple[Outputs, Callable[[], Outputs]]:
    """Record a CUDA graph; called on a stream that is not the default one.

    Kernels are compiled and libraries choose theirs while it is called some times before.

    Args:
        call: What is recorded.
        pool: Memory that is shared with graphs which never run at the same time.
    """
    for _ in range(_WARM_UPS):
        call()
    torch.cuda.current_stream().synchronize()
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on allocating memory meanwhile.
    with torch.cuda.graph(
        graph,
        pool=pool,
        stream=torch.cuda.current_stream(),
        capture_error_mode="thread_local",
    ):
        outputs = call()

    def replay() -> Outputs:
        graph.replay()
        return outputs

    return outputs, replay


def call_directly(call: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], Outputs]]:
    """Replacement for `capture_cuda` without recording: calls the function every time."""
    return call(), call
