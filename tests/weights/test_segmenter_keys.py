# SPDX-License-Identifier: Apache-2.0
"""Whole UPerNets in and out: documented lists of names and shapes, written down a second time.

As for detectors: the lists are generated from the architecture, nothing here reads the key maps.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import SwinConfig, UperNetConfig, UperNetForSemanticSegmentation

import muntin
from muntin.errors import WeightError
from muntin.heads.network import Network
from muntin.heads.semantic_head import SemanticConfig
from tests.weights.test_detector_keys import (
    MICROSOFT_BLOCK,
    OPENMMLAB_BLOCK,
    SMALL,
    SWIN_TINY,
    Lists,
    Plan,
    State,
    same,
    snapshot,
    swin,
)

BLOCKS = {"microsoft": MICROSOFT_BLOCK, "openmmlab": OPENMMLAB_BLOCK}


def build(plan: Plan, **changes) -> Network:
    torch.manual_seed(3)
    return muntin.create_segmenter(
        "swin_tiny",
        head=SemanticConfig(channels=plan.channels, aux_channels=plan.fc, **changes),
        num_classes=plan.classes,
        embed_dim=plan.dim,
        depths=plan.depths,
        num_heads=plan.heads,
        window_size=plan.window,
    )


def upernet(plan: Plan, dialect: str) -> State:
    """Section 2.10: names of mmsegmentation, which Microsoft's repository shares."""
    lists, channels, head = Lists(), plan.channels, "decode_head."
    swin(lists, plan, "backbone.", BLOCKS[dialect])

    def conv(name: str, after: int, before: int, kernel: int) -> None:
        lists.put(f"{name}.conv.weight", after, before, kernel, kernel)
        lists.batch_norm(f"{name}.bn", after)

    last = 8 * plan.dim
    for place in range(4):
        conv(f"{head}psp_modules.{place}.1", channels, last, 1)
    conv(f"{head}bottleneck", channels, last + 4 * channels, 3)
    for level in range(3):
        conv(f"{head}lateral_convs.{level}", channels, plan.dim * 2**level, 1)
        conv(f"{head}fpn_convs.{level}", channels, channels, 3)
    conv(f"{head}fpn_bottleneck", channels, 4 * channels, 3)
    lists.both(f"{head}conv_seg", plan.classes, channels, 1, 1)
    conv("auxiliary_head.convs.0", plan.fc, 4 * plan.dim, 3)
    lists.both("auxiliary_head.conv_seg", plan.classes, plan.fc, 1, 1)
    return lists


@pytest.mark.parametrize("dialect", BLOCKS)
def test_every_key_is_mapped_and_round_trips_bit_by_bit(dialect):
    wanted, model = upernet(SMALL, dialect), build(SMALL)
    before = snapshot(model)
    report = muntin.load_weights(model, wanted)
    assert report.dialect == dialect
    assert not report.reset
    assert not report.resized
    after = model.state_dict()
    assert [name for name, value in before.items() if value.equal(after[name])] == []
    assert same(muntin.to_dialect(model, dialect), wanted)


def test_the_published_swin_tiny():
    plan = Plan(SWIN_TINY.dim, SWIN_TINY.depths, SWIN_TINY.heads, 7, 512, 256, 150)
    lists = upernet(plan, "microsoft")
    with torch.device("meta"):
        names = muntin.to_dialect(build(plan).to("meta"), "microsoft")
    assert {name: tensor.shape for name, tensor in names.items()} == {
        name: tensor.shape for name, tensor in lists.items()
    }


def test_transformers_own_files(tmp_path):
    torch.manual_seed(0)
    body = SwinConfig(
        embed_dim=SMALL.dim, depths=SMALL.depths, num_heads=SMALL.heads, window_size=SMALL.window,
        out_features=["stage1", "stage2", "stage3", "stage4"], image_size=64,
    )  # fmt: skip
    config = UperNetConfig(
        backbone_config=body, hidden_size=SMALL.channels, num_labels=SMALL.classes,
        auxiliary_channels=SMALL.fc, auxiliary_in_channels=4 * SMALL.dim,
    )  # fmt: skip
    theirs = UperNetForSemanticSegmentation(config)
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    wanted, model = load_file(file), build(SMALL)
    muntin.load_weights(model, file)
    found = muntin.to_dialect(model, "transformers")
    # A norm that transformers keeps and never uses.
    assert wanted.keys() - found.keys() == {
        f"backbone.swin.layernorm.{p}" for p in ("weight", "bias")
    }
    assert all(tensor.equal(wanted[name]) for name, tensor in found.items())
    older = {name.replace("backbone.swin.", "backbone."): one for name, one in wanted.items()}
    again = build(SMALL)
    muntin.load_weights(again, {k: v for k, v in older.items() if "layernorm." not in k})
    assert same(again.state_dict(), model.state_dict())
    muntin.load_weights(build(SMALL), theirs.state_dict())  # names as they are in memory


@pytest.mark.parametrize("dialect", BLOCKS)
def test_other_classes_leave_the_classifiers_fresh(dialect):
    model = build(SMALL)
    report = muntin.load_weights(model, upernet(replace(SMALL, classes=5), dialect))
    layers = ("head.classifier", "head.aux.2")
    assert set(report.reset) == {f"{layer}.{p}" for layer in layers for p in ("weight", "bias")}


def test_other_channels_are_rejected():
    with pytest.raises(WeightError, match=r"head\.decoder"):
        muntin.load_weights(build(SMALL), upernet(replace(SMALL, channels=16), "openmmlab"))


def test_a_model_without_norms_of_maps_is_rejected():
    model = muntin.create_segmenter("swin_nano", head="light_small", num_classes=2)
    bare = muntin.create_segmenter("swin_nano", head="light_small", num_classes=2, out_norm="none")
    with pytest.raises(WeightError, match=r"norm0.*out_norm='each'"):
        muntin.load_weights(bare, model.state_dict())


def test_a_classifiers_weights_fill_the_backbone():
    classifier = muntin.create_model("swin_nano", num_classes=5)
    state = muntin.to_dialect(classifier, "timm")
    model = muntin.create_segmenter("swin_nano", head="light_small", num_classes=2)
    report = muntin.load_weights(model, state)
    assert all(name.startswith(("head.", "backbone.norm")) for name in report.reset)
    patch = "backbone.patch_embed.proj.weight"
    assert torch.equal(model.state_dict()[patch], classifier.state_dict()[patch])


def test_a_segmenters_weights_fill_the_backbone_of_a_detector():
    state = upernet(SMALL, "openmmlab")
    model = muntin.create_detector(
        "swin_tiny", head="faster_rcnn_small", num_classes=2, embed_dim=SMALL.dim,
        depths=SMALL.depths, num_heads=SMALL.heads, window_size=SMALL.window,
    )  # fmt: skip
    report = muntin.load_weights(model, state)
    assert all(name.startswith("head.") for name in report.reset)
    assert torch.equal(
        model.state_dict()["backbone.patch_embed.proj.weight"],
        state["backbone.patch_embed.projection.weight"],
    )
