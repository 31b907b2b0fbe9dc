# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of uniform masking beside SimMIM: same model, images and optimizer, in turns.

A step is drawing masks, forward, backward and AdamW. Times are of the wall and of the CPU; the peak
of memory is that of a process of its own, without its imports.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import record
import torch

from muntin.benching.result_rows import summarize
from muntin.configs import replace
from muntin.data.transforms import Preprocessing
from muntin.devices import peak_mib, reset_peak, resident_mib, return_freed_memory
from muntin.heads.head_table import build_head
from muntin.heads.network import Network
from muntin.objectives.objective import TrainingStep
from muntin.objectives.pretraining import PRETRAINING
from muntin.objectives.reconstruction_objective import MaskedImages
from muntin.zoo.model_zoo import ALIASES, MODELS, build_backbone

KINDS = ("simmim", "uniform")


def main() -> None:
    """Measure and write the result."""
    options = record.options(__doc__, models=("swin_nano", "swin_tiny"), batch_size=32, repeat=5)
    content = {
        "what": "uniform masking beside SimMIM, fp32, taking turns",
        "batch_size": options.batch_size,
        "models": {
            name: compare(name, options.batch_size, options.repeat) for name in options.models
        },
    }
    record.save("pretraining", content)


def compare(model: str, batch_size: int, repeat: int) -> dict[str, Any]:
    """Time both in turns, after a turn to warm up, and measure the memory of each alone."""
    steps = {kind: make_step(model, kind, batch_size) for kind in KINDS}
    walls: dict[str, list[float]] = {kind: [] for kind in KINDS}
    cpus: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for turn in range(repeat + 1):
        for kind, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            if turn:
                walls[kind].append(time.perf_counter() - wall)
                cpus[kind].append(time.process_time() - cpu)
    del steps
    peaks = {kind: record.alone(measure_peak, model, kind, batch_size) for kind in KINDS}
    plain, uniform = KINDS
    return {
        "images_per_s": {
            kind: summarize([batch_size / wall for wall in walls[kind]]) for kind in KINDS
        },
        "cpu_seconds": {kind: summarize(cpus[kind]) for kind in KINDS},
        "peak_mib": {kind: round(peak) for kind, peak in peaks.items()},
        "speed_ratio": statistics.median(cpus[plain]) / statistics.median(cpus[uniform]),
        "memory_ratio": peaks[uniform] / peaks[plain],
    }


def make_step(model: str, kind: str, batch_size: int) -> Callable[[], float]:
    """Build the network and its optimizer; return a function that takes a step."""
    entry = MODELS[ALIASES[model]]
    config: Any = replace(entry.config, {"drop_path_rate": 0.0})
    row = PRETRAINING["simmim"]
    head = replace(row.default_head(config), {"uniform": kind == "uniform"})
    torch.manual_seed(0)
    backbone = build_backbone(row.fit_model(config))
    network = Network(backbone, build_head(head, backbone)).train()
    preprocessing = Preprocessing(img_size=config.img_size, mean=entry.mean, std=entry.std)
    step = TrainingStep(network, row.build_objective(head, backbone, preprocessing))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    images = torch.randn(batch_size, 3, *config.img_size)
    return partial(take_step, step, optimizer, images)


def take_step(step: TrainingStep, optimizer: torch.optim.Optimizer, images: torch.Tensor) -> float:
    """Draw masks, and change the weights once."""
    generator = torch.Generator().manual_seed(0)
    size = (images.shape[2], images.shape[3])
    inputs = MaskedImages(images, step.objective.draw_mask(len(images), size, generator))
    loss = step(inputs)["reconstruction"].mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def measure_peak(model: str, kind: str, batch_size: int) -> float:
    """Peak memory of two steps; the second has the moments of the optimizer."""
    return_freed_memory()  # as in training
    make_step("swin_nano", kind, 2)()
    reset_peak()
    before = resident_mib()
    step = make_step(model, kind, batch_size)
    step(), step()
    return peak_mib() - before


if __name__ == "__main__":
    main()
