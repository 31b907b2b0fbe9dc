# SPDX-License-Identifier: Apache-2.0
"""Cost per pixel as images grow, beside a network with global attention; plotted for the README.

Time and memory per megapixel of square images, in fp32. Every batch has about as many pixels as
one image of the largest size. Networks are those that prediction runs, in PyTorch. Memory is the
peak of a separate process, without weights and imports. ``--draw`` only plots the newest result.
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import record
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from report import ROOT, newest

from muntin.benching.result_rows import (
    OURS,
    BenchmarkCase,
    compare_rows,
    summarize,
    time_interleaved,
)
from muntin.benching.training import measure_in_subprocess
from muntin.inference.inference_network import build_inference
from muntin.zoo.model_building import create_model

IMAGE = ROOT / "docs" / "pictures" / "area.png"
COLOURS = ("#0072B2", "#D55E00")
NAMES = {"swin_tiny": "Swin-T", "vit_small": "ViT-S/16"}
BASELINE = "vit_small"
"""Global attention; about as many multiply-adds as Swin-T at 224 x 224."""
SIDES = (224, 448, 672, 896, 1344, 1792, 2048)
"""Sides in pixels; all but the last divide by patches of 4, windows of 7 and three mergings."""


def main() -> None:
    """Measure, write the result and plot it."""
    options = record.options(__doc__, model="swin_tiny", rounds=3, draw=False)
    if not options.draw:
        record.save("peers_area", measure(options.model, options.rounds))
    found = newest("peers_area")
    if found is None:
        message = "--draw needs a result, found none. Run: python benchmarks/bench_area.py"
        raise SystemExit(message)
    draw(found[1]).savefig(IMAGE, dpi=120)
    print(IMAGE)


def measure(model: str, rounds: int) -> dict[str, Any]:
    """One row per model and side, and the largest deviations from the median over sides."""
    names = (model, BASELINE)
    jobs = [(name, side, round((SIDES[-1] / side) ** 2)) for side in SIDES for name in names]
    cases = []
    for name, side, count in jobs:
        record.log(f"building {name} for {count} images of {side} x {side}")
        cases.append(make_case(name, side, count, owner=OURS if name == model else name))
    timings = time_interleaved(cases, rounds=rounds)
    del cases
    rows = []
    for (name, side, count), timing in zip(jobs, timings, strict=True):
        millions = count * side * side / 1e6
        record.log(f"measuring memory of {name} at {side} x {side} in its own process")
        job = {"owner": OURS, "work": "inference", "model": name, "batch_size": count,
               "size": (side, side), "threads": torch.get_num_threads()}  # fmt: skip
        answer = measure_in_subprocess(job)
        row = timing.to_row(
            map=[side, side],
            pictures=count,
            ms_per_mp=summarize([1e3 * seconds / millions for seconds in timing.seconds]),
            mib_per_mp=(answer["peak_mib"] - answer["weights_mib"]) / millions,
        )
        rows.append({**row, "name": name})
    compare_rows(rows)
    time_of = {
        name: within([row["ms_per_mp"]["median"] for row in rows if row["name"] == name])
        for name in names
    }
    memory_of = {
        name: within([row["mib_per_mp"] for row in rows if row["name"] == name]) for name in names
    }
    return {"kind": "area", "model": model, "beside": BASELINE, "sides": list(SIDES),
            "contestants": rows, "time_within": time_of, "memory_within": memory_of}  # fmt: skip


def make_case(name: str, side: int, count: int, *, owner: str) -> BenchmarkCase:
    """Prediction of some equal images."""
    torch.manual_seed(0)
    network = build_inference(create_model(name).eval(), (side, side))
    images = torch.randn(1, 3, side, side).expand(count, -1, -1, -1)

    def run() -> NDArray[np.float32]:
        with torch.inference_mode():
            return network(images).numpy()

    return BenchmarkCase(owner=owner, run=run)


def within(values: list[float]) -> float:
    """Largest relative deviation from the median."""
    middle = statistics.median(values)
    return max(abs(value / middle - 1) for value in values)


def draw(result: dict[str, Any]) -> Figure:
    """Plot time and memory per megapixel against the side, one line per model."""
    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    titles = ("seconds per megapixel", "MiB of activations per megapixel")
    for place, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        for colour, name in zip(COLOURS, (result["model"], result["beside"]), strict=True):
            rows = [row for row in result["contestants"] if row["name"] == name]
            sides = [row["map"][0] for row in rows]
            values = [
                row["mib_per_mp"] if place else row["ms_per_mp"]["median"] / 1e3 for row in rows
            ]
            axes.plot(sides, values, color=colour, marker="o", ms=4, clip_on=False)
            axes.annotate(
                NAMES.get(name, name), (sides[-1], values[-1]), color=colour,
                xytext=(-6, 7), textcoords="offset points", ha="right",
            )  # fmt: skip
            if not place:
                ranges = [(row["ms_per_mp"]["min"], row["ms_per_mp"]["max"]) for row in rows]
                low, high = ([part / 1e3 for part in parts] for parts in zip(*ranges, strict=True))
                axes.fill_between(sides, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set_xticks(result["sides"], [str(side) for side in result["sides"]], fontsize=8)
        axes.set_ylim(bottom=0)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("image side in pixels")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, alpha=0.3)
    return figure


if __name__ == "__main__":
    main()
