# SPDX-License-Identifier: Apache-2.0
"""Trace of tensor memory during a training step, by part of the network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._C._autograd import DeviceType

from muntin.features import name_blocks

_MARK = "muntin:"
_GPUS = (DeviceType.CUDA, DeviceType.HIP)


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkPart:
    """A module whose memory is reported separately; `is_block` if it can be recomputed.

    Stages count from 1; 0 = modules before the first block (stem, patch embedding).
    """

    name: str
    stage: int
    is_block: bool


class Span(NamedTuple):
    """Tensor memory between two marks, in bytes above the memory before the step.

    `live` at its start, `peak` until its end; `part` is empty between two parts and in the head;
    `output` is that of a part that has just ended in the forward pass, else 0.
    """

    part: str
    backward: bool
    live: int
    peak: int
    output: int = 0


def list_parts(network: nn.Module) -> tuple[NetworkPart, ...]:
    """List the parts of the backbone in forward order; empty for networks without blocks."""
    backbone: Any = getattr(network, "backbone", None)
    if backbone is None:
        return ()
    blocks = name_blocks(backbone)
    found = []
    for name in _split(backbone, set(blocks), ""):
        stage = backbone.stage_of(name)
        if backbone.stage_unit == "block":  # a plain ViT is one stage
            stage = min(stage, 1)
        found.append(NetworkPart(name=f"backbone.{name}", stage=stage, is_block=name in blocks))
    return tuple(found)


def _split(backbone: Any, blocks: set[str], name: str) -> Iterator[str]:  # noqa: ANN401 (any family)
    """Yield the blocks, and the largest modules with parameters before and between them."""
    if name in blocks:
        yield name
        return
    module = backbone.get_submodule(name)
    inside = [key for key, _ in module.named_parameters(prefix=name)]
    layers = {backbone.layer_of(key) for key in inside}
    # A module between blocks is one part if all its parameters belong to one layer.
    whole = name and len(layers) == 1 and not any(b.startswith(f"{name}.") for b in blocks)
    if whole and layers <= set(range(len(blocks) + 1)):
        yield name
    elif not whole:
        for key, _ in module.named_children():
            yield from _split(backbone, blocks, f"{name}.{key}" if name else key)


Mark = Callable[[str, bool, int], None]


def record_spans(
    network: nn.Module, step: Callable[[], None], device: torch.device
) -> tuple[Span, ...]:
    """Run a forward and backward pass, and record tensor memory at the boundaries of the parts.

    The spans are consecutive, in the order of time.
    """
    marks: list[tuple[str, bool, int]] = []

    def mark(name: str, backward: bool, output: int) -> None:
        # An empty range: its time stamp orders the mark among the allocations of the trace.
        with torch.profiler.record_function(f"{_MARK}{len(marks)}"):
            marks.append((name, backward, output))

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it logs start and end to stderr
    activities = [torch.profiler.ProfilerActivity.CPU]  # allocations of a GPU are made by the CPU
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        handles = []
        for name in (part.name for part in list_parts(network)):
            module = network.get_submodule(name)
            start = partial(_mark_start, name, mark)
            handles.append(module.register_forward_pre_hook(start))
            handles.append(module.register_forward_hook(partial(_mark_end, name, mark)))
        try:
            mark("", False, 0)
            step()
        finally:
            for handle in handles:
                handle.remove()
    return _read_spans(profile, marks, on_gpu=device.type == "cuda")


def _mark_start(name: str, mark: Mark, *_: object) -> None:
    mark(name, False, 0)


def _mark_end(name: str, mark: Mark, module: nn.Module, inputs: object, output: object) -> None:
    mark("", False, output.nbytes if isinstance(output, Tensor) else 0)
    if isinstance(output, Tensor) and output.requires_grad:
        # The gradient of the output arrives just before the backward pass of this part.
        output.register_hook(lambda grad: mark(name, True, 0))


def _read_spans(
    profile: torch.profiler.profile, marks: list[tuple[str, bool, int]], on_gpu: bool
) -> tuple[Span, ...]:
    # Single allocations with their times are in no public summary of the profile.
    results: Any = getattr(profile.profiler, "kineto_results", None)
    spans: list[Span] = []
    live = peak = start = 0
    current = -1

    def close() -> None:
        if current >= 0:
            name, backward, output = marks[current]
            spans.append(Span(name, backward, start, peak, output))

    for event in sorted(results.events(), key=lambda event: event.start_ns()):
        name = event.name()
        if name == "[memory]" and on_gpu == (event.device_type() in _GPUS):
            # Counted between marks too: later spans start from the sum.
            live += event.nbytes()
            peak = max(peak, live)
        elif name.startswith(_MARK):
            close()
            current, start, peak = int(name.removeprefix(_MARK)), live, live
    close()
    return tuple(spans)
