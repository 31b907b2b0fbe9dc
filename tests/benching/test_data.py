# SPDX-License-Identifier: Apache-2.0
"""Loading JPEG files, compared with torchvision."""

from __future__ import annotations

import json

import pytest

from muntin.benching.data import IMAGE_SIZE, bench_data
from muntin.benching.peers import BenchRequest
from muntin.benching.result_rows import format_rows


@pytest.fixture(scope="module")
def found():
    """One measurement with torchvision, with and without worker processes."""
    request = BenchRequest(
        model="swin_nano", batch_size=2, size=(48, 64), peers=["torchvision"], rounds=1
    )
    return bench_data(request, num_images=3)


def test_compared_with_torchvision(found):
    json.dumps(found)
    assert found["kind"] == "data"
    assert (found["num_images"], found["image_size"]) == (3, [*IMAGE_SIZE])
    rows = found["contestants"]
    assert len(rows) == 3 * 2 * 2
    assert {one["name"] for one in rows if one["rival"]} == {
        "torchvision Pillow",
        "torchvision tensors",
    }
    for one in rows:
        assert one["missing"] == 0
        assert one["images_per_s"]["count"] == 1
        assert one["against_best_rival"] > 0
        if one["work"] == "evaluation":
            # In standard deviations; a grey level is 0.017.
            assert one["mean_error"] < 0.05
        else:
            assert one["mean_error"] is None


def test_what_is_measured_can_be_shown(found):
    titles, cells = format_rows(found)
    assert {len(titles)} == {len(one) for one in cells}
    assert titles[:4] == ["work", "workers", "name", "precision"]
    assert [one[0] for one in cells] == (["evaluation"] * 3 + ["training"] * 3) * 2


def test_without_peers_and_workers():
    request = BenchRequest(model="swin_nano", size=(32, 32), peers=(), rounds=2)
    found = bench_data(request, num_images=2, workers=(0,))
    assert [one["work"] for one in found["contestants"]] == ["evaluation", "training"]
    assert all(one["against_best_rival"] is None for one in found["contestants"])
    assert all(one["images_per_s"]["count"] == 2 for one in found["contestants"])
