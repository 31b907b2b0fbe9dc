# SPDX-License-Identifier: Apache-2.0
"""Training steps, compared with a peer."""

from __future__ import annotations

import json

import pytest
import torch

from muntin.benching.peers import BenchRequest
from muntin.benching.training import bench_training


def small(**changed):
    usual = {"model": "swin_nano", "batch_size": 2, "size": (32, 32), "peers": (), "rounds": 1}
    return BenchRequest(**{**usual, **changed})


def test_alone():
    messages = []
    found = bench_training(
        small(batch_size=3, size=(32, 48), peers=("timm",), rounds=2, log=messages.append)
    )
    json.dumps(found)
    assert found["kind"] == "training"
    assert (found["img_size"], found["batch_size"]) == ([32, 48], 3)
    assert found["threads"] == torch.get_num_threads()
    rows = found["contestants"]
    assert [(one["name"], one["precision"]) for one in rows] == [
        ("muntin eager", "fp32"),
        ("muntin eager", "bf16"),
    ]
    assert any("timm" in line for line in messages)
    for one in rows:
        rate = one["images_per_s"]
        assert rate["count"] == 2
        assert 0 < rate["min"] <= rate["median"] <= rate["max"]
        assert one["against_best_rival"] is None
    fp32, bf16 = rows
    assert max(fp32["max_error"], fp32["second_error"]) < 1e-4
    # bf16 has 8 bits: another number, but not another loss.
    assert 1e-6 < bf16["max_error"] < 0.1
    assert bf16["second_error"] < 0.1


@pytest.mark.parity
def test_compared_with_a_peer():
    found = bench_training(small(model="vit_tiny", size=None, batch_size=1, peers=("timm",)))
    ours, _, theirs, _ = found["contestants"]
    names = [one["name"] for one in found["contestants"]]
    assert names == ["muntin eager"] * 2 + ["timm eager"] * 2
    assert (ours["rival"], theirs["rival"]) == (False, True)
    assert max(one[key] for one in (ours, theirs) for key in ("max_error", "second_error")) < 1e-4
    ratio = ours["images_per_s"]["median"] / theirs["images_per_s"]["median"]
    assert ours["against_best_rival"] == pytest.approx(ratio)
    assert theirs["against_best_rival"] == 1


def test_every_precision_starts_from_the_same_weights():
    # A step that is far too long: whoever starts behind it has another loss altogether.
    found = bench_training(
        small(), optimize=lambda module: torch.optim.AdamW(module.parameters(), lr=0.1)
    )
    assert max(one["max_error"] for one in found["contestants"]) < 0.05


def test_a_wrong_gradient_is_detected():
    # The first optimiser is that of float64, the second ours.
    made = []

    def optimizer(module):
        made.append(torch.optim.AdamW(module.parameters(), lr=1e-4, maximize=bool(made)))
        return made[-1]

    fp32 = bench_training(small(), optimize=optimizer)["contestants"][0]
    assert fp32["max_error"] < 1e-4 < 1e-3 < fp32["second_error"]


@pytest.mark.usefixtures("no_compiler")
def test_no_compiler():
    messages = []
    found = bench_training(small(batch_size=1, compiled=True, log=messages.append))
    assert len(found["contestants"]) == 2
    assert any("torch.compile" in line for line in messages)
