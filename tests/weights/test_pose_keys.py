# SPDX-License-Identifier: Apache-2.0
"""Whole pose estimators in and out: documented lists of names and shapes, written a second time."""

from __future__ import annotations

import pytest
import torch

import muntin
from tests.weights.test_detector_keys import OPENMMLAB_BLOCK, SMALL, Lists, same, snapshot, swin

DIM, DEPTH, POINTS = 48, 3, 17


def vitpose(*, simple=False, **changes):
    torch.manual_seed(3)
    options = {"embed_dim": DIM, "depth": DEPTH, "num_heads": 4, **changes}
    head = "vitpose_simple" if simple else "vitpose"
    return muntin.create_pose_estimator("vitpose_base", head=head, **options)


def head_of(lists: Lists, before: str, times: int, width: int) -> None:
    for number in range(times):
        lists.put(f"{before}.deconv_layers.{3 * number}.weight", width, 256, 4, 4)
        lists.batch_norm(f"{before}.deconv_layers.{3 * number + 1}", 256)
        width = 256
    kernel = 1 if times else 3
    lists.both(f"{before}.final_layer", POINTS, width, kernel, kernel)


def original(*, simple=False) -> Lists:
    """Names of ViTPose's own repository, section 2.7."""
    lists, body = Lists(), "backbone."
    lists.put(f"{body}pos_embed", 1, 193, DIM)
    lists.both(f"{body}patch_embed.proj", DIM, 3, 16, 16)
    for number in range(DEPTH):
        block = f"{body}blocks.{number}."
        for name in ("norm1", "norm2"):
            lists.both(block + name, DIM)
        lists.both(f"{block}attn.qkv", 3 * DIM, DIM)
        lists.both(f"{block}attn.proj", DIM, DIM)
        lists.both(f"{block}mlp.fc1", 4 * DIM, DIM)
        lists.both(f"{block}mlp.fc2", DIM, 4 * DIM)
    lists.both(f"{body}last_norm", DIM)
    head_of(lists, "keypoint_head", 0 if simple else 2, DIM)
    return lists


def mmpose(*, positions: int) -> Lists:
    """Names of mmpose 1.x, whose ViT is mmpretrain's."""
    lists, body = Lists(), "backbone."
    lists.put(f"{body}pos_embed", 1, positions, DIM)
    lists.both(f"{body}patch_embed.projection", DIM, 3, 16, 16)
    for number in range(DEPTH):
        block = f"{body}layers.{number}."
        for name in ("ln1", "ln2"):
            lists.both(block + name, DIM)
        lists.both(f"{block}attn.qkv", 3 * DIM, DIM)
        lists.both(f"{block}attn.proj", DIM, DIM)
        lists.both(f"{block}ffn.layers.0.0", 4 * DIM, DIM)
        lists.both(f"{block}ffn.layers.1", DIM, 4 * DIM)
    lists.both(f"{body}ln1", DIM)
    head_of(lists, "head", 2, DIM)
    return lists


@pytest.mark.parametrize("simple", [False, True])
def test_vitposes_own_files(simple):
    wanted, model = original(simple=simple), vitpose(simple=simple)
    before = snapshot(model)
    report = muntin.load_weights(model, {"state_dict": wanted})
    assert report.dialect == "openmmlab"
    assert not report.reset
    assert not report.resized
    after = model.state_dict()
    assert [name for name, value in before.items() if value.equal(after[name])] == []


@pytest.mark.parametrize("positions", [192, 193])
def test_mmpose_round_trips_bit_by_bit(positions):
    wanted, model = mmpose(positions=positions), vitpose()
    report = muntin.load_weights(model, wanted)
    assert report.dialect == "openmmlab"
    assert not report.reset
    if positions == 192:
        assert not model.backbone.pos_embed[:, 0].any(), "nothing is added to all patches"
    assert same(muntin.to_dialect(model, "openmmlab"), wanted)


def test_both_names_are_one_model():
    own, other = original(), mmpose(positions=193)
    renamed = [*other]
    for theirs, mine in zip(own, renamed, strict=True):
        other[mine] = own[theirs]
    first, second = vitpose(), vitpose()
    muntin.load_weights(first, own)
    muntin.load_weights(second, other)
    assert same(first.state_dict(), second.state_dict())


@pytest.mark.parametrize("before", ["head", "keypoint_head"])
def test_simple_baselines_on_swin(before):
    lists = Lists()
    swin(lists, SMALL, "backbone.", OPENMMLAB_BLOCK)
    state = {k: v for k, v in lists.items() if not k.startswith("backbone.norm")}
    norm = "backbone.norm3."
    state |= {k: v for k, v in lists.items() if k.startswith(norm)}
    more = Lists()
    head_of(more, before, 3, 8 * SMALL.dim)
    state |= more
    model = muntin.create_pose_estimator(
        "swin_tiny", embed_dim=SMALL.dim, depths=SMALL.depths, num_heads=SMALL.heads,
        window_size=SMALL.window,
    )  # fmt: skip
    report = muntin.load_weights(model, state)
    assert report.dialect == "openmmlab"
    assert not report.reset
    back = muntin.to_dialect(model, "openmmlab")
    if before == "head":
        assert same(back, state)
    else:
        assert {k.replace("keypoint_head", "head") for k in state} == back.keys()


def test_other_keypoints_leave_the_last_layer_fresh():
    model = vitpose()
    small = muntin.create_pose_estimator(
        "vitpose_base", head="vitpose", num_keypoints=5, embed_dim=DIM, depth=DEPTH, num_heads=4
    )
    report = muntin.load_weights(small, muntin.to_dialect(model, "openmmlab"))
    assert set(report.reset) == {"head.classifier.weight", "head.classifier.bias"}


def test_a_published_estimator_becomes_a_run(tmp_path):
    from muntin.published import open_published

    file = tmp_path / "vitpose.pth"
    torch.save({"state_dict": dict(original())}, file)
    run, _ = open_published(
        file, tmp_path / "run", model="vitpose_base", head="vitpose",
        settings={"embed_dim": str(DIM), "depth": str(DEPTH), "num_heads": "4"},
    )  # fmt: skip
    assert run.classes.skeleton.names[0] == "nose"
    predictor = muntin.load(tmp_path / "run")
    image = torch.randint(0, 255, (200, 150, 3), dtype=torch.uint8).numpy()
    found = predictor([image], boxes=[[[20, 30, 120, 180], [0, 0, 60, 90]]])[0]
    assert found.keypoints.shape == (2, 17, 3)
    assert found.to_dict()["keypoint_names"][5] == "left_shoulder"
