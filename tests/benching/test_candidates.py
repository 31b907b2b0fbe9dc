# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Selection of peers, and comparison of rows."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from muntin.benching.candidates import (
    build_peers,
    compare_rows,
    make_deterministic,
    reject_compiled,
    select_peers,
    summarize,
)
from muntin.errors import ConfigError
from muntin.zoo import create_model


def row(name, value, rival, **more):
    return {"name": name, "rival": rival, "ms": summarize([value]), "precision": "fp32", **more}


def test_unknown_peers_are_rejected():
    with pytest.raises(ConfigError, match=r"'tim'.*timm"):
        select_peers(["tim"], ("timm",), lambda line: None)


def test_unsupported_peers_are_skipped_with_a_message(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # as if it were not installed
    messages = []
    names = ["timm", "torchvision", "openvino"]
    assert select_peers(names, ("timm", "torchvision"), messages.append) == ["timm"]
    assert ["torchvision" in messages[0], "openvino" in messages[1], len(messages)] == [
        True,
        True,
        2,
    ]


@pytest.mark.parity
def test_a_peer_has_our_weights_under_any_name_of_the_model():
    network = create_model("vit_tiny").eval()
    (peer,) = build_peers(["timm"], "vit_tiny", network, (224, 224), lambda line: None)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(peer.module(images), network(images), atol=1e-5, rtol=0)


@pytest.mark.parity
def test_peers_without_the_model_or_the_size_are_skipped_with_a_message():
    messages = []
    nano, tiny = create_model("swin_nano"), create_model("vit_tiny")
    assert build_peers(["timm"], "swin_nano", nano, (64, 64), messages.append) == []
    assert build_peers(["timm"], "vit_tiny", tiny, (64, 96), messages.append) == []
    assert ["timm" in messages[0], "64 x 96" in messages[1], len(messages)] == [True, True, 2]


def test_make_deterministic_disables_dropout():
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4)).eval()
    module.requires_grad_(False)
    make_deterministic(module)
    assert module[0].weight.requires_grad
    assert module[2].training
    x = torch.randn(64, 4)
    assert torch.equal(module(x), module(x))


def test_ratio_to_the_best_peer():
    rows = [row("muntin", 2.0, False), row("a", 3.0, True), row("b", 4.0, True)]
    compare_rows(rows, "ms", better="less")
    assert [one["against_best_rival"] for one in rows] == [1.5, 1.0, 0.75]
    compare_rows(rows, "ms", better="more")
    assert [one["against_best_rival"] for one in rows] == [0.5, 0.75, 1.0]


@pytest.mark.parametrize("key", ["precision", "work", "stage", "workers"])
def test_only_equal_work_is_compared(key):
    rows = [row("muntin", 2.0, False, **{key: 1}), row("a", 3.0, True, **{key: 2})]
    compare_rows(rows, "ms", better="less")
    assert rows[0]["against_best_rival"] is None


def test_summarize():
    assert summarize([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "count": 3}


def test_compiled_is_rejected():
    reject_compiled(False, "data", "data loading cannot be compiled")
    with pytest.raises(ConfigError, match=r"compiled.*data"):
        reject_compiled(True, "data", "data loading cannot be compiled")
