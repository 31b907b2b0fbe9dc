# SPDX-License-Identifier: Apache-2.0
"""What files beside weights state is adopted and reported, and never lost."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
import transformers

import muntin
from muntin.data.transforms import Preprocessing
from muntin.errors import MuntinWarning, WeightError
from muntin.run_config import RunConfig
from muntin.runs import Run
from muntin.samples import Classes
from muntin.weights.source_info import read_source_info
from muntin.weights.weight_files import write_weights
from tests.layout_table import record_layout

STAGES = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}
VIT = {"img_size": 64, "embed_dim": 48, "depth": 2}


def _vit(**fields):
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            image_size=64, patch_size=16, hidden_size=48, num_hidden_layers=2,
            num_attention_heads=4, intermediate_size=100, num_labels=3, **fields,
        )
    )  # fmt: skip


def _swin(name, **fields):
    config = getattr(transformers, f"{name}Config")
    stages = {"image_size": 64, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4]}
    return getattr(transformers, f"{name}ForImageClassification")(
        config(**stages, num_labels=3, **fields)
    )


def _hiera(**fields):
    config = transformers.HieraConfig(
        image_size=[64, 64], embed_dim=24, depths=[1] * 4, num_heads=[1, 2, 4, 8], num_labels=3,
        **fields,
    )  # fmt: skip
    return transformers.HieraForImageClassification(config)


# Their model; ours and its fields; what is adopted.
CASES = {
    "vit": (
        lambda: _vit(hidden_act="quick_gelu"),
        "vit_tiny_patch16_224",
        {**VIT, "num_heads": 3, "mlp_ratio": 100 / 48},
        {"norm_eps": 1e-12, "activation": "quick_gelu", "num_heads": 4},
    ),
    "swin": (
        lambda: _swin("Swin", window_size=4, hidden_act="gelu_new", layer_norm_eps=1e-3),
        "swin_tiny",
        {**STAGES, "img_size": 64, "window_size": 4},
        {"activation": "gelu_tanh", "norm_eps": 1e-3, "outer_norm_eps": 1e-5},
    ),
    "swin v2": (
        lambda: _swin("Swinv2", window_size=8, pretrained_window_sizes=[6, 3]),
        "swinv2_tiny",
        {**STAGES, "img_size": 64, "window_size": 8},
        {"pretrained_windows": (6, 3)},
    ),
    "hiera": (
        lambda: _hiera(layer_norm_eps=1e-3, hidden_act="gelu_pytorch_tanh"),
        "hiera_tiny",
        {"img_size": 64, "embed_dim": 24, "depths": (1,) * 4, "num_heads": 1},
        {"norm_eps": 1e-3, "activation": "gelu_tanh"},
    ),
}


def randomise(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3 if parameter.ndim < 2 else 0.05)
    return model.eval()


@pytest.mark.parametrize("case", CASES)
def test_a_folder_of_transformers(case, tmp_path):
    make, name, fields, adopted = CASES[case]
    randomise(make()).save_pretrained(tmp_path)
    model = muntin.create_model(name, num_classes=3, **fields).eval()
    report = muntin.load_weights(model, tmp_path)
    assert dict(report.adopted) == adopted
    assert all(f"{field} set to" in report.summary() for field in adopted)
    gaps = []
    for size in ((64, 64), (96, 128), (128, 64)):
        images = torch.randn(2, 3, *size)
        # A new one for each size: theirs remembers the last.
        theirs = type(make()).from_pretrained(tmp_path).eval()
        options = {"interpolate_pos_encoding": True} if case in ("vit", "hiera") else {}
        with torch.no_grad():
            gaps.append((model(images) - theirs(images, **options).logits).abs().max())
    record_layout(
        container="folder with config.json (norms, GELU, heads, windows)",
        prefix=f"{theirs.base_model_prefix}.",
        report=report,
        model=model,
        peer="transformers",
        difference=max(gaps),
    )


def test_a_swin_v2_with_another_window_keeps_the_offsets_of_its_source(tmp_path):
    theirs = randomise(_swin("Swinv2", window_size=8))
    theirs.save_pretrained(tmp_path)
    fields = {**STAGES, "img_size": 64}
    model = muntin.create_model("swinv2_tiny", num_classes=3, window_size=4, **fields)
    report = muntin.load_weights(model, tmp_path)
    assert report.adopted["pretrained_windows"] == (8, 8)


def test_what_the_caller_set_is_kept_with_a_warning(tmp_path):
    randomise(_vit()).save_pretrained(tmp_path)
    fields = {**VIT, "num_heads": 4, "mlp_ratio": 100 / 48}
    with pytest.warns(MuntinWarning, match=r"1e-12.*norm_eps.*0\.01"):
        model = muntin.create_model(
            "vit_tiny", num_classes=3, weights=tmp_path, norm_eps=0.01, **fields
        )
    assert model.backbone.config.norm_eps == model.backbone.blocks[0].norm1.eps == 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error", MuntinWarning)
        muntin.create_model("vit_tiny", num_classes=3, weights=tmp_path, **fields)


def _edit(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"hidden_act": "relu"}, r"hidden_act in .*config\.json.*'relu'.*delete"),
        ({"num_hidden_layers": 3}, r"config\.json.*'depth': 3.*delete"),
        ({"num_attention_heads": 5}, r"config\.json.*num_heads=5.*delete"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(values, text, tmp_path):
    randomise(_vit()).save_pretrained(tmp_path)
    _edit(tmp_path, **values)
    model = muntin.create_model("vit_tiny", num_classes=3, **VIT, num_heads=4, mlp_ratio=100 / 48)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightError, match=text):
        muntin.load_weights(model, tmp_path)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    # The advice: without the file the weights load, as the model was built.
    (tmp_path / "config.json").unlink()
    assert muntin.load_weights(model, tmp_path).adopted == {}


def test_a_damaged_configuration_is_refused(tmp_path):
    randomise(_vit()).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightError, match=r"config\.json.*JSON.*delete"):
        read_source_info(tmp_path)


def test_it_belongs_to_files_of_the_usual_names_and_of_its_dialect(tmp_path):
    randomise(_vit()).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    assert read_source_info(weights) == read_source_info(tmp_path)
    other = weights.rename(tmp_path / "mine.safetensors")
    assert read_source_info(other) is None
    # Another library's weights, put beside it.
    model = muntin.create_model("vit_tiny", num_classes=3, **VIT)
    write_weights(weights, muntin.to_dialect(model, "timm"), {})
    assert muntin.load_weights(model, tmp_path).adopted == {}
    # Another program's.
    (tmp_path / "config.json").write_text(json.dumps({"model": "vit"}))
    assert read_source_info(tmp_path) is None


def test_a_run_states_what_its_weights_were_trained_with(tmp_path):
    fields = {**VIT, "num_heads": 4, "norm_eps": 0.01, "activation": "quick_gelu"}
    theirs = randomise(muntin.create_model("vit_tiny", num_classes=3, **fields))
    run = Run(
        path=tmp_path,
        config=RunConfig(
            task="classify", data="", model_name="vit_tiny", model=theirs.backbone.config
        ),
        classes=Classes(names=("a", "b", "c")),
        preprocessing=Preprocessing(img_size=(64, 64), mean=(0.1,) * 3, std=(0.2,) * 3),
    )
    run.write()
    write_weights(tmp_path / "weights.safetensors", theirs.state_dict(), {"dialect": "muntin"})
    model = muntin.create_model("vit_tiny", num_classes=3, **VIT, num_heads=3).eval()
    report = muntin.load_weights(model, tmp_path)
    assert report.adopted == {"num_heads": 4, "norm_eps": 0.01, "activation": "quick_gelu"}
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert model(images).equal(theirs(images))
    assert read_source_info(tmp_path).preprocessing == run.preprocessing


def test_what_timm_states(tmp_path):
    import timm
    from timm.models._hub import save_for_hf

    theirs = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, embed_dim=48, depth=2, num_heads=4, num_classes=3,
        act_layer="quick_gelu",
    )  # fmt: skip
    randomise(theirs)
    save_for_hf(
        theirs, tmp_path, model_config={"label_names": ["a", "b", "c"]}, safe_serialization=True
    )
    model = muntin.create_model("vit_tiny", num_classes=3, **VIT, num_heads=3).eval()
    report = muntin.load_weights(model, tmp_path)
    assert report.class_names == ("a", "b", "c")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        difference = (model(images) - theirs(images)).abs().max()
    record_layout(
        container="folder with config.json (timm's hub)",
        prefix="",
        report=report,
        model=model,
        peer="timm",
        difference=difference,
    )
