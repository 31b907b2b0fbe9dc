# SPDX-License-Identifier: Apache-2.0
"""What a benchmark measures, and the facts that every result states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from muntin.configs import check_range
from muntin.engines.engine_table import is_installed
from muntin.errors import ConfigError, unknown_name
from muntin.shapes import Size
from muntin.zoo.model_building import find_model

PEERS = ("timm", "torchvision", "transformers", "onnxruntime", "openvino")
"""Libraries to compare with. The last two run timm's model, as a user without muntin would."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchRequest:
    """What to measure, and compared with whom.

    Peers that are not installed, or lack the model, are skipped; `log` receives the reasons and
    the progress. A batch of 1 measures latency; the default size (pixels) is the model's own.
    """

    model: str
    peers: Sequence[str] = PEERS
    batch_size: int = 8
    size: Size | None = None
    rounds: int = 5
    compiled: bool = False
    log: Callable[[str], None] = lambda line: None

    def __post_init__(self) -> None:
        for name in ("batch_size", "rounds"):
            check_range(name, getattr(self, name), 1, 10**6)
        for peer in self.peers:
            if peer not in PEERS:
                raise ConfigError(unknown_name("peer", peer, PEERS))

    @property
    def img_size(self) -> Size:
        """(height, width) of the images in pixels."""
        return self.size or find_model(self.model).config.img_size

    def select_peers(self, offered: Sequence[str]) -> list[str]:
        """Select the requested peers that are installed and take part in a benchmark."""
        chosen = []
        for name in self.peers:
            if name not in offered:
                self.log(f"skipped {name}: it does not take part in this benchmark")
            elif not is_installed(name):
                self.log(f"skipped {name}: not installed")
            else:
                chosen.append(name)
        return chosen

    def describe(self, kind: str, rows: list[dict[str, Any]], **more: object) -> dict[str, Any]:
        """Return the result of a benchmark: its settings, `more`, and one row per case."""
        return {
            "kind": kind,
            "model": self.model,
            "img_size": list(self.img_size),
            "batch_size": self.batch_size,
            "threads": torch.get_num_threads(),
            **more,
            "contestants": rows,
        }
