# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters: what is trained, what is saved, and what a bad request says."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file

import muntin
from muntin.errors import ConfigError, TrainingError
from muntin.heads.classification_head import build_classifier
from muntin.heads.network import Network
from muntin.training.low_rank import adapt_layers, merged_state
from muntin.training.optimization import freeze_stages
from tests.small import train_small, write_images

CASES = {
    "swin_nano": {"img_size": (16, 16), "patch_size": 2, "embed_dim": 12, "num_heads": (1, 2, 3)},
    "swinv2_tiny_window8_256": {
        "img_size": (32, 32), "embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2),
        "window_size": 4,
    },
    "vit_tiny_patch16_224": {"img_size": (32, 32), "embed_dim": 24, "depth": 2},
    "t2t_vit_7": {"img_size": (32, 32)},
    "hiera_tiny_224": {"img_size": (64, 64), "embed_dim": 16, "depths": (1, 1, 1, 1)},
}  # fmt: skip


def make_network(name: str = "swin_nano") -> Network:
    torch.manual_seed(0)
    body = muntin.create_backbone(name, **CASES[name])
    network = Network(body, build_classifier(body, 3))
    for parameter in network.parameters():  # blocks of Swin V2 start as the identity
        parameter.data += 0.05 * torch.randn_like(parameter)
    return network


def disturb(network: Network) -> None:
    """Give the additions values, as training does: they start at zero."""
    for name, parameter in network.named_parameters():
        if name.endswith("lora_b"):
            torch.nn.init.normal_(parameter, std=0.05)


@pytest.mark.parametrize("name", CASES)
def test_merged_weights_give_the_outputs_of_the_adapted_network(name: str) -> None:
    network, plain = make_network(name).eval(), make_network(name).eval()
    images = torch.rand(2, 3, *CASES[name]["img_size"])
    before = network(images)
    assert adapt_layers(network, rank=4, alpha=8.0) >= 4
    # B starts at zero; processors may add up products of other layers in another order.
    torch.testing.assert_close(network(images), before, rtol=1e-5, atol=1e-5)
    disturb(network)
    adapted = network(images)
    assert not torch.allclose(adapted, before, atol=1e-3)
    plain.load_state_dict(merged_state(network))  # strict: no key of an adapter is left
    torch.testing.assert_close(plain(images), adapted, rtol=1e-4, atol=1e-5)


def test_values_of_one_layer_follow_the_formula() -> None:
    network = make_network()
    adapt_layers(network, rank=4, alpha=8.0)
    disturb(network)
    layer = network.backbone.blocks[0].attn.qkv
    x = torch.rand(5, 12)
    wanted = x @ layer.weight.T + layer.bias + 8.0 / 4 * (x @ layer.lora_a.T) @ layer.lora_b.T
    torch.testing.assert_close(layer(x), wanted)


def test_only_additions_and_the_head_are_trained() -> None:
    network = make_network()
    adapt_layers(network, rank=4, alpha=8.0)
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[2] for name in trained if name.startswith("backbone")} == {
        "lora_a", "lora_b",
    }  # fmt: skip
    assert any(name.startswith("head") for name in trained)


def test_frozen_stages_get_no_additions() -> None:
    network = make_network()
    freeze_stages(network, 2)
    adapt_layers(network, rank=4, alpha=8.0)
    named = [name for name, _ in network.named_parameters() if name.endswith("lora_a")]
    assert named
    assert {network.backbone.stage_of(name.removeprefix("backbone.")) for name in named} == {3}


def test_freezing_everything_leaves_nothing_to_adapt() -> None:
    network = make_network()
    freeze_stages(network, -1)
    with pytest.raises(ConfigError, match=r"train\.adapt=lora"):
        adapt_layers(network, rank=4, alpha=8.0)


def test_a_layer_that_does_not_merge_is_refused() -> None:
    network = make_network()
    adapt_layers(network, rank=4, alpha=8.0)
    network.backbone.blocks[0].attn.proj.lora_b.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"attn\.proj"):
        merged_state(network)


def test_copies_have_additions_of_their_own() -> None:
    network = make_network()
    adapt_layers(network, rank=4, alpha=8.0)
    other = copy.deepcopy(network)
    disturb(other)
    images = torch.rand(1, 3, 16, 16)
    assert not torch.allclose(network.eval()(images), other.eval()(images), atol=1e-4)


def test_a_run_saves_plain_weights_and_resumes(tmp_path) -> None:
    """One that stops and goes on ends with the bits of one that does not."""
    data = write_images(tmp_path / "data", each=6)
    base = train_small(data, tmp_path / "base", weights="none", epochs=1).path
    options = {"weights": str(base), "model": "", "epochs": 2, "settings": {"train.adapt": "lora"}}
    whole = train_small(data, tmp_path / "whole", **options).path
    parts = train_small(data, tmp_path / "parts", stop_after=3, **options).path
    muntin.train("classify", data, out=parts, resume=True, quiet=True)
    start, first, second = (load_file(run / "weights.safetensors") for run in (base, whole, parts))
    assert start.keys() == first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    changed = {name for name in first if not torch.equal(first[name], start[name])}
    assert any(name.endswith("qkv.weight") for name in changed)
    assert not any("norm" in name or "patch_embed" in name for name in changed)
    config = json.loads((whole / "config.json").read_text())["train"]
    assert (config["optimizer"], config["learning_rate"]) == ("adamw", 1e-3)
    assert muntin.load(whole)(next(data.rglob("*.png")))
