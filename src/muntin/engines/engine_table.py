# SPDX-License-Identifier: Apache-2.0
"""Tables of inference engines and export formats, one row each, and the choice of the fastest.

That is measured once per machine, model, image size and batch size.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import NDArray

from muntin.engines.graphs import Graph, Precision, Runner
from muntin.engines.onnx_engine import open_onnx, start_onnx, write_onnx
from muntin.engines.openvino_engine import open_openvino, start_openvino, write_openvino
from muntin.engines.torch_engine import (
    find_unavailable,
    open_torch,
    start_compiled,
    start_cuda,
    start_eager,
    write_torch,
)
from muntin.errors import ConfigError, MuntinWarning, UsageError, missing_extra, unknown_name
from muntin.staging import cache_home, replacing
from muntin.untrusted import parse_json, read_regular

ROUNDS = 3
"""Of the measurement of the fastest engine."""

EngineName = Literal["auto", "eager", "compile", "onnxruntime", "openvino", "cuda"]


@dataclass(frozen=True, slots=True)
class Engine:
    """An inference engine.

    `start` creates a runner, for the batch size of the example of the graph unless `any_number`.
    `lacks` tells why this machine cannot run it; empty if it can.
    """

    name: EngineName
    packages: tuple[str, ...]
    precisions: tuple[Precision, ...]
    start: Callable[[Graph, Precision], Runner]
    lacks: Callable[[], str] = str
    any_number: bool = False

    @property
    def installed(self) -> bool:
        """Whether all packages and devices that it needs are available."""
        return all(map(is_installed, self.packages)) and not self.lacks()


_FLOATS: tuple[Precision, ...] = ("fp32", "bf16")

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine("eager", (), _FLOATS, start_eager),
        Engine("compile", (), _FLOATS, start_compiled),
        Engine("onnxruntime", ("onnxruntime", "onnx", "onnxscript"), ("fp32",), start_onnx),
        Engine("openvino", ("openvino",), _FLOATS, start_openvino),
        Engine("cuda", (), _FLOATS, start_cuda, lacks=find_unavailable, any_number=True),
    )
}


@dataclass(frozen=True, slots=True)
class Format:
    """An export format; writing it requires `packages`, running it `readers`.

    `write` writes a graph with metadata; `open` gives a runner and the metadata, from path,
    precision and whether the file is `strange`, that is, not written here and now.
    """

    name: str
    suffix: str
    packages: tuple[str, ...]
    readers: tuple[str, ...]
    precisions: tuple[Precision, ...]
    write: Callable[[Graph, Path, str, Precision], None]
    open: Callable[..., tuple[Runner, str]]


FORMATS: dict[str, Format] = {
    kind.name: kind
    for kind in (
        Format("onnx", ".onnx", ("onnx", "onnxscript"), ("onnxruntime",), ("fp32", "int8"),
               write_onnx, open_onnx),
        Format("openvino", ".xml", ("openvino", "onnx", "onnxscript"), ("openvino",),
               (*_FLOATS, "int8"), write_openvino, open_openvino),
        Format("torch", ".pt2", (), (), _FLOATS, write_torch, open_torch),
    )
}  # fmt: skip


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def require(packages: tuple[str, ...], purpose: str) -> None:
    """Check that packages are installed."""
    for package in packages:
        if not is_installed(package):
            raise missing_extra(package, "export", purpose)


def find_engine(name: object) -> Engine:
    """Look up an engine by name, and check that this machine can run it."""
    engine = ENGINES.get(name) if isinstance(name, str) else None
    if engine is None:
        raise UsageError(unknown_name("engine", name, ["auto", *ENGINES]))
    require(engine.packages, f"the engine {name}")
    lack = engine.lacks()
    if lack:
        others = ["auto", *(each.name for each in ENGINES.values() if each.installed)]
        message = (
            f"engine {name} requires an NVIDIA GPU, but {lack}. Available engines: "
            f"{', '.join(others)}."
        )
        raise ConfigError(message)
    return engine


def find_format(path: Path | str) -> Format | None:
    """Look up a format by file extension; None for anything else, such as a run folder."""
    suffix = Path(path).suffix.lower()
    return next((kind for kind in FORMATS.values() if kind.suffix == suffix), None)


def start_fastest(
    graph: Graph,
    precision: Precision,
    name: str,
    *,
    engines: Mapping[str, Engine] = ENGINES,
    measure: Callable[[Graph, dict[str, Runner]], dict[str, float]] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Runner:
    """Start the fastest engine for a graph; measured on first use, then cached on disk.

    Engines that cannot run the graph are skipped. `name` is the cache key of the model; graphs of
    equal cost share it. `measure` gives the seconds of each runner; the default interleaves them.
    `say` is told what is measured, and what is chosen.
    """
    key = _key(graph, precision, name)
    known = _read().get(key)
    engine = engines.get(str(known.get("engine"))) if isinstance(known, dict) else None
    count, _, *size = graph.example[0].shape
    what = f"{'x'.join(map(str, size))} pixels, batch {count}"
    if engine is not None and engine.installed:
        say(f"engine auto: {engine.name} for {what}, as measured before")
        return engine.start(graph, precision)
    names = [each.name for each in engines.values() if each.installed]
    say(f"engine auto: measuring {', '.join(names)} once for {what}")
    runners = _start_all(graph, precision, engines)
    times = (measure or _measure)(graph, runners)
    best = min(times, key=lambda engine: times[engine])
    _remember(key, {"engine": best, "seconds": times})
    ranked = sorted(times.items(), key=lambda row: row[1])
    told = ", ".join(f"{each} {1000 * seconds:.3g}" for each, seconds in ranked)
    say(f"engine auto: {best} (ms: {told})")
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
    """Median seconds of each runner."""
    seconds = time_runners(runners, [part.numpy() for part in graph.example], ROUNDS)
    return {name: statistics.median(row) for name, row in seconds.items()}


def time_runners(
    runners: Mapping[str, Runner], inputs: Sequence[NDArray[Any]], rounds: int
) -> dict[str, list[float]]:
    """Measure the seconds of each runner in interleaved rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            begun = time.perf_counter()
            runner(inputs)
            seconds[name].append(time.perf_counter() - begun)
    return seconds


def cache_file() -> Path:
    """Return the cache file of engine choices; it may be deleted at any time."""
    return cache_home() / "engines.json"


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
        found = parse_json(read_regular(cache_file()))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(key: str, choice: dict[str, object]) -> None:
    path = cache_file()
    with contextlib.suppress(OSError), replacing(path) as fresh:  # else measured every time
        fresh.write_text(json.dumps({**_read(), key: choice}, indent=1), encoding="utf-8")
