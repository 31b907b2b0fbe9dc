# SPDX-License-Identifier: Apache-2.0
"""Load a predictor from a run folder, an exported file, or published weights by their name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from muntin.configs import check_range, replace, to_dict, with_texts
from muntin.engines.engine_network import AutoEngine, run_in_engine
from muntin.engines.engine_table import EngineName
from muntin.engines.graphs import Precision
from muntin.errors import ConfigError
from muntin.heads.network import Network
from muntin.inference.batch_invariance import make_batch_invariant
from muntin.prediction.cluster_prediction import ClusterPredictor
from muntin.prediction.predictor import Predictor
from muntin.prediction.top_down import BoxDetector, refuse_detector
from muntin.results import DEFAULT_SCORE_THRESHOLD
from muntin.runs import ExportedRun, Run, read_results


class Threshold(NamedTuple):
    """A score threshold, and a phrase that gives its origin."""

    score: float
    why: str


def find_threshold(run: Run) -> Threshold:
    """Give the score at which the F1 of a run with a detector was best in validation."""
    if isinstance(run, ExportedRun):
        return Threshold(*(run.note.threshold or (DEFAULT_SCORE_THRESHOLD, "the default")))
    best = read_results(run).score_threshold
    if not best:
        return Threshold(DEFAULT_SCORE_THRESHOLD, "the default: validation found no best threshold")
    # The score of a detection varies slightly with the composition of the batch; without this
    # margin the detection that set the threshold could be lost.
    return Threshold(max(0.0, float(best) - 1e-4), "the best F1 in validation")


def load(
    run: Run | Path | str,
    *,
    device: str = "auto",
    batch_size: int = 32,
    select: Mapping[str, Any] | None = None,
    detector: Run | Path | str = "",
    detector_threshold: float | None = None,
    least: float | None = None,
    engine: EngineName = "eager",
    precision: Precision = "fp32",
    say: Callable[[str], None] = lambda line: None,
    on: str = "",
) -> Predictor:
    """Load a run for prediction, with its score threshold; its folder is all that is needed.

    Args:
        run: A run folder, a file of `muntin.export`, or the name of a published model.
        device: "auto" takes a GPU when there is one.
        batch_size: Crops (whole images, tiles, instances) in a batch; fewer where they are large.
        select: Detectors only: fields of `muntin.heads.detector.SelectConfig`, such as
            ``{"suppression": "soft", "max_detections": 1000}``.
        detector: For top-down poses, a run that finds the instances, of any class that both know.
        detector_threshold: Minimum score of its boxes; None takes the one at which its F1 was best
            in validation.
        least: Former name of `detector_threshold`.
        engine: What runs the network: on the CPU "eager", "compile", "onnxruntime" or
            "openvino", on a GPU of NVIDIA "cuda"; "auto" measures them once for this machine and
            model, and remembers. An exported file has its own.
        precision: Of the engine: "fp32" or "bf16".
        say: Called with what the engine "auto" measures and chooses.
        on: "ray", or the address of a cluster such as "ray://head:10001": its machines predict
            (`muntin.prediction.cluster_prediction`).

    Raises:
        RunError: A file of the run is missing or broken.
        WeightError: The weights cannot be read or do not fit.
        ConfigError: An option is out of range or does not suit the run.
    """
    from muntin.published import open_run  # here: the rest of this room needs no such weights

    run = open_run(run)
    if on:
        if engine == "auto":
            message = "engine auto measures this machine, not those of a cluster. Name an engine."
            raise ConfigError(message)
        again = partial(
            load, run, batch_size=batch_size, select=select, detector=detector, least=least,
            detector_threshold=detector_threshold, engine=engine, precision=precision,
        )  # fmt: skip
        finds = str(getattr(detector, "path", detector))
        there: Predictor = ClusterPredictor(on, run, again, batch_size, device, finds)
        return _with_threshold(there, run)
    finder = _load_detector(run, detector, device, detector_threshold, least)
    network = run.load_network()
    if select:
        _refuse_fixed(run)
        change_selection(network, select)
    if (engine, precision) != ("eager", "fp32"):
        network, device = _in_engine(run, network, (engine, precision), say), "cpu"
    elif isinstance(network, Network):
        make_batch_invariant(network)
    predictor = Predictor(
        network,
        run.task,
        run.classes,
        run.preprocessing,
        device=device,
        batch_size=batch_size,
        detector=finder,
    )
    return _with_threshold(predictor, run)


def _with_threshold(predictor: Predictor, run: Run) -> Predictor:
    if run.task.detects:
        predictor.threshold = find_threshold(run).score
    return predictor


def _load_detector(
    run: Run,
    detector: Run | Path | str,
    device: str,
    threshold: float | None,
    least: float | None,
) -> BoxDetector | None:
    """Load the detector of a pose run with its threshold, which has two names."""
    name = "detector_threshold"
    if threshold is None and least is not None:
        name, threshold = "least", least
    if threshold is not None:
        check_range(name, threshold, 0, 1)
    if detector:
        opened = detector if isinstance(detector, Run) else Run.open(detector)
        refuse_detector(run.task, opened.task)
        score = find_threshold(opened).score if threshold is None else threshold
        return BoxDetector(load(opened, device=device), score)
    if threshold is not None:
        message = (
            f"{name} needs a detector, got {name}={threshold:g} without one. Pass detector, or "
            f"select results by score with result.above({threshold:g})."
        )
        raise ConfigError(message)
    return None


def _refuse_fixed(run: Run) -> None:
    if isinstance(run, ExportedRun):
        message = "select is fixed in an exported file, got new values. Set it when exporting."
        raise ConfigError(message)


def _in_engine(
    run: Run,
    network: nn.Module,
    wanted: tuple[EngineName, Precision],
    say: Callable[[str], None],
) -> nn.Module:
    engine, precision = wanted
    if not isinstance(network, Network):
        message = (
            f"an exported file has a fixed engine and precision, got {engine}, {precision}. Leave "
            f"engine (--engine) and precision (--precision) out, or load the run."
        )
        raise ConfigError(message)
    name = json.dumps([run.config.to_dict()["model"], to_dict(run.config).get("head")])
    return run_in_engine(
        network,
        run.task,
        run.classes,
        run.preprocessing,
        engine=engine,
        precision=precision,
        auto=AutoEngine(name, say),
    )


def change_selection(network: nn.Module, select: Mapping[str, Any]) -> None:
    """Change the box selection of a detector."""
    head: Any = network.head
    if not hasattr(getattr(head, "config", None), "select"):
        message = (
            "select (--select) needs a detector, got a run whose head selects no boxes. "
            "Leave it out."
        )
        raise ConfigError(message)
    texts = [(name, str(value)) for name, value in select.items()]
    chosen = with_texts(head.config.select, texts, where="select")
    head.config = replace(head.config, {"select": chosen})
