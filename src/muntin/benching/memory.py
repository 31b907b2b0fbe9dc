# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Peak memory of inference and training steps compared with peers, one process each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from muntin.benching.candidates import (
    OURS,
    build_peers,
    compare_rows,
    make_deterministic,
    reject_compiled,
    select_peers,
    summarize,
)
from muntin.benching.interleaving import BenchmarkCase, time_interleaved
from muntin.benching.training import TRAINERS, make_optimizer
from muntin.devices import peak_mib, reset_peak, resident_mib
from muntin.heads.network import Network
from muntin.inference.inference_network import build_inference
from muntin.shapes import Size
from muntin.training.recompute import recompute_layers
from muntin.zoo.model_building import create_model, find_model

__all__ = ["bench_memory", "measure_in_subprocess", "measure_once"]

MIB = 2**20


def bench_memory(
    model: str,
    *,
    batch_size: int = 8,
    size: Size | None = None,
    peers: Sequence[str] = TRAINERS,
    rounds: int = 5,
    compiled: bool = False,
    log: Callable[[str], None] = lambda line: None,
    measure_job: Callable[[dict[str, Any]], dict[str, float]] | None = None,
) -> dict[str, Any]:
    """Measure peak resident memory in fp32 on the CPU, for muntin and its peers.

    Every measurement is a process of its own; its memory after imports is subtracted from its
    peak. Weights are included. Muntin infers with the network that prediction uses
    (`muntin.inference`), and trains with recomputed layers, as where memory is short.

    Args:
        model: Name in the zoo; weights are random.
        batch_size: Images per batch.
        size: (height, width) in pixels; default: the model's own.
        peers: Libraries to compare with; those that do not support the model are skipped.
        rounds: Processes per case.
        compiled: Must be False: the compiler's own memory would be counted.
        log: Callback for progress messages.
        measure_job: Measures one job; default: `measure_in_subprocess`.

    Returns:
        The settings and one row per case and work ("inference", "training"), with ``peak_mib``,
        ``activation_mib`` (the peak without weights, gradients and optimizer moments),
        ``weights_mib`` and ``max_error`` (of the loss, against float64).

    Raises:
        ConfigError: There is no such model or peer, or `compiled` is set.
    """
    reject_compiled(compiled, "memory", "the compiler's own memory would be counted")
    chosen = select_peers(peers, TRAINERS, log)
    high, wide = size or find_model(model).config.img_size
    network, images, targets = _make_inputs(model, batch_size, (high, wide))
    implementations = build_peers(chosen, model, network, (high, wide), log)
    with torch.no_grad():
        logits = make_deterministic(network.double())(images.double())
        truth = F.cross_entropy(logits, targets).numpy()[None]
    names = [OURS, *(implementation.name for implementation in implementations)]
    del implementations, network
    job = {
        "model": model,
        "batch_size": batch_size,
        "size": [high, wide],
        "threads": torch.get_num_threads(),
    }
    jobs = [{**job, "owner": name, "work": work} for work in WORKS for name in names]
    answers: list[list[dict[str, float]]] = [[] for _ in jobs]

    def measure(number: int) -> NDArray[np.float32]:
        log(f"{jobs[number]['owner']} {jobs[number]['work']} in its own process")
        answers[number].append((measure_job or measure_in_subprocess)(jobs[number]))
        return np.array([answers[number][-1]["loss"]], np.float32)

    cases = [
        BenchmarkCase(
            name=str(one["owner"]),
            precision="fp32",
            rival=one["owner"] != OURS,
            run=lambda number=number: measure(number),  # type: ignore[misc]
        )
        for number, one in enumerate(jobs)
    ]
    timings = time_interleaved(cases, rounds=rounds, truth=truth, warmups=0)
    rows: list[dict[str, Any]] = [
        {
            "name": timing.case.name,
            "work": one["work"],
            "precision": timing.case.precision,
            "rival": timing.case.rival,
            "peak_mib": summarize([answer["peak_mib"] for answer in found]),
            "activation_mib": summarize(
                [answer["peak_mib"] - answer["state_mib"] for answer in found]
            ),
            "weights_mib": found[0]["weights_mib"],
            "max_error": timing.error,
        }
        for timing, one, found in zip(timings, jobs, answers, strict=True)
    ]
    compare_rows(rows, "peak_mib", better="less")
    return {
        "kind": "memory",
        "model": model,
        "img_size": [high, wide],
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "contestants": rows,
    }


def _make_inputs(model: str, batch_size: int, size: Size) -> tuple[Network, Tensor, Tensor]:
    """Build equal weights and images in every process."""
    torch.manual_seed(0)
    network = create_model(model)
    images = torch.randn(batch_size, 3, *size, generator=torch.Generator().manual_seed(1))
    return network, images, torch.arange(batch_size) % 1000


def measure_in_subprocess(job: dict[str, Any]) -> dict[str, float]:
    """Call `measure_once` in a fresh interpreter."""
    code = (
        "import json, sys; from muntin.benching.memory import measure_once; "
        "sys.stdout.write(json.dumps(measure_once(**json.loads(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", code, json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        message = (
            f"Measuring {job['owner']} {job['work']} of {job['model']!r} failed with exit code "
            f"{done.returncode}: {last}. Reduce the batch size if memory ran out."
        )
        raise RuntimeError(message)
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def measure_once(
    *, owner: str, work: str, model: str, batch_size: int, size: Sequence[int], threads: int
) -> dict[str, float]:
    """Run the work once and measure the peak memory of this process above that of its imports.

    Args:
        owner: "muntin" or a peer.
        work: "inference" or "training" (two steps: the first allocates the optimizer's moments).
        model: Name in the zoo.
        batch_size: Images per batch.
        size: (height, width) in pixels.
        threads: Intra-op threads of PyTorch.

    Returns:
        ``peak_mib``, ``weights_mib`` (parameters and buffers), ``state_mib`` (these and, in
        training, gradients and the two moments of AdamW) and ``loss``.
    """
    torch.set_num_threads(threads)
    # Load libraries, the peer's included, and select kernels before the baseline is taken.
    tiny, blank, first = _make_inputs("swin_nano", 2, (64, 64))
    WORKS["inference"](tiny, blank, first)
    WORKS["training"](tiny, blank, first)
    if owner != OURS:
        build_peers([owner], "vit_tiny", create_model("vit_tiny"), (224, 224), lambda line: None)
    del tiny, blank
    before = resident_mib()
    high, wide = size
    network, images, targets = _make_inputs(model, batch_size, (high, wide))
    module: nn.Module = network
    if owner != OURS:
        module = build_peers([owner], model, network, (high, wide), lambda line: None)[0].module
    elif work == "inference":
        module = build_inference(network, (high, wide))
    else:
        recompute_layers(network)
    del network
    reset_peak()
    loss = WORKS[work](module, images, targets)
    parameters, buffers = (
        sum(one.numel() * one.element_size() for one in tensors) / MIB
        for tensors in (module.parameters(), module.buffers())
    )
    return {
        "peak_mib": peak_mib() - before,
        "weights_mib": parameters + buffers,
        "state_mib": buffers + parameters * (4 if work == "training" else 1),
        "loss": loss,
    }


def _infer(module: nn.Module, images: Tensor, targets: Tensor) -> float:
    module.eval().requires_grad_(False)
    with torch.inference_mode():
        for _ in range(2):
            logits = module(images)
        return F.cross_entropy(logits, targets).item()


def _train(module: nn.Module, images: Tensor, targets: Tensor) -> float:
    make_deterministic(module)
    optimizer = make_optimizer(module)
    losses = []
    for _ in range(2):
        loss = F.cross_entropy(module(images), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses[0]


WORKS: dict[str, Callable[[nn.Module, Tensor, Tensor], float]] = {
    "inference": _infer,
    "training": _train,
}
