# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The implementations that are compared, with equal weights, and the rows of their results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from muntin.benching.peers import PEERS, Logits, build_peer
from muntin.engines.engine_table import is_installed
from muntin.errors import ConfigError, unknown_name
from muntin.heads.network import Network
from muntin.shapes import Size
from muntin.zoo.model_zoo import ALIASES

__all__ = [
    "OURS",
    "Implementation",
    "build_peers",
    "compare_rows",
    "make_deterministic",
    "reject_compiled",
    "select_peers",
    "summarize",
]

OURS = "muntin"

ALIKE = ("precision", "work", "stage", "map", "workers")
"""Rows are compared with each other only if these fields are equal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Implementation:
    """A model as one library implements it.

    Attributes:
        name: Name of the library.
        rival: Whether it is a peer's rather than muntin's.
        module: Images (B, 3, H, W) to logits (B, K), in evaluation mode.
    """

    name: str
    rival: bool
    module: nn.Module


def reject_compiled(compiled: bool, what: str, why: str) -> None:
    """Reject torch.compile for benchmarks that cannot use it.

    Raises:
        ConfigError: `compiled` is set.
    """
    if compiled:
        message = f"compiled must be False for the benchmark {what!r}: {why}. Remove --compile."
        raise ConfigError(message)


def select_peers(
    peers: Sequence[str], offered: Sequence[str], log: Callable[[str], None]
) -> list[str]:
    """Select the requested peers that are installed and support this benchmark.

    Args:
        peers: Requested names.
        offered: Names that support this benchmark.
        log: Callback; receives the reason for every peer that is skipped.

    Raises:
        ConfigError: A peer is unknown.
    """
    chosen = []
    for name in peers:
        if name not in PEERS:
            raise ConfigError(unknown_name("peer", name, PEERS))
        if name not in offered:
            log(f"skipped {name}: it does not support this benchmark")
        elif not is_installed(name):
            log(f"skipped {name}: not installed")
        else:
            chosen.append(name)
    return chosen


def build_peers(
    peers: Sequence[str], model: str, network: Network, size: Size, log: Callable[[str], None]
) -> list[Implementation]:
    """Build the peers' models with the weights of muntin's.

    Args:
        peers: From `select_peers`.
        model: Name in the zoo.
        network: Muntin's model, with a classifier.
        size: (height, width) of the images in pixels; peers that reject it are skipped.
        log: Callback; receives the reason for every peer that is skipped.
    """
    found = []
    for name in peers:
        built = build_peer(name, ALIASES.get(model, model), network)
        if built is None:
            log(f"skipped {name}: it does not have this model")
        elif not _accepts(built, size):
            log(f"skipped {name}: its model does not accept {size[0]} x {size[1]} pixels")
        else:
            found.append(Implementation(name=name, rival=True, module=Logits(built)))
    return found


@torch.no_grad()
def _accepts(peer: nn.Module, size: Size) -> bool:
    try:
        peer(torch.zeros(1, 3, *size))
    except (AssertionError, RuntimeError, ValueError):  # libraries raise different types
        return False
    return True


def make_deterministic(module: nn.Module) -> nn.Module:
    """Put the module in training mode with gradients, but without dropout and drop path."""
    module.train().requires_grad_(True)
    for part in module.modules():
        name = type(part).__name__
        if "Drop" in name or name == "StochasticDepth":
            part.eval()
    return module


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum, maximum and count of repeated measurements."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "count": len(values),
    }


def compare_rows(
    rows: list[dict[str, Any]], measure: str, *, better: Literal["more", "less"]
) -> None:
    """Add ``against_best_rival`` to every row; above 1, the row beats all peers.

    Only rows that agree in all fields of `ALIKE` are compared. The best peer has 1; without a
    peer, the value is None.

    Args:
        rows: Each with ``rival`` and, under the key `measure`, the result of `summarize`.
        measure: Key of the compared quantity.
        better: "more" if larger values are better, else "less".
    """
    for row in rows:
        rivals = [
            other[measure]["median"]
            for other in rows
            if other["rival"] and all(other.get(key) == row.get(key) for key in ALIKE)
        ]
        value = row[measure]["median"]
        ratio = None
        if rivals:
            ratio = value / max(rivals) if better == "more" else min(rivals) / value
        row["against_best_rival"] = ratio
