# SPDX-License-Identifier: Apache-2.0
"""Weights are found wherever they lie in a file: one generated file for each kind of container."""

from __future__ import annotations

import argparse
import collections
import datetime
import functools
import pathlib

import pytest
import torch
import transformers
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import muntin
from muntin.errors import ConfigError, MuntinWarning, WeightError
from muntin.published import open_published
from muntin.weights.weight_loading import load_weights
from tests.layout_table import record_layout

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3}
TINY = {"embed_dim": 24, "depths": (1, 2), "num_heads": (2, 4), "window_size": 4}
SIZES = {"vit": [(64, 64)], "swin": [(64, 64), (128, 64), (64, 96)]}


def randomise(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.ndim < 2 else 0.1
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def timm_vit(num_classes=5, seed=0):
    return randomise(
        VisionTransformer(img_size=64, patch_size=16, num_classes=num_classes, **SMALL), seed
    )


def timm_swin(num_classes=5, seed=0):
    options = {"img_size": 64, "patch_size": 4, "strict_img_size": False}
    return randomise(SwinTransformer(num_classes=num_classes, **options, **TINY), seed)


def vit(num_classes=5):
    return muntin.create_model(
        "vit_tiny_patch16_224", img_size=64, num_classes=num_classes, **SMALL
    ).eval()


def swin(num_classes=5):
    return muntin.create_model("swin_tiny", img_size=64, num_classes=num_classes, **TINY).eval()


def old(state):
    """timm before 0.9, and Microsoft: merging at the end of a stage, index buffers, "head."."""
    spelled = {}
    for key, tensor in state.items():
        for stage in (1, 2):
            key = key.replace(f"layers.{stage}.downsample", f"layers.{stage - 1}.downsample")
        spelled[key.replace("head.fc.", "head.")] = tensor
        if key.endswith("bias_table"):
            index = key.replace("bias_table", "index")
            spelled[index] = torch.zeros(16, 16, dtype=torch.long)
    return spelled


def under(prefix, state):
    return {prefix + key: tensor for key, tensor in state.items()}


def layer(name, inputs=48, outputs=8):
    return {f"{name}.weight": torch.randn(outputs, inputs), f"{name}.bias": torch.randn(outputs)}


DINO_HEAD = {
    **layer("head.mlp.0"),
    "head.last_layer.weight_g": torch.ones(8, 1),
    "head.last_layer.weight_v": torch.randn(8, 8),
}
METRICS = {"criterion.weight": torch.ones(5), "val_acc_best.value": torch.tensor(0.5)}


def other(make):
    """Weights of the same names that must not be taken."""
    return make(seed=1).state_dict()


def averaged(model):
    module = torch.optim.swa_utils.AveragedModel(model)
    return module.state_dict()


def lightning_averaging(model, make):
    """Lightning's callback: the averaged weights are the state dict, others lie beside it."""
    return {
        "state_dict": under("model.", model.state_dict()),
        "current_model_state": under("model.", other(make)),
        "averaging_state": {"n_averaged": torch.tensor(3)},
    }


CONTAINERS = {
    # name: (family, container from the model that the weights come from, prefix in the file)
    "a state dict": ("swin", lambda m: m.state_dict(), ""),
    "PyTorch's tutorial": (
        "swin",
        lambda m: {
            "epoch": 3,
            "model_state_dict": old(m.state_dict()),
            "optimizer_state_dict": torch.optim.AdamW(m.parameters()).state_dict(),
            "loss": 0.1,
        },
        "model_state_dict",
    ),
    "AveragedModel": ("swin", averaged, "module"),
    "AveragedModel in a checkpoint": (
        "vit",
        lambda m: {"model": other(timm_vit), "swa_state": averaged(m)},
        "swa_state.module",
    ),
    "compiled in parallel": (
        "vit",
        lambda m: {"state_dict": under("module._orig_mod.", m.state_dict())},
        "state_dict.module",
    ),
    "Lightning, with loss and metrics": (
        "vit",
        lambda m: {
            "state_dict": under("model.", m.state_dict()) | METRICS,
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
            "hyper_parameters": {"lr": 1e-3},
        },
        "state_dict.model",
    ),
    "Lightning, averaged by its callback": (
        "vit",
        lambda m: lightning_averaging(m, timm_vit),
        "state_dict.model",
    ),
    "Lightning, averaged copy in the module": (
        "swin",
        lambda m: {
            "state_dict": under("model.", other(timm_swin))
            | under("ema_model.module.", m.state_dict())
        },
        "state_dict.ema_model.module",
    ),
    "hydra-template": (
        "vit",
        lambda m: {
            "state_dict": under("net.", m.state_dict()),
            "hyper_parameters": {"optimizer": functools.partial(torch.optim.Adam, lr=1e-3)},
        },
        "state_dict.net",
    ),
    "keys net, params and module": (
        "swin",
        lambda m: {"net": {"params": {"module": m.state_dict()}}},
        "net.params.module",
    ),
    "timm's training": (
        "swin",
        lambda m: {"state_dict": other(timm_swin), "state_dict_ema": m.state_dict()},
        "state_dict_ema",
    ),
    "DeiT's training": (
        "vit",
        lambda m: {"model": other(timm_vit), "model_ema": m.state_dict(), "args": None},
        "model_ema",
    ),
    "solo-learn": (
        "vit",
        lambda m: {
            "state_dict": under("backbone.", without_head(m))
            | under("momentum_backbone.", without_head(timm_vit(seed=1)))
            | layer("projector.0")
            | head_as(m, "classifier")
        },
        "state_dict.backbone",
    ),
    "DeepSpeed": (
        "vit",
        lambda m: {
            "module": under("_forward_module.model.", m.state_dict()),
            "buffer_names": [],
            "optimizer": None,
        },
        "module.model",
    ),
    "open_clip with timm's tower": (
        "vit",
        lambda m: (
            under("visual.trunk.", m.state_dict())
            | {"text.token_embedding.weight": torch.randn(3, 3), "logit_scale": torch.tensor(1.0)}
        ),
        "visual.trunk",
    ),
    "Sequential": (
        "vit",
        lambda m: under("module.backbone.0.", without_head(m)) | head_as(m, "module.backbone.1"),
        "module.backbone.0",
    ),
    "backbone and head apart": (
        "vit",
        lambda m: {"encoder": without_head(m), "classifier": head_as(m, "fc")},
        "encoder",
    ),
}


def without_head(model):
    return {key: value for key, value in model.state_dict().items() if not key.startswith("head.")}


def head_as(model, name):
    state = model.state_dict()
    end = "head.fc." if "head.fc.weight" in state else "head."
    return {f"{name}.{part}": state[end + part] for part in ("weight", "bias")}


def largest_difference(model, peer, family):
    """Of logits, at the native size and at others."""
    with torch.no_grad():
        images = [torch.randn(2, 3, *size) for size in SIZES[family]]
        return max(float((model(one) - peer(one)).abs().max()) for one in images)


MAKERS = {"vit": (timm_vit, vit), "swin": (timm_swin, swin)}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_classifier_in_any_container(name, tmp_path):
    family, contain, part = CONTAINERS[name]
    theirs, ours = MAKERS[family]
    peer = theirs()
    torch.save(contain(peer), tmp_path / "file.pt")
    model = ours()
    report = load_weights(model, tmp_path / "file.pt")
    assert (report.part, report.reset, report.dropped) == (part, (), ())
    record_layout(
        container=name,
        prefix=part,
        report=report,
        model=model,
        peer="timm",
        difference=largest_difference(model, peer, family),
    )


PRETRAINED = {
    "DINO": (
        "vit",
        lambda m: {
            "student": under("module.", under("backbone.", other_body("vit")) | DINO_HEAD),
            "teacher": under("backbone.", m.state_dict()) | DINO_HEAD,
            "dino_loss": {"center": torch.zeros(1, 8)},
            "args": argparse.Namespace(arch="vit_small"),
        },
        "teacher.backbone",
        {f"head.mlp.0.{end}" for end in ("weight", "bias")},
    ),
    "DINOv2's training": (
        "vit",
        lambda m: {
            "model": under("student.backbone.", other_body("vit"))
            | under("teacher.backbone.", m.state_dict())
            | layer("teacher.dino_head.mlp.0"),
            "iteration": 9,
        },
        "model.teacher.backbone",
        {"teacher.dino_head.mlp.0.weight"},
    ),
    "EsViT": (
        "swin",
        lambda m: {
            "student": under("module.", old(other_body("swin")) | DINO_HEAD),
            "teacher": old(m.state_dict()) | DINO_HEAD,
        },
        "teacher",
        {"head.last_layer.weight_g"},
    ),
    "MoBY": (
        "swin",
        lambda m: {
            "model": under("encoder.", old(m.state_dict()))
            | under("encoder_k.", old(other_body("swin")))
            | layer("projector.0")
            | layer("projector_k.0")
            | layer("predictor.0")
            | {"queue1": torch.randn(8, 9), "queue_ptr": torch.zeros(1, dtype=torch.long)}
        },
        "model",
        {"projector.0.weight", "queue1", "queue_ptr"},
    ),
    "Ark": (
        "swin",
        lambda m: {
            "epoch": 200,
            "teacher": old(m.state_dict()) | layer("projector") | layer("omni_heads.0", 8, 14),
        },
        "teacher",
        {"projector.weight", "omni_heads.0.bias"},
    ),
    "GroundingDINO": (
        "swin",
        lambda m: {
            "model": under("module.backbone.0.", old(m.state_dict()))
            | layer("module.transformer.encoder.layers.0.linear1")
            | layer("module.bert.pooler.dense")
        },
        "model.module.backbone.0",
        {"module.bert.pooler.dense.weight"},
    ),
    "a whole decoder beside it": (
        "vit",
        lambda m: (
            under("encoder.", m.state_dict())
            | layer("decoder.0")
            | {"decoder_pos": torch.zeros(1, 4, 8), "mask_token": torch.zeros(1, 1, 8)}
        ),
        "",
        set(),
    ),
}


def other_body(family):
    return MAKERS[family][0](num_classes=0, seed=1).state_dict()


@pytest.mark.parametrize("name", PRETRAINED)
def test_an_encoder_in_any_container(name):
    family, contain, part, beside = PRETRAINED[name]
    theirs, ours = MAKERS[family]
    peer = theirs(num_classes=0)
    model = ours(num_classes=0)
    report = load_weights(model, contain(peer))
    assert (report.part, report.reset, report.dropped) == (part, (), ())
    assert beside <= set(report.beside)
    record_layout(
        container=name,
        prefix=part,
        report=report,
        model=model,
        peer="timm",
        difference=largest_difference(model, peer, family),
    )
    # As a classifier, the head is random, and it is reported what the file has instead.
    dropped = load_weights(ours(), contain(peer)).dropped
    assert any(key in dropped for key in beside if "head" in key) or not any(
        "head" in key for key in beside
    )


def test_a_part_can_be_chosen(tmp_path):
    student, teacher = timm_vit(seed=1), timm_vit()
    content = {"student": student.state_dict(), "teacher": teacher.state_dict()}
    images = torch.randn(1, 3, 64, 64)
    model = vit()
    report = load_weights(model, content)
    assert (report.part, report.others) == ("teacher", ("student",))
    assert "student" in report.summary()
    assert torch.equal(model(images), teacher(images))
    assert load_weights(model, content, part="student").part == "student"
    assert torch.equal(model(images), student(images))
    torch.save(content, tmp_path / "both.pth")
    load_weights(model, f"{tmp_path / 'both.pth'}#student")
    assert torch.equal(model(images), student(images))
    with pytest.raises(WeightError, match=r"part.*'ema'.*teacher, student"):
        load_weights(model, content, part="ema")


HEADS = {
    "head": lambda linear: under("head.", linear),
    "heads": lambda linear: under("heads.", linear),
    "heads.head": lambda linear: under("heads.head.", linear),
    "classifier": lambda linear: under("classifier.", linear),
    "fc": lambda linear: under("fc.", linear),
    "Sequential(Dropout, Linear)": lambda linear: under("head.1.", linear),
    "a lone Linear": lambda linear: under("anything.", linear),
    "beside metrics": lambda linear: under("head.", linear) | METRICS,
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("names", ["vit", "swin", "swin, old names", "swin, without buffers"])
def test_a_backbone_in_a_module_of_others_keeps_its_classifier(names, name):
    family = names.partition(",")[0]
    theirs, ours = MAKERS[family]
    peer, linear = theirs(num_classes=0), randomise(nn.Linear(48, 5))
    spelled = old(peer.state_dict()) if "," in names else peer.state_dict()
    if "without" in names:
        spelled = {key: value for key, value in spelled.items() if "index" not in key}
    model = ours()
    state = under("backbone.", spelled) | HEADS[name](linear.state_dict())
    report = load_weights(model, {"state_dict": state})
    assert report.dialect != "muntin"
    assert (report.reset, report.dropped) == ((), ())
    difference = largest_difference(model, nn.Sequential(peer, linear), family)
    if names in ("vit", "swin"):
        record_layout(
            container=f"module of others, {name}",
            prefix="backbone.",
            report=report,
            model=model,
            peer="timm",
            difference=difference,
        )
    assert difference < 1e-5


def test_a_classifier_without_bias_is_one_with_zeros():
    peer, linear = timm_vit(num_classes=0), randomise(nn.Linear(48, 5, bias=False))
    model = vit()
    load_weights(model, under("backbone.", peer.state_dict()) | {"fc.weight": linear.weight})
    assert largest_difference(model, nn.Sequential(peer, linear), "vit") < 1e-5


@pytest.mark.parametrize(
    "head",
    [
        layer("head.0", 48, 16) | layer("head.2", 16, 5),
        layer("fc", 48, 9),
        layer("classifier", 32, 5),
    ],
    ids=["two layers", "other classes", "other inputs"],
)
def test_a_dropped_classifier_is_a_warning(head, tmp_path):
    state = under("backbone.", timm_vit(num_classes=0).state_dict()) | head
    torch.save({"state_dict": state}, tmp_path / "lit.ckpt")
    with pytest.warns(MuntinWarning, match=next(iter(head)).replace(".", r"\.")):
        muntin.create_model(
            "vit_tiny_patch16_224",
            img_size=64,
            num_classes=5,
            weights=tmp_path / "lit.ckpt",
            **SMALL,
        )


def norm(name, kind=nn.BatchNorm1d):
    return under(f"{name}.", kind(48).state_dict())


DEEPER = {
    # head of a file, one of the layers that may lie between backbone and classifier, or behind it
    "BNNeck": (norm("bottleneck") | layer("classifier", 48, 5), "bottleneck.weight"),
    "a norm": (norm("norm", nn.LayerNorm) | layer("head", 48, 5), "norm.weight"),
    "two layers": (layer("fc1", 48, 48) | layer("fc2", 48, 5), "fc1.weight"),
    "a hidden layer": (layer("neck.0", 48, 48) | layer("head", 48, 5), "neck.0.weight"),
    "a layer behind it": (layer("fc1", 48, 5) | layer("fc2", 5, 5), "fc2.weight"),
    "logits that are scaled": (layer("fc", 48, 5) | {"scale.values": torch.ones(5)}, "fc.weight"),
    "the pooler of transformers": (layer("vit.pooler.dense", 48, 48), "vit.pooler.dense.weight"),
    "a norm in a model of transformers": (norm("bn"), "bn.weight"),
    "pre-logits": (layer("backbone.pre_logits.fc", 48, 48) | layer("fc", 48, 5), "fc.weight"),
}


def vit_of_transformers():
    config = transformers.ViTConfig(
        image_size=64, patch_size=16, hidden_size=48, num_hidden_layers=2,
        num_attention_heads=3, intermediate_size=192, num_labels=5,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config).state_dict()


@pytest.mark.parametrize("name", DEEPER)
def test_a_classifier_on_another_layer_is_not_taken(name, tmp_path):
    head, between = DEEPER[name]
    foreign = "transformers" in name
    state = vit_of_transformers() if foreign else under("backbone.", timm_vit(0).state_dict())
    torch.save({"state_dict": state | head}, tmp_path / "lit.ckpt")
    with pytest.warns(MuntinWarning, match="classifier"):
        report = load_weights(vit(), tmp_path / "lit.ckpt")
    assert set(report.reset) == {"head.fc.weight", "head.fc.bias"}
    assert between in report.dropped
    settings = {key: str(value) for key, value in {**SMALL, "img_size": 64}.items()}
    with pytest.raises(ConfigError, match="classifier"):
        open_published(tmp_path / "lit.ckpt", tmp_path / "run", model="vit_tiny", settings=settings)
    assert not (tmp_path / "run").exists()


ASIDE = {
    "a second classifier": layer("age", 48, 3),
    "one of as many classes": layer("head_of_genus", 48, 5),
    "a projector": layer("projector.0", 48, 48) | norm("projector.1"),
    "a projection head": layer("projection_head.layers.0", 48, 48),
    "weights of classes": {"class_weights": torch.ones(5), "criterion.pos_weight": torch.ones(5)},
    "a teacher": {
        "teacher.conv.weight": torch.ones(48, 3, 3, 3),
        "teacher.bn.bias": torch.ones(48),
    },
    "a counter": {"steps": torch.ones(48, dtype=torch.long), "temperature": torch.tensor(3.0)},
}


@pytest.mark.parametrize("name", ASIDE)
def test_a_classifier_beside_others_is_taken(name):
    linear = layer("classifier", 48, 5)
    state = under("backbone.", timm_vit(0).state_dict()) | linear | ASIDE[name]
    model = vit()
    report = load_weights(model, {"state_dict": state})
    assert (report.reset, report.dropped) == ((), ())
    assert torch.equal(model.head.fc.weight, linear["classifier.weight"])


def deit():
    return muntin.create_model(
        "vit_tiny_patch16_224", img_size=64, num_classes=5, distillation_token=True, **SMALL
    ).eval()


def test_a_classifier_of_the_class_token_alone_in_a_deit(tmp_path):
    config = transformers.DeiTConfig(
        image_size=64, patch_size=16, hidden_size=48, num_hidden_layers=2,
        num_attention_heads=3, intermediate_size=192, num_labels=5, layer_norm_eps=1e-6,
    )  # fmt: skip
    peer = randomise(transformers.DeiTForImageClassification(config))
    peer.save_pretrained(tmp_path / "theirs")
    images = torch.randn(2, 3, 64, 64)
    model = deit()
    report = load_weights(model, tmp_path / "theirs")
    assert (report.reset, report.dropped) == ((), ())
    assert "class token only" in report.assumed
    run, _ = open_published(tmp_path / "theirs", tmp_path / "run")
    for one in (model, run.load_network()):
        assert (one(images) - peer(images).logits).abs().max() < 1e-5
    # What another classifier reads is not known.
    body = timm_vit(0).state_dict() | {"dist_token": torch.zeros(1, 1, 48)}
    body["pos_embed"] = torch.zeros(1, 18, 48)
    with pytest.warns(MuntinWarning, match="classifier"):
        report = load_weights(deit(), under("backbone.", body) | layer("classifier", 48, 5))
    assert len(report.reset) == 4
    assert report.dropped == ("classifier.weight", "classifier.bias")


def test_our_own_files_are_recognised_by_more_than_a_prefix():
    source = vit()
    for content in (source.state_dict(), {"net": under("model.", source.state_dict())}):
        assert load_weights(vit(), content).dialect == "muntin"
    module = under("backbone.", source.backbone.state_dict()) | layer("classifier", 48, 5)
    report = load_weights(vit(), module)
    assert report.dialect == "timm"
    assert not report.reset


@pytest.mark.parametrize("wrap", ["compiled", "parallel", "averaged", "compiled backbone"])
def test_wrappers_around_the_target_are_looked_through(wrap):
    peer, model = timm_vit(), vit()
    wrapped = {
        "compiled": lambda: torch.compile(model, backend="eager"),
        "parallel": lambda: nn.DataParallel(model),
        "averaged": lambda: torch.optim.swa_utils.AveragedModel(model),
        "compiled backbone": lambda: torch.compile(model.backbone, backend="eager"),
    }[wrap]()
    report = load_weights(wrapped, peer.state_dict())
    target = wrapped.module if wrap == "averaged" else model
    assert torch.equal(target.backbone.pos_embed, peer.pos_embed)
    assert not report.reset
    assert muntin.to_dialect(wrapped, "timm")["pos_embed"].equal(peer.pos_embed)


def test_swin_of_mask2former_and_of_grounding_dino():
    body = transformers.SwinBackbone(
        transformers.SwinConfig(
            image_size=64,
            embed_dim=24,
            depths=[1, 2],
            num_heads=[2, 4],
            window_size=4,
            out_features=["stage1", "stage2"],
        )
    )
    randomise(body)
    for prefix in ("model.pixel_level_module.encoder.", "model.backbone.conv_encoder.model."):
        state = under(prefix, body.state_dict()) | layer("class_predictor")
        model = muntin.create_backbone(
            "swin_tiny", img_size=64, out_indices=(0, 1), out_norm="each", **TINY
        ).eval()
        report = load_weights(model, state)
        assert set(report.beside) == {"class_predictor.weight", "class_predictor.bias"}
        difference = 0.0
        for size in ((64, 64), (60, 92), (100, 72)):
            images = torch.randn(1, 3, *size)
            maps = type(body)(body.config).eval()
            maps.load_state_dict(body.state_dict())
            with torch.no_grad():
                pairs = zip(model(images), maps(images).feature_maps, strict=True)
                difference = max(difference, *(float((a - b).abs().max()) for a, b in pairs))
        record_layout(
            container="Mask2Former" if "pixel" in prefix else "GroundingDINO of transformers",
            prefix=prefix,
            report=report,
            model=model,
            peer="transformers",
            difference=difference,
        )


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_with_an_index(kind, tmp_path):
    theirs = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            image_size=64,
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=192,
            num_labels=5,
        )
    )
    randomise(theirs).save_pretrained(tmp_path, max_shard_size="100KB")
    if kind == "bin":
        as_pickles(tmp_path)
    index = next(tmp_path.glob("*.index.json"))
    for source in (tmp_path, index):
        model = vit()
        report = load_weights(model, source)
        with torch.no_grad():
            images = torch.randn(2, 3, 64, 64)
            difference = (model(images) - theirs(images).logits).abs().max()
        record_layout(
            container=f"shards, {index.name}",
            prefix="",
            report=report,
            model=model,
            peer="transformers",
            difference=difference,
        )
    shard = sorted(tmp_path.glob(f"*-of-*.{kind}"))[0]
    with pytest.raises(WeightError, match=rf"{shard.name}.*{index.name}"):
        load_weights(vit(), shard)
    # Without the index, or with one of an unusual name, shard and folder give the same advice.
    elsewhere = index.rename(tmp_path / "index.json")
    for source in (shard, tmp_path):
        with pytest.raises(WeightError, match=rf"{shard.name}.*{index.name}.*not in"):
            load_weights(vit(), source)
    elsewhere.rename(index)
    shard.unlink()
    with pytest.raises(WeightError, match=rf"{index.name}.*{shard.name}"):
        load_weights(vit(), tmp_path)


def as_pickles(folder):
    """Rewrite shards of safetensors as the ones of PyTorch that transformers wrote before."""
    from safetensors.torch import load_file

    for shard in list(folder.glob("model-*.safetensors")):
        name = f"pytorch_{shard.name}".replace(".safetensors", ".bin")
        torch.save(load_file(shard), folder / name)
        shard.unlink()
    index = folder / "model.safetensors.index.json"
    text = index.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
    index.unlink()
    (folder / "pytorch_model.bin.index.json").write_text(text)


def test_a_folder_of_deepspeed(tmp_path):
    peer, inner = timm_vit(), tmp_path / "global_step7"
    inner.mkdir()
    (tmp_path / "latest").write_text("global_step7")
    content = {"module": peer.state_dict(), "buffer_names": []}
    torch.save(content, inner / "mp_rank_00_model_states.pt")
    for source in (tmp_path, inner):
        model = vit()
        report = load_weights(model, source)
        record_layout(
            container="folder of DeepSpeed",
            prefix="module",
            report=report,
            model=model,
            peer="timm",
            difference=largest_difference(model, peer, "vit"),
        )


@pytest.mark.parametrize("latest", [None, "", ".", "..", "absent"])
def test_a_folder_without_weights_is_refused(latest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if latest is not None:
        (tmp_path / "latest").write_text(latest)
    for source in (".", "./", pathlib.Path(), tmp_path):
        with pytest.raises(WeightError, match=r"model\.safetensors.*none in"):
            load_weights(vit(), source)


def make_torchscript(folder):
    torch.jit.script(nn.Linear(2, 2)).save(folder / "model.pt")
    return folder / "model.pt"


def make_distributed(folder):
    (folder / "__0_0.distcp").write_bytes(b"")
    return folder


def make_zero(folder):
    (folder / "zero_pp_rank_0_mp_rank_00_model_states.pt").write_bytes(b"")
    return folder


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (make_torchscript, r"TorchScript.*torch\.jit\.load.*state_dict"),
        (make_distributed, "dcp_to_torch"),
        (make_zero, r"zero_to_fp32\.py"),
        (lambda _: "https://example.com/weights.pth", r"https://example\.com.*curl"),
    ],
)
def test_what_is_no_weight_file_is_named_with_the_way_out(make, text, tmp_path):
    with pytest.raises(WeightError, match=text):
        load_weights(vit(), make(tmp_path))


def test_objects_beside_tensors_are_skipped(tmp_path):
    peer = timm_vit()
    counts = collections.defaultdict(list, {"loss": [0.5]})
    content = {
        "state_dict": peer.state_dict(),
        "version": torch.__version__,
        "counts": counts,
        "when": datetime.datetime.now(tz=datetime.UTC),
        "took": datetime.timedelta(seconds=3),
        "path": pathlib.PurePosixPath("/data"),
        "elsewhere": pathlib.PureWindowsPath("C:/data"),
        "optimizer": torch.optim.AdamW(peer.parameters()),
    }
    torch.save(content, tmp_path / "file.pth")
    model = vit()
    load_weights(model, tmp_path / "file.pth")
    assert largest_difference(model, peer, "vit") < 1e-5


class Strange:
    """Of no library."""


def test_a_refused_object_is_named(tmp_path):
    content = {"state_dict": timm_vit().state_dict(), "config": Strange()}
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(WeightError, match=r"test_containers\.Strange"):
        load_weights(vit(), tmp_path / "file.pth")


STRANGERS = {
    "SAM's image encoder": under("image_encoder.", {"blocks.0.attn.rel_pos_h": torch.ones(3, 2)}),
    "CLIP": {
        "visual.class_embedding": torch.ones(48),
        "visual.transformer.resblocks.0.attn.in_proj_weight": torch.ones(144, 48),
    },
    "SigLIP": {"vision_model.encoder.layers.0.layer_norm1.weight": torch.ones(48)},
}


@pytest.mark.parametrize("name", STRANGERS)
def test_towers_of_other_models_are_refused_by_name(name):
    with pytest.raises(WeightError, match=name):
        load_weights(vit(), STRANGERS[name])


def test_parts_that_change_the_outputs_are_no_strangers():
    state = timm_vit().state_dict()
    for key in ("norm_pre.weight", "neck.0.weight", "register", "attn_pool.latent"):
        with pytest.raises(WeightError, match=key.replace(".", r"\.")):
            load_weights(vit(), {**state, key: torch.ones(48)})
