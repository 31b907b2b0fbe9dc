# SPDX-License-Identifier: Apache-2.0
"""Requests, and selection of peers."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from muntin.benching.benchmark_kinds import run_benchmark
from muntin.benching.peers import BenchRequest, build_peers, make_deterministic
from muntin.errors import ConfigError
from muntin.zoo import create_model


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"rounds": 0}, "rounds"), ({"batch_size": -3}, "batch_size"), ({"peers": ["tim"]}, "'timm'")],
)
def test_requests_are_checked_before_anything_is_built(wrong, named):
    with pytest.raises(ConfigError, match=named):
        BenchRequest(model="no such model", **wrong)


@pytest.mark.parametrize(
    ("what", "changed", "named"),
    [
        ("inferense", {}, "'inference'"),
        ("area", {}, "bench_area.py"),
        ("memory", {"compiled": True}, "compiled"),
        ("data", {"compiled": True}, "compiled"),
        ("attention", {"compiled": True}, "compiled"),
        ("attention", {"model": "vit_tiny"}, "'vit_tiny'"),
        ("attention", {"model": "swinv2_tiny_window8_256"}, "'swinv2_tiny_window8_256'"),
        ("inference", {"model": "swin_nanno"}, "'swin_nanno'"),
        ("training", {"model": "swin_nanno"}, "'swin_nanno'"),
        ("memory", {"model": "swin_nanno"}, "'swin_nanno'"),
        ("data", {"model": "swin_nanno"}, "'swin_nanno'"),
    ],
)
def test_invalid_requests_are_rejected(what, changed, named):
    with pytest.raises(ConfigError, match=named):
        run_benchmark(what, BenchRequest(**{"model": "swin_nano", "peers": (), **changed}))


def test_unsupported_peers_are_skipped_with_a_message(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # as if it were not installed
    messages = []
    names = ["timm", "torchvision", "openvino"]
    request = BenchRequest(model="swin_nano", peers=names, log=messages.append)
    assert request.select_peers(("timm", "torchvision")) == ["timm"]
    assert [name in line for name, line in zip(names[1:], messages, strict=True)] == [True, True]


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("timm", "vit_tiny"),
        ("torchvision", "swin_tiny"),
        pytest.param("transformers", "swin_tiny", marks=pytest.mark.slow),
    ],
)
def test_a_peer_has_our_weights_under_any_name_of_the_model(name, model):
    network = create_model(model).eval()
    peers = build_peers(BenchRequest(model=model), [name], network)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(peers[name](images), network(images), atol=1e-5, rtol=0)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("model", "size", "named"), [("swin_nano", (64, 64), "timm"), ("vit_tiny", (64, 96), "64 x 96")]
)
def test_peers_without_the_model_or_the_size_are_skipped_with_a_message(model, size, named):
    messages = []
    request = BenchRequest(model=model, size=size, log=messages.append)
    assert build_peers(request, ["timm"], create_model(model)) == {}
    assert [named in line for line in messages] == [True]


def test_make_deterministic_disables_dropout():
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4)).eval()
    module.requires_grad_(False)
    make_deterministic(module)
    assert module[0].weight.requires_grad
    assert module[2].training
    x = torch.randn(64, 4)
    assert torch.equal(module(x), module(x))
