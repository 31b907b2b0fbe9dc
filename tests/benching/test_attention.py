# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Window attention alone, compared with peers."""

from __future__ import annotations

import json

import pytest
import torch

from muntin.benching import attention_peers
from muntin.benching.attention import bench_attention
from muntin.errors import ConfigError
from muntin.ops.positions import expand_relative_position_bias
from muntin.ops.window_attention import window_attention


@pytest.mark.parity
def test_all_implementations_agree():
    found = bench_attention("swin_nano", batch_size=2, rounds=2, round_seconds=0)
    json.dumps(found)
    assert (found["kind"], found["img_size"]) == ("attention", [64, 64])
    rows = found["contestants"]
    names = ["muntin", "timm", "timm fused", "torchvision"]
    assert [one["name"] for one in rows] == names * (3 * 2 * 2)
    assert sorted({(one["stage"], *one["map"], *one["shift"]) for one in rows}) == [
        (1, 16, 16, 2, 2),
        (2, 8, 8, 2, 2),
        (3, 4, 4, 0, 0),
    ]
    for one in rows:
        assert one["max_error"] < {"fp32": 2e-6, "bf16": 0.03}[one["precision"]]
        assert one["ms"]["count"] == 2
        assert one["against_best_rival"] > 0


class WrongSign:
    """Attention whose bias has the wrong sign."""

    def __init__(self, problem):
        self.problem = problem

    def start(self, dtype):
        problem, layout = self.problem, self.problem.layout
        qkv = problem.qkv.to(dtype, copy=True).requires_grad_()
        table = problem.table.clone().requires_grad_()
        window = (problem.window, problem.window)

        def forward():
            bias = expand_relative_position_bias(table, table_window=window, window=layout.window)
            return window_attention(qkv, -bias, layout, scale=problem.scale)

        return forward, [qkv, table]

    def to_map(self, gradient):
        return gradient


def test_a_wrong_bias_is_detected():
    found = bench_attention(
        "swin_nano", batch_size=1, peers=(), rounds=1, round_seconds=0, others={"wrong": WrongSign}
    )
    errors = {name: [row["max_error"] for row in found["contestants"] if row["name"] == name]
              for name in ("muntin", "wrong")}  # fmt: skip
    assert min(errors["wrong"]) > 0.1 > max(errors["muntin"])


@pytest.mark.parity
def test_peers_with_another_partition_are_skipped_with_a_message():
    messages = []
    found = bench_attention(
        "swin_nano", batch_size=1, size=(64, 72), rounds=1, round_seconds=0, log=messages.append
    )
    # 16 x 18 and 8 x 9 are padded; 4 x 5 is too.
    assert {one["name"] for one in found["contestants"]} == {"muntin"}
    assert any("timm" in line and "stage 1" in line for line in messages)
    assert all(one["against_best_rival"] is None for one in found["contestants"])
    assert max(o["max_error"] for o in found["contestants"] if o["precision"] == "fp32") < 2e-6


@pytest.mark.parity
def test_a_precomputed_projection_has_a_gradient():
    x = torch.randn(2, 3, requires_grad=True)
    given = torch.randn(2, 9, requires_grad=True)
    out = attention_peers._PrecomputedLinear(given)(x)
    assert torch.equal(out, given)
    of_x, of_given = torch.autograd.grad(out, (x, given), torch.ones(2, 9))
    assert of_x.shape == x.shape
    assert torch.equal(of_given, torch.ones(2, 9))


def test_invalid_arguments_are_rejected():
    with pytest.raises(ConfigError, match="'vit_tiny'"):
        bench_attention("vit_tiny", peers=())
    with pytest.raises(ConfigError, match="'swinv2_tiny_window8_256'"):
        bench_attention("swinv2_tiny_window8_256", peers=())
    with pytest.raises(ConfigError, match=r"compiled.*attention"):
        bench_attention("swin_nano", compiled=True)
    with pytest.raises(ConfigError, match="peer 'tim'"):
        bench_attention("swin_nano", peers=("tim",))
