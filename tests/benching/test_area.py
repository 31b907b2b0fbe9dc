# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Cost per pixel as images grow."""

from __future__ import annotations

import json

import pytest

from muntin.benching.area import bench_area
from muntin.benching.bench_request import bench_by_name
from muntin.benching.report_tables import format_rows
from muntin.errors import ConfigError


def test_batches_have_equally_many_pixels():
    asked = []

    def answer(job):
        asked.append((job["model"], job["size"][0], job["batch_size"]))
        return {"peak_mib": 30.0, "weights_mib": 10.0, "loss": 0.0}

    found = bench_area(
        "swin_nano", rounds=1, sides=(32, 64, 128), baseline="vit_tiny", measure_job=answer
    )
    json.dumps(found)
    assert asked == [
        (name, side, count)
        for side, count in ((32, 16), (64, 4), (128, 1))
        for name in ("swin_nano", "vit_tiny")
    ]
    assert found["memory_within"] == {"swin_nano": 0.0, "vit_tiny": 0.0}
    assert [row["mib_per_mp"] for row in found["contestants"]] == [20 / 0.016384] * 6
    for row in found["contestants"]:
        assert row["ms_per_mp"]["median"] > 0
        assert row["against_best_rival"] is not None
    titles, cells = format_rows(found)
    assert len(titles) == len(cells[0])
    assert [line[0] for line in cells] == ["32x32"] * 2 + ["64x64"] * 2 + ["128x128"] * 2


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"batch_size": -3}])
def test_numbers_are_checked_before_anything_is_built(wrong):
    with pytest.raises(ConfigError, match=r"rounds|batch_size"):
        bench_by_name("inference", "no such model", **wrong)


def test_size_is_rejected():
    with pytest.raises(ConfigError, match="size"):
        bench_area("swin_nano", size=(64, 64))
