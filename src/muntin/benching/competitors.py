# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Who takes part, with the same weights, and how measures become rows."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from muntin.benching.peers import PEERS, Logits, build_peer
from muntin.engines.table import is_installed
from muntin.errors import ConfigError, unknown_name
from muntin.heads.network import Network
from muntin.shapes import Size
from muntin.zoo.model_zoo import ALIASES

__all__ = [
    "OURS",
    "Entrant",
    "choose_peers",
    "compare_rows",
    "enter_peers",
    "make_deterministic",
    "refuse_compiled",
    "spread",
]

OURS = "muntin"

ALIKE = ("precision", "work", "stage", "map", "workers")
"""Fields of a row that must be equal for two rows to be compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entrant:
    """A model that takes part.

    Attributes:
        name: Whose.
        rival: Whether it is somebody else's.
        module: Images (B, 3, H, W) to logits (B, K), in evaluation mode.
    """

    name: str
    rival: bool
    module: nn.Module


def refuse_compiled(compiled: bool, what: str, why: str) -> None:
    """Refuse a setting that would change nothing.

    Raises:
        ConfigError: `compiled` is set.
    """
    if compiled:
        message = f"compiled must be False to bench {what}, {why}, got True. Leave it out."
        raise ConfigError(message)


def choose_peers(
    peers: Sequence[str], offered: Sequence[str], say: Callable[[str], None]
) -> list[str]:
    """Give the peers that can take part.

    Args:
        peers: Who is asked for.
        offered: Who does this kind of work.
        say: Told who is left out and why.

    Raises:
        ConfigError: There is no such peer.
    """
    chosen = []
    for name in peers:
        if name not in PEERS:
            raise ConfigError(unknown_name("peer", name, PEERS))
        if name not in offered:
            say(f"left out: {name}, which does not do this kind of work")
        elif not is_installed(name):
            say(f"left out: {name}, which is not installed")
        else:
            chosen.append(name)
    return chosen


def enter_peers(
    peers: Sequence[str], model: str, network: Network, size: Size, say: Callable[[str], None]
) -> list[Entrant]:
    """Build the peers' models with the weights of ours.

    Args:
        peers: As `choose_peers` gives them.
        model: Its name in the zoo.
        network: Ours, with a classifier.
        size: (height, width) in pixels of the images; who refuses them is left out.
        say: Told who is left out and why.
    """
    found = []
    for name in peers:
        built = build_peer(name, ALIASES.get(model, model), network)
        if built is None:
            say(f"left out: {name}, which does not have this model")
        elif not _reads(built, size):
            say(f"left out: {name}, whose model does not read {size[0]} x {size[1]} pixels")
        else:
            found.append(Entrant(name=name, rival=True, module=Logits(built)))
    return found


@torch.no_grad()
def _reads(peer: nn.Module, size: Size) -> bool:
    try:
        peer(torch.zeros(1, 3, *size))
    except (AssertionError, RuntimeError, ValueError):  # each refuses in its own way
        return False
    return True


def make_deterministic(module: nn.Module) -> nn.Module:
    """Give the same module in training mode, with gradients, that drops nothing at random."""
    module.train().requires_grad_(True)
    for part in module.modules():
        name = type(part).__name__
        if "Drop" in name or name == "StochasticDepth":
            part.eval()
    return module


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of repeated measurements, and their number."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "count": len(values),
    }


def compare_rows(
    rows: list[dict[str, Any]], measure: str, *, better: Literal["more", "less"]
) -> None:
    """Add ``against_best_rival`` to every row: above 1 it is better than every rival.

    Rows are compared that agree in precision and in what was done. For the best rival itself it
    is 1; None where there is no rival.

    Args:
        rows: With `measure` as `spread` gives it, and ``rival``.
        measure: Its key.
        better: Which values are good.
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
