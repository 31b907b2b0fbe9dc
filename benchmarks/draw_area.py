# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The README's plot of cost per pixel, from the newest result of `bench_peers.py area`."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from report import ROOT, newest

IMAGE = ROOT / "docs" / "pictures" / "area.png"
COLOURS = ("#0072B2", "#D55E00")
NAMES = {"swin_tiny": "Swin-T", "vit_small": "ViT-S/16"}


def main() -> None:
    """Draw and save the plot."""
    found = newest("peers_area")
    if found is None:
        message = (
            "no result of the benchmark 'area' found. Run: python benchmarks/bench_peers.py area"
        )
        raise SystemExit(message)
    draw(found[1]).savefig(IMAGE, dpi=120)
    print(IMAGE)


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
