# SPDX-License-Identifier: Apache-2.0
"""ViT against timm, torchvision and transformers, live, with random weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
import transformers

from muntin.models.vit import ViT
from muntin.models.vit_presets import vit_preset
from muntin.weights.dialects import to_dialect
from muntin.weights.weight_files import write_weights
from muntin.weights.weight_loading import load_weights
from tests.parity.peers import (
    TOLERANCE,
    VIT,
    VITS,
    assert_equal_outputs,
    batch_images,
    distance,
    network,
    perturb,
    record_plain,
    run_peer,
)

pytestmark = pytest.mark.parity

MEAN = replace(VIT, pool="mean", pool_norm="after")
CASES = [
    ("timm", VIT, [(32, 32), (32, 64), (40, 72), (16, 24), (8, 8)]),
    ("timm", MEAN, [(32, 32), (56, 40), (16, 24)]),
    ("timm", replace(MEAN, pool_norm="before"), [(32, 32), (56, 40)]),
    ("timm", replace(MEAN, class_token=False), [(32, 32), (56, 40)]),
    ("timm", replace(VIT, activation="gelu_tanh"), [(32, 32), (56, 40)]),
    ("timm", replace(VIT, activation="quick_gelu"), [(32, 32), (56, 40)]),
    ("torchvision", VIT, [(32, 32)]),
    # Its stem drops what does not fill a patch.
    ("transformers", VIT, [(32, 32), (32, 64), (45, 77), (20, 33), (64, 16)]),
]


@pytest.mark.parametrize(
    ("dialect", "config", "size"),
    [(name, config, size) for name, config, sizes in CASES for size in sizes],
)
def test_small_vit_equals_its_peer(dialect, config, size):
    peer = perturb(VITS[dialect](config))
    model = network(config)
    assert load_weights(model, peer.state_dict()).size_rule == dialect
    record_plain(model, dialect, dialect, assert_equal_outputs(model, peer, size))


@pytest.mark.parametrize("size", [(224, 224), pytest.param((256, 336), marks=pytest.mark.slow)])
def test_vit_tiny_equals_timm(size):
    peer = perturb(timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True))
    model = network(vit_preset("tiny", 16, 224), num_classes=1000)
    load_weights(model, peer.state_dict())
    assert_equal_outputs(model, peer, size)


def test_positions_are_resized_on_loading_as_timm_does():
    peer = perturb(VITS["timm"](VIT))
    larger = replace(VIT, img_size=(48, 64))
    model = network(larger)
    report = load_weights(model, peer.state_dict())
    assert report.resized == ("backbone.pos_embed",)
    assert_equal_outputs(model, peer, (48, 64))


@pytest.mark.parametrize("dialect", ["timm", "torchvision"])
def test_export_to_the_peer_is_strict_and_bit_exact(dialect):
    peer = perturb(VITS[dialect](VIT))
    model = network(VIT)
    load_weights(model, peer.state_dict())
    back = to_dialect(model, dialect)
    assert back.keys() == peer.state_dict().keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in peer.state_dict().items())
    other = VITS[dialect](VIT).eval()
    other.load_state_dict(back, strict=True)
    with torch.no_grad():
        images = batch_images((32, 32))
        assert torch.equal(run_peer(other, images), run_peer(peer, images))


def test_export_to_transformers_is_loadable(tmp_path):
    peer = perturb(VITS["transformers"](VIT))
    peer.save_pretrained(tmp_path / "theirs")
    model = network(VIT)
    assert load_weights(model, tmp_path / "theirs").dialect == "transformers"
    assert_equal_outputs(model, peer, (32, 32))
    write_weights(tmp_path / "ours" / "model.safetensors", to_dialect(model, "transformers"))
    peer.config.save_pretrained(tmp_path / "ours")
    opened, info = transformers.ViTForImageClassification.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_equal_outputs(model, opened.eval(), (32, 32))


def test_headless_transformers_model_loads_from_file_and_from_memory(tmp_path):
    config = VITS["transformers"](VIT).config
    peer = perturb(transformers.ViTModel(config))
    peer.save_pretrained(tmp_path)
    images = batch_images((40, 56))
    with torch.no_grad():
        theirs = peer(images, interpolate_pos_encoding=True).last_hidden_state[:, 0]
        for source in (tmp_path, peer.state_dict()):
            body = ViT(VIT).eval()
            report = load_weights(body, source)
            assert set(report.ignored) == {"pooler.dense.weight", "pooler.dense.bias"}
            assert distance(body.embed(images), theirs) < TOLERANCE


@pytest.mark.parametrize("parts", [(1, 0, 2), (0, 2, 1)])
def test_a_wrong_order_of_query_key_and_value_is_detected(parts):
    peer = perturb(VITS["timm"](VIT))
    spoiled = {
        key: torch.cat([tensor.chunk(3)[part] for part in parts]) if ".qkv." in key else tensor
        for key, tensor in peer.state_dict().items()
    }
    model = network(VIT)
    load_weights(model, spoiled)
    with torch.no_grad():
        images = batch_images((32, 32))
        assert distance(model(images), peer(images)) > 100 * TOLERANCE


def test_padding_where_transformers_crops_is_detected():
    peer = perturb(VITS["transformers"](VIT))
    model = network(VIT)
    load_weights(model, peer.state_dict())
    model.backbone.config = replace(VIT, size_rule="muntin")
    images = batch_images((45, 77))
    with torch.no_grad():
        assert distance(model(images), run_peer(peer, images)) > 100 * TOLERANCE
