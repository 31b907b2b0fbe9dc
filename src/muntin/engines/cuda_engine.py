# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""A fused network on a GPU, replayed from CUDA graphs, one per batch size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from muntin.engines.graphs import Graph, Precision, Runner, to_arrays
from muntin.errors import ConfigError
from muntin.heads.instances import Instances
from muntin.inference.cuda_graphs import Capture, GraphRunner

__all__ = ["find_unavailable", "start_cuda", "start_recorded"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def find_unavailable() -> str:
    """Return why CUDA is unavailable; empty if it is available."""
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    if not torch.cuda.is_available():
        return "PyTorch finds no NVIDIA GPU on this machine"
    return ""


def start_cuda(graph: Graph, precision: Precision) -> Runner:
    """Fuse the network and record it on the current GPU.

    Args:
        graph: Graph of a network, for any batch size.
        precision: Precision of the computation.

    Raises:
        ConfigError: The graph has no fused form.
    """
    return start_recorded(graph, precision, torch.device("cuda", torch.cuda.current_device()))


def start_recorded(
    graph: Graph, precision: Precision, device: torch.device, capture: Capture | None = None
) -> Runner:
    """Fuse the network and record it.

    Args:
        graph: Graph of a network, for any batch size.
        precision: Precision of the computation.
        device: Device to run on.
        capture: Records the graphs; default: CUDA graphs. Graphs with data-dependent shapes are not
            recorded.

    Raises:
        ConfigError: The graph has no fused form.
    """
    if graph.fuse is None:
        message = (
            "engine cuda requires a network that can be fused, got a graph made for a file. Load "
            "the run instead."
        )
        raise ConfigError(message)
    module = graph.fuse(_DTYPES[precision]).to(device)

    def call(*inputs: Tensor) -> Any:  # noqa: ANN401 (as the network)
        half = precision == "bf16"
        # The weight cache of autocast would live in the memory pool of one recorded graph.
        with (
            torch.no_grad(),
            torch.autocast(device.type, torch.bfloat16, enabled=half, cache_enabled=False),
        ):
            return module(*inputs)

    recorded = GraphRunner(call, device, capture=capture) if graph.fixed else None

    def run(inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        shown = [torch.from_numpy(part) for part in inputs]
        if recorded is not None:
            return to_arrays(recorded(*shown))
        answer = call(*(part.to(device) for part in shown))
        return to_arrays(_fill(answer))

    return run


def _fill(found: Sequence[Instances]) -> list[Tensor]:
    """Pad detections to the same number per image, as exported graphs do; padding has score 0."""
    columns = zip(*found, strict=True)
    return [pad_sequence([*rows], batch_first=True) for rows in columns if rows[0] is not None]
