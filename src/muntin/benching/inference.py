# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Inference beside the peers: same weights, same images, same threads, in turns."""

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

from muntin.benching.competitors import OURS, choose_peers, enter_peers
from muntin.benching.interleaving import Contestant, Timing, take_turns
from muntin.benching.peers import PEERS
from muntin.benching.roofline import measure_ceilings
from muntin.engines.eight_bits import to_eight_bits
from muntin.engines.graphs import Graph, Precision, Runner
from muntin.engines.openvino_engine import (
    compile_openvino,
    cut_example,
    to_openvino,
)
from muntin.engines.table import ENGINES, is_installed
from muntin.inference.building import build_inference
from muntin.shapes import Size
from muntin.zoo.costs import count_costs
from muntin.zoo.model_building import create_model, find_model
from muntin.zoo.model_zoo import ALIASES

__all__ = ["bench_inference"]


CALIBRATED = 8
"""Batches of noise by which ranges are chosen; speed does not depend on them."""


def bench_inference(
    model: str,
    *,
    batch_size: int = 8,
    size: Size | None = None,
    peers: Sequence[str] = PEERS,
    rounds: int = 9,
    compiled: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure images a second of a classifier in every engine, ours and theirs.

    Args:
        model: In the zoo; with fresh weights.
        batch_size: Images at a time; 1 measures latency.
        size: (height, width) in pixels; what the model is made for when left out.
        peers: Who else takes part; those that are not installed are left out. ONNX Runtime and
            OpenVINO run timm's model; OpenVINO also in int8 where NNCF is installed.
        rounds: Turns of each.
        compiled: Whether torch.compile takes part, which takes minutes to start.
        say: Told what goes on.

    Returns:
        Ceilings, cost of an image, and a row a contestant. Rows that are ``aside`` are a peer's
        model in OpenVINO run as ours is, a part of the images on each core; they are no rivals.

    Raises:
        ConfigError: There is no such peer or model.
    """
    torch.manual_seed(0)
    network = create_model(model).eval().requires_grad_(False)
    high, wide = size or find_model(ALIASES.get(model, model)).config.img_size
    images = torch.randn(batch_size, 3, high, wide)
    chosen = choose_peers(peers, PEERS, say)
    say("measuring what the machine could do")
    ceilings = measure_ceilings()
    with torch.no_grad():
        truth = copy.deepcopy(network).double()(images.double()).numpy()
    fast = build_inference(network, (high, wide))
    engines = ["eager", *(["compile"] if compiled else []), "onnxruntime", "openvino"]
    contestants = _enter("muntin", fast, images, engines, say)
    bodies = [name for name in chosen if name not in ENGINES]
    for entrant in enter_peers(bodies, model, network, (high, wide), say):
        mine = ["eager", *(["compile"] if compiled else [])]
        if entrant.name == "timm":
            mine += [name for name in chosen if name in ENGINES]
        contestants += _enter(entrant.name, entrant.module, images, mine, say)
    timings = take_turns(contestants, rounds=rounds, truth=truth)
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


def _enter(
    owner: str,
    module: nn.Module,
    images: Tensor,
    engines: Sequence[str],
    say: Callable[[str], None],
) -> list[Contestant]:
    """A contestant for each engine and precision."""
    graph = Graph(module=module, example=(images,), inputs=("images",), outputs=("logits",))
    cut = cut_example(graph)
    found = []
    for name in engines:
        engine = ENGINES[name]
        if not engine.installed:
            say(f"left out: {owner} in {name}, which is not installed")
            continue
        precisions: list[Precision] = [*engine.precisions]
        if name == "openvino" and is_installed("nncf"):
            precisions.append("int8")
        for precision in precisions:
            say(f"starting {owner} {name} {precision}")
            runners = {name: partial(_start, name, graph, precision, ours=owner == OURS)}
            if name == "openvino" and owner != OURS and len(cut.example[0]) < len(images):
                runners[f"{name} in parts"] = partial(_start, name, cut, precision, ours=False)
            found += [
                Contestant(
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
    """Each as its users do it: ours by torch.export, a peer in OpenVINO as its guide says."""
    if name != "openvino":
        return ENGINES[name].start(graph, precision)
    import openvino as ov

    if ours:
        graph = cut_example(graph)
        model = to_openvino(graph, any_batch=False)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = ov.convert_model(graph.module, example_input=graph.example[0])
        model.reshape(list(graph.example[0].shape))
        model.inputs[0].get_tensor().set_names({"images"})
    if precision == "int8":
        rows = [{"images": torch.randn(graph.example[0].shape).numpy()} for _ in range(CALIBRATED)]
        model = to_eight_bits(model, rows, smooth=not ours)
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
    one = timing.contestant
    others = [
        batch_size / other.median
        for other in timings
        if other.contestant.rival
        and not other.contestant.aside
        and other.contestant.precision == one.precision
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
