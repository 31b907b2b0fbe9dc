# SPDX-License-Identifier: Apache-2.0
"""A model that goes into a bundle for another server, and what its clients must know of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import Template
from typing import Any

from muntin._version import __version__
from muntin.configs import to_dict
from muntin.engines.graphs import GraphTensor
from muntin.engines.onnx_engine import list_onnx
from muntin.engines.openvino_engine import list_openvino
from muntin.runs import ExportedRun
from muntin.staging import checksum, format_json
from muntin.untrusted import read_regular

TEMPLATES = Path(__file__).parent / "templates"

_LISTS: dict[str, Callable[[Path], tuple[list[GraphTensor], list[GraphTensor]]]] = {
    ".onnx": list_onnx,
    ".xml": list_openvino,
}


@dataclass(frozen=True, kw_only=True)
class BundledModel:
    """An exported file under the name by which it is asked."""

    name: str
    run: ExportedRun

    @property
    def suffix(self) -> str:
        """Of the file, such as ".onnx"."""
        return self.run.path.suffix.lower()

    @cached_property
    def tensors(self) -> tuple[list[GraphTensor], list[GraphTensor]]:
        """Inputs and outputs, as the file itself has them."""
        return _LISTS[self.suffix](self.run.path)

    @property
    def any_batch(self) -> bool:
        """Whether the number of images is free, in each input and output."""
        return all(one.shape[:1] == (-1,) for side in self.tensors for one in side)

    def copy(self, folder: Path, stem: str) -> str:
        """Copy the file, and what belongs to it, into a folder; gives its name there."""
        folder.mkdir(parents=True, exist_ok=True)
        suffixes = (self.suffix, ".bin") if self.suffix == ".xml" else (self.suffix,)
        for suffix in suffixes:
            source = self.run.path if suffix == self.suffix else self.run.path.with_suffix(suffix)
            shutil.copyfile(source, folder / f"{stem}{suffix}")
        return f"{stem}{self.suffix}"

    def describe(self) -> dict[str, Any]:
        """What a client needs to prepare images and to read the outputs."""
        run = self.run
        inputs, outputs = ([one._asdict() for one in side] for side in self.tensors)
        return {
            "name": self.name,
            "task": run.task.name,
            "kind": run.task.kind,
            "detects": run.task.detects,
            "class_names": list(run.classes.names),
            "multi_label": run.classes.multi_label,
            "canvas": list(run.note.canvas),
            "threshold": run.note.threshold[0] if run.note.threshold else 0.0,
            "preprocessing": to_dict(run.preprocessing),
            "inputs": inputs,
            "outputs": outputs,
        }

    def record(self) -> dict[str, str]:
        """What was packed, for the record of the bundle."""
        return {"name": self.name, "task": self.run.task.name, "sha256": checksum(self.run.path)}


def write_description(model: BundledModel, folder: Path) -> None:
    """Write ``model.json`` and ``labels.txt``, the names of the classes, a line each."""
    write_text(folder / "model.json", format_json(model.describe()) + "\n")
    names = (" ".join(name.split()) for name in model.run.classes.names)
    write_text(folder / "labels.txt", "".join(f"{name}\n" for name in names))


def fill(template: str, **values: object) -> str:
    """Fill a text of `templates/`; its ``$NAME`` are the given values."""
    text = read_regular(TEMPLATES / f"{template}.txt").decode()
    return Template(text).substitute(values, version=__version__)


def write_text(path: Path, text: str) -> None:
    """Write a text file of a bundle, and the folder around it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
