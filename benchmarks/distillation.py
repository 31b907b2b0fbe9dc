# SPDX-License-Identifier: Apache-2.0
"""A training step with a teacher beside a plain one, in turns: stored answers, and beside it.

Student and teacher are the models of generated images of 64 x 64 pixels; the teacher is trained for
one epoch, as its answers do not matter for the time. Loading of images is not counted, which is the
same for all.
"""

from __future__ import annotations

import statistics
import tempfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import record
import torch

import muntin
from muntin.benching.result_rows import BenchmarkCase, summarize, time_interleaved
from muntin.synthetic.datasets import write_classify
from muntin.train_config import MachineConfig
from muntin.training.profiling import StepProfiler
from muntin.training.request import Request
from muntin.training.setup import prepare

CASES: dict[str, dict[str, str]] = {
    "plain": {},
    "hard, stored": {"distill.kind": "hard", "distill.cache": "on"},
    "soft, stored": {"distill.kind": "soft", "distill.cache": "on"},
    "soft, beside": {"distill.kind": "soft", "distill.cache": "off"},
    "features": {"distill.kind": "features"},
}


def main() -> None:
    """Measure and write the result."""
    options = record.options(__doc__, model="", teacher="", batch=64, rounds=20, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "scenes"
        write_classify(data, num_train_per_class=40, num_val_per_class=4)
        names = {"model": options.teacher, "weights": "none", "device": options.device}
        teacher = Path(folder) / "teacher"
        muntin.train("classify", data, out=teacher, epochs=1, quiet=True, **names)
        cases = [
            _build(data, "" if name == "plain" else teacher, name, settings, options)
            for name, settings in CASES.items()
        ]
        timings = time_interleaved(cases, rounds=options.rounds, warmups=3)
    plain = statistics.median(timings[0].seconds)
    rows = {
        timing.case.variant: {
            "ms": summarize([1000 * seconds for seconds in timing.seconds]),
            "relative": statistics.median(timing.seconds) / plain,
        }
        for timing in timings
    }
    record.save("distillation", {"batch_size": options.batch, "cases": rows})


def _build(
    data: Path, teacher: Path | str, name: str, settings: dict[str, str], options: Namespace
) -> BenchmarkCase:
    request = Request(
        task="classify",
        data=str(data),
        out="",
        model=options.model,
        weights="none",
        batch_size=options.batch,
        teacher=str(teacher),
        machine=MachineConfig(device=options.device, precision="fp32", workers=0),
        settings=tuple(settings.items()),
    )
    profiler = StepProfiler(prepare(request))
    few = profiler.load_batch(options.batch)  # no more than the profiler has
    batch = few.select(torch.arange(options.batch) % len(few.indices))

    def run() -> np.ndarray:
        profiler.train_step(batch)
        return np.zeros(1, np.float32)

    return BenchmarkCase(owner="muntin", variant=name, run=run)


if __name__ == "__main__":
    main()
