# SPDX-License-Identifier: Apache-2.0
"""Count and time global and window attention, and write the costs that explanation pages show.

Counted on networks on the meta device: Swin-T, the same with windows as large as its maps (global
attention), and ViT-S. Timed: one layer of each kind, CPU time of one thread.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import record
import torch

from muntin.explaining.attention_cost import COSTS, activation_bytes
from muntin.models.swin import SWIN_TINY, WindowAttention
from muntin.models.vit import SelfAttention, ViTConfig
from muntin.ops.positions import SIZE_RULES
from muntin.ops.windows import lay_out
from muntin.zoo.costs import count_costs
from muntin.zoo.model_building import model_config

SIDES = (224, 448, 896)
"""Image sides in pixels; every map of Swin-T divides into whole windows at these."""

MAP_SIDES = (14, 28, 56, 84, 112)
"""Sides in tokens of the maps on which a layer is timed."""

RUNS = 7


def configs(side: int) -> dict[str, Any]:
    """Models by name, for images of this side."""
    maps = tuple(side // (4 * 2**stage) for stage in range(len(SWIN_TINY.depths)))
    vit = model_config("vit_small")
    return {
        "msa": replace(SWIN_TINY, img_size=(side, side), window_size=maps),
        "window_msa": SWIN_TINY,
        "vit_small": vit,
    }


def count_macs(config: Any, side: int) -> int:  # noqa: ANN401 (config of any family)
    """Multiply-adds of the attention layers of a model for one image."""
    costs = count_costs(config, side)
    return costs.of("attention") + costs.of("projections")


def time_layers() -> dict[str, list[float]]:
    """Seconds of one layer, the fastest of some runs, by side of the map."""
    dim, heads, window = SWIN_TINY.dim(0), SWIN_TINY.num_heads[0], SWIN_TINY.windows[0]
    vit = model_config("vit_small")
    assert isinstance(vit, ViTConfig), "vit_small is a ViT"
    everywhere = SelfAttention(replace(vit, embed_dim=dim, num_heads=heads)).eval()
    inside = WindowAttention(dim, heads, window, qkv_bias=True).eval()
    rule = SIZE_RULES[SWIN_TINY.size_rule]

    def run_window(side: int) -> None:
        layout = lay_out((side, side), (window, window), False, rule, built_size=(side, side))
        inside(torch.zeros(1, side, side, dim), layout)

    def run_global(side: int) -> None:
        everywhere(torch.zeros(1, side * side, dim), (side, side))

    def fastest(run: Callable[[int], None], side: int) -> float:
        taken = []
        for _ in range(RUNS):
            start = time.process_time()
            run(side)
            taken.append(time.process_time() - start)
        return round(min(taken), 6)

    with torch.inference_mode():
        return {
            "msa": [fastest(run_global, side) for side in MAP_SIDES],
            "window_msa": [fastest(run_window, side) for side in MAP_SIDES],
        }


if __name__ == "__main__":
    torch.set_num_threads(1)
    models = {side: configs(side) for side in SIDES}
    names = [*models[SIDES[0]]]
    measured = {
        "img_side": SIDES,
        "macs": {name: [count_macs(models[side][name], side) for side in SIDES] for name in names},
        "activation_bytes": {
            name: [activation_bytes(models[side][name], (side, side)) for side in SIDES]
            for name in names
        },
        "map_side": MAP_SIDES,
        "machine": f"one thread of an {record.cpu()[0]}, PyTorch {torch.__version__.split('+')[0]}",
        "seconds": time_layers(),
    }
    COSTS.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
