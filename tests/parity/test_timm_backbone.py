# SPDX-License-Identifier: Apache-2.0
"""Timm models as backbones and classifiers: outputs equal timm's."""

from __future__ import annotations

import importlib.util

import pytest
import timm
import torch
from timm.models.vision_transformer import checkpoint_filter_fn as timm_filter

from muntin.batch_rows import BatchPart, holding
from muntin.errors import ConfigError, MissingExtra, ShapeError, WeightError
from muntin.weights.dialects import to_dialect
from muntin.weights.source_info import SourceInfo
from muntin.weights.weight_loading import load_weights
from muntin.zoo import (
    change_model,
    create,
    create_backbone,
    create_model,
    describe_models,
    find_model,
    list_models,
)
from muntin.zoo.model_zoo import config_to_dict
from muntin.zoo.published_classifier import find_source_model
from tests.parity.peers import assert_equal_outputs, batch_images, distance, perturb

pytestmark = pytest.mark.parity

NAMES = [
    "convnext_tiny",
    "mobilevit_s",
    "efficientnetv2_rw_s",
    "mobilenetv3_large_100",
    "resnet50",
]
SMALL = ["mobilenetv3_small_050", "resnet10t", "convnext_atto"]


def check(name, size):
    peer = perturb(timm.create_model(name, num_classes=7))
    model = create_model(f"timm:{name}", num_classes=7).eval()
    report = load_weights(model, peer.state_dict())
    assert report.dialect == "timm"
    assert not report.reset
    assert_equal_outputs(model, peer, size)
    images = batch_images(size)
    with torch.no_grad():
        theirs = peer.forward_intermediates(images, intermediates_only=True, output_fmt="NCHW")
        maps = model.backbone(images)
    for ours, expected in zip(maps, theirs[-4:], strict=True):
        assert distance(ours, expected) == 0
    assert [m.shape[1] for m in maps] == list(model.spec.channels)
    assert [-(-size[0] // s) for s in model.spec.strides] == [m.shape[2] for m in maps]
    back = to_dialect(model, "timm")
    assert back.keys() == peer.state_dict().keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in peer.state_dict().items())


@pytest.mark.parametrize("name", SMALL)
def test_small_model_equals_itself_in_timm(name):
    check(name, (96, 64))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_model_that_swin_is_compared_with_equals_itself_in_timm(name):
    check(name, (128, 96))


@pytest.mark.parametrize("new", [(96, 96), (128, 192)])
@pytest.mark.parametrize("name", ["test_vit", "test_vit4"])
def test_another_image_size_is_what_timm_makes_of_it(name, new):
    peer = perturb(timm.create_model(name, num_classes=5))
    model = create_model(f"timm:{name}", num_classes=5).eval()
    load_weights(model, peer.state_dict())
    other = create_model(f"timm:{name}", num_classes=5, img_size=new).eval()
    report = load_weights(other, peer.state_dict())
    assert report.resized == ("backbone.net.pos_embed",)
    changed = change_model(model, img_size=new)
    peer.set_input_size(img_size=new)
    for ours in (other, changed, model):  # loaded, changed, and as it was made
        assert_equal_outputs(ours, peer, new)


def test_a_grid_that_is_no_square_is_resized_by_rows_and_columns():
    peer = perturb(timm.create_model("test_vit", num_classes=5, img_size=(64, 256)))
    model = create_model("timm:test_vit", num_classes=5, img_size=(64, 256)).eval()
    load_weights(model, peer.state_dict())
    larger = create_model("timm:test_vit", num_classes=5, img_size=(96, 160)).eval()
    load_weights(larger, peer.state_dict(), made_with={"img_size": (64, 256)})
    changed = change_model(model, img_size=(96, 160))
    peer.set_input_size(img_size=(96, 160))
    for ours in (larger, changed):
        assert_equal_outputs(ours, peer, (96, 160))


@pytest.mark.parametrize("registers", [False, True])
def test_facebooks_layout_of_dinov2_is_read_as_timm_reads_it(registers):
    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    peer = perturb(timm.create_model(name, img_size=56, num_classes=0))
    state = {**peer.state_dict(), "mask_token": torch.zeros(1, 384)}
    if registers:  # a position of the class token, which timm adds to it
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([torch.ones(1, 1, 384), state["pos_embed"]], dim=1)
        state["cls_token"] = state["cls_token"] - 1
    for size in ((56, 56), (84, 42)):
        model = create_model(f"timm:{name}", img_size=size, num_classes=0).eval()
        report = load_weights(model, state)
        assert report.ignored == ("mask_token",)
        assert bool(report.resized) == (size != (56, 56)) or registers
        peer.set_input_size(img_size=size)
        images = batch_images(size)
        with torch.no_grad():
            assert distance(model(images), peer(images)) < 1e-5
        peer.set_input_size(img_size=(56, 56))
        peer.load_state_dict(timm_filter(dict(state), peer))


def test_an_image_of_any_size():
    body = create_backbone("timm:test_vit", out_indices=(-1,))
    assert body(torch.rand(1, 3, 50, 170))[0].shape[2:] == (4, 11)  # padded to whole patches
    for name, size in (("convnext_atto", (50, 62)), ("swin_tiny_patch4_window7_224", (64, 96))):
        assert len(create_backbone(f"timm:{name}")(torch.rand(1, 3, *size))) == 4
    with pytest.raises(ShapeError, match=r"50 x 62.*img_size=\(50, 62\)"):
        create_backbone("timm:hiera_tiny_224")(torch.rand(1, 3, 50, 62))


def test_maps_round_as_those_of_timm():
    images = torch.rand(1, 3, 61, 70)
    body = create_backbone("timm:test_convnext").eval()
    peer = timm.create_model("test_convnext").eval()
    peer.load_state_dict(body.net.state_dict(), strict=False)
    theirs = peer.forward_intermediates(images, intermediates_only=True)
    assert [m.shape[2:] for m in body(images)] == [m.shape[2:] for m in theirs[-4:]]
    assert body(images)[0].shape[2:] == (15, 17)  # rounded down
    segmenter = create("semantic", "timm:test_convnext", head="light_small", num_classes=3)
    features = segmenter.features(images.repeat(2, 1, 1, 1))
    assert segmenter.head(features).shape == (2, 3, 15, 17)
    labels = torch.zeros(2, 61, 70, dtype=torch.long)
    assert segmenter.head.losses(features, labels)["pixels"].isfinite().all()


def test_positions_that_timm_does_not_resize_are_refused():
    state = timm.create_model("pit_ti_224", num_classes=3).state_dict()
    model = create_model("timm:pit_ti_224", num_classes=3, img_size=160)
    with pytest.raises(WeightError, match=r"\(1, 64, 27, 27\).*img_size"):
        load_weights(model, state)


def test_classifiers_of_several_tokens_are_left_out():
    name = "deit_tiny_distilled_patch16_224"
    model = create_model(f"timm:{name}", num_classes=3)
    report = load_weights(model, timm.create_model(name, num_classes=3).state_dict())
    assert report.reset == ("head.fc.weight", "head.fc.bias")
    assert len(report.ignored) == 4


def test_another_number_of_classes_resets_the_head_only():
    peer = timm.create_model("resnet10t", num_classes=7)
    model = create_model("timm:resnet10t", num_classes=3)
    assert load_weights(model, peer.state_dict()).reset == ("head.fc.weight", "head.fc.bias")
    with pytest.raises(WeightError, match=r"resnet10t|stem|layer|blocks|net\."):
        load_weights(model, timm.create_model("resnet14t", num_classes=3).state_dict())


def test_maps_can_be_chosen():
    body = create_backbone("timm:resnet10t", out_indices=(1, 3))
    assert [tuple(m.shape[2:]) for m in body(torch.rand(1, 3, 64, 96))] == [(16, 24), (4, 6)]
    with pytest.raises(ConfigError, match="0 to 4"):
        create_backbone("timm:resnet10t", out_indices=(1, 7))
    last = create_backbone("timm:resnet10t", out_indices=(-4, -1))
    assert last.spec.channels == (64, 512)
    assert [m.shape[1] for m in last(torch.rand(1, 3, 64, 96))] == [64, 512]
    for indices in ((3, 1), (4, -1)):  # timm gives maps in order, and each once
        with pytest.raises(ConfigError, match="increasing"):
            create_backbone("timm:resnet10t", out_indices=indices)


def test_the_zoo_knows_them():
    assert "timm:convnext_tiny" in list_models("timm:convnext_t*")
    entry = find_model("timm:mobilevit_s")
    assert entry.config.img_size == (256, 256)
    assert entry.mean == (0.0, 0.0, 0.0)
    (row,) = describe_models("timm:resnet10t")
    assert row["params"] == sum(p.numel() for p in timm.create_model("resnet10t").parameters())
    assert row["macs"] > 10**8
    with pytest.raises(ConfigError, match=r"'resnet5'.*'resnet50'"):
        create_model("timm:resnet5")


def test_a_run_states_which_of_them_it_has():
    config = find_model("timm:resnet10t").config
    beside = SourceInfo(
        where="config.json", dialect="muntin", model="timm:resnet10t", fields={},
        whole=config_to_dict(config),
    )  # fmt: skip
    name, entry = find_source_model("", beside, {})
    assert (name, entry.config) == ("timm:resnet10t", config)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'muntin\[timm\]'"):
        create_model("timm:resnet50")


@pytest.mark.parametrize("name", ["convnext_atto", "test_vit"])
def test_drop_path_does_not_depend_on_how_a_batch_is_divided(name):
    model = perturb(create_backbone(f"timm:{name}", drop_path_rate=0.5, img_size=64)).train()
    images = torch.randn(6, 3, 64, 64)

    def vector(part: BatchPart) -> torch.Tensor:
        torch.manual_seed(1)
        with holding(part):
            return model.features(images[part.start : part.start + part.rows]).vector

    whole, alike = vector(BatchPart(0, 6, 6)), vector(BatchPart(0, 6, 6))
    parts = torch.cat([vector(BatchPart(start, 2, 6)) for start in (0, 2, 4)])
    assert whole.equal(alike)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)
    assert distance(whole, model.eval().features(images).vector) > 1e-2
