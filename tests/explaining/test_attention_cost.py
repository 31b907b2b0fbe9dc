# SPDX-License-Identifier: Apache-2.0
"""Cost of attention: formulas against counts, counts against real forward passes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_pre_hook

from benchmarks.measure_attention_cost import SIDES, configs, count_macs
from muntin.explaining.attention_cost import (
    COSTS,
    activation_bytes,
    msa_macs,
    show_cost,
    window_msa_macs,
)
from muntin.explaining.figures import ExplanationFigure, MissingFigure
from muntin.explaining.inputs import open_context, open_model
from muntin.zoo import build_backbone, count_costs, model_config


@pytest.mark.parametrize("side", [224, 448])
def test_counts_equal_the_formulas(side):
    models = configs(side)
    window, global_attention = 0, 0
    for stage, depth in enumerate((2, 2, 6, 2)):
        cells, dim = side // 4 // 2**stage, 96 * 2**stage
        window += depth * window_msa_macs(cells, cells, dim, 7)
        global_attention += depth * msa_macs(cells, cells, dim)
    by_formula = {
        "window_msa": window,
        "msa": global_attention,
        "vit_small": 12 * msa_macs((side // 16) ** 2 + 1, 1, 384),
    }
    stored = json.loads(COSTS.read_text())["macs"]
    for name, config in models.items():
        assert count_macs(config, side) == by_formula[name]
        assert stored[name][SIDES.index(side)] == by_formula[name]


def test_formulas_by_hand():
    # One layer, counted product by product: qkv and output, then scores and averages.
    h, w, c, m = 14, 21, 8, 7
    tokens = h * w
    products = tokens * c * 3 * c + tokens * c * c
    assert msa_macs(h, w, c) == products + 2 * tokens * tokens * c
    windows = (h // m) * (w // m)
    assert window_msa_macs(h, w, c, m) == products + windows * 2 * (m * m) ** 2 * c


@pytest.mark.parametrize("name", ["swin_nano", "vit_tiny"])
def test_activation_bytes_match_a_real_forward(name):
    config = model_config(name, {"img_size": 64} if name == "swin_nano" else {"img_size": (48, 64)})
    config = replace(config, drop_path_rate=0.0)
    config = replace(config, attention="reference") if name == "swin_nano" else config
    size = (48, 64)
    body = build_backbone(config)
    own = {parameter.data_ptr() for parameter in body.parameters()}
    saved = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    # Who is watched computes layer by layer, and remembers all of it.
    watcher = register_module_forward_pre_hook(lambda module, inputs: None)
    with (
        watcher,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        sdpa_kernel(SDPBackend.MATH),
    ):
        body(torch.zeros(1, 3, *size))
    assert activation_bytes(config, size) == sum(one.nbytes() for one in saved.values())


def test_memory_scaling():
    stored = json.loads(COSTS.read_text())["activation_bytes"]
    for number, side in enumerate(SIDES[:2]):
        for name, config in configs(side).items():
            assert activation_bytes(config, (side, side)) == stored[name][number]
    window, everywhere = stored["window_msa"], stored["msa"]
    assert window[1] / window[0] == pytest.approx(4, rel=0.05)
    assert everywhere[1] / everywhere[0] > 12
    # The weights alone of the first stage: 2 layers, 3 heads, 3136 tokens squared, 4 bytes.
    assert everywhere[0] - window[0] > 2 * 3 * 3136**2 * 4 * 0.98


def context_of(name, **fields):
    return open_context(open_model(name, **fields), np.zeros((40, 60, 3), np.uint8))


def test_figures():
    context = context_of("swin_nano", img_size=(40, 60))
    shown = show_cost(context)
    assert all(isinstance(one, ExplanationFigure) for one in shown)
    names = [one.name for one in shown]
    assert len(set(names)) == len(names) == 4
    own = next(one for one in shown if one.name == "cost-of-the-model")
    assert own.facts["img_size"] == (40, 60)
    assert own.facts["macs"] == count_costs(model_config("swin_nano"), (40, 60)).macs
    assert (
        own.arrays["macs"].sum(axis=0)[list(map(tuple, own.arrays["sizes"])).index((40, 60))]
        == (own.facts["macs"])
    )
    timed = next(one for one in shown if one.name == "cost-time")
    assert (timed.arrays["msa_s"] > 0).all()


def test_exported_file_has_no_cost():
    context = replace(context_of("swin_nano"), network=torch.nn.Identity())
    shown = show_cost(context)
    assert [one.section for one in shown if isinstance(one, MissingFigure)] == ["cost"]
