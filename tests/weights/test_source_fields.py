# SPDX-License-Identifier: Apache-2.0
"""What config.json states is read, or refused by the name of the entry and of the file."""

from __future__ import annotations

import json

import pytest
import timm
import torch
import transformers
from timm.models._hub import save_for_hf

import muntin
from muntin.errors import WeightError
from muntin.published import open_published
from muntin.weights.source_fields import read_labels
from muntin.weights.source_info import read_source_info

VIT = {
    "model_type": "vit", "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 48, "patch_size": 16, "image_size": 32,
}  # fmt: skip
TIMM = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"input_size": [3, 32, 32]}}


def randomise(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3 if parameter.ndim < 2 else 0.1)
    return model.eval()


def read(folder, values):
    (folder / "config.json").write_text(json.dumps(values))
    return read_source_info(folder)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({**VIT, "id2label": ["a"]}, "id2label.*'a'"),
        ({**VIT, "num_attention_heads": "4"}, "num_attention_heads.*'4'"),
        ({**VIT, "hidden_size": [24]}, r"hidden_size.*\[24\]"),
        ({**VIT, "intermediate_size": "x"}, "intermediate_size.*'x'"),
        ({**VIT, "patch_size": [16, 8]}, r"patch_size.*\[16, 8\]"),
        ({**VIT, "hidden_act": ["gelu"]}, "hidden_act.*'gelu'"),
        ({**VIT, "hidden_act": "relu"}, "hidden_act.*'relu'"),
        ({**VIT, "layer_norm_eps": {}}, "layer_norm_eps"),
        ({**VIT, "architectures": "ViT"}, "architectures.*'ViT'"),
        ({"model_type": ["vit"]}, "model_type.*'vit'"),
        ({"model_type": "vitpose", "backbone_config": "x"}, "backbone_config.*'x'"),
        ({**VIT, "model_type": "beit", "use_mean_pooling": "x"}, "use_mean_pooling.*'x'"),
        ({**TIMM, "architecture": 3}, "architecture.*3"),
        ({**TIMM, "pretrained_cfg": "x"}, "pretrained_cfg.*'x'"),
        ({**TIMM, "pretrained_cfg": {"input_size": 224.5}}, r"input_size.*224\.5"),
        ({**TIMM, "model_args": ["x"]}, "model_args.*'x'"),
        ({**TIMM, "model_args": {"block_fn": "ResPostBlock"}}, "block_fn.*'ResPostBlock'"),
        ({**TIMM, "model_args": {"qk_norm": True}}, "qk_norm.*True"),
        ({**TIMM, "model_args": {"act_layer": "relu"}}, "act_layer.*'relu'"),
        ({**TIMM, "model_args": {"no_embed_class": [1]}}, "no_embed_class"),
        ({**TIMM, "label_names": 3}, "label_names.*3"),
    ],
)
def test_what_cannot_be_read_is_refused(values, text, tmp_path):
    with pytest.raises(WeightError, match=rf"{text}.*delete") as caught:
        read(tmp_path, values)
    assert str(tmp_path / "config.json") in str(caught.value)
    (tmp_path / "config.json").unlink()  # the advice
    assert read_source_info(tmp_path) is None


@pytest.mark.parametrize(
    ("given", "names", "problem"),
    [
        (None, (), ""),
        ({"1": "b", "0": "a"}, ("a", "b"), ""),
        ({"0": 3, "1": "b"}, ("3", "b"), ""),
        (["a", "b"], ("a", "b"), ""),
        ({"0": "a", "2": "c"}, (), "labels must name classes 0 to 1, got none for 1."),
        ({"0": "a", "1": None}, (), "labels must name classes 0 to 1, got none for 1."),
        (["a", {}], (), "labels must name classes 0 to 1, got none for 1."),
    ],
)
def test_names_of_classes(given, names, problem):
    assert read_labels(given, "labels") == (names, problem)


def test_arguments_of_timm_are_fields_or_change_nothing(tmp_path):
    arguments = {
        "init_values": 0.1, "act_layer": "quick_gelu", "reg_tokens": 2, "no_embed_class": True,
        "pos_embed": "none", "fc_norm": False, "global_pool": "avg", "patch_size": [8, 8],
        "qk_norm": False, "num_classes": 3, "dynamic_img_size": True, "norm_layer": None,
    }  # fmt: skip
    assert read(tmp_path, {**TIMM, "model_args": arguments}).fields == {
        "layer_scale": 0.1, "activation": "quick_gelu", "registers": 2, "prefix_positions": False,
        "absolute_pos_embed": False, "pool_norm": "before", "pool": "mean", "patch_size": 8,
        "img_size": (32, 32),
    }  # fmt: skip
    windows = {"pretrained_window_sizes": [6, 6, 3], "window_size": [8, 8]}
    fields = read(tmp_path, {**TIMM, "model_args": windows}).fields
    assert (fields["pretrained_windows"], fields["window_size"]) == ((6, 6, 3), 8)


ARGUMENTS = {"img_size": 32, "embed_dim": 24, "num_classes": 3}
PLAIN = {**ARGUMENTS, "depth": 1, "num_heads": 2}
STAGES = {**ARGUMENTS, "depths": (1, 1), "num_heads": (2, 4), "window_size": 4}
PUBLISHED = {
    "the mean": ("vit_tiny_patch16_224", {**PLAIN, "global_pool": "avg"}),
    "its norm before": (
        "vit_tiny_patch16_224",
        {**PLAIN, "global_pool": "avg", "fc_norm": False},
    ),
    "registers": ("vit_tiny_patch16_224", {**PLAIN, "reg_tokens": 2, "init_values": 0.1}),
    "windows": ("swinv2_tiny_window8_256", {**STAGES, "pretrained_window_sizes": (2, 2)}),
}


def save_timm(folder, name, arguments):
    theirs = randomise(timm.create_model(name, **arguments))
    stated = {key: value for key, value in arguments.items() if key != "num_classes"}
    save_for_hf(theirs, folder, model_args=stated, safe_serialization=True)
    return theirs


@pytest.mark.parametrize("case", PUBLISHED)
def test_a_folder_of_timm_states_what_it_needs(case, tmp_path):
    name, arguments = PUBLISHED[case]
    theirs = save_timm(tmp_path / "theirs", name, arguments)
    run, _ = open_published(tmp_path / "theirs", tmp_path / "run")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(run.load_network()(images), theirs(images), atol=1e-5, rtol=1e-5)


def test_a_pool_that_is_not_here(tmp_path):
    save_timm(tmp_path / "vit", "vit_tiny_patch16_224", {**PLAIN, "global_pool": "max"})
    with pytest.raises(WeightError, match=r"pool.*config\.json.*'max'"):
        open_published(tmp_path / "vit", tmp_path / "run")
    save_timm(tmp_path / "res", "test_resnet", {"num_classes": 3, "global_pool": "max"})
    model = muntin.create_model("timm:test_resnet", num_classes=3)
    with pytest.raises(WeightError, match=r"config\.json.*'pool': 'max'"):
        muntin.load_weights(model, tmp_path / "res")
    save_timm(tmp_path / "same", "test_resnet", {"num_classes": 3})
    muntin.load_weights(model, tmp_path / "same")


SMALL = {name: value for name, value in VIT.items() if name != "model_type"}
OF_TRANSFORMERS = {
    "BEiT": ("Beit", {"use_relative_position_bias": True}),
    "BEiT with its token": (
        "Beit",
        {"use_relative_position_bias": True, "use_mean_pooling": False},
    ),
    "ViTMSN": ("ViTMSN", {}),
}


@pytest.mark.parametrize("case", OF_TRANSFORMERS)
def test_a_folder_of_transformers_needs_no_name(case, tmp_path):
    name, fields = OF_TRANSFORMERS[case]
    config = getattr(transformers, f"{name}Config")(**SMALL, **fields, num_labels=3)
    theirs = randomise(getattr(transformers, f"{name}ForImageClassification")(config))
    theirs.save_pretrained(tmp_path / "theirs")
    run, _ = open_published(tmp_path / "theirs", tmp_path / "run")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(images).logits
        torch.testing.assert_close(run.load_network()(images), expected, atol=1e-5, rtol=1e-5)


def test_paths_that_the_system_refuses(tmp_path):
    model = muntin.create_model("vit_tiny", img_size=32, embed_dim=24, depth=1, num_heads=2)
    (tmp_path / "file").write_text("x")
    for source in (tmp_path / ("a" * 300 + ".pth"), tmp_path / "file" / "model.safetensors"):
        with pytest.raises(WeightError, match=source.name):
            muntin.load_weights(model, source)
