# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""A function of tensors whose launches are recorded once and replayed: CUDA graphs, by batch size.

A recorded graph has its own memory for what it reads and gives, and a fixed number of images. So
images are copied into the next larger of a few batch sizes, and the answers are cut out.
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
"""Numbers of images that graphs are recorded for."""

_WARM_UPS = 3

Outputs = tuple[Tensor, ...]

Capture = Callable[[Callable[[], Outputs]], tuple[Outputs, Callable[[], Outputs]]]
"""From a function without arguments to what it gave, and to what does the same work again into the
same memory (and gives it)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Recorded:
    """A graph, and the memory that it reads."""

    inputs: Outputs
    replay: Callable[[], Outputs]


class GraphRunner:
    """Call a function through recorded graphs. Several threads may call; they take turns.

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
                f"buckets must be numbers of images that rise, and most 1 or more, got "
                f"{tuple(buckets)} and {max_graphs}. Leave them out for {BUCKETS}."
            )
            raise ConfigError(message)
        self.function, self.device = function, device
        self.buckets, self.max_graphs = tuple(buckets), max_graphs
        if capture is None:
            # One memory for what graphs make in between: they run one after another.
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
                f"inputs must hold equally many images, got {[len(part) for part in inputs]}. "
                f"Show all of them at once."
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
        """Whatever stream a caller is on, the memory of a graph is used in one order."""
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
            self._graphs.clear()  # what others hold may be enough
        try:
            return self._try_to_record(bucket, inputs)
        except torch.OutOfMemoryError as error:
            sides = "x".join(map(str, inputs[0].shape[1:]))
            said = str(error).splitlines()[0]
            message = (
                f"the memory of {self.device} must hold a batch of {bucket} images ({sides}), "
                f"and does not: {said} Show fewer at a time, with buckets up to "
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
    """Record nothing: the function is called each time. For functions that cannot be recorded."""
    return call(), call
