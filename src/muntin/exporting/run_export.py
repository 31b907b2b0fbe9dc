# SPDX-License-Identifier: Apache-2.0
"""Exports a run or a zoo model to a file for an inference engine."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.nn.functional as F

from muntin.configs import to_dict
from muntin.data.cache import ImageCache
from muntin.data.data_config import DataConfig
from muntin.data.loading import EvalLoader
from muntin.data.transforms import Preprocessing
from muntin.engines.engine_network import EngineNetwork, canvas_of, head_info, make_graph
from muntin.engines.engine_table import FORMATS, Format, require
from muntin.engines.graphs import Graph, Precision, Runner
from muntin.engines.isolation import try_file
from muntin.errors import ConfigError, RunError, UsageError, WeightError, unknown_name
from muntin.exporting.quantisation import Quantised, quantise
from muntin.exporting.verification import Row, compare, comparison_images, require_agreement
from muntin.heads.network import Network
from muntin.prediction.from_run import find_threshold
from muntin.prediction.predictor import Predictor
from muntin.published import PublishedRun, find_published, open_named
from muntin.run_config import RunConfig
from muntin.runs import ExportedRun, Run
from muntin.samples import Classes, Listing
from muntin.scoring.evaluation import pick_part
from muntin.scoring.evaluator import score
from muntin.shapes import Size
from muntin.staging import refuse_existing, staged
from muntin.tasks.task import Task
from muntin.zoo.model_building import canonical_name, create_model, find_model

MAX_CALIBRATION_IMAGES = 200
MAX_EVALUATION_IMAGES = 2000
_NO_FILE = ("auto", "none", None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """An exported file and its verification.

    Attributes:
        size: (height, width) of its input images in pixels; the batch size is free.
        rows: Comparisons with the network.
        quantised: Metric before and after quantisation, for int8.
        note: How the file differs from the run; empty if it does not.
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
    weights: str | Path | None = "auto",
    data: Path | str = "",
    max_loss: float = 0.5,
    finished: bool = False,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Export a run or a zoo model to a file for an inference engine, and verify its outputs.

    The file takes pixels in [0, 255] (uint8, RGB, (B, C, H, W)) of one image size and any batch
    size. It contains class names, preprocessing and config, so that `muntin.load` can open it.

    Args:
        source: A run folder, or the name of a classifier in the zoo.
        out: The file to write; the extension is added if missing.
        format: "onnx", "openvino" (.xml and .bin) or "torch" (.pt2 of torch.export).
        precision: "fp32", "bf16" (computation; openvino and torch) or "int8" (onnx and openvino).
        img_size: (height, width) in pixels; default: that of the run.
        weights: For a zoo model: "auto" (published, else fresh; `say` tells), "none", or a source.
        data: Labelled images. Required for int8, which calibrates on the training split and
            measures its loss on the test or validation split; otherwise used for verification.
        max_loss: int8 only: allowed drop of the metric in percentage points.
        finished: Whether to add the finished output of the task, such as probabilities.
        force: Whether to replace an existing file.
        say: Called with each progress message.

    Raises:
        ConfigError, MissingExtra: An option, an operator or a library is not there.
        RunError: The outputs differ, or the file cannot be written.
        WeightError: The weights cannot be read, or contain NaN.
        DataError: The data cannot be read.
    """
    kind = FORMATS.get(format)
    if kind is None:
        raise UsageError(unknown_name("format", format, FORMATS))
    path = _target(Path(out), kind, (weights, data), force=force)
    _check_precision(kind, precision, data)
    packages = (*kind.packages, *kind.readers, *(("nncf",) if precision == "int8" else ()))
    require(packages, f"exporting to {format}")
    run, network = _open(source, weights, say)
    pre = run.preprocessing if img_size is None else replace(run.preprocessing, img_size=img_size)
    canvas = canvas_of(pre)
    sets = _read_data(run, data)
    make = _Exporter(
        run=run, network=network, pre=pre, kind=kind, precision=precision, finished=finished
    )
    note = json.dumps(_note(run, network, pre, canvas, precision))
    store = None if sets is None else ImageCache(sets[1], pre, DataConfig(cache_mib=0))
    with staged(path.parent, named=path) as stage:
        partial = stage / path.name
        say(f"writing {kind.name}")
        graph = make.graph(canvas)
        quantised = None
        if precision == "int8":
            assert sets is not None, "int8 without data raises above"
            say("calibrating int8 and measuring its loss")
            quantised = _quantise(make, graph, partial, note, sets, max_loss / 100)
        else:
            kind.write(graph, partial, note, precision)
        say("verifying outputs")
        rows = make.compare(partial, canvas, store)
        if precision != "int8":
            rows += make.compare_elsewhere(canvas)
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
    """Effect of the fixed image size on tasks that otherwise process images of any size."""
    size, differ = f"{canvas[0]}x{canvas[1]}", "metrics may differ slightly from the run, which"
    if task.detects:
        return f"images are padded to {size}; {differ} pads less"
    if task.kind == "segmentation":
        return f"images are processed in windows of {size}; {differ} uses larger windows"
    return ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Exporter:
    """Builds, runs and compares graphs of the exported network."""

    run: Run
    network: Network
    pre: Preprocessing
    kind: Format
    precision: Precision
    finished: bool

    def graph(self, canvas: Size) -> Graph:
        task, classes = self.run.task, self.run.classes
        return make_graph(self.network, task, classes, self.pre, canvas, finished=self.finished)

    def engine(self, runner: Runner, canvas: Size) -> EngineNetwork:
        front, finds = head_info(self.network), self.run.task.detects
        return EngineNetwork(lambda *_: runner, [canvas], front, finds=finds, groups=None)

    def compare(self, path: Path, canvas: Size, store: ImageCache | None) -> list[Row]:
        try_file(path, self.precision)
        engine = self.engine(self.kind.open(path, self.precision)[0], canvas)
        finds, precision = self.run.task.detects, self.precision
        return [
            compare(self.network, engine, self.pre, examples, finds=finds, precision=precision)
            for examples in comparison_images(store, self.pre, canvas)
        ]

    def compare_elsewhere(self, canvas: Size) -> list[Row]:
        """Compare at another image size, with a temporary file."""
        other = (canvas[0] + 32, canvas[1])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"other{self.kind.suffix}"
            self.kind.write(self.graph(other), path, "", self.precision)
            return self.compare(path, other, None)


def _target(path: Path, kind: Format, given: Sequence[Path | str | None], *, force: bool) -> Path:
    if path.is_dir():
        message = f"OUT must be a file, got the folder {path}. Name a file in it."
        raise RunError(message)
    if path.suffix.lower() != kind.suffix:
        if path.suffix.lower() in {other.suffix for other in FORMATS.values()}:
            message = (
                f"OUT must end in {kind.suffix} for --format {kind.name}, got {path}. Change the "
                f"name or the format."
            )
            raise ConfigError(message)
        path = path.with_name(path.name + kind.suffix)
    written = [path, path.with_suffix(".bin")] if kind.suffix == ".xml" else [path]
    files = ["" if one in _NO_FILE else str(one) for one in given]
    refuse_existing(written, files, option="OUT", force=force)
    return path


def _check_precision(kind: Format, precision: str, data: Path | str) -> None:
    if precision not in kind.precisions:
        message = (
            f"--format {kind.name} supports {', '.join(kind.precisions)}, got {precision}. Choose "
            f"one of these, or another --format."
        )
        raise ConfigError(message)
    if precision == "int8" and not data:
        message = (
            "int8 requires labelled images for calibration and for measuring the loss, got none. "
            "Pass them with --data."
        )
        raise ConfigError(message)


def _open(
    source: Run | Path | str, weights: str | Path | None, say: Callable[[str], None]
) -> tuple[Run, Network]:
    if isinstance(source, Run) or Path(source).exists():
        if weights not in ("auto", None):
            message = f"weights apply to zoo models only, got them with the run {source}."
            raise ConfigError(message)
        run = source if isinstance(source, Run) else Run.open(source)
        if isinstance(run, ExportedRun):
            message = (
                f"source must be a run folder or a model name, got the exported file {source}."
            )
            raise ConfigError(message)
        network = run.load_network()
        assert isinstance(network, Network), "runs hold whole networks"
        return run, network
    if len(Path(source).parts) > 1:
        message = (
            f"RUN|MODEL must be a run folder or a model name, got {str(source)!r}, which does not "
            f"exist. Check the path, or list models with: muntin models."
        )
        raise RunError(message)
    published = _published(str(source), weights, say)
    return (published, published.network) if published else _fresh(str(source))


def _published(
    name: str, weights: str | Path | None, say: Callable[[str], None]
) -> PublishedRun | None:
    """A model with its weights; None for fresh ones, asked for or for lack of others."""
    find_model(name)
    if weights in ("none", None):
        return None
    try:
        run = open_named(name, find_published(name) if weights == "auto" else str(weights))
    except WeightError as error:
        if weights != "auto":
            raise
        say(
            f"weights: fresh, so the file answers at random and serves for speed and shapes only: "
            f"{error}"
        )
        return None
    say(f"weights: {run.describe()}")
    return run


def _fresh(text: str) -> tuple[Run, Network]:
    name, entry = canonical_name(text), find_model(text)
    network = create_model(name).eval()
    body: Any = network.backbone
    head: Any = network.head
    run = Run(
        path=Path(name),
        config=RunConfig(task="classify", data="", model_name=name, model=body.config),
        classes=Classes(names=tuple(f"class {number}" for number in range(head.fc.out_features))),
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
    """Images for calibration and images for evaluation; None without data."""
    source = data or run.config.val or run.config.data
    if not data and not (source and Path(source).exists()):
        return None
    parts = run.task.list_data(source, run.classes, run.config.data_config)
    scored = pick_part(parts, run.task, source, run.classes)
    return parts.train or scored, scored


def _thin(listing: Listing, most: int) -> Listing:
    """At most `most` images, evenly spaced."""
    step = -(-len(listing) // most)
    return replace(listing, entries=listing.entries[::step])


def _quantise(
    make: _Exporter,
    graph: Graph,
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
        high, wide = batch.images.shape[2:]
        images = F.pad(batch.images, (0, canvas[1] - wide, 0, canvas[0] - high))  # negative: cut
        more = (batch.sizes.numpy(),) if task.detects else ()
        examples.append((images.numpy(), *more))
    scored = ImageCache(_thin(sets[1], MAX_EVALUATION_IMAGES), pre, DataConfig())

    def judge(runner: Runner) -> float:
        engine = make.engine(runner, canvas)
        predictor = Predictor(engine, task, make.run.classes, pre, device="cpu")
        return task.goal(score(predictor, scored, batch_size=8).figures)[1]

    return quantise(graph, path, note, images=examples, judge=judge, max_loss=max_loss)
