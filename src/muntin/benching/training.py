# SPDX-License-Identifier: Apache-2.0
"""Training compared with peers: same weights, images and optimizer, interleaved; and peak memory.

Memory of inference and training is measured in one process for each case.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from muntin.benching.peers import BUILDERS, BenchRequest, build_peers, make_deterministic
from muntin.benching.result_rows import (
    OURS,
    BenchmarkCase,
    compare_rows,
    summarize,
    time_interleaved,
)
from muntin.devices import (
    has_compiler,
    peak_mib,
    reset_peak,
    resident_mib,
    return_freed_memory,
)
from muntin.heads.network import Network
from muntin.inference.inference_network import build_inference
from muntin.shapes import Size
from muntin.training.recompute import recompute_layers
from muntin.zoo.model_building import create_model

LEARNING_RATE = 1e-4
MIB = 2**20

Job = dict[str, Any]
"""Keyword arguments of `measure_once`."""


def make_optimizer(module: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer that every case uses."""
    return torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, fused=True)


def bench_training(
    request: BenchRequest,
    *,
    optimize: Callable[[nn.Module], torch.optim.Optimizer] = make_optimizer,
) -> dict[str, Any]:
    """Measure optimizer steps of a classifier on the CPU, for muntin and its peers.

    A step is forward, cross-entropy, backward and AdamW (`optimize`), in fp32 and under bf16
    autocast. Dropout and drop path are off, so losses are comparable: those of the first step
    (``max_error``, absolute) and of the second, which depends on the gradients
    (``second_error``), are checked against the same two steps in float64, which come first.
    """
    size, log = request.img_size, request.log
    chosen = request.select_peers([*BUILDERS])
    torch.manual_seed(0)
    network = create_model(request.model)
    images = torch.randn(request.batch_size, 3, *size)
    targets = torch.arange(request.batch_size) % 1000
    modules = {OURS: copy.deepcopy(network), **build_peers(request, chosen, network)}
    log("computing two reference steps in float64")
    doubled = make_deterministic(network.double())
    truth = TrainStep(doubled, doubled, optimize(doubled), images.double(), targets).take_first()
    steps = []
    for owner, module in modules.items():
        make_deterministic(module)
        optimizer = optimize(module)
        start = {key: value.clone() for key, value in module.state_dict().items()}
        for engine, runs in _engines(module, request):
            for bf16 in (False, True):
                step = TrainStep(module, runs, optimizer, images, targets, bf16, start)
                steps.append((owner, engine, step))
    cases = [
        BenchmarkCase(
            owner=owner, variant=engine, precision="bf16" if step.bf16 else "fp32", run=step
        )
        for owner, engine, step in steps
    ]
    log(f"timing {len(cases)} cases in {request.rounds} interleaved rounds")
    # The first call takes the two compared steps from the shared weights; the second is the first
    # ordinary step. Both are warm-up.
    timings = time_interleaved(cases, rounds=request.rounds, warmups=2)
    rows = []
    for timing, (_, _, step) in zip(timings, steps, strict=True):
        errors = np.abs(step.first - truth)
        rates = [request.batch_size / seconds for seconds in timing.seconds]
        rows.append(
            timing.to_row(
                images_per_s=summarize(rates),
                max_error=float(errors[0]),
                second_error=float(errors[1]),
            )
        )
    return request.describe("training", compare_rows(rows), optimizer="AdamW")


def _engines(
    module: nn.Module, request: BenchRequest
) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    yield "eager", module
    if request.compiled and has_compiler():
        yield "compile", torch.compile(module)
    elif request.compiled:
        request.log("skipped torch.compile: no C++ compiler found")


@dataclass(slots=True, eq=False)
class TrainStep:
    """A training step; the first call takes two of them from the initial weights.

    The precisions of one library share a module and its optimizer, which saves memory.
    """

    module: nn.Module
    runs: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    images: Tensor
    targets: Tensor
    bf16: bool = False
    start: dict[str, Tensor] | None = None
    first: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def __call__(self) -> NDArray[np.float32]:
        """Take a step and return its loss."""
        losses = np.array([self._step()]) if len(self.first) else self.take_first()
        return losses.astype(np.float32)

    def take_first(self) -> NDArray[np.float64]:
        """Take two steps from the initial weights and return their losses."""
        if self.start is not None:
            self.module.load_state_dict(self.start)
            self.optimizer.state.clear()
        self.first = np.array([self._step(), self._step()])
        return self.first

    def _step(self) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = self.runs(self.images)
        loss = F.cross_entropy(logits.float() if self.bf16 else logits, self.targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


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
            "size": request.img_size,
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
        module = build_peers(BenchRequest(model=model, size=size), [owner], network)[owner]
    elif work == "inference":
        module = build_inference(network, size)
    else:
        recompute_layers(network)
        return_freed_memory()  # as in training
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
