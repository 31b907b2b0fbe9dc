# SPDX-License-Identifier: Apache-2.0
"""Eager and compiled PyTorch, and torch.export files."""

from __future__ import annotations

import copy
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from muntin.engines.graphs import Graph, Precision, Runner, capture, file_error, quiet, to_arrays

NOTE = "muntin.json"

_CPU = torch.device("cpu")


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


def open_torch(path: Path, precision: Precision) -> tuple[Runner, str]:
    """Open a file; returns its runner and its metadata."""
    extra = {NOTE: ""}
    try:
        with quiet():
            program = torch.export.load(path, extra_files=extra)
    except (OSError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise file_error(path, "a torch.export file", error) from error
    return make_runner(program.module(), "fp32"), extra[NOTE]


def make_runner(
    module: Callable[..., Any], precision: Precision, device: torch.device = _CPU
) -> Runner:
    """Call a module on a device with arrays; "bf16" is autocast."""

    def run(inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        half = precision == "bf16"
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            return to_arrays(module(*(torch.from_numpy(part).to(device) for part in inputs)))

    return run
