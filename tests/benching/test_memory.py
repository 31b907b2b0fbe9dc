# SPDX-License-Identifier: Apache-2.0
"""Peak memory, each case in its own process."""

from __future__ import annotations

import json

import numpy as np
import pytest

from muntin.benching.peers import BenchRequest
from muntin.benching.training import bench_memory, measure_in_subprocess, measure_once


@pytest.mark.slow
def test_alone():
    messages = []
    request = BenchRequest(
        model="swin_nano", batch_size=16, size=(64, 64), peers=("timm",), rounds=1,
        log=messages.append,
    )  # fmt: skip
    found = bench_memory(request)
    json.dumps(found)
    assert found["kind"] == "memory"
    assert any("timm" in line for line in messages)
    inference, training = found["contestants"]
    assert [inference["work"], training["work"]] == ["inference", "training"]
    # Of float32, at least its weights, and in training gradients and two moments more.
    assert 1 < inference["weights_mib"] < 20
    assert inference["peak_mib"]["median"] > inference["weights_mib"]
    assert training["peak_mib"]["median"] > 4 * training["weights_mib"]
    assert training["peak_mib"]["median"] < 1000
    assert max(inference["max_error"], training["max_error"]) < 1e-5


@pytest.mark.parity
def test_contestants_alternate_and_are_compared():
    asked = []

    def answer(job):
        asked.append((job["owner"], job["work"]))
        peak = 100.0 + len(asked)
        return {"peak_mib": peak, "weights_mib": 1.0, "state_mib": 4.0, "loss": 0.0}

    request = BenchRequest(model="vit_tiny", batch_size=1, peers=("timm",), rounds=2)
    found = bench_memory(request, measure=answer)
    turn = [(owner, work) for work in ("inference", "training") for owner in ("muntin", "timm")]
    assert asked == turn * 2
    ours, theirs = found["contestants"][:2]
    assert ours["peak_mib"] == {"median": 103.0, "min": 101.0, "max": 105.0, "count": 2}
    assert ours["activation_mib"] == {"median": 99.0, "min": 97.0, "max": 101.0, "count": 2}
    assert ours["against_best_rival"] == pytest.approx(104 / 103)
    assert theirs["against_best_rival"] == 1
    assert ours["max_error"] > 1  # its loss was reported as 0


@pytest.mark.slow
@pytest.mark.parity
def test_libraries_do_the_same_work():
    job = {"model": "vit_tiny", "size": (224, 224), "batch_size": 1, "threads": 1}
    found = {
        (owner, work): measure_once(owner=owner, work=work, **job)
        for owner, work in (("muntin", "inference"), ("muntin", "training"), ("timm", "training"))
    }
    losses = [one["loss"] for one in found.values()]
    assert np.allclose(losses, losses[0], atol=1e-5)
    assert found["muntin", "training"]["peak_mib"] > found["muntin", "inference"]["peak_mib"] > 0


def test_a_failure_in_the_process_is_raised_here():
    job = {"owner": "muntin", "work": "training", "model": "swin_nano", "size": (64, 64)}
    with pytest.raises(RuntimeError, match="num_threads"):
        measure_in_subprocess({**job, "batch_size": 2, "threads": 0})
