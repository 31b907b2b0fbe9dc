# SPDX-License-Identifier: Apache-2.0
"""Rows of results: comparison, and tables."""

from __future__ import annotations

import pytest

from muntin.benching.result_rows import compare_rows, format_rows, summarize


def row(name, **more):
    return {"name": name, "precision": "fp32", "rival": False} | more


def test_inference():
    fields = {"against_best_rival": 1.5, "of_ceiling": 0.25, "max_error": 2e-6, "agreement": 1.0}
    rows = [
        row("slow", images_per_s=summarize([1.0, 2.0, 3.0]), ms=500.0, **fields),
        row("fast", images_per_s=summarize([20.0]), ms=50.0, **{**fields, "of_ceiling": None}),
    ]
    titles, cells = format_rows({"contestants": rows})
    assert titles == [
        "name", "precision", "images/s", "min to max", "vs best peer", "of peak", "error",
        "top-1 agreement",
    ]  # fmt: skip
    assert cells == [
        ["fast", "fp32", "20.0", "20.0 to 20.0", "1.50x", "", "2.0e-06", "100 %"],
        ["slow", "fp32", "2.00", "1.00 to 3.00", "1.50x", "25 %", "2.0e-06", "100 %"],
    ]


def test_memory():
    rows = [
        row("a", work="inference", peak_mib=summarize([200.4]), weights_mib=12.6, max_error=1e-7),
        row("a", work="training", peak_mib=summarize([900.0]), weights_mib=12.6, max_error=1e-7),
        row("b", work="inference", peak_mib=summarize([100.0]), weights_mib=12.6, max_error=1e-7),
    ]
    titles, cells = format_rows({"contestants": rows})
    assert titles == [
        "work", "name", "precision", "peak MiB", "min to max", "weights MiB", "error",
    ]  # fmt: skip
    # The smaller first, and what did the same together.
    assert [(one[0], one[1], one[3]) for one in cells] == [
        ("inference", "b", "100"),
        ("inference", "a", "200"),
        ("training", "a", "900"),
    ]


def test_attention():
    rows = [
        row("a", stage=stage, map=[8, 9], work="training", ms=summarize([ms]), max_error=0.0)
        for stage, ms in ((2, 1.0), (1, 2.0), (2, 0.5))
    ]
    titles, cells = format_rows({"contestants": rows})
    assert titles[:5] == ["stage", "map", "work", "name", "precision"]
    assert titles[5] == "ms"
    assert [(one[0], one[1], one[5]) for one in cells] == [
        ("2", "8x9", "0.500"),
        ("2", "8x9", "1.000"),
        ("1", "8x9", "2.000"),
    ]


@pytest.mark.parametrize(
    ("measure", "expected"), [("ms", [1.5, 1.0, 0.75]), ("images_per_s", [0.5, 0.75, 1.0])]
)
def test_ratio_to_the_best_peer(measure, expected):
    rows = [
        row(name, rival=rival, **{measure: summarize([value])})
        for name, rival, value in (("muntin", False, 2.0), ("a", True, 3.0), ("b", True, 4.0))
    ]
    assert [one["against_best_rival"] for one in compare_rows(rows)] == expected


@pytest.mark.parametrize("key", ["precision", "work", "stage", "workers"])
def test_only_equal_work_is_compared(key):
    fields = {"ms": summarize([2.0])}
    rows = [row("muntin", **fields) | {key: 1}, row("a", **fields) | {"rival": True, key: 2}]
    assert compare_rows(rows)[0]["against_best_rival"] is None


def test_rows_aside_are_not_compared():
    fields = {"ms": summarize([2.0])}
    rows = [row("muntin", **fields), row("a", aside=True, **fields) | {"rival": True}]
    assert compare_rows(rows)[0]["against_best_rival"] is None


def test_summarize():
    assert summarize([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "count": 3}
