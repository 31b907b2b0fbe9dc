# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""How much tensors hold while a network learns, from one part of it to the next."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from muntin.features import name_blocks

__all__ = ["Part", "Span", "list_parts", "record_spans"]

_MARK = "muntin:"


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part of a network whose memory is told apart.

    Attributes:
        name: Of the module in the network.
        stage: Counted from 1; 0 for what comes before the blocks.
        is_block: Whether it may be computed again instead of remembered.
    """

    name: str
    stage: int
    is_block: bool


class Span(NamedTuple):
    """What tensors held from one moment to the next, in bytes beyond what was there before.

    Attributes:
        part: Name of the part at work; empty between two of them, and in the head.
        backward: Whether on the backward pass.
        live: At its beginning.
        most: The most until its end.
        output: Bytes of what the part before gave, where the forward pass leaves a part.
    """

    part: str
    backward: bool
    live: int
    most: int
    output: int = 0


def list_parts(network: nn.Module) -> tuple[Part, ...]:
    """Name the parts of a backbone, in the order in which they run; none where it has no blocks."""
    backbone: Any = getattr(network, "backbone", None)
    if backbone is None:
        return ()
    blocks = name_blocks(backbone)
    found = []
    for name in _split(backbone, set(blocks), ""):
        stage = backbone.stage_of(name)
        if backbone.stage_unit == "block":  # a plain ViT is one stage
            stage = min(stage, 1)
        found.append(Part(name=f"backbone.{name}", stage=stage, is_block=name in blocks))
    return tuple(found)


def _split(backbone: Any, blocks: set[str], name: str) -> Iterator[str]:  # noqa: ANN401 (any family)
    """The blocks, and the largest modules with parameters before and between them."""
    if name in blocks:
        yield name
        return
    module = backbone.get_submodule(name)
    inside = [key for key, _ in module.named_parameters(prefix=name)]
    layers = {backbone.layer_of(key) for key in inside}
    whole = name and len(layers) == 1 and not any(b.startswith(f"{name}.") for b in blocks)
    if whole and layers <= set(range(len(blocks) + 1)):
        yield name
    elif not whole:
        for key, _ in module.named_children():
            yield from _split(backbone, blocks, f"{name}.{key}" if name else key)


def record_spans(
    network: nn.Module, step: Callable[[], None], device: torch.device
) -> tuple[Span, ...]:
    """Take a step and tell what tensors held meanwhile.

    Args:
        network: That learns; it is watched at its parts, and left as it was.
        step: Goes forward and back; what it allocates is counted.
        device: Where.

    Returns:
        Spans in the order of time, without gaps.
    """
    watch = _watch_gpu if device.type == "cuda" else _watch_cpu
    parts = list_parts(network)
    with watch() as (mark, spans):
        handles = []
        for name in (part.name for part in parts):
            module = network.get_submodule(name)
            handles.append(module.register_forward_pre_hook(_beginning(name, mark)))
            handles.append(module.register_forward_hook(_ending(name, mark)))
        try:
            mark("", False, 0)
            step()
        finally:
            for handle in handles:
                handle.remove()
    return tuple(spans)


Mark = Callable[[str, bool, int], None]


def _beginning(name: str, mark: Mark) -> Callable[..., None]:
    return lambda *_: mark(name, False, 0)


def _ending(name: str, mark: Mark) -> Callable[..., None]:
    def end(module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ANN401 (each has its own)
        known = isinstance(output, Tensor)
        mark("", False, output.nbytes if known else 0)
        if known and output.requires_grad:
            output.register_hook(lambda grad: mark(name, True, 0))

    return end


@contextmanager
def _watch_gpu() -> Iterator[tuple[Mark, list[Span]]]:
    spans: list[Span] = []
    base = torch.cuda.memory_allocated()
    marks: list[tuple[str, bool, int, int]] = []

    def close() -> None:
        if marks:
            name, backward, live, output = marks[-1]
            most = max(live, torch.cuda.max_memory_allocated() - base)
            spans.append(Span(name, backward, live, most, output))

    def mark(name: str, backward: bool, output: int) -> None:
        close()
        torch.cuda.reset_peak_memory_stats()
        marks.append((name, backward, torch.cuda.memory_allocated() - base, output))

    yield mark, spans
    close()


@contextmanager
def _watch_cpu() -> Iterator[tuple[Mark, list[Span]]]:
    spans: list[Span] = []
    marks: list[tuple[str, bool, int]] = []

    def mark(name: str, backward: bool, output: int) -> None:
        marks.append((name, backward, output))
        with torch.profiler.record_function(f"{_MARK}{len(marks) - 1}"):
            pass

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it tells stderr that it begins and ends
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        yield mark, spans
    spans += _read_trace(profile, marks)


def _read_trace(profile: torch.profiler.profile, marks: list[tuple[str, bool, int]]) -> list[Span]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    happened: list[tuple[float, int, int]] = []  # when, which mark or -1, bytes
    for event in events:
        name = event.get("name", "")
        if name == "[memory]":
            happened.append((event["ts"], -1, event["args"]["Bytes"]))
        elif name.startswith(_MARK) and event.get("ph") == "X":
            happened.append((event["ts"], int(name.removeprefix(_MARK)), 0))
    spans: list[Span] = []
    live = most = start = 0
    current = -1
    for _, number, count in sorted(happened):
        if number >= 0:
            if current >= 0:
                name, backward, output = marks[current]
                spans.append(Span(name, backward, start, most, output))
            current, start, most = number, live, live
        live += count
        most = max(most, live)
    name, backward, output = marks[current]
    spans.append(Span(name, backward, start, most, output))
    return spans
