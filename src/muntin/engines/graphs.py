# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What every engine takes and gives, and the graph that they start from."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from muntin.errors import RunError

__all__ = ["Graph", "Precision", "Runner", "capture", "file_error", "quiet", "to_arrays"]

Precision = Literal["fp32", "bf16", "int8"]

Runner = Callable[[Sequence[NDArray[Any]]], list[NDArray[Any]]]
"""From the inputs of a graph to its outputs, as arrays. What it gives is the caller's to keep."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """A module that only infers, and what it reads and gives.

    Attributes:
        module: In evaluation mode.
        example: What it reads: several images, since what is true of one may not be of two.
        inputs: Name of each input.
        outputs: Name of each output.
        fuse: Gives a module that does the same in fewer steps on a GPU, with tokens and weights of
            a type; None where there is none.
        fixed: Whether the sides of all tensors inside depend on those of the inputs alone; not so
            where `fuse` gives a detector, which tells as many objects as it finds.
    """

    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    fuse: Callable[[torch.dtype], nn.Module] | None = None
    fixed: bool = True


@torch.no_grad()
def capture(graph: Graph, *, any_batch: bool) -> torch.export.ExportedProgram:
    """Write a module down, operator by operator.

    Args:
        graph: The module.
        any_batch: Whether the number of images may change; else it is that of the example.
    """
    shapes = None
    if any_batch:
        batch = torch.export.Dim("batch", min=1, max=4096)
        shapes = tuple({0: batch} for _ in graph.example)
    return torch.export.export(graph.module, graph.example, dynamic_shapes=shapes, strict=False)


def to_arrays(answer: Tensor | Iterable[Tensor]) -> list[NDArray[Any]]:
    """Give tensors as arrays; numbers in float32."""
    parts = [answer] if isinstance(answer, Tensor) else list(answer)
    return [(part.float() if part.is_floating_point() else part).cpu().numpy() for part in parts]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what libraries print, log and advise away from the user: what fails raises."""
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


def file_error(path: Path, kind: str, error: Exception) -> RunError:
    """Word the error for a file that an engine could not open."""
    message = (
        f"{path} must be {kind} that muntin export wrote, got something that cannot be opened "
        f"({' '.join(str(error).split())[:200]}). Export it again."
    )
    return RunError(message)
