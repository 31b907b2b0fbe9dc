# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The engines and their files, one row each."""

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
from muntin.errors import ConfigError, unknown_name
from muntin.system_errors import missing_extra

__all__ = [
    "ENGINES",
    "FORMATS",
    "Engine",
    "EngineName",
    "Format",
    "find_engine",
    "find_format",
    "is_installed",
    "require",
]

EngineName = Literal["auto", "eager", "compile", "onnxruntime", "openvino", "cuda"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """One way to run a module.

    Attributes:
        name: As in ``engine=``.
        packages: What must be installed.
        precisions: In which it can compute.
        start: From a graph and a precision to a runner for as many images as the example has.
        lacks: Says what this machine lacks for it; nothing when it has all.
        any_number: Whether the runner takes any number of images.
    """

    name: EngineName
    packages: tuple[str, ...]
    precisions: tuple[Precision, ...]
    start: Callable[[Graph, Precision], Runner]
    lacks: Callable[[], str] = str
    any_number: bool = False

    @property
    def installed(self) -> bool:
        """Whether all it needs is there."""
        return all(map(is_installed, self.packages)) and not self.lacks()


ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine(name="eager", packages=(), precisions=("fp32", "bf16"), start=start_eager),
        Engine(name="compile", packages=(), precisions=("fp32", "bf16"), start=start_compiled),
        Engine(
            name="onnxruntime",
            packages=("onnxruntime", "onnx", "onnxscript"),
            precisions=("fp32",),
            start=start_onnx,
        ),
        Engine(
            name="openvino",
            packages=("openvino",),
            precisions=("fp32", "bf16"),
            start=start_openvino,
        ),
        Engine(
            name="cuda",
            packages=(),
            precisions=("fp32", "bf16"),
            start=start_cuda,
            lacks=find_unavailable,
            any_number=True,
        ),
    )
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One kind of file that a network can be exported to.

    Attributes:
        name: As in ``--format``.
        suffix: Of the file.
        packages: What must be installed to write it.
        readers: What must be installed to run it.
        precisions: That it can be written in.
        write: Writes a graph with a note.
        open: Gives a runner, and the note.
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
        Format(
            name="onnx",
            suffix=".onnx",
            packages=("onnx", "onnxscript"),
            readers=("onnxruntime",),
            precisions=("fp32", "int8"),
            write=write_onnx,
            open=open_onnx,
        ),
        Format(
            name="openvino",
            suffix=".xml",
            packages=("openvino", "onnx", "onnxscript"),
            readers=("openvino",),
            precisions=("fp32", "bf16", "int8"),
            write=write_openvino,
            open=open_openvino,
        ),
        Format(
            name="torch",
            suffix=".pt2",
            packages=(),
            readers=(),
            precisions=("fp32", "bf16"),
            write=write_torch,
            open=open_torch,
        ),
    )
}


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def require(packages: tuple[str, ...], purpose: str) -> None:
    """Make sure that packages are there.

    Raises:
        MissingExtra: One is not.
    """
    for package in packages:
        if not is_installed(package):
            raise missing_extra(package, "export", purpose)


def find_engine(name: object) -> Engine:
    """Give the row of an engine.

    Raises:
        ConfigError: There is none of this name, or it cannot run on this machine.
        MissingExtra: What it needs is not installed.
    """
    engine = ENGINES.get(name) if isinstance(name, str) else None
    if engine is None:
        raise ConfigError(unknown_name("engine", name, ["auto", *ENGINES]))
    require(engine.packages, f"the engine {name}")
    lack = engine.lacks()
    if lack:
        others = ["auto", *(each.name for each in ENGINES.values() if each.installed)]
        message = (
            f"the engine {name} must have a GPU of NVIDIA, but {lack}. Choose one that runs here: "
            f"{', '.join(others)}."
        )
        raise ConfigError(message)
    return engine


def find_format(path: Path | str) -> Format | None:
    """Give the row of a file by its suffix; None for anything else, such as a run folder."""
    suffix = Path(path).suffix.lower()
    return next((kind for kind in FORMATS.values() if kind.suffix == suffix), None)
