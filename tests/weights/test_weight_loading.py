# SPDX-License-Identifier: Apache-2.0
"""Loading: every key accounted for, all or nothing, and the report."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from muntin.errors import ConfigError, WeightError
from muntin.heads.classification_head import LinearHead, build_classifier
from muntin.heads.network import Head, Network
from muntin.models.hiera import Hiera, HieraConfig
from muntin.models.swin import SWIN_NANO_32, Swin
from muntin.models.swin_v2 import SwinV2, SwinV2Config
from muntin.models.t2t_vit import T2TViT, T2TViTConfig
from muntin.models.vit import ViT, ViTConfig
from muntin.weights.dialects import DIALECTS, to_dialect
from muntin.weights.state_matching import class_tensors
from muntin.weights.weight_files import write_weights
from muntin.weights.weight_loading import load_weights

SWIN = replace(SWIN_NANO_32, embed_dim=8, depths=(1, 2, 1), num_heads=(1, 2, 4))
SWIN_V2 = SwinV2Config(
    **{name: getattr(SWIN, name) for name in SWIN.__dataclass_fields__},
    pretrained_windows=(0, 0, 0),
    bias_hidden=16,
)
T2T = T2TViTConfig(embed_dim=8, depth=2, num_heads=2, token_dim=4, img_size=(32, 32))
HIERA = HieraConfig(embed_dim=8, depths=(1, 2, 1, 1), num_heads=1, img_size=(64, 64))
VIT = ViTConfig(embed_dim=8, depth=2, num_heads=2, patch_size=8, img_size=(32, 32))


def swin(num_classes=5, **changes):
    body = Swin(replace(SWIN, **changes))
    return Network(body, LinearHead(body.embed_channels, num_classes))


def vit(num_classes=5, **changes):
    body = ViT(replace(VIT, **changes))
    return Network(body, LinearHead(body.embed_channels, num_classes))


def swin_v2(num_classes=5, **changes):
    body = SwinV2(replace(SWIN_V2, **changes))
    return Network(body, LinearHead(body.embed_channels, num_classes))


def deit(num_classes=5, **changes):
    body = ViT(replace(VIT, distillation_token=True, **changes))
    return Network(body, build_classifier(body, num_classes))


def deit3(num_classes=5, **changes):
    return vit(num_classes, layer_scale=0.1, prefix_positions=False, **changes)


def t2t_vit(num_classes=5, **changes):
    body = T2TViT(replace(T2T, **changes))
    return Network(body, LinearHead(body.embed_channels, num_classes))


def hiera(num_classes=5, **changes):
    body = Hiera(replace(HIERA, **changes))
    return Network(body, LinearHead(body.embed_channels, num_classes))


def random_like(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def snapshot(model):
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


SWIN_DIALECTS = ["microsoft", "timm", "torchvision", "transformers", "openmmlab"]
FAMILIES = [
    (build, dialect)
    for build, dialects in (
        (swin, SWIN_DIALECTS),
        (swin_v2, SWIN_DIALECTS),
        (vit, ["timm", "torchvision", "transformers", "openmmlab", "google"]),
        (deit, ["timm", "transformers", "openmmlab"]),
        (deit3, ["timm", "openmmlab"]),
        (t2t_vit, ["timm"]),
        (hiera, ["timm", "transformers"]),
    )
    for dialect in [*dialects, "muntin"]
]


@pytest.mark.parametrize(("build", "dialect"), FAMILIES)
def test_there_and_back_is_bit_exact_and_recognised(build, dialect):
    model = random_like(build())
    state = to_dialect(model, dialect)
    other = build()
    report = load_weights(other, state)
    assert same(other.state_dict(), model.state_dict())
    assert same(to_dialect(other, dialect), state)
    assert report.dialect == dialect
    assert report.source == "a state dict"
    assert not report.resized
    assert not report.reset
    config = other.backbone.config
    rule = "" if dialect == "muntin" else DIALECTS[dialect].find_size_rule(state)[0]
    if hasattr(config, "size_rule"):
        assert report.size_rule == rule
        assert config.size_rule == (rule or "muntin")
    else:
        assert not report.size_rule
    own = set(model.state_dict())
    assert {ours for _, ours in report.renamed} == own - set(state)
    assert {theirs for theirs, _ in report.renamed} | set(report.ignored) == set(state) - own


@pytest.mark.parametrize(("build", "dialect"), FAMILIES)
def test_backbone_alone_round_trips(build, dialect):
    model = random_like(build())
    body = build().backbone
    report = load_weights(body, to_dialect(model, dialect))
    assert same(body.state_dict(), model.backbone.state_dict())
    assert any("head" in name or "classifier" in name for name in report.ignored)
    again = build().backbone
    load_weights(again, to_dialect(body, dialect))
    assert same(again.state_dict(), body.state_dict())


@pytest.mark.parametrize(("build", "dialect"), FAMILIES)
def test_every_spelling_is_copied_not_shared(build, dialect):
    model = build()
    state = to_dialect(model, dialect)
    before = snapshot(model)
    for tensor in state.values():
        tensor.zero_()
    assert same(model.state_dict(), before)


@pytest.mark.parametrize("dialect", SWIN_DIALECTS)
def test_stages_and_norm_that_are_not_built_are_ignored(dialect):
    model = random_like(swin())
    body = Swin(replace(SWIN, out_indices=(0, 1), out_norm="none"))
    report = load_weights(body, to_dialect(model, dialect))
    read, whole = to_dialect(body, dialect), to_dialect(model, dialect)
    derived = [name for name in read if name.endswith("relative_position_index")]
    assert len(report.ignored) == len(whole) - len(read) + len(derived)
    for key, tensor in body.state_dict().items():
        assert torch.equal(tensor, model.backbone.state_dict()[key])


def test_blocks_of_a_vit_that_are_not_built_are_ignored():
    model = random_like(vit())
    body = ViT(replace(VIT, out_indices=(0,), out_norm="none"))
    report = load_weights(body, to_dialect(model, "timm"))
    assert "blocks.1.norm1.weight" in report.ignored
    assert "norm.weight" in report.ignored


def test_a_backbone_of_ones_own_may_have_any_config():
    model = vit()
    model.backbone.config = SimpleNamespace(  # has no hash
        embed_dim=8, patch_size=8, out_indices=(-1,), distillation_token=False
    )
    state = {**model.state_dict(), "backbone.extra": torch.ones(1)}
    with pytest.raises(WeightError, match=r"backbone\.extra"):
        load_weights(model, state, "muntin")


@pytest.mark.parametrize(("build", "dialect"), FAMILIES)
def test_other_number_of_classes_resets_the_head_only(build, dialect):
    source, model = random_like(build(num_classes=9)), build(num_classes=5)
    before = snapshot(model)
    report = load_weights(model, to_dialect(source, dialect))
    assert report.reset[:2] == ("head.fc.weight", "head.fc.bias")
    assert all(name.startswith("head.") for name in report.reset)
    assert "not loaded: head.fc.weight, head.fc.bias" in report.summary()
    assert torch.equal(model.head.fc.weight, before["head.fc.weight"])
    assert same(model.backbone.state_dict(), source.backbone.state_dict())


def test_file_without_head_leaves_it_fresh_and_model_without_head_ignores_it():
    source = random_like(swin())
    model = swin()
    assert load_weights(model, to_dialect(source.backbone, "timm")).reset == (
        "head.fc.weight",
        "head.fc.bias",
    )
    assert load_weights(swin(num_classes=0), to_dialect(source, "timm")).ignored == (
        "head.fc.weight",
        "head.fc.bias",
    )


class OtherHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.score = nn.Conv2d(32, 4, 1)


@pytest.mark.parametrize("dialect", ["timm", "muntin"])
def test_network_for_another_task_takes_the_backbone_and_keeps_its_head(dialect):
    source = random_like(swin())
    model = Network(Swin(SWIN), OtherHead())
    report = load_weights(model, to_dialect(source, dialect))
    assert report.reset == ("head.score.weight", "head.score.bias")
    assert set(report.ignored) == set(to_dialect(source, dialect)) - {
        pair[0] for pair in report.renamed
    } - (set(model.state_dict()) if dialect == "muntin" else set())
    assert same(model.backbone.state_dict(), source.backbone.state_dict())


def test_derived_buffers_are_optional():
    state = to_dialect(random_like(swin()), "microsoft")
    buffers = [key for key in state if key.endswith("relative_position_index")]
    assert len(buffers) == sum(SWIN.depths)
    state["layers.1.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    report = load_weights(swin(), state)
    assert set(report.ignored) == {*buffers, "layers.1.blocks.1.attn_mask"}
    for key in report.ignored:
        del state[key]
    assert load_weights(swin(), state).ignored == ()


def test_our_swin_backbone_is_distinguished_from_microsoft():
    body = random_like(Swin(SWIN))
    assert load_weights(Swin(SWIN), body.state_dict()).dialect == "muntin"
    assert load_weights(swin(), body.state_dict()).reset == ("head.fc.weight", "head.fc.bias")


def test_files_folders_and_checkpoints_load(tmp_path):
    source = random_like(swin())
    state = to_dialect(source, "timm")
    write_weights(tmp_path / "model.safetensors", state)
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "w.pth")
    for place in (tmp_path, str(tmp_path), tmp_path / "model.safetensors", tmp_path / "w.pth"):
        model = swin()
        report = load_weights(model, place)
        assert same(model.state_dict(), source.state_dict())
        assert report.source.startswith(str(place))
    assert report.source.endswith("w.pth [state_dict]")
    assert load_weights(swin(), {"model": state}).source == "a state dict [model]"


def test_dialect_stored_in_a_file_is_used(tmp_path):
    body = random_like(ViT(VIT))
    write_weights(tmp_path / "w.safetensors", body.state_dict(), {"dialect": "muntin"})
    assert load_weights(ViT(VIT), tmp_path / "w.safetensors").dialect == "muntin"
    assert load_weights(ViT(VIT), body.state_dict()).dialect == "timm"


def test_dialect_can_be_forced():
    body = random_like(ViT(VIT))
    report = load_weights(ViT(VIT), body.state_dict(), dialect="muntin")
    assert report.dialect == "muntin"
    assert report.size_rule == ""


def test_other_types_are_converted():
    source = random_like(swin())
    state = {key: tensor.bfloat16() for key, tensor in to_dialect(source, "timm").items()}
    model = swin()
    load_weights(model, state)
    assert model.head.fc.weight.dtype is torch.float32
    assert torch.equal(model.head.fc.weight, source.head.fc.weight.bfloat16().float())


@pytest.mark.parametrize("dialect", [*SWIN_DIALECTS, "muntin"])
def test_other_window_is_resized_and_reported(dialect):
    source, model = random_like(swin(window_size=4)), swin(window_size=6, img_size=(64, 64))
    state = to_dialect(source, dialect)
    report = load_weights(model, state)
    tables = [key for key in model.state_dict() if key.endswith("bias_table")]
    assert list(report.resized) == tables
    assert f"{len(tables)} resized" in report.summary()


@pytest.mark.parametrize("dialect", ["timm", "torchvision", "transformers", "muntin"])
def test_other_image_size_resizes_positions(dialect):
    model = vit(img_size=(40, 64))
    report = load_weights(model, to_dialect(random_like(vit()), dialect))
    assert report.resized == ("backbone.pos_embed",)


@pytest.mark.parametrize("in_chans", [1, 4, 13])
def test_other_channels_and_patches_are_resized_and_reported(in_chans):
    model = swin(in_chans=in_chans, patch_size=4, img_size=(64, 64))
    report = load_weights(model, to_dialect(random_like(swin()), "timm"))
    assert report.resized == ("backbone.patch_embed.proj.weight",)
    assert model(torch.zeros(1, in_chans, 40, 52)).shape == (1, 5)


def test_rows_of_a_large_head_make_a_small_one(tmp_path):
    source, model = random_like(swin(num_classes=9)), swin(num_classes=3)
    state = to_dialect(source, "microsoft")
    (tmp_path / "rows.txt").write_text("7\n0\n3\n")
    for rows in ([7, 0, 3], tmp_path / "rows.txt"):
        report = load_weights(model, state, head_rows=rows)
        assert not report.reset
        assert torch.equal(model.head.fc.weight, source.head.fc.weight[[7, 0, 3]])
    with pytest.raises(WeightError, match=r"0 to 8\b.*0 to 9\b"):
        load_weights(model, state, head_rows=[0, 9, 1])
    with pytest.raises(WeightError, match=r"\b3\b.*\b2\b"):
        load_weights(model, state, head_rows=[0, 1])
    headless = {key: tensor for key, tensor in state.items() if not key.startswith("head.")}
    for one, weights in ((model, headless), (model.backbone, state)):
        with pytest.raises(WeightError, match=r"head_rows.*classifier"):
            load_weights(one, weights, head_rows=[7, 0, 3])
    (tmp_path / "rows.txt").write_text("cat")
    with pytest.raises(WeightError, match=r"rows\.txt"):
        load_weights(model, state, head_rows=tmp_path / "rows.txt")


def test_a_pretrained_encoder_leaves_the_norm_after_pooling_fresh():
    source = random_like(vit())
    state = to_dialect(source, "timm")
    encoder = {key: value for key, value in state.items() if not key.startswith("head.")}
    encoder |= {"mask_token": torch.zeros(1, 1, 8), "decoder_blocks.0.norm1.weight": torch.ones(8)}
    model = vit(pool="mean", pool_norm="after")
    report = load_weights(model, encoder)
    assert {"backbone.fc_norm.weight", "head.fc.weight"} <= set(report.reset)
    assert {"norm.weight", "mask_token", "decoder_blocks.0.norm1.weight"} <= set(report.ignored)
    with pytest.raises(WeightError, match=r"\bnorm\b"):
        load_weights(model, state)  # a classifier that pools otherwise


def test_report_is_frozen_and_its_summary_is_one_line():
    report = load_weights(swin(), to_dialect(random_like(swin(num_classes=3)), "torchvision"))
    text = report.summary()
    assert "\n" not in text
    assert "torchvision" in text
    with pytest.raises(AttributeError):
        report.dialect = "timm"
    assert [field.name for field in fields(report)] == [
        "dialect",
        "source",
        "renamed",
        "resized",
        "reset",
        "ignored",
        "size_rule",
        "size_evidence",
        "conventions",
        "adopted",
        "stated_in",
        "class_names",
        "license",
        "part",
        "others",
        "beside",
        "dropped",
        "assumed",
    ]


def without(state, *names):
    return {key: value for key, value in state.items() if key not in names}


def changed(state, name, value):
    return {**state, name: value}


TIMM = to_dialect(swin(), "timm")
TORCHVISION = to_dialect(swin(), "torchvision")
TRANSFORMERS = to_dialect(swin(), "transformers")
QUERY = "swin.encoder.layers.0.blocks.0.attention.self.query.weight"
NAN = torch.full((8,), float("nan"))

REJECTED = {
    "incomplete": (
        swin,
        without(TIMM, "layers.1.blocks.0.mlp.fc1.bias"),
        r"backbone\.layers\.1\.blocks\.0\.mlp\.fc1\.bias",
    ),
    "half a head": (swin, without(TIMM, "head.fc.bias"), r"head\.fc\.bias"),
    "stranger": (
        swin,
        changed(TIMM, "neck.weight", torch.ones(1)),
        r"neck\.weight",
    ),
    "more blocks": (
        swin,
        to_dialect(swin(depths=(2, 2, 1)), "timm"),
        r"layers\.0\.blocks\.1\..*depths=\(2, 2, 1\)",
    ),
    "fewer blocks": (
        swin,
        to_dialect(swin(depths=(1, 1, 1)), "timm"),
        r"layers\.1\.blocks\.1\.",
    ),
    "other width": (
        swin,
        to_dialect(swin(embed_dim=16), "timm"),
        r"\(16, 3, 2, 2\).*\(8, 3, 2, 2\).*embed_dim=16",
    ),
    "table of no square window": (
        swin,
        changed(TIMM, "layers.0.blocks.0.attn.relative_position_bias_table", torch.ones(48, 1)),
        r"bias_table.*\(48, 1\).*\b48\b",
    ),
    "positions of no square": (
        vit,
        changed(to_dialect(vit(), "timm"), "pos_embed", torch.ones(1, 12, 8)),
        r"pos_embed.*\(1, 12, 8\).*\b12\b",
    ),
    "ViT into Swin": (
        swin,
        to_dialect(vit(), "torchvision"),
        "Swin.*ViT.*'torchvision'",
    ),
    "Swin into ViT": (vit, TIMM, "ViT.*Swin.*'timm'"),
    "Microsoft into ViT": (
        vit,
        to_dialect(swin(), "microsoft"),
        "ViT.*Swin.*'microsoft'",
    ),
    "another kind of model": (
        swin,
        {"features.0.weight": torch.ones(1), "features.3.weight": torch.ones(1)},
        r"features\.0\.weight",
    ),
    "norm elsewhere": (
        vit,
        to_dialect(vit(pool="mean", pool_norm="after"), "timm"),
        "pool_norm",
    ),
    "mixed": (
        swin,
        {**TIMM, **TORCHVISION},
        r"features\.0\.0\.weight",
    ),
    "unknown": (
        swin,
        {"conv1.weight": torch.ones(1)},
        r"conv1\.weight.*muntin, microsoft",
    ),
    "one of three": (
        swin,
        without(TRANSFORMERS, QUERY),
        r"swin\.encoder.*query\.weight",
    ),
    "two spellings": (
        swin,
        changed(
            TRANSFORMERS,
            "swin.encoder.layers.0.blocks.0.mlp.fc1.bias",
            torch.ones(32),
        ),
        r"layers\.0\.blocks\.0\.mlp\.fc1\.bias",
    ),
    "NaN": (
        swin,
        changed(TIMM, "patch_embed.norm.bias", NAN),
        r"NaN.*backbone\.patch_embed\.norm\.bias",
    ),
    "infinity": (
        swin,
        changed(TIMM, "patch_embed.norm.bias", torch.full((8,), -float("inf"))),
        r"infinity.*backbone\.patch_embed\.norm\.bias",
    ),
    "integers": (
        swin,
        changed(TIMM, "patch_embed.norm.bias", torch.ones(8, dtype=torch.int8)),
        r"torch\.int8.*backbone\.patch_embed\.norm\.bias",
    ),
    "complex numbers": (
        swin,
        changed(TIMM, "patch_embed.norm.bias", torch.ones(8, dtype=torch.complex64)),
        r"complex64.*backbone\.patch_embed\.norm\.bias.*real part",
    ),
    "more than float32 holds": (
        swin,
        changed(TIMM, "patch_embed.norm.bias", torch.full((8,), 1e300, dtype=torch.float64)),
        r"float32.*1e\+300.*backbone\.patch_embed\.norm\.bias",
    ),
    "more than the model holds": (
        lambda: swin().half(),
        changed(TIMM, "patch_embed.norm.bias", torch.full((8,), 7e4)),
        r"float16.*7e\+04.*backbone\.patch_embed\.norm\.bias",
    ),
    "sparse": (
        swin,
        changed(TIMM, "head.fc.weight", torch.zeros(5, 32).to_sparse()),
        r"sparse_coo.*head\.fc\.weight.*to_dense",
    ),
    "without memory": (
        swin,
        changed(TIMM, "head.fc.weight", torch.zeros(5, 32, device="meta")),
        r"meta.*head\.fc\.weight",
    ),
    "nothing": (swin, {}, "state dict"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_mismatches_are_rejected_with_a_cause_and_change_nothing(name):
    build, state, text = REJECTED[name]
    model = build()
    before, config = snapshot(model), model.backbone.config
    with pytest.raises(WeightError, match=text) as caught:
        load_weights(model, state)
    assert "\n" not in str(caught.value)
    assert same(model.state_dict(), before)
    assert model.backbone.config == config


ARGUMENTS = [
    ({"made_with": "64x96"}, WeightError, "made_with.*'64x96'"),
    ({"made_with": {"image_size": 64}}, ConfigError, "made_with.*'image_size'.*'img_size'"),
    ({"made_with": {"depths": (1, 1)}}, ConfigError, "made_with.*'depths'"),
    ({"made_with": {"pretrained_windows": (2, 2, 2)}}, ConfigError, "'pretrained_windows'"),
    ({"made_with": {"img_size": "large"}}, ConfigError, "img_size in made_with.*'large'"),
    ({"part": 3}, WeightError, r"part\b.*\b3\b"),
    ({"dialect": 3}, WeightError, r"dialect\b.*\b3\b"),
    ({"resampling": "cubic"}, WeightError, "resampling.*'cubic'.*'bicubic'"),
    ({"head_rows": 3}, WeightError, r"head_rows\b.*\b3\b"),
]


@pytest.mark.parametrize(("given", "error", "text"), ARGUMENTS)
def test_an_argument_that_cannot_be_meant_is_named(given, error, text):
    model = swin()
    before = snapshot(model)
    with pytest.raises(error, match=text):
        inspect.unwrap(load_weights)(model, TIMM, **given)  # past the checks of the tests
    assert same(model.state_dict(), before)


def test_wrongly_forced_dialect_names_the_right_one():
    with pytest.raises(WeightError, match=r"Swin.*'torchvision'"):
        load_weights(swin(), TORCHVISION, dialect="timm")


def test_unknown_dialect_suggests_the_nearest():
    with pytest.raises(WeightError, match=r"'tim'.*'timm'"):
        load_weights(swin(), TIMM, dialect="tim")
    with pytest.raises(WeightError, match=r"'torchvison'.*'torchvision'"):
        to_dialect(swin(), "torchvison")


def test_dialect_that_cannot_represent_a_part_is_rejected():
    with pytest.raises(WeightError, match=r"'timm'.*absolute_pos_embed"):
        to_dialect(swin(absolute_pos_embed=True), "timm")
    with pytest.raises(WeightError, match=r"'microsoft'.*ViT"):
        to_dialect(vit(), "microsoft")


def test_only_models_of_ours_are_filled():
    with pytest.raises(WeightError, match="Linear"):
        load_weights(nn.Linear(2, 2), TIMM)


def test_missing_paths_do_not_use_the_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for source in ("runs/flowers", "nothing.pth", tmp_path / "a", "word", "a/b/c", "a/b.pth"):
        with pytest.raises(WeightError, match=re.escape(str(source))):
            load_weights(swin(), source)


def test_local_folder_wins_over_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_weights(tmp_path / "owner" / "net" / "model.safetensors", TIMM)
    assert load_weights(swin(), "owner/net").dialect == "timm"


def test_hub_id_is_read_from_the_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "hub" / "models--timm--net"
    write_weights(folder / "snapshots" / ("0" * 40) / "model.safetensors", TIMM)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    report = load_weights(swin(), "timm/net")
    assert (report.dialect, report.source) == ("timm", "timm/net")


class Counter(Head):
    """A head that no file of the package knows."""

    def __init__(self, channels, num_classes):
        super().__init__()
        self.trunk = nn.Conv2d(channels, 4, 1)
        self.counts = nn.Conv2d(4, 2 * num_classes + 1, 1)

    def class_layers(self):
        return {"counts": (2, 1)}


def counter(num_classes):
    body = Swin(SWIN)
    return Network(body, Counter(body.spec.channels[-1], num_classes))


def test_a_new_head_names_its_class_layers():
    report = load_weights(counter(3), counter(5).state_dict())
    assert set(report.reset) == {"head.counts.weight", "head.counts.bias"}
    state = counter(5).state_dict()
    state["head.counts.bias"] = torch.zeros(4)  # of no number of classes
    with pytest.raises(WeightError, match=r"head\.counts\.bias"):
        load_weights(counter(3), state)
    assert class_tensors(counter(3)) == ["head.counts.weight", "head.counts.bias"]
