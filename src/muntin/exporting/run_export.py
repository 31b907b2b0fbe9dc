# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Write a run, or a model of the zoo, as a file that engines run."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from muntin.configs import to_dict
from muntin.data.cache import ImageCache
from muntin.data.data_config import DataConfig
from muntin.data.loading import EvalLoader
from muntin.data.transforms import Preprocessing
from muntin.engines.engine_network import EngineNetwork
from muntin.engines.engine_table import FORMATS, Format, require
from muntin.engines.graph_building import canvas_of, head_info, make_graph
from muntin.engines.graphs import Graph, Precision, Runner
from muntin.errors import ConfigError, RunError, unknown_name
from muntin.exporting.quantisation import Quantised, quantise
from muntin.exporting.verification import Row, compare, comparison_images, require_agreement
from muntin.heads.network import Network
from muntin.prediction.from_run import find_threshold
from muntin.runs import ExportedRun, Run, RunConfig
from muntin.samples import Classes, Listing
from muntin.scoring.evaluation import pick_part
from muntin.scoring.evaluator import score
from muntin.shapes import Size
from muntin.system_errors import cannot_write
from muntin.tasks.task import Task
from muntin.zoo.model_building import create_model, find_model
from muntin.zoo.model_zoo import ALIASES

__all__ = ["Exported", "export"]

MAX_CALIBRATION_IMAGES = 200
MAX_EVALUATION_IMAGES = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """A file that was written, and what was found before it got its name.

    Attributes:
        path: The file.
        size: (height, width) of the images that it takes, in pixels; any number at a time.
        inputs: Names of its inputs.
        outputs: Names of its outputs.
        rows: Its answers beside those of the network.
        quantised: Figures before and after, for int8.
        note: What the file does otherwise than the run; empty where it does not.
    """

    path: Path
    size: Size
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    rows: tuple[Row, ...]
    quantised: Quantised | None = None
    note: str = ""


def export(
    source: Run | Path | str,
    out: Path | str,
    *,
    format: str = "onnx",
    precision: Precision = "fp32",
    img_size: Size | None = None,
    weights: str | Path | None = None,
    data: Path | str = "",
    max_loss: float = 0.5,
    finished: bool = False,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Write a run, or a model of the zoo, as a file that engines run; refuse if answers differ.

    The file reads pixels from 0 to 255 (uint8, RGB, (B, C, H, W)), any number of images of one
    size. It holds class names, preprocessing and config, so that `muntin.load` opens it.

    Args:
        source: A run folder, or the name of a classifier in the zoo.
        out: The file; its suffix is added when left out.
        format: "onnx", "openvino" (.xml and .bin) or "torch" (.pt2 of torch.export).
        precision: "fp32", "bf16" (computed in; openvino and torch) or "int8" (onnx and openvino).
        img_size: (height, width) in pixels; that of the run when left out.
        weights: For a model of the zoo, what `create_model` takes.
        data: Images with labels. int8 needs them: its ranges are chosen on the training part, and
            its loss is measured on the test or validation part. Otherwise they are compared on.
        max_loss: Of int8, points (hundredths) that the task's figure may fall by.
        finished: Whether what the task makes of the raw output (probabilities, labels of pixels,
            keypoints) is an output too.
        force: Whether a file that exists is replaced.
        say: Told what goes on.

    Returns:
        The file and the comparisons.

    Raises:
        ConfigError: A name is unknown, the format has no such precision, or an operator is missing.
        MissingExtra: A library is not installed.
        RunError: The answers differ, or the file cannot be written.
        WeightError: The weights cannot be read, or one is no number.
        DataError: The data cannot be read.
    """
    kind = FORMATS.get(format)
    if kind is None:
        raise ConfigError(unknown_name("format", format, FORMATS))
    path = _target(Path(out), kind, force=force)
    _check_precision(kind, precision, data)
    packages = (*kind.packages, *kind.readers, *(("nncf",) if precision == "int8" else ()))
    require(packages, f"exporting to {format}")
    run, network = _open(source, weights)
    pre = run.preprocessing if img_size is None else replace(run.preprocessing, img_size=img_size)
    canvas = canvas_of(pre)
    sets = _read_data(run, data)
    make = _Exporter(run=run, network=network, pre=pre, finished=finished)
    note = json.dumps(_note(run, network, pre, canvas, precision))
    store = None if sets is None else ImageCache(sets[1], pre, DataConfig(cache_mib=0))
    with _unfinished(path) as partial:
        say(f"writing {kind.name}")
        graph = make.graph(canvas)
        quantised = None
        if precision == "int8":
            assert sets is not None, "int8 was refused without data"
            say("choosing ranges, and measuring what 8 bits cost")
            quantised = _quantise(make, graph, kind, partial, note, sets, max_loss / 100)
        else:
            kind.write(graph, partial, note, precision)
        say("comparing")
        rows = make.compare(partial, kind, canvas, store, precision)
        if precision != "int8":
            rows += make.compare_elsewhere(kind, canvas, precision)
        require_agreement(rows, f"the {kind.name} file")
    return Exported(
        path=path,
        size=canvas,
        inputs=graph.inputs,
        outputs=graph.outputs,
        rows=tuple(rows),
        quantised=quantised,
        note=_difference(run.task, canvas),
    )


def _difference(task: Task, canvas: Size) -> str:
    """What a fixed size means for tasks that else see images at sizes of their own."""
    high, wide = canvas
    if task.detects:
        return (
            f"images will be padded to {high}x{wide}, so figures may differ a little from the "
            f"run's, which pads less"
        )
    if task.kind == "segmentation":
        return (
            f"images will be seen in windows of {high}x{wide}, so figures may differ a little "
            f"from the run's, which sees more at once"
        )
    return ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Exporter:
    """What is exported."""

    run: Run
    network: Network
    pre: Preprocessing
    finished: bool

    def graph(self, canvas: Size) -> Graph:
        task, classes = self.run.task, self.run.classes
        return make_graph(self.network, task, classes, self.pre, canvas, finished=self.finished)

    def call(self, runner: Runner, canvas: Size) -> EngineNetwork:
        return EngineNetwork(
            lambda size, count: runner,
            [canvas],
            head_info(self.network),
            finds=self.run.task.detects,
            groups=None,
        )

    def compare(
        self,
        path: Path,
        kind: Format,
        canvas: Size,
        store: ImageCache | None,
        precision: Precision,
    ) -> list[Row]:
        engine = self.call(kind.open(path, precision)[0], canvas)
        return [
            compare(
                self.network,
                engine,
                self.pre,
                examples,
                finds=self.run.task.detects,
                precision=precision,
            )
            for examples in comparison_images(store, self.pre, canvas)
        ]

    def compare_elsewhere(self, kind: Format, canvas: Size, precision: Precision) -> list[Row]:
        """The same for images of another size, whose file is thrown away."""
        other = (canvas[0] + 32, canvas[1])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"other{kind.suffix}"
            kind.write(self.graph(other), path, "", precision)
            return self.compare(path, kind, other, None, precision)


def _target(path: Path, kind: Format, *, force: bool) -> Path:
    if path.is_dir():
        message = f"OUT must be a file, got {path}, which is a folder. Name a file in it."
        raise RunError(message)
    if path.suffix.lower() != kind.suffix:
        if path.suffix.lower() in {other.suffix for other in FORMATS.values()}:
            message = (
                f"OUT must end in {kind.suffix} for --format {kind.name}, got {path}. Change one "
                f"of the two."
            )
            raise ConfigError(message)
        path = path.with_name(path.name + kind.suffix)
    if path.exists() and not force:
        message = f"OUT must be a new file, got {path}, which exists. Choose another, or --force."
        raise RunError(message)
    return path


def _check_precision(kind: Format, precision: str, data: Path | str) -> None:
    if precision not in kind.precisions:
        message = (
            f"{kind.name} is written in {', '.join(kind.precisions)}, got {precision}. Choose one "
            f"of these, or another --format."
        )
        raise ConfigError(message)
    if precision == "int8" and not data:
        message = (
            "int8 needs images with labels, on which ranges are chosen and the loss is measured, "
            "got none. Give them with --data."
        )
        raise ConfigError(message)


def _open(source: Run | Path | str, weights: str | Path | None) -> tuple[Run, Network]:
    if isinstance(source, Run) or Path(source).exists():
        if weights:
            message = f"weights are for a model of the zoo, got them for the run {source}."
            raise ConfigError(message)
        run = source if isinstance(source, Run) else Run.open(source)
        if isinstance(run, ExportedRun):
            message = f"a run folder or a model must be exported, got {source}, which is a file."
            raise ConfigError(message)
        network = run.load_network()
        assert isinstance(network, Network), "runs hold whole networks"
        return run, network
    if len(Path(source).parts) > 1:
        message = (
            f"RUN|MODEL must be a run folder or the name of a model, got {str(source)!r}, where "
            f"nothing lies. Check the path, or see: muntin models."
        )
        raise RunError(message)
    name = ALIASES.get(str(source), str(source))
    entry = find_model(name)
    network = create_model(name, weights=weights).eval()
    body: Any = network.backbone
    head: Any = network.head
    names = tuple(f"class {number}" for number in range(head.fc.out_features))
    run = Run(
        path=Path(name),
        config=RunConfig(task="classify", data="", model_name=name, model=body.config),
        classes=Classes(names=names),
        preprocessing=Preprocessing(img_size=entry.config.img_size, mean=entry.mean, std=entry.std),
    )
    return run, network


def _note(
    run: Run, network: Network, pre: Preprocessing, canvas: Size, precision: Precision
) -> dict[str, Any]:
    return {
        "config": run.config.to_dict(),
        "classes": to_dict(run.classes),
        "preprocessing": to_dict(pre),
        "canvas": list(canvas),
        "precision": precision,
        "stride": head_info(network).stride,
        "threshold": list(find_threshold(run)) if run.task.detects else None,
    }


def _read_data(run: Run, data: Path | str) -> tuple[Listing, Listing] | None:
    """Images to choose ranges on, and others to score on; None without data."""
    source = data or run.config.val or run.config.data
    if not data and not (source and Path(source).exists()):
        return None
    scored = pick_part(run.task, source, run.classes, run.config.data_config)
    parts = run.task.list_data(source, run.classes, run.config.data_config)
    learnt = parts.train if parts.train is not None and len(parts.train) else scored
    return learnt, scored


def _thin(listing: Listing, most: int) -> Listing:
    """At most so many images, evenly spread."""
    step = -(-len(listing) // most)
    return replace(listing, entries=listing.entries[::step])


def _quantise(
    make: _Exporter,
    graph: Graph,
    kind: Format,
    path: Path,
    note: str,
    sets: tuple[Listing, Listing],
    max_loss: float,
) -> Quantised:
    canvas: Size = (graph.example[0].shape[2], graph.example[0].shape[3])
    task, pre = make.run.task, make.pre
    calibrated = ImageCache(_thin(sets[0], MAX_CALIBRATION_IMAGES), pre, DataConfig(cache_mib=0))
    examples = []
    for batch in EvalLoader(calibrated, batch_size=1):
        high, wide = (min(a, b) for a, b in zip(canvas, batch.images.shape[2:], strict=True))
        images = torch.zeros(1, pre.in_chans, *canvas, dtype=torch.uint8)
        images[:, :, :high, :wide] = batch.images[:, :, :high, :wide]
        more = (batch.sizes.numpy(),) if task.detects else ()
        examples.append((images.numpy(), *more))
    scored = ImageCache(_thin(sets[1], MAX_EVALUATION_IMAGES), pre, DataConfig(), full_labels=True)

    def judge(runner: Runner) -> float:
        found = score(make.call(runner, canvas), scored, task, make.run.classes, batch_size=8)
        return task.goal(found.figures)[1]

    return quantise(graph, kind.name, path, note, images=examples, judge=judge, max_loss=max_loss)


class _unfinished:  # noqa: N801 (a context, used like a function)
    """A file under another name until all is well; nothing is left behind otherwise."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Path:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.folder = tempfile.mkdtemp(prefix=".muntin-", dir=self.path.parent)
        except OSError as error:
            raise RunError(cannot_write(self.path, error)) from error
        return Path(self.folder) / self.path.name

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                for made in sorted(Path(self.folder).iterdir()):
                    os.replace(made, self.path.with_name(made.name))
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
