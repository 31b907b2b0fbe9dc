# SPDX-License-Identifier: Apache-2.0
"""Inputs and outputs that all engines share, and the graph they start from."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from muntin.errors import ConfigError, RunError

Precision = Literal["fp32", "bf16", "int8"]

Runner = Callable[[Sequence[NDArray[Any]]], list[NDArray[Any]]]
"""Maps the inputs of a graph to its outputs, as arrays. The caller owns the outputs."""


class GraphTensor(NamedTuple):
    """An input or output of a graph in a file.

    Attributes:
        dtype: As NumPy calls it, such as "uint8" or "float32".
        shape: Its sides; -1 for one that is free, as that of the batch is.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """An inference module with example inputs and the names of inputs and outputs.

    Examples have two or more images, as tracing specialises batches of 1. `fused` builds the same
    module with window attention on whole maps, for which GPUs have a kernel, if it is another one.
    """

    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    fused: Callable[[], nn.Module] | None = None


@torch.no_grad()
def capture(graph: Graph, *, any_batch: bool) -> torch.export.ExportedProgram:
    """Trace a module with torch.export, for any batch size or only that of the example.

    Raises:
        ConfigError: What it computes depends on values, such as those of a buffer.
    """
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    importlib.import_module("torchvision")  # shapes of its operators
    shapes = None
    if any_batch:
        batch = torch.export.Dim("batch", min=1, max=4096)
        shapes = tuple({0: batch} for _ in graph.example)
    try:
        return torch.export.export(graph.module, graph.example, dynamic_shapes=shapes, strict=False)
    except GuardOnDataDependentSymNode as error:
        message = (
            f"a model must compute the same steps for all values to become a graph, got: "
            f"{str(error).splitlines()[0]}. Use the run itself: predict and serve take it."
        )
        raise ConfigError(message) from error


def to_arrays(answer: Tensor | Iterable[Tensor]) -> list[NDArray[Any]]:
    """Convert tensors to arrays; floating-point values to float32."""
    parts = [answer] if isinstance(answer, Tensor) else list(answer)
    return [(part.float() if part.is_floating_point() else part).cpu().numpy() for part in parts]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the output, logs and warnings of libraries; failures still raise."""
    silent = io.StringIO()
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(silent),
            contextlib.redirect_stderr(silent),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def silence_telemetry() -> None:
    """Keep OpenVINO and NNCF from reporting their imports and calls to their makers.

    Their documented switch (``opt_in_out --opt_out``) is a file in the user's home, for all
    programs. Without this package they report nothing; a program that has loaded it keeps it.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


ADVICE = "Use a file written by muntin export, or export the model again."
"""What to do about an exported file that cannot be read."""


def file_error(path: Path, kind: str, error: Exception) -> RunError:
    """Build the error for a file that an engine cannot open."""
    message = (
        f"{path} must be {kind} written by muntin export, but it cannot be opened "
        f"({' '.join(str(error).split())[:200]}). {ADVICE}"
    )
    return RunError(message)
