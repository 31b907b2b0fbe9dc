# SPDX-License-Identifier: Apache-2.0
"""Window attention alone, also compared with peers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from muntin.benching.attention import bench_attention, start_ours
from muntin.benching.peers import BenchRequest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def peers(monkeypatch):
    """The module of the peers' attention."""
    if not BENCHMARKS.is_dir():
        pytest.skip("benchmarks are not there")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import attention_peers

    return attention_peers


def measure(others, **changed):
    request = BenchRequest(**{"model": "swin_nano", "batch_size": 1, "rounds": 1, **changed})
    return bench_attention(request, others, round_seconds=0)


@pytest.mark.parity
def test_all_implementations_agree(peers):
    found = measure(peers.ATTENTIONS, batch_size=2, rounds=2)
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


def test_a_wrong_bias_is_detected():
    def wrong(problem, dtype):
        forward, (qkv, table) = start_ours(problem, dtype)
        with torch.no_grad():
            table.neg_()
        return forward, [qkv, table]

    rows = measure({"wrong": wrong})["contestants"]
    errors = {
        name: [row["max_error"] for row in rows if row["name"] == name]
        for name in ("muntin", "wrong")
    }
    assert min(errors["wrong"]) > 0.1 > max(errors["muntin"])


@pytest.mark.parity
def test_peers_with_another_partition_are_skipped_with_a_message(peers):
    messages = []
    # 16 x 18 and 8 x 9 are padded; 4 x 5 is too.
    found = measure(peers.ATTENTIONS, size=(64, 72), log=messages.append)
    assert {one["name"] for one in found["contestants"]} == {"muntin"}
    assert any("skipped timm" in line for line in messages)
    assert all(one["against_best_rival"] is None for one in found["contestants"])
    assert max(o["max_error"] for o in found["contestants"] if o["precision"] == "fp32") < 2e-6


@pytest.mark.parity
def test_a_precomputed_projection_has_a_gradient(peers):
    x = torch.randn(2, 3, requires_grad=True)
    given = torch.randn(2, 9, requires_grad=True)
    out = peers.PrecomputedLinear(given)(x)
    assert torch.equal(out, given)
    of_x, of_given = torch.autograd.grad(out, (x, given), torch.ones(2, 9))
    assert of_x.shape == x.shape
    assert torch.equal(of_given, torch.ones(2, 9))
