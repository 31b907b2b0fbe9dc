# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Who takes part, and how rows are compared."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from muntin.benching.competitors import (
    choose_peers,
    compare_rows,
    enter_peers,
    make_deterministic,
    refuse_compiled,
    spread,
)
from muntin.errors import ConfigError
from muntin.zoo import create_model


def row(name, value, rival, **more):
    return {"name": name, "rival": rival, "ms": spread([value]), "precision": "fp32", **more}


def test_unknown_peers_are_refused():
    with pytest.raises(ConfigError, match=r"'tim'.*timm"):
        choose_peers(["tim"], ("timm",), lambda line: None)


def test_peers_that_cannot_are_left_out_with_a_word(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # as if it were not installed
    said = []
    names = ["timm", "torchvision", "openvino"]
    assert choose_peers(names, ("timm", "torchvision"), said.append) == ["timm"]
    assert ["torchvision" in said[0], "openvino" in said[1], len(said)] == [True, True, 2]


@pytest.mark.parity
def test_a_peer_has_our_weights_under_any_name_of_the_model():
    network = create_model("vit_tiny").eval()
    (peer,) = enter_peers(["timm"], "vit_tiny", network, (224, 224), lambda line: None)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(peer.module(images), network(images), atol=1e-5, rtol=0)


@pytest.mark.parity
def test_peers_without_the_model_or_the_size_are_left_out_with_a_word():
    said = []
    nano, tiny = create_model("swin_nano"), create_model("vit_tiny")
    assert enter_peers(["timm"], "swin_nano", nano, (64, 64), said.append) == []
    assert enter_peers(["timm"], "vit_tiny", tiny, (64, 96), said.append) == []
    assert ["timm" in said[0], "64 x 96" in said[1], len(said)] == [True, True, 2]


def test_nothing_is_dropped_at_random():
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4)).eval()
    module.requires_grad_(False)
    make_deterministic(module)
    assert module[0].weight.requires_grad
    assert module[2].training
    x = torch.randn(64, 4)
    assert torch.equal(module(x), module(x))


def test_more_or_less_is_better_than_the_best_rival():
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


def test_spread():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "count": 3}


def test_compiled_is_refused_where_it_changes_nothing():
    refuse_compiled(False, "data", "where nothing can be compiled")
    with pytest.raises(ConfigError, match=r"compiled.*data.*True"):
        refuse_compiled(True, "data", "where nothing can be compiled")
