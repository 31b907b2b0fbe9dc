# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Training steps of swin_tiny at 224 pixels beside timm's, taking turns in one process.

Each contestant takes a whole step (forward, backward, AdamW) on the same pictures; they alternate
A B A B, so that a machine whose speed drifts favours nobody. The machine's own ceilings are
measured in the same run.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import record
import timm
import torch
import torch.nn.functional as F
from torch import nn

from muntin.devices import choose_device, choose_precision, has_compiler, multiply_rate
from muntin.zoo import create_model

NAME = "swin_tiny_patch4_window7_224"


def make_step(model: nn.Module, precision: str, images: torch.Tensor) -> Callable[[], None]:
    """Give a function that takes one training step."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    targets = torch.arange(len(images)) % 1000

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(model(images).float(), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--compile", action="store_true", help="add compiled contestants")
    options = parser.parse_args()
    torch.manual_seed(0)
    images = torch.randn(options.batch_size, 3, 224, 224)
    auto = choose_precision(choose_device("cpu"))

    def theirs() -> nn.Module:
        return timm.create_model(NAME, drop_path_rate=0.2)

    def ours() -> nn.Module:
        return create_model(NAME, drop_path_rate=0.2)

    contestants = {
        "timm eager bf16": make_step(theirs(), "bf16", images),
        "muntin bf16": make_step(ours(), "bf16", images),
        "timm eager fp32": make_step(theirs(), "fp32", images),
        f"muntin auto ({auto})": make_step(ours(), auto, images),
    }
    if options.compile and has_compiler():
        contestants["timm compiled bf16"] = make_step(torch.compile(theirs()), "bf16", images)
        contestants["muntin compiled bf16"] = make_step(torch.compile(ours()), "bf16", images)
        if auto != "bf16":
            compiled = make_step(torch.compile(ours()), auto, images)
            contestants[f"muntin compiled auto ({auto})"] = compiled
    first = {}
    for name, step in contestants.items():
        begun = time.perf_counter()
        step()
        first[name] = time.perf_counter() - begun
        step()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    ceilings: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for _ in range(options.rounds):
        for name, step in contestants.items():
            begun = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begun)
        ceilings["fp32"].append(multiply_rate(torch.float32) / 1e9)
        ceilings["bf16"].append(multiply_rate(torch.bfloat16) / 1e9)
    rival = seconds["timm eager bf16"]
    rows = {}
    for name, values in seconds.items():
        ratios = [theirs_s / ours_s for theirs_s, ours_s in zip(rival, values, strict=True)]
        rows[name] = {
            "images_per_s": record.spread([options.batch_size / value for value in values]),
            "ratio_to_timm_eager_bf16": record.spread(ratios),
            "first_step_s": round(first[name], 2),
        }
    content = {
        **record.environment(("timm",)),
        "what": f"training steps of {NAME}, 224 pixels, batch {options.batch_size}, AdamW",
        "precision_chosen_here": auto,
        "contestants": rows,
        "matrix_product_gflops": {name: record.spread(v) for name, v in ceilings.items()},
    }
    print(record.write("training", f"cpu{os.cpu_count()}", content))
    for name, row in rows.items():
        speed, ratio = row["images_per_s"]["median"], row["ratio_to_timm_eager_bf16"]["median"]
        print(f"{name:32} {speed:7.2f} images/s  {ratio:5.2f} x timm eager bf16")


if __name__ == "__main__":
    main()
