# SPDX-License-Identifier: Apache-2.0
"""Whole detectors in and out: documented lists of names and shapes, written down a second time.

Nothing here reads the key maps. Every list is generated from the architecture, as the ecosystem
builds it, with random values, and torchvision's by torchvision; loading must leave nothing over on
either side, and writing must give the list back, bit by bit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

import muntin
from muntin.errors import WeightError
from muntin.heads.network import Network
from muntin.heads.rcnn import RCNN
from muntin.heads.rcnn_config import CONVENTIONS, SMALL_RCNN
from muntin.weights.head_keys import detectron2_detector
from muntin.weights.key_maps import KeyMap
from tests.heads.peers import SwinPyramid, swin_detector

State = dict[str, Tensor]


@dataclass(frozen=True)
class Plan:
    """Sizes of a detector on a Swin."""

    dim: int = 16
    depths: tuple[int, ...] = (1, 1, 2, 1)
    heads: tuple[int, ...] = (1, 2, 4, 8)
    window: int = 4
    channels: int = 12
    fc: int = 20
    classes: int = 3
    stages: int = 1
    masks: bool = True


SMALL = Plan()
CASCADE = replace(SMALL, stages=3)
SWIN_TINY = Plan(96, (2, 2, 6, 2), (3, 6, 12, 24), 7, 256, 1024, 80)


class Lists(dict):
    """A state dict that grows by layers."""

    def put(self, name: str, *shape: int) -> None:
        self[name] = torch.randn(shape)

    def both(self, name: str, *shape: int) -> None:
        self.put(f"{name}.weight", *shape)
        self.put(f"{name}.bias", shape[0])

    def norm(self, name: str, channels: int) -> None:
        self.both(name, channels)

    def batch_norm(self, name: str, channels: int) -> None:
        self.norm(name, channels)
        self.put(f"{name}.running_mean", channels)
        self[f"{name}.running_var"] = torch.rand(channels) + 0.5
        self[f"{name}.num_batches_tracked"] = torch.tensor(1234)


def position_index(side: int) -> Tensor:
    grid = torch.arange(side)
    places = torch.stack(torch.meshgrid(grid, grid, indexing="ij")).flatten(1)
    rows, columns = places[:, :, None] - places[:, None, :] + side - 1
    return rows * (2 * side - 1) + columns


MICROSOFT_BLOCK = {
    "stage": "layers.{}.",
    "block": "layers.{}.blocks.{}.",
    "patch": "patch_embed.proj",
    "attention": "attn.",
    "mlp": ("mlp.fc1", "mlp.fc2"),
}
OPENMMLAB_BLOCK = {
    "stage": "stages.{}.",
    "block": "stages.{}.blocks.{}.",
    "patch": "patch_embed.projection",
    "attention": "attn.w_msa.",
    "mlp": ("ffn.layers.0.0", "ffn.layers.1"),
}


def swin(lists: Lists, plan: Plan, before: str, words: dict) -> None:
    """Section 2.0 of the formats: a Swin with a norm for each map."""
    lists.both(before + words["patch"], plan.dim, 3, 4, 4)
    lists.norm(f"{before}patch_embed.norm", plan.dim)
    for stage, (depth, heads) in enumerate(zip(plan.depths, plan.heads, strict=True)):
        dim = plan.dim * 2**stage
        for block in range(depth):
            name = before + words["block"].format(stage, block)
            attention = name + words["attention"]
            lists.norm(f"{name}norm1", dim)
            lists.put(f"{attention}relative_position_bias_table", (2 * plan.window - 1) ** 2, heads)
            lists[f"{attention}relative_position_index"] = position_index(plan.window)
            lists.both(f"{attention}qkv", 3 * dim, dim)
            lists.both(f"{attention}proj", dim, dim)
            lists.norm(f"{name}norm2", dim)
            lists.both(name + words["mlp"][0], 4 * dim, dim)
            lists.both(name + words["mlp"][1], dim, 4 * dim)
        if stage < 3:
            name = before + words["stage"].format(stage)
            lists.norm(f"{name}downsample.norm", 4 * dim)
            lists.put(f"{name}downsample.reduction.weight", 2 * dim, 4 * dim)
        lists.norm(f"{before}norm{stage}", dim)


def openmmlab_heads(lists: Lists, plan: Plan) -> None:
    """Section 2.10: Mask R-CNN with two linear layers, or a cascade of 4conv1fc with SyncBN."""
    channels, classes = plan.channels, plan.classes
    for level in range(4):
        lists.both(f"neck.lateral_convs.{level}.conv", channels, plan.dim * 2**level, 1, 1)
        lists.both(f"neck.fpn_convs.{level}.conv", channels, channels, 3, 3)
    lists.both("rpn_head.rpn_conv", channels, channels, 3, 3)
    lists.both("rpn_head.rpn_cls", 3, channels, 1, 1)
    lists.both("rpn_head.rpn_reg", 12, channels, 1, 1)
    for stage in range(plan.stages):
        number = f"{stage}." if plan.stages > 1 else ""
        box, mask = f"roi_head.bbox_head.{number}", f"roi_head.mask_head.{number}"
        lists.both(f"{box}fc_cls", classes + 1, plan.fc)
        lists.both(f"{box}fc_reg", 4 * classes, plan.fc)
        if plan.stages > 1:
            for conv in range(4):
                lists.put(f"{box}shared_convs.{conv}.conv.weight", channels, channels, 3, 3)
                lists.batch_norm(f"{box}shared_convs.{conv}.bn", channels)
        else:
            lists.both(f"{box}shared_fcs.1", plan.fc, plan.fc)
        lists.both(f"{box}shared_fcs.0", plan.fc, 49 * channels)
        if plan.masks:
            for conv in range(4):
                lists.both(f"{mask}convs.{conv}.conv", channels, channels, 3, 3)
            lists.both(f"{mask}upsample", channels, channels, 2, 2)
            lists.both(f"{mask}conv_logits", classes, channels, 1, 1)


def microsoft(plan: Plan) -> State:
    lists = Lists()
    swin(lists, plan, "backbone.", MICROSOFT_BLOCK)
    openmmlab_heads(lists, plan)
    return lists


def openmmlab(plan: Plan) -> State:
    lists = Lists()
    swin(lists, plan, "backbone.", OPENMMLAB_BLOCK)
    openmmlab_heads(lists, plan)
    return lists


def detectron2(plan: Plan) -> State:
    """detectron2's Swin: names of Microsoft, levels called after the logarithm of their stride."""
    lists, channels = Lists(), plan.channels
    swin(lists, plan, "backbone.bottom_up.", MICROSOFT_BLOCK)
    for level in range(4):
        lists.both(f"backbone.fpn_lateral{level + 2}", channels, plan.dim * 2**level, 1, 1)
        lists.both(f"backbone.fpn_output{level + 2}", channels, channels, 3, 3)
    lists.both("proposal_generator.rpn_head.conv", channels, channels, 3, 3)
    lists.both("proposal_generator.rpn_head.objectness_logits", 3, channels, 1, 1)
    lists.both("proposal_generator.rpn_head.anchor_deltas", 12, channels, 1, 1)
    for stage in range(plan.stages):
        number = f"{stage}." if plan.stages > 1 else ""
        lists.both(f"roi_heads.box_head.{number}fc1", plan.fc, 49 * channels)
        lists.both(f"roi_heads.box_head.{number}fc2", plan.fc, plan.fc)
        slots = 1 if plan.stages > 1 else plan.classes
        predictor = f"roi_heads.box_predictor.{number}"
        lists.both(f"{predictor}cls_score", plan.classes + 1, plan.fc)
        lists.both(f"{predictor}bbox_pred", 4 * slots, plan.fc)
    if plan.masks:
        for conv in range(1, 5):
            lists.both(f"roi_heads.mask_head.mask_fcn{conv}", channels, channels, 3, 3)
        lists.both("roi_heads.mask_head.deconv", channels, channels, 2, 2)
        lists.both("roi_heads.mask_head.predictor", plan.classes, channels, 1, 1)
    return lists


def torchvision(plan: Plan) -> State:
    """Neck and heads of torchvision's own Mask R-CNN, on its Swin, with random weights."""
    body = SwinPyramid(
        plan.channels, plan.dim, depths=plan.depths, heads=plan.heads, window=plan.window
    )
    peer = swin_detector(body, masks=plan.masks, dim=plan.fc, num_classes=plan.classes)
    return {
        name: torch.randn_like(tensor) if tensor.is_floating_point() else tensor
        for name, tensor in peer.state_dict().items()
    }


WRITERS = {
    "microsoft": microsoft,
    "openmmlab": openmmlab,
    "detectron2": detectron2,
    "torchvision": torchvision,
}
ORIGINS = {**dict.fromkeys(WRITERS, "openmmlab"), "detectron2": "detectron2"} | {
    "torchvision": "torchvision"
}


def build(plan: Plan, dialect: str = "microsoft", **changes) -> Network:
    """Our detector of a plan, fresh."""
    kind = "cascade" if plan.stages > 1 else "rcnn"
    config = CONVENTIONS[ORIGINS.get(dialect, "openmmlab")][kind]
    config = replace(
        config,
        neck=replace(config.neck, channels=plan.channels),
        box_dim=plan.fc,
        mask_dim=plan.channels,
        **changes,
    )
    return muntin.create_detector(
        "swin_tiny",
        head=config,
        masks=plan.masks,
        num_classes=plan.classes,
        embed_dim=plan.dim,
        depths=plan.depths,
        num_heads=plan.heads,
        window_size=plan.window,
        out_norm="none" if dialect == "torchvision" else "each",
    )


def same(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def snapshot(model) -> State:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


KINDS = [
    pytest.param(dialect, plan, marks=[] if plan.masks else pytest.mark.slow)
    for dialect in WRITERS
    for plan in (SMALL, CASCADE, replace(SMALL, masks=False), replace(CASCADE, masks=False))
    if not (dialect == "torchvision" and plan.stages > 1)
]


@pytest.mark.parametrize(("dialect", "plan"), KINDS)
def test_every_key_is_mapped_and_round_trips_bit_by_bit(dialect, plan):
    state = WRITERS[dialect](plan)
    model = build(plan, dialect)
    before = snapshot(model)
    report = muntin.load_weights(model, state)
    assert report.dialect == dialect
    assert not report.reset
    assert not report.resized
    assert not report.conventions
    assert all("relative_position_index" in name for name in report.ignored)
    filled = model.state_dict()
    assert not [key for key in filled if torch.equal(filled[key], before[key])]
    assert same(muntin.to_dialect(model, dialect), state)
    other = build(plan, dialect)
    muntin.load_weights(other, muntin.to_dialect(model, dialect))
    assert same(other.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("stages", "names", "millions"),
    [(1, 231, 47.8), pytest.param(3, 337, 85.6, marks=pytest.mark.slow)],
    ids=["mask", "cascade"],
)
def test_microsofts_swin_tiny_detectors(stages, names, millions):
    # 48M and 86M parameters, as their table says (model_zoo 1.9).
    plan = replace(SWIN_TINY, stages=stages)
    state = microsoft(plan)
    assert len(state) == names
    head = "cascade_mask_rcnn" if stages > 1 else "mask_rcnn"
    model = muntin.create_detector("swin_tiny", head=head)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.1)
    report = muntin.load_weights(model, {"state_dict": state, "meta": {}})
    assert not report.reset
    assert report.size_rule == "openmmlab"
    assert same(muntin.to_dialect(model, "microsoft"), state)


def test_names_of_older_files():
    new = torchvision(SMALL)
    old = {
        re.sub(
            r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.0\.|^(rpn\.head\.conv)\.0\.0\.",
            lambda found: f"{found[1] or found[2]}.",
            name,
        ): tensor
        for name, tensor in new.items()
    }
    old = {
        re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", name): t
        for name, t in old.items()
    }
    assert len(old.keys() - new.keys()) == 2 * (8 + 1 + 4)
    model = build(SMALL, "torchvision")
    muntin.load_weights(model, old)
    assert same(muntin.to_dialect(model, "torchvision"), new)

    bare = {name.replace(".body.features.", ".body."): new[name] for name in new}
    other = build(SMALL, "torchvision")
    muntin.load_weights(other, bare)  # IntermediateLayerGetter on the stages
    assert same(other.state_dict(), model.state_dict())

    buffers = {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}
    buffers["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4)
    report = muntin.load_weights(build(SMALL, "detectron2"), detectron2(SMALL) | buffers)
    assert buffers.keys() < set(report.ignored)


# Other classes.


@pytest.mark.parametrize(("dialect", "plan"), KINDS)
def test_other_classes_leave_their_layers_fresh(dialect, plan):
    state = WRITERS[dialect](plan)
    model = build(replace(plan, classes=7), dialect)
    before = snapshot(model)
    report = muntin.load_weights(model, state)
    layers = {"fc_cls", "logits"}
    if not model.head.config.class_agnostic:
        layers.add("fc_reg")
    expected = [key for key in before if key.split(".")[-2] in layers]
    assert sorted(report.reset) == sorted(expected)
    assert len(expected) > 0
    after = model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in expected)
    written, wanted = muntin.to_dialect(model, dialect), state
    same_rows = [key for key in wanted if written[key].shape == wanted[key].shape]
    assert len(wanted) - len(same_rows) == len(expected)
    assert all(torch.equal(written[key], wanted[key]) for key in same_rows)
    assert "not loaded" in report.summary()


@pytest.mark.parametrize("head", ["mask_rcnn_small", "cascade_rcnn_small", "fcos_small"])
def test_our_own_files_with_other_classes(head):
    source = muntin.create_detector("swin_nano", head=head, num_classes=5)
    exact = muntin.create_detector("swin_nano", head=head, num_classes=5)
    report = muntin.load_weights(exact, source.state_dict())
    assert (report.dialect, report.reset, report.conventions) == ("muntin", (), "")
    assert same(exact.state_dict(), source.state_dict())
    other = muntin.create_detector("swin_nano", head=head, num_classes=2)
    report = muntin.load_weights(other, source.state_dict())
    layers = {key.split(".")[-2] for key in report.reset}
    expected = (
        {"classes"} if "fcos" in head else {"fc_cls"} | ({"logits"} if "mask" in head else set())
    )
    assert layers == expected
    neck = "head.neck.lateral.0.conv.weight"
    assert torch.equal(other.state_dict()[neck], source.state_dict()[neck])


# What does not fit.


@pytest.mark.parametrize("dialect", WRITERS)
@pytest.mark.parametrize("kind", ["missing", "extra", "shape", "stranger"])
def test_what_does_not_fit_is_named(dialect, kind):
    state = dict(WRITERS[dialect](SMALL))
    rpn = {"detectron2": "objectness_logits", "torchvision": "cls_logits"}.get(dialect, "rpn_cls")
    key = next(name for name in state if name.endswith(f"{rpn}.weight"))
    expected = r"head\.rpn\.objectness\.weight"
    if kind == "missing":
        del state[key]
    elif kind == "extra":
        stranger = key.replace(rpn, "other")
        state[stranger] = torch.zeros(1)
        expected = re.escape(stranger)
    elif kind == "shape":
        state[key] = torch.zeros(5, 12, 1, 1)
        expected += r".*\(5, 12, 1, 1\).*\(3, 12, 1, 1\)"
    else:
        state["decoder.weight"] = torch.zeros(1)
        if dialect == "microsoft":  # what SimMIM adds is known there
            return
        expected = "decoder"
    model = build(SMALL, dialect)
    before = snapshot(model)
    config = model.head.config
    with pytest.raises(WeightError, match=expected):
        muntin.load_weights(model, state)
    assert same(model.state_dict(), before)
    assert model.head.config is config


@pytest.mark.parametrize(
    ("made", "plan", "changes", "expected"),
    [
        (CASCADE, SMALL, {}, r"roi_head\.bbox_head\.0"),
        (SMALL, CASCADE, {}, r"roi_head\.bbox_head"),
        (SMALL, SMALL, {"class_agnostic": True}, r"head\.box_heads\.0\.fc_reg\.weight \(12, 20\)"),
        (SMALL, replace(SMALL, channels=16), {}, r"head\.neck\.lateral\.0\.conv\.weight"),
        (SMALL, SMALL, {"rpn_convs": 2}, r"rpn_head\.rpn_conv"),
        (replace(SMALL, masks=False), SMALL, {}, r"head\.mask_heads"),
        (SMALL, SMALL, {"background": "first"}, "conventions='openmmlab'"),
    ],
)
def test_another_detector_is_rejected(made, plan, changes, expected):
    with pytest.raises(WeightError, match=expected):
        muntin.load_weights(build(plan, **changes), microsoft(made))


@pytest.mark.parametrize("classes", [3, 7])
def test_one_box_for_all_classes_does_not_pass_as_another_number_of_classes(classes):
    state = microsoft(SMALL)
    for part in ("weight", "bias"):
        name = f"roi_head.bbox_head.fc_reg.{part}"
        state[name] = state[name][:4]
    with pytest.raises(WeightError, match=r"head\.box_heads\.0\.fc_reg\.weight"):
        muntin.load_weights(build(replace(SMALL, classes=classes)), state)


@pytest.mark.parametrize("dialect", ["microsoft", "openmmlab", "detectron2"])
def test_a_model_without_norms_of_maps_is_rejected(dialect):
    model = muntin.create_detector(
        "swin_tiny",
        head=build(SMALL, dialect).head.config,
        masks=True,
        num_classes=3,
        embed_dim=16,
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 4, 8),
        window_size=4,
        out_norm="none",
    )
    with pytest.raises(WeightError, match="norm0"):
        muntin.load_weights(model, WRITERS[dialect](SMALL))


def test_writing_for_those_who_have_no_such_detector():
    with pytest.raises(WeightError, match=r"background.*'first'.*conventions='torchvision'"):
        muntin.to_dialect(build(SMALL), "torchvision")
    with pytest.raises(WeightError, match="mask_heads"):
        muntin.to_dialect(build(CASCADE), "detectron2")
    with pytest.raises(WeightError, match="mask_heads"):
        muntin.to_dialect(build(CASCADE, "detectron2"), "openmmlab")
    fcos = muntin.create_detector("swin_nano", head="fcos_small")
    with pytest.raises(WeightError, match=r"openmmlab.*head\."):
        muntin.to_dialect(fcos, "openmmlab")


# Parts of a detector.


@pytest.mark.parametrize("dialect", WRITERS)
def test_masks_are_ignored_by_a_detector_without_masks(dialect):
    state = WRITERS[dialect](SMALL)
    model = build(replace(SMALL, masks=False), dialect)
    report = muntin.load_weights(model, state)
    assert len([name for name in report.ignored if "mask" in name]) == 2 * 6
    assert not report.reset


@pytest.mark.parametrize("dialect", ["microsoft", "detectron2"])
def test_masks_of_a_cascade_are_ignored_too(dialect):
    report = muntin.load_weights(
        build(replace(CASCADE, masks=False), dialect), WRITERS[dialect](CASCADE)
    )
    assert sum("mask" in name for name in report.ignored) == (36 if dialect == "microsoft" else 12)


@pytest.mark.parametrize("dialect", WRITERS)
def test_a_classifier_takes_the_backbone(dialect):
    model = muntin.create_model(
        "swin_tiny",
        num_classes=3,
        embed_dim=16,
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 4, 8),
        window_size=4,
    )
    state = WRITERS[dialect](SMALL)
    if dialect == "torchvision":  # whose detectors have no norm behind the last stage
        state |= {f"norm.{part}": torch.ones(128) for part in ("weight", "bias")}
    elif dialect != "openmmlab":  # whose classifiers call their only norm like that of a map
        with pytest.raises(WeightError, match=r"backbone\.norm\.weight"):
            muntin.load_weights(model, state)
        body = model.backbone
        model.backbone = type(body)(replace(body.config, out_norm="each"))
    report = muntin.load_weights(model, state)
    assert set(report.reset) == {"head.fc.weight", "head.fc.bias"}
    assert not report.conventions


@pytest.mark.parametrize("dialect", ["microsoft", "timm", "torchvision", "muntin"])
def test_a_classifiers_weights_fill_the_backbone_of_a_detector(dialect):
    classifier = muntin.create_model("swin_nano", num_classes=5)
    state = muntin.to_dialect(classifier, dialect)
    model = muntin.create_detector("swin_nano", head="faster_rcnn_small", num_classes=2)
    config = model.head.config
    report = muntin.load_weights(model, state)
    norms = {k for k in model.state_dict() if re.match(r"backbone\.norm\d", k)}
    heads = {k for k in model.state_dict() if k.startswith("head.")}
    assert set(report.reset) == norms | heads
    assert len(norms) == 2 * len(model.spec.strides)
    assert not report.conventions
    assert model.head.config is config
    patch = "backbone.patch_embed.proj.weight"
    assert torch.equal(model.state_dict()[patch], classifier.state_dict()[patch])
    assert any("head" in name for name in report.ignored)


def test_a_detectors_weights_fill_the_backbone_of_another_kind_of_detector():
    source = muntin.create_detector("swin_nano", head="faster_rcnn_small", num_classes=2)
    fcos = muntin.create_detector("swin_nano", head="fcos_small", num_classes=2)
    with pytest.raises(WeightError, match=r"head\.neck\.extra"):
        muntin.load_weights(fcos, source.state_dict())


# Conventions.


def test_a_detector_reads_weights_as_their_origin_does():
    plan, origin = SMALL, CONVENTIONS["torchvision"]["rcnn"]
    ours = {"rounded_anchors": False, "aligned": True, "sampling": 0}
    model = build(plan, "torchvision", **ours)
    kept = replace(model.head.config, rounded_anchors=True, aligned=False, sampling=2)
    report = muntin.load_weights(model, torchvision(plan))
    assert report.conventions == "rounded_anchors=True, aligned=False, sampling=2"
    assert "head conventions set to rounded_anchors=True" in report.summary()
    assert model.head.config == kept
    assert model.head.rpn.config is model.head.config
    assert model.head.config.aligned == origin.aligned


def test_stds_and_averages_are_taken_over():
    stds = CONVENTIONS["detectron2"]["cascade"].stage_stds
    model = build(CASCADE, stage_stds=stds, stage_average="scores")
    report = muntin.load_weights(model, microsoft(CASCADE))
    config = CONVENTIONS["openmmlab"]["cascade"]
    assert report.conventions == f"stage_average='logits', stage_stds={config.stage_stds!r}"
    assert model.head.config.stage_stds == config.stage_stds


def test_one_stage_does_not_mind_the_stds_of_others():
    model = build(SMALL, stage_stds=((0.1, 0.1, 0.2, 0.2),))
    assert not muntin.load_weights(model, microsoft(SMALL)).conventions


# A simple pyramid, which only detectron2 names.


def test_a_simple_pyramid_is_named_as_in_vitdet():
    config = replace(
        SMALL_RCNN,
        neck=replace(SMALL_RCNN.neck, channels=8, norm="layer"),
        rpn_convs=2,
        box_convs=2,
        box_linears=1,
        box_norm="layer",
        mask_norm="layer",
    )
    head = RCNN(muntin.create_backbone("vit_tiny_patch16_224", depth=1), 3, config, masks=True)
    state = {f"head.{key}": tensor for key, tensor in head.state_dict().items()}
    names = KeyMap(detectron2_detector(head))
    written, unexpected = names.write(state)
    assert not unexpected
    sequences = {2: ((0, 1, 3), 4), 3: ((0,), 1), 4: ((), 0), 5: ((), 1)}
    expected = set()
    for level, (scaling, first) in sequences.items():
        name = f"backbone.simfp_{level}"
        expected |= {f"{name}.{k}.{p}" for k in scaling for p in ("weight", "bias")}
        for conv in (first, first + 1):
            expected |= {f"{name}.{conv}.{p}" for p in ("weight", "norm.weight", "norm.bias")}
    assert {key for key in written if key.startswith("backbone.")} == expected
    assert written["backbone.simfp_2.3.weight"].shape == (96, 48, 2, 2)
    assert written["backbone.simfp_2.4.weight"].shape == (8, 48, 1, 1)
    assert written["backbone.simfp_5.2.weight"].shape == (8, 8, 3, 3)
    rest = written.keys() - expected
    assert "proposal_generator.rpn_head.conv.conv1.weight" in rest
    assert "roi_heads.box_head.conv2.norm.bias" in rest
    assert "roi_heads.box_head.fc1.weight" in rest
    assert "roi_heads.mask_head.mask_fcn2.norm.weight" in rest
    reading = names.read(written)
    assert reading.unknown + reading.duplicates + reading.missing == []
    assert same(reading.tensors, state)


# torchvision's ResNets.


def test_only_resnets_that_torchvision_has():
    model = muntin.create_model("timm:resnet26", num_classes=2)
    with pytest.raises(WeightError, match="resnet26"):
        muntin.to_dialect(model, "torchvision")
    plain = muntin.create_model("timm:resnet18", num_classes=2)
    state = muntin.to_dialect(plain, "torchvision")
    assert {"conv1.weight", "layer4.1.bn2.running_var", "fc.bias"} < state.keys()
    frozen = {key: t for key, t in state.items() if "num_batches_tracked" not in key}
    other = muntin.create_model("timm:resnet18", num_classes=2)
    assert not muntin.load_weights(other, frozen, "torchvision").reset
    assert same(other.state_dict(), plain.state_dict())
