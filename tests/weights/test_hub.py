# SPDX-License-Identifier: Apache-2.0
"""Hub ids: cache first, the network briefly, one clear line when neither has it."""

from __future__ import annotations

import json
import os
import socket
import time

import pytest
import torch

from muntin.errors import WeightError
from muntin.weights.dialects import to_dialect
from muntin.weights.weight_files import fetch, is_hub_id, write_weights
from muntin.weights.weight_loading import load_weights
from muntin.zoo import create_model

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache of its own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(cache, repo, name):
    folder = cache / f"models--{repo.replace('/', '--')}"
    path = folder / "snapshots" / REVISION / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(REVISION)
    if name.endswith(".safetensors"):
        write_weights(path, {"a": torch.ones(1)})
    else:
        torch.save({"a": torch.ones(1)}, path)
    return path


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("timm/swin_tiny_patch4_window7_224.ms_in1k", True),
        ("microsoft/swin-tiny-patch4-window7-224", True),
        ("owner/name@v1.0", True),
        ("swin_tiny", False),
        ("./runs/flowers", False),
        ("../a/b", False),
        ("/tmp/model", False),
        ("a/b/c", False),
        ("~/weights", False),
        ("", False),
    ],
)
def test_hub_ids_are_distinguished_from_paths(text, answer):
    assert is_hub_id(text) is answer


def test_cache_is_used_and_safetensors_preferred(cache):
    bin_file = put(cache, "owner/net", "pytorch_model.bin")
    assert fetch("owner/net") == bin_file
    safe_file = put(cache, "owner/net", "model.safetensors")
    assert fetch("owner/net") == safe_file
    assert fetch(f"owner/net@{REVISION}") == safe_file


def test_offline_variable_is_respected(cache, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    put(cache, "owner/net", "model.safetensors")
    assert fetch("owner/net").name == "model.safetensors"
    with pytest.raises(WeightError, match=r"owner/other.*HF_HUB_OFFLINE"):
        fetch("owner/other")


@pytest.fixture
def ask(cache, monkeypatch):
    """Fetch weights from an endpoint that has none; give what the error says, and the seconds."""
    from huggingface_hub import constants, utils

    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # A client keeps the proxies of the moment at which it was made.
    forget = getattr(utils, "close_session", lambda: None)
    forget()

    def call(endpoint):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        start = time.monotonic()
        with pytest.raises(WeightError) as caught:
            fetch("owner/net", timeout_s=0.5)
        return str(caught.value), time.monotonic() - start

    yield call
    forget()


def test_no_network_fails_fast_with_one_line(ask):
    # Port 9 of this machine: nobody answers.
    line, seconds = ask("http://127.0.0.1:9")
    assert "'owner/net'" in line
    assert "\n" not in line
    assert seconds < 60


def test_a_silent_network_times_out(ask):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        line, seconds = ask(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert "'owner/net'" in line
    assert "\n" not in line
    assert seconds < 60


def test_the_configuration_beside_weights_in_the_cache(cache):
    fields = {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2}
    model = create_model("vit_tiny", num_classes=2, **fields)
    path = put(cache, "owner/net", "model.safetensors")
    write_weights(path, to_dialect(model, "transformers"))
    stated = {
        "model_type": "vit", "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3,
        "image_size": 32, "layer_norm_eps": 1e-12, "id2label": {"1": "b", "0": "a"},
    }  # fmt: skip
    path.with_name("config.json").write_text(json.dumps(stated))
    report = load_weights(model, "owner/net")
    assert report.adopted == {"num_heads": 3, "norm_eps": 1e-12}
    assert report.class_names == ("a", "b")
