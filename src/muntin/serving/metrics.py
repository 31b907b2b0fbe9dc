# SPDX-License-Identifier: Apache-2.0
"""Counts and times of a server, for `GET /metrics` in the text format of Prometheus."""

from __future__ import annotations

import os
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """What a server counts; one registry a server, so that several may live in one process.

    An image is dropped as its client is gone ("client") or its time is over ("deadline").
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "muntin_requests", "Requests, by route and status code", ("route", "status"),
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "muntin_request_seconds", "From the head of a request to its answer", ("route",),
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.stages = Histogram(
            "muntin_stage_seconds", "Parts of an answer: queue (an image); decode, network, encode "
            "(a batch)", ("stage",), buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.batches = Histogram(
            "muntin_batch_images", "Images of a batch", buckets=_SIZES, registry=self.registry
        )
        self.refused = Counter(
            "muntin_refused", "Requests that were not accepted", ("reason",), registry=self.registry
        )
        self.dropped = Counter(
            "muntin_dropped_images", "Images that left the queue without an answer", ("reason",),
            registry=self.registry,
        )  # fmt: skip
        self.deaths = Counter(
            "muntin_worker_deaths", "Worker processes that ended by themselves",
            registry=self.registry,
        )  # fmt: skip

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a value that is read when it is asked for."""
        Gauge(f"muntin_{name}", text, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        """Everything, in the text format of Prometheus."""
        return generate_latest(self.registry)


def resident_bytes(pid: int | None) -> float:
    """Resident memory of a process of this machine in bytes; 0 where it is not known."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return float(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, IndexError):
        return 0.0
