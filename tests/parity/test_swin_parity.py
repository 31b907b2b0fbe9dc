# SPDX-License-Identifier: Apache-2.0
"""Swin against timm, torchvision and transformers, live, with random weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
import torchvision
import transformers

from muntin.models.swin import SWIN_S3_TINY, SWIN_TINY, Swin
from muntin.weights.dialects import to_dialect
from muntin.weights.weight_loading import load_weights
from tests.parity.peers import (
    SWIN,
    SWINS,
    TOLERANCE,
    assert_equal_outputs,
    batch_images,
    distance,
    logits_and_gradient,
    network,
    perturb,
    record_plain,
    run_peer,
    with_windows,
)

pytestmark = pytest.mark.parity

# Per dialect: the size it was built for, a non-square multiple, odd sizes, and, where the peer
# accepts it, maps smaller than a window.
SIZES = {
    "timm": [(32, 32), (32, 64), (46, 58), (34, 62), (6, 10)],
    "torchvision": [(32, 32), (32, 64), (45, 59), (37, 50), (6, 10), (2, 2)],
    "transformers": [(32, 32), (32, 64), (45, 59), (51, 37)],
}
# Window and size that timm's model is built with: window larger than a map, one a stage.
BUILT = {
    "window larger than the last map": with_windows(7, (32, 32)),
    "and the map not square": with_windows(7, (32, 64)),
    "odd grid": with_windows(5, (42, 36)),
    "one window a stage": with_windows((2, 4, 3), (32, 32)),
}


def loaded(dialect: str, config=SWIN, **changes):
    """A peer with random weights, and ours with the same."""
    peer = perturb(SWINS[dialect](config))
    model = network(replace(config, **changes))
    report = load_weights(model, peer.state_dict())
    assert report.dialect == dialect
    return model, peer


@pytest.mark.parametrize("attention", ["reference", "sdpa"])
@pytest.mark.parametrize(
    ("dialect", "size"), [(name, size) for name, sizes in SIZES.items() for size in sizes]
)
def test_small_swin_equals_its_peer(dialect, size, attention):
    model, peer = loaded(dialect, attention=attention)
    record_plain(model, dialect, dialect, assert_equal_outputs(model, peer, size))


@pytest.mark.parametrize("size", [(32, 32), (32, 64), (46, 58), (4, 6), (60, 8)])
@pytest.mark.parametrize("name", BUILT)
def test_what_timm_decides_when_it_builds_is_followed_at_every_size(name, size):
    model, peer = loaded("timm", BUILT[name])
    assert_equal_outputs(model, peer, size)


PUBLISHED = [
    ("timm", lambda: timm.create_model("swin_tiny_patch4_window7_224", strict_img_size=False)),
    ("torchvision", torchvision.models.swin_t),
    ("transformers", lambda: transformers.SwinForImageClassification(_hf_tiny())),
]


def _hf_tiny():
    return transformers.SwinConfig(num_labels=1000)


def check_published(config, dialect, build, sizes):
    peer = perturb(build())
    model = network(config, num_classes=1000)
    assert load_weights(model, peer.state_dict()).size_rule == dialect
    for size in sizes:
        if dialect == "transformers":  # its blocks remember the images they have seen
            fresh = build()
            fresh.load_state_dict(peer.state_dict())
            peer = fresh.eval()
        assert_equal_outputs(model, peer, size)


@pytest.mark.parametrize(
    ("dialect", "build"),
    [PUBLISHED[0], *(pytest.param(*one, marks=pytest.mark.slow) for one in PUBLISHED[1:])],
)
def test_swin_tiny_equals_its_peer_at_the_published_size(dialect, build):
    check_published(SWIN_TINY, dialect, build, [(224, 224)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dialect", "build", "sizes"),
    [
        (*PUBLISHED[0], [(224, 448), (228, 316), (252, 236)]),
        (*PUBLISHED[1], [(224, 448), (150, 201), (251, 230)]),
        (*PUBLISHED[2], [(224, 448), (250, 301), (233, 290)]),
    ],
)
def test_swin_tiny_equals_its_peer_at_other_sizes(dialect, build, sizes):
    check_published(SWIN_TINY, dialect, build, sizes)


@pytest.mark.slow
def test_swin_s3_tiny_with_its_window_per_stage_equals_timm():
    def build():
        return timm.create_model("swin_s3_tiny_224", strict_img_size=False)

    check_published(SWIN_S3_TINY, "timm", build, [(224, 224), (224, 448), (228, 316), (196, 100)])


@pytest.mark.parametrize("size", [(32, 32), (46, 58)])
def test_maps_of_a_backbone_equal_those_of_timm(size):
    peer = perturb(SWINS["timm"](SWIN))
    body = Swin(replace(SWIN, out_norm="none")).eval()
    report = load_weights(body, peer.state_dict())
    assert set(report.ignored) == {"head.fc.weight", "head.fc.bias", "norm.weight", "norm.bias"}
    images = batch_images(size)
    with torch.no_grad():
        theirs = peer.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True)
        for ours, expected in zip(body(images), theirs, strict=True):
            assert distance(ours, expected) < TOLERANCE


def test_maps_of_a_backbone_equal_those_of_timm_features_only():
    name = "swin_tiny_patch4_window7_224"
    small = {"embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 4, 8), "window_size": 4}
    peer = timm.create_model(name, features_only=True, img_size=64, strict_img_size=False, **small)
    perturb(peer)
    config = replace(SWIN_TINY, out_norm="none", img_size=(64, 64), **small)
    body = Swin(config).eval()
    load_weights(body, peer.state_dict())
    images = batch_images((68, 100))
    with torch.no_grad():
        for ours, theirs in zip(body(images), peer(images), strict=True):
            assert distance(ours, theirs.permute(0, 3, 1, 2)) < TOLERANCE


@pytest.mark.parametrize("dialect", ["timm", "torchvision"])
def test_export_to_the_peer_is_strict_and_bit_exact(dialect):
    model, peer = loaded(dialect)
    back = to_dialect(model, dialect)
    assert back.keys() == peer.state_dict().keys()
    for key, tensor in peer.state_dict().items():
        assert torch.equal(back[key], tensor), key
    other = SWINS[dialect](SWIN).eval()
    other.load_state_dict(back, strict=True)
    images = batch_images((46, 58))
    with torch.no_grad():
        assert torch.equal(run_peer(other, images), run_peer(peer, images))


@pytest.mark.parametrize("name", BUILT)
def test_export_to_a_timm_model_with_smaller_tables(name):
    config = BUILT[name]
    model = perturb(network(config), seed=3)
    peer = SWINS["timm"](config).eval()
    peer.load_state_dict(to_dialect(model, "timm"), strict=True)
    again = network(config)
    load_weights(again, peer.state_dict())
    assert_equal_outputs(again, peer, (46, 58))
    first, second = to_dialect(model, "timm"), to_dialect(again, "timm")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_export_to_transformers_is_loadable(tmp_path):
    from safetensors.torch import load_file

    from muntin.weights.weight_files import write_weights

    model, peer = loaded("transformers")
    peer.save_pretrained(tmp_path / "theirs")
    file = load_file(tmp_path / "theirs" / "model.safetensors")
    back = to_dialect(model, "transformers")
    assert back.keys() == file.keys()
    assert all(torch.equal(back[key], file[key]) for key in file)
    write_weights(tmp_path / "ours" / "model.safetensors", back)
    peer.config.save_pretrained(tmp_path / "ours")
    opened, info = transformers.SwinForImageClassification.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_equal_outputs(model, opened.eval(), (32, 32))


def test_file_that_transformers_saved_is_read_with_and_without_a_head(tmp_path):
    config = transformers.SwinConfig(
        image_size=32,
        patch_size=2,
        embed_dim=16,
        depths=[2, 2, 2],
        num_heads=[1, 2, 4],
        window_size=4,
    )
    peer = perturb(transformers.SwinModel(config))
    peer.save_pretrained(tmp_path)
    body = Swin(SWIN).eval()
    report = load_weights(body, tmp_path)
    assert report.dialect == "transformers"
    images = batch_images((32, 32))
    with torch.no_grad():
        assert distance(body.embed(images), peer(images).pooler_output) < TOLERANCE
    from_memory = Swin(SWIN)
    load_weights(from_memory, peer.state_dict())
    for name, tensor in body.state_dict().items():
        assert torch.equal(from_memory.state_dict()[name], tensor)
    model = network(SWIN)
    assert load_weights(model, tmp_path).reset == ("head.fc.weight", "head.fc.bias")


def test_absolute_positions_round_trip_with_transformers(tmp_path):
    config = replace(SWIN, absolute_pos_embed=True)
    peer_config = SWINS["transformers"](SWIN).config
    peer_config.use_absolute_embeddings = True
    peer = perturb(transformers.SwinForImageClassification(peer_config))
    model = network(config)
    load_weights(model, peer.state_dict())
    assert_equal_outputs(model, peer, (32, 32))
    assert "swin.embeddings.position_embeddings" in to_dialect(model, "transformers")


def swap_query_and_key(state):
    return {
        key: torch.cat([tensor.chunk(3)[part] for part in (1, 0, 2)]) if ".qkv." in key else tensor
        for key, tensor in state.items()
    }


def swap_merging_order(state):
    return {
        key: torch.cat([tensor.chunk(4, -1)[part] for part in (0, 2, 1, 3)], dim=-1)
        if "downsample.reduction" in key or "downsample.norm" in key
        else tensor
        for key, tensor in state.items()
    }


def flip_tables(state):
    return {
        key: tensor.flip(0) if key.endswith("bias_table") else tensor
        for key, tensor in state.items()
    }


@pytest.mark.parametrize("spoil", [swap_query_and_key, swap_merging_order, flip_tables])
def test_a_wrong_order_is_detected(spoil):
    peer = perturb(SWINS["timm"](SWIN))
    model = network(SWIN)
    load_weights(model, spoil(peer.state_dict()))
    with torch.no_grad():
        images = batch_images((32, 32))
        assert distance(model(images), peer(images)) > 100 * TOLERANCE


@pytest.mark.parametrize("rule", ["muntin", "torchvision", "transformers"])
def test_padding_before_instead_of_after_the_shift_is_detected(rule):
    model, peer = loaded("timm")
    model.backbone.config = replace(model.backbone.config, size_rule=rule)
    images = batch_images((46, 58))
    with torch.no_grad():
        assert distance(model(images), peer(images)) > 100 * TOLERANCE


@pytest.mark.parametrize("dialect", SWINS)
def test_outputs_do_not_depend_on_what_was_seen_before(dialect):
    model, _ = loaded(dialect)
    large, small = batch_images((64, 96)), batch_images((32, 32))
    before, gradient = logits_and_gradient(model, large)
    model(small)
    after, gradient_after = logits_and_gradient(model, large)
    assert torch.equal(before, after)
    assert torch.equal(gradient, gradient_after)


def test_transformers_itself_remembers_so_fresh_instances_are_right_to_compare_with():
    _, peer = loaded("transformers")
    large = batch_images((64, 96))
    with torch.no_grad():
        before = run_peer(peer, large)
        run_peer(peer, batch_images((32, 32)))
        assert distance(run_peer(peer, large), before) > 100 * TOLERANCE
