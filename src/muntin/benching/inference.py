# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Inference compared with peers: same weights, images and threads, interleaved."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from muntin.benching.candidates import OURS, build_peers, select_peers
from muntin.benching.interleaving import BenchmarkCase, Timing, time_interleaved
from muntin.benching.peers import PEERS
from muntin.benching.roofline import measure_roofline
from muntin.engines.engine_table import ENGINES, is_installed
from muntin.engines.graphs import Graph, Precision, Runner
from muntin.engines.int8_quantisation import quantise_int8
from muntin.engines.openvino_engine import (
    compile_openvino,
    import_openvino,
    to_openvino,
    trim_example,
)
from muntin.inference.inference_network import build_inference
from muntin.shapes import Size
from muntin.zoo.costs import count_costs
from muntin.zoo.model_building import create_model, find_model
from muntin.zoo.model_zoo import ALIASES

__all__ = ["bench_inference"]


NUM_CALIBRATION_BATCHES = 8
"""Batches of noise for int8 calibration; speed does not depend on the values."""


def bench_inference(
    model: str,
    *,
    batch_size: int = 8,
    size: Size | None = None,
    peers: Sequence[str] = PEERS,
    rounds: int = 9,
    compiled: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure images per second of a classifier in every engine, for muntin and its peers.

    Args:
        model: Name in the zoo; weights are random.
        batch_size: Images per batch; 1 measures latency.
        size: (height, width) in pixels; default: the model's own.
        peers: Libraries to compare with; those not installed are skipped. ONNX Runtime and
            OpenVINO run timm's model; OpenVINO also in int8 if NNCF is installed.
        rounds: Timed rounds per case.
        compiled: Whether to measure torch.compile too; compilation takes minutes.
        log: Callback for progress messages.

    Returns:
        Machine limits, cost per image, and one row per case. Rows marked ``aside`` run a peer's
        model in OpenVINO as muntin runs its own, with the batch split over the cores; they are
        excluded from comparison.

    Raises:
        ConfigError: The model or a peer is unknown.
    """
    torch.manual_seed(0)
    network = create_model(model).eval().requires_grad_(False)
    high, wide = size or find_model(ALIASES.get(model, model)).config.img_size
    images = torch.randn(batch_size, 3, high, wide)
    chosen = select_peers(peers, PEERS, log)
    log("measuring the machine's peak rates")
    ceilings = measure_roofline()
    with torch.no_grad():
        truth = copy.deepcopy(network).double()(images.double()).numpy()
    fast = build_inference(network, (high, wide))
    engines = ["eager", *(["compile"] if compiled else []), "onnxruntime", "openvino"]
    cases = _make_case("muntin", fast, images, engines, log)
    bodies = [name for name in chosen if name not in ENGINES]
    for implementation in build_peers(bodies, model, network, (high, wide), log):
        mine = ["eager", *(["compile"] if compiled else [])]
        if implementation.name == "timm":
            mine += [name for name in chosen if name in ENGINES]
        cases += _make_case(implementation.name, implementation.module, images, mine, log)
    timings = time_interleaved(cases, rounds=rounds, truth=truth)
    gmacs = count_costs(network, (high, wide)).macs / 1e9
    return {
        "model": model,
        "img_size": [high, wide],
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "gmacs": gmacs,
        "ceilings": ceilings,
        "contestants": [_row(one, timings, batch_size, gmacs, ceilings) for one in timings],
    }


def _make_case(
    owner: str,
    module: nn.Module,
    images: Tensor,
    engines: Sequence[str],
    log: Callable[[str], None],
) -> list[BenchmarkCase]:
    """Build a case for each engine and precision."""
    graph = Graph(module=module, example=(images,), inputs=("images",), outputs=("logits",))
    cut = trim_example(graph)
    found = []
    for name in engines:
        engine = ENGINES[name]
        if not engine.installed:
            log(f"skipped {owner} in {name}: not installed")
            continue
        precisions: list[Precision] = [*engine.precisions]
        if name == "openvino" and is_installed("nncf"):
            precisions.append("int8")
        for precision in precisions:
            log(f"starting {owner} {name} {precision}")
            runners = {name: partial(_start, name, graph, precision, ours=owner == OURS)}
            if name == "openvino" and owner != OURS and len(cut.example[0]) < len(images):
                runners[f"{name} split batch"] = partial(_start, name, cut, precision, ours=False)
            found += [
                BenchmarkCase(
                    name=f"{owner} {title}",
                    precision=precision,
                    rival=owner != OURS,
                    run=partial(_logits, start(), [images.numpy()]),
                    aside=title != name,
                )
                for title, start in runners.items()
            ]
    return found


def _start(name: str, graph: Graph, precision: Precision, *, ours: bool) -> Runner:
    """Start as the library's users would: muntin by torch.export, peers by OpenVINO's guide."""
    if name != "openvino":
        return ENGINES[name].start(graph, precision)
    ov = import_openvino()
    if ours:
        graph = trim_example(graph)
        model = to_openvino(graph, any_batch=False)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = ov.convert_model(graph.module, example_input=graph.example[0])
        model.reshape(list(graph.example[0].shape))
        model.inputs[0].get_tensor().set_names({"images"})
    if precision == "int8":
        rows = [
            {"images": torch.randn(graph.example[0].shape).numpy()}
            for _ in range(NUM_CALIBRATION_BATCHES)
        ]
        model = quantise_int8(model, rows, smooth=not ours)
    return compile_openvino(model, precision)


def _logits(runner: Runner, inputs: list[NDArray[Any]]) -> NDArray[np.float32]:
    return runner(inputs)[0]


def _row(
    timing: Timing,
    timings: Sequence[Timing],
    batch_size: int,
    gmacs: float,
    ceilings: dict[str, float],
) -> dict[str, Any]:
    one = timing.case
    others = [
        batch_size / other.median
        for other in timings
        if other.case.rival and not other.case.aside and other.case.precision == one.precision
    ]
    rate = batch_size / timing.median
    ceiling = ceilings.get(one.precision)
    rates = [batch_size / seconds for seconds in timing.seconds]
    return {
        "name": one.name,
        "precision": one.precision,
        "rival": one.rival,
        "aside": one.aside,
        "images_per_s": {"median": rate, "min": min(rates), "max": max(rates), "count": len(rates)},
        "ms": timing.median * 1e3,
        "against_best_rival": rate / max(others) if others else None,
        "of_ceiling": 2 * gmacs * rate / ceiling if ceiling else None,
        "max_error": timing.error,
        "agreement": timing.agreement,
    }
