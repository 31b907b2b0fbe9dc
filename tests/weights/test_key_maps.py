# SPDX-License-Identifier: Apache-2.0
"""The renaming engine: templates, both directions, groups, derived tensors."""

from __future__ import annotations

import pytest
import torch

from muntin.weights.key_maps import (
    STACKED,
    KeyMap,
    Row,
    fill,
    first_key,
    flat_index,
    match,
    square_index,
)

MAP = KeyMap(
    (
        Row(("stem.{p}",), "patch.{p}"),
        Row(("body.{2i+1}.q.{p}", "body.{2i+1}.k.{p}"), "layers.{i}.qk.{p}", STACKED),
        Row(("body.{2i+1}.old.{p}",), "layers.{i}.qk.{p}"),
        Row(("body.{2i+1}.table",), "layers.{i}.table"),
        Row(("body.{2i+1}.index",), "layers.{i}.table", derive=square_index),
        Row(("counter",), ""),
        Row(("last.{p}",), "head.fc.{p}"),
    ),
    prefix="net.",
)
OURS = {
    "patch.weight": torch.randn(2, 2),
    "layers.1.qk.bias": torch.randn(6),
    "layers.0.table": torch.randn(9, 2),
    "head.fc.weight": torch.randn(3, 2),
}


@pytest.mark.parametrize(
    ("template", "key", "fields"),
    [
        ("a.{i}.{p}", "a.12.weight", {"i": "12", "p": "weight"}),
        ("a.{2i+2}.b", "a.6.b", {"i": "2"}),
        ("a.{i+1}.b", "a.1.b", {"i": "0"}),
        ("a.{2i+1}.b", "a.4.b", None),
        ("a.{i+1}.b", "a.0.b", None),
        ("a.{i}.b", "a.x.b", None),
        ("a.{i}.b", "a.1xb", None),
        ("a.{p}", "a.gamma", None),
        ("a.{p}", "b.a.weight", None),
    ],
)
def test_templates_match_and_fill(template, key, fields):
    assert match(template, key) == fields
    if fields is not None:
        assert fill(template, fields) == key


def test_round_trip_and_prefix_of_files_with_a_head():
    theirs, unexpected = MAP.write(OURS)
    assert not unexpected
    assert set(theirs) == {
        "net.stem.weight",
        "net.body.3.q.bias",
        "net.body.3.k.bias",
        "net.body.1.table",
        "net.body.1.index",
        "last.weight",
    }
    reading = MAP.read(theirs)
    assert reading.tensors.keys() == OURS.keys()
    assert all(torch.equal(reading.tensors[key], OURS[key]) for key in OURS)
    assert reading.ignored == ["net.body.1.index"]
    assert ("net.body.3.k.bias", "layers.1.qk.bias") in reading.pairs


def test_without_a_head_there_is_no_prefix():
    theirs, _ = MAP.write({"patch.weight": OURS["patch.weight"]})
    assert set(theirs) == {"stem.weight"}


def test_unmatched_keys_are_reported_by_kind():
    state = dict.fromkeys(
        [
            "counter",
            "stranger",
            "body.1.q.bias",
            "body.3.q.bias",
            "body.3.k.bias",
            "body.3.old.bias",
        ],
        torch.zeros(2),
    )
    reading = MAP.read(state)
    assert reading.ignored == ["counter"]
    assert reading.unknown == ["stranger"]
    assert reading.missing == ["body.1.k.bias"]
    assert reading.duplicates == ["layers.1.qk.bias"]
    assert MAP.write({"nowhere": torch.zeros(1)})[1] == ["nowhere"]


def test_index_equals_one_written_with_loops():
    side = 3
    index = square_index(torch.zeros((2 * side - 1) ** 2, 1))
    for query in range(side * side):
        for key in range(side * side):
            down = query // side - key // side + side - 1
            right = query % side - key % side + side - 1
            assert index[query, key] == down * (2 * side - 1) + right
    assert torch.equal(flat_index(torch.zeros(25, 1)), index.flatten())


def test_first_key_returns_the_first_or_an_empty_string():
    assert first_key(["a", "b1", "b2"], r"^b\d") == "b1"
    assert first_key(["a"], r"^b") == ""
