# SPDX-License-Identifier: Apache-2.0
"""Automatic engine selection: measured once per machine, model, image size and batch size."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from muntin.engines.engine_table import ENGINES, Engine
from muntin.engines.graphs import Graph, Precision, Runner
from muntin.errors import MuntinWarning

ROUNDS = 3


def start_fastest(
    graph: Graph,
    precision: Precision,
    name: str,
    *,
    engines: Mapping[str, Engine] = ENGINES,
    measure: Callable[[Graph, dict[str, Runner]], dict[str, float]] | None = None,
) -> Runner:
    """Start the fastest engine for a graph; measured on first use, then cached on disk.

    Engines that cannot run the graph are skipped. `name` is the cache key of the model; graphs of
    equal cost share it. `measure` gives the seconds of each runner; the default interleaves them.
    """
    key = _key(graph, precision, name)
    known = _read().get(key)
    engine = engines.get(known["engine"]) if isinstance(known, dict) else None
    if engine is not None and engine.installed:
        return engine.start(graph, precision)
    runners = _start_all(graph, precision, engines)
    times = (measure or _measure)(graph, runners)
    best = min(times, key=lambda engine: times[engine])
    _remember(key, {"engine": best, "seconds": times})
    return runners[best]


def _start_all(
    graph: Graph, precision: Precision, engines: Mapping[str, Engine]
) -> dict[str, Runner]:
    runners: dict[str, Runner] = {}
    for engine in engines.values():
        if not engine.installed or precision not in engine.precisions:
            continue
        try:
            runner = engine.start(graph, precision)
            runner([part.numpy() for part in graph.example])
        except Exception as error:  # such as a missing compiler or an unsupported operator
            if engine.name == "eager":
                raise
            said = " ".join(str(error).split())[:120]
            text = f"engine {engine.name} is skipped because it cannot run this model: {said}"
            warnings.warn(text, MuntinWarning, stacklevel=4)
        else:
            runners[engine.name] = runner
    return runners


def _measure(graph: Graph, runners: dict[str, Runner]) -> dict[str, float]:
    """Median seconds of each runner over interleaved rounds."""
    inputs = [part.numpy() for part in graph.example]
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(ROUNDS):
        for name, runner in runners.items():
            begun = time.perf_counter()
            runner(inputs)
            seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(row) for name, row in seconds.items()}


def cache_file() -> Path:
    """Return the cache file of engine choices; it may be deleted at any time."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "muntin" / "engines.json"


def _key(graph: Graph, precision: Precision, name: str) -> str:
    versions = []
    for package in ("torch", "onnxruntime", "openvino"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    parts = [
        *(platform.node(), platform.machine(), str(torch.get_num_threads())),
        torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        *(*versions, precision, name),
        *(str(tuple(part.shape)) for part in graph.example),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _read() -> dict[str, object]:
    try:
        found = json.loads(cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(key: str, choice: dict[str, object]) -> None:
    path = cache_file()
    with contextlib.suppress(OSError):  # without a writable home the choice is measured every time
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_text(json.dumps({**_read(), key: choice}, indent=1), encoding="utf-8")
        os.replace(partial, path)
