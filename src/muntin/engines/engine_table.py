# SPDX-License-Identifier: Apache-2.0
"""Tables of inference engines and export formats, one row each."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from muntin.engines.cuda_engine import find_unavailable, start_cuda
from muntin.engines.graphs import Graph, Precision, Runner
from muntin.engines.onnx_engine import open_onnx, start_onnx, write_onnx
from muntin.engines.openvino_engine import open_openvino, start_openvino, write_openvino
from muntin.engines.torch_engine import open_torch, start_compiled, start_eager, write_torch
from muntin.errors import ConfigError, missing_extra, unknown_name

EngineName = Literal["auto", "eager", "compile", "onnxruntime", "openvino", "cuda"]


@dataclass(frozen=True, slots=True)
class Engine:
    """An inference engine.

    Attributes:
        packages: Which it requires.
        start: Creates a runner for the batch size of the example of the graph.
        lacks: Tells why this machine cannot run it; empty if it can.
        any_number: Whether the runner takes any batch size.
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
    """An export format.

    Attributes:
        packages: Which writing it requires.
        readers: Packages that running it requires.
        precisions: In which it can be written.
        write: Writes a graph with metadata.
        open: Gives a runner and the metadata.
    """

    name: str
    suffix: str
    packages: tuple[str, ...]
    readers: tuple[str, ...]
    precisions: tuple[Precision, ...]
    write: Callable[[Graph, Path, str, Precision], None]
    open: Callable[[Path, Precision], tuple[Runner, str]]


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
        raise ConfigError(unknown_name("engine", name, ["auto", *ENGINES]))
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
