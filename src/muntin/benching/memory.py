# SPDX-License-Identifier: Apache-2.0
"""Peak memory of inference and training steps compared with peers, one process each."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muntin.benching.peers import BUILDERS, BenchRequest, build_peers, make_deterministic
from muntin.benching.result_rows import OURS, compare_rows, summarize
from muntin.benching.training import TrainStep, make_optimizer
from muntin.devices import peak_mib, reset_peak, resident_mib
from muntin.heads.network import Network
from muntin.inference.inference_network import build_inference
from muntin.shapes import Size
from muntin.training.recompute import recompute_layers
from muntin.zoo.model_building import create_model

MIB = 2**20

Job = dict[str, Any]
"""Keyword arguments of `measure_once`."""


def measure_in_subprocess(job: Job) -> dict[str, float]:
    """Call `measure_once` in a fresh interpreter."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(measure_once, **job).result()
        except BrokenProcessPool as error:
            message = (
                f"The process of {job['owner']} {job['work']} of {job['model']!r} must end by "
                f"itself, but it was killed. Reduce the batch size if memory ran out."
            )
            raise RuntimeError(message) from error


def bench_memory(
    request: BenchRequest,
    *,
    measure: Callable[[Job], dict[str, float]] = measure_in_subprocess,
) -> dict[str, Any]:
    """Measure peak resident memory in fp32 on the CPU, for muntin and its peers.

    Every measurement is a process of its own (`rounds` per case); its memory after imports is
    subtracted from its peak. Weights are included. Muntin infers with the network that prediction
    uses (`muntin.inference`), and trains with recomputed layers, as where memory is short.

    One row per case and work ("inference", "training"), with ``peak_mib``, ``activation_mib``
    (the peak without weights, gradients and optimizer moments), ``weights_mib`` and ``max_error``
    (of the loss, against float64).
    """
    network, images, targets = _make_inputs(request.model, request.batch_size, request.img_size)
    peers = build_peers(request, request.select_peers([*BUILDERS]), network)
    with torch.no_grad():
        logits = make_deterministic(network.double())(images.double())
        truth = F.cross_entropy(logits, targets).item()
    jobs: list[Job] = [
        {
            "owner": owner,
            "work": work,
            "model": request.model,
            "batch_size": request.batch_size,
            "size": list(request.img_size),
            "threads": torch.get_num_threads(),
        }
        for work in WORKS
        for owner in (OURS, *peers)
    ]
    del peers, network
    answers: list[list[dict[str, float]]] = [[] for _ in jobs]
    for _ in range(request.rounds):
        for job, found in zip(jobs, answers, strict=True):
            request.log(f"{job['owner']} {job['work']} in its own process")
            found.append(measure(job))
    rows: list[dict[str, Any]] = [
        {
            "name": job["owner"],
            "work": job["work"],
            "precision": "fp32",
            "rival": job["owner"] != OURS,
            "peak_mib": summarize([one["peak_mib"] for one in found]),
            "activation_mib": summarize([one["peak_mib"] - one["state_mib"] for one in found]),
            "weights_mib": found[0]["weights_mib"],
            "max_error": abs(found[0]["loss"] - truth),
        }
        for job, found in zip(jobs, answers, strict=True)
    ]
    return request.describe("memory", compare_rows(rows))


def measure_once(
    *, owner: str, work: str, model: str, batch_size: int, size: Size, threads: int
) -> dict[str, float]:
    """Run the work once and measure the peak memory of this process above that of its imports.

    Training takes two steps, as the first allocates the optimizer's moments. ``weights_mib`` are
    parameters and buffers, ``state_mib`` these and, in training, gradients and the two moments of
    AdamW.
    """
    torch.set_num_threads(threads)
    # Load libraries, the peer's included, and select kernels before the baseline is taken.
    for warm in WORKS.values():
        warm(*_make_inputs("swin_nano", 2, (64, 64)))
    if owner != OURS:
        build_peers(BenchRequest(model="vit_tiny"), [owner], create_model("vit_tiny"))
    before = resident_mib()
    network, images, targets = _make_inputs(model, batch_size, size)
    module: nn.Module = network
    if owner != OURS:
        request = BenchRequest(model=model, size=(size[0], size[1]))
        module = build_peers(request, [owner], network)[owner]
    elif work == "inference":
        module = build_inference(network, size)
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


def _make_inputs(model: str, batch_size: int, size: Size) -> tuple[Network, Tensor, Tensor]:
    """Build equal weights and images in every process."""
    torch.manual_seed(0)
    network = create_model(model)
    images = torch.randn(batch_size, 3, *size, generator=torch.Generator().manual_seed(1))
    return network, images, torch.arange(batch_size) % 1000


def _infer(module: nn.Module, images: Tensor, targets: Tensor) -> float:
    module.eval().requires_grad_(False)
    with torch.inference_mode():
        for _ in range(2):
            logits = module(images)
        return F.cross_entropy(logits, targets).item()


def _train(module: nn.Module, images: Tensor, targets: Tensor) -> float:
    make_deterministic(module)
    step = TrainStep(module, module, make_optimizer(module), images, targets)
    return float(step.take_first()[0])


WORKS: dict[str, Callable[[nn.Module, Tensor, Tensor], float]] = {
    "inference": _infer,
    "training": _train,
}
