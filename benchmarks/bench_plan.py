# SPDX-License-Identifier: Apache-2.0
"""Predicted and measured memory and time of training, each in its own process."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import record
import torch

import muntin
from muntin.devices import peak_mib
from muntin.synthetic.datasets import write_classify, write_coco, write_maps
from muntin.training.trainer import Trainer

CASES = [
    ("classify", "swin_tiny", 224, 2),
    ("classify", "swin_tiny", 224, 8),
    ("classify", "swin_tiny", 224, 16),
    ("classify", "swin_tiny", 160, 8),
    ("classify", "vit_small", 224, 8),
    ("classify", "swinv2_tiny_window8_256", 256, 4),
    ("classify", "swin_nano", 64, 16),
    ("detect", "swin_nano", 256, 4),
    ("detect", "swin_tiny", 256, 2),
    ("semantic", "swin_nano", 256, 4),
    ("semantic", "swin_tiny", 256, 2),
    ("pose", "swin_nano", 128, 8),
    ("pose", "vit_small", 128, 16),
    # Not among those that the share of fragmentation was fitted to (docs/adr/0022).
    ("classify", "swin_small", 192, 6),
    ("classify", "t2t_vit_14", 224, 6),
    ("semantic", "swin_nano", 256, 12),
]
TOLERANCE = 0.15
STEPS = 5


def main() -> None:
    """Run the benchmark and write the result."""
    options = record.options(__doc__, device="cpu", precision="fp32", only="", recomputed=0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(CASES):
            if options.only and options.only not in " ".join(map(str, case)):
                continue
            row = compare(case, Path(folder) / str(number), options)
            record.log(json.dumps(row))
            rows.append(row)
    content = {
        **record.environment(),
        "kind": "plan",
        "precision": options.precision,
        "tolerance": TOLERANCE,
        "outside": [row["case"] for row in rows if row["memory_error"] > TOLERANCE],
        "rows": rows,
    }
    where = f"cpu{os.cpu_count()}" if options.device == "cpu" else options.device
    print(record.write("plan_again" if options.recomputed else "plan", where, content))


def compare(
    case: tuple[str, str, int, int], folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Predict and measure one case."""
    task, model, side, batch = case
    device, precision, recomputed = options.device, options.precision, options.recomputed
    data = make_data(task, folder / "data", max(side, 64), 4 * batch * STEPS)
    words = ["plan", task, data, "--model", model, "--img-size", side, "--batch-size", batch]
    words += ["--device", device, "--precision", precision, "--weights", "none", "--json"]
    words += ["--set", "train.start_size=1", "--set", f"train.recomputed_blocks={recomputed}"]
    predicted = json.loads(record.muntin(*words, keep=True))
    measured = record.alone(
        train_some_steps, case, data, folder / "run", device, precision, recomputed
    )
    return {
        "case": f"{task} {model} at {side}, batch {batch}"
        + f", {recomputed} recomputed" * bool(recomputed),
        "predicted_mib": predicted["peak"],
        "measured_mib": measured["peak_mib"],
        "memory_error": abs(predicted["peak"] / measured["peak_mib"] - 1),
        "predicted_step_s": predicted["step_s"],
        "measured_step_s": measured["step_s"],
        "time_error": abs(predicted["step_s"] / measured["step_s"] - 1),
        "plan": predicted,
    }


def train_some_steps(
    case: tuple[str, str, int, int], data: Path, out: Path, device: str, precision: str,
    recomputed: int,
) -> dict[str, float]:  # fmt: skip
    """Train some steps; give the peak memory and the median time of a step."""
    task, model, side, batch = case
    on_gpu = device != "cpu" and torch.cuda.is_available()
    ends, peaks = [], []
    update = Trainer.update_weights

    def observed(self: Trainer, factor: float) -> None:
        update(self, factor)
        if on_gpu:
            torch.cuda.synchronize()
        ends.append(time.perf_counter())
        peaks.append(torch.cuda.max_memory_allocated() / 2**20 if on_gpu else peak_mib())

    Trainer.update_weights = observed  # type: ignore[method-assign]
    muntin.train(
        task, data, model=model, img_size=side, batch_size=batch, out=out, epochs=1,
        device=device, precision=precision, weights="none", quiet=True, stop_after=STEPS,
        settings={"machine.compile": "off", "train.start_size": 1,
                  "train.recomputed_blocks": recomputed},
    )  # fmt: skip
    steps = sorted(b - a for a, b in itertools.pairwise(ends))
    return {"peak_mib": peaks[-1], "step_s": steps[len(steps) // 2]}


def make_data(task: str, folder: Path, side: int, count: int) -> Path:
    """Write synthetic images of `side` x `side` pixels."""
    size = (side, side)
    if task == "classify":
        each = -(-count // 6)
        return write_classify(folder, num_train_per_class=each, num_val_per_class=1, size=size)
    write = write_maps if task == "semantic" else write_coco
    return write(folder, num_train=count, num_val=2, size=size)


if __name__ == "__main__":
    main()
