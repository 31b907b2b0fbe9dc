# SPDX-License-Identifier: Apache-2.0
"""What is written for another ecosystem, read by its own models: the same outputs, or a refusal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.models.beit import Beit
from torch import nn
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

import muntin
from muntin.commands import main
from muntin.errors import WeightError
from muntin.models.swin import Swin
from muntin.models.vit import ViT
from muntin.weights.dialects import to_dialect
from muntin.weights.weight_files import read_weights, write_weights
from muntin.zoo.weight_conversion import convert_weights
from tests.parity.peers import (
    NUM_CLASSES,
    SWIN,
    TOLERANCE,
    VIT,
    batch_images,
    distance,
    perturb,
    timm_vit,
    torchvision_swin,
    torchvision_vit,
    transformers_vit,
)
from tests.weights.test_layouts import (
    ALIGNED,
    BUILT,
    DETECTOR,
    SMALL,
    SWIN_V2,
    TINY,
    assert_maps,
    build,
    dense,
    normalised,
    openmmlab,
    openmmlab_maps,
    read_by_timm,
    rename,
    swin_peer,
    without,
)

pytestmark = pytest.mark.parity


def gap(one, other, size=BUILT) -> float:
    with torch.no_grad():
        first, second = (model(batch_images(size)) for model in (one, other))
    return distance(first, getattr(second, "logits", second))


# ViTs: a field that a dialect's names do not tell changes what the same tensors compute.

VARIANTS = {
    "plain": VIT,
    "mean of all tokens' norm": replace(VIT, pool="mean"),
    "norm of the mean": replace(VIT, pool="mean", pool_norm="after"),
    "no class token": replace(VIT, pool="mean", class_token=False),
    "class token without a position": replace(VIT, prefix_positions=False),
    "scaled branches": replace(VIT, layer_scale=0.1),
    "no bias": replace(VIT, qkv_bias=False),
    "patches with a margin": replace(VIT, patch_padding=2),
    "shared position": replace(VIT, class_token=False, shared_position=True, pool="mean"),
}
READS = {
    "timm": {*VARIANTS} - {"patches with a margin", "shared position", "no bias"},
    # Without a position of the class token, one of zeros is written.
    "torchvision": {"plain", "class token without a position"},
    "transformers": {"plain", "class token without a position"},
    "google": {"plain", "no class token", "class token without a position"}
    | {"mean of all tokens' norm"},
}
# Read by models with the same option; transformers has it in a file that is not written here.
UNTRIED = {("timm", "no bias"), ("transformers", "no bias"), ("google", "no bias")}
UNTRIED |= {("transformers", "scaled branches")}  # a DINOv2 there


def read_by(dialect, state, config, folder) -> nn.Module:
    """The ecosystem's own model with these weights."""
    if dialect == "google":
        return read_by_timm(folder / "w.npz", state, config)
    if dialect == "transformers":
        peer = transformers_vit(config)
        write_weights(folder / "model.safetensors", state, {"format": "pt"})
        peer.config.save_pretrained(folder)
        return type(peer).from_pretrained(folder).eval()
    peer = {"timm": timm_vit, "torchvision": torchvision_vit}[dialect](config)
    peer.load_state_dict(state, strict=True)
    return peer.eval()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dialect", READS)
def test_a_vit_is_written_as_its_reader_computes_it_or_not_at_all(dialect, name, tmp_path):
    if (dialect, name) in UNTRIED:
        pytest.skip("the peer needs an option")
    activation = "gelu_tanh" if dialect == "google" else "gelu"
    config = replace(VARIANTS[name], activation=activation)
    model = perturb(build(config))
    if name not in READS[dialect]:
        with pytest.raises(WeightError, match=dialect):
            to_dialect(model, dialect)
        return
    peer = read_by(dialect, to_dialect(model, dialect), config, tmp_path)
    assert gap(model, peer) < TOLERANCE


SIMMIM = replace(
    VIT,
    absolute_pos_embed=False,
    relative_pos_bias=True,
    key_bias=False,
    layer_scale=0.1,
    pool="mean",
    pool_norm="after",
)


@pytest.mark.parametrize("side", [(32, 32), (32, 48), (64, 16)])
def test_a_vit_of_simmim_is_written_in_names_that_beit_and_simmim_read(side):
    model = perturb(build(replace(SIMMIM, img_size=side)))
    peer = Beit(
        img_size=side,
        patch_size=VIT.patch_size,
        embed_dim=VIT.embed_dim,
        depth=VIT.depth,
        num_heads=VIT.num_heads,
        num_classes=NUM_CLASSES,
        init_values=0.1,
        use_abs_pos_emb=False,
        use_rel_pos_bias=True,
    )
    # microsoft/SimMIM has the same names.
    peer.load_state_dict(to_dialect(model, "timm"), strict=True)
    assert gap(model, peer.eval(), side) < TOLERANCE


# Files of pre-training, by the command.

DECODER = {
    "mask_token": torch.ones(1, 1, 16),
    "decoder_embed.weight": torch.ones(16, 24),
    "decoder_blocks.0.norm1.weight": torch.ones(16),
    "decoder_pred.bias": torch.ones(12),
}
OPTIONS = {
    "depth": str(VIT.depth),
    "embed_dim": str(VIT.embed_dim),
    "num_heads": str(VIT.num_heads),
    "patch_size": str(VIT.patch_size),
    "img_size": "32",
}


def test_the_norm_of_a_pretrained_mae_is_written(tmp_path, capsys):
    official = perturb(timm_vit(VIT, num_classes=0))
    write_weights(tmp_path / "mae.safetensors", official.state_dict() | DECODER)
    settings = [word for key, value in OPTIONS.items() for word in ("--set", f"{key}={value}")]
    arguments = ["convert", str(tmp_path / "mae.safetensors"), str(tmp_path / "w.safetensors")]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--model", "mae_vit_base_patch16", "--to", "timm", *settings])
    assert ended.value.code == 0
    assert "left out: 4" in capsys.readouterr().out
    peer = timm_vit(VIT, num_classes=0)
    peer.load_state_dict(read_weights(tmp_path / "w.safetensors").tensors, strict=True)
    assert gap(official, peer.eval()) == 0


def test_a_head_on_a_layer_that_is_not_here_is_left_out(tmp_path):
    state = to_dialect(build(replace(VIT, activation="gelu_tanh")), "google") | {
        "pre_logits/kernel": torch.ones(24, 24),
        "pre_logits/bias": torch.ones(24),
    }
    np.savez(tmp_path / "a.npz", **{name: tensor.numpy() for name, tensor in state.items()})
    done = convert_weights(
        tmp_path / "a.npz",
        tmp_path / "b.safetensors",
        name="vit_base_patch16_224",
        to="timm",
        settings=OPTIONS.items(),
    )
    left = {"pre_logits/kernel", "pre_logits/bias", "head/kernel", "head/bias"}
    assert (done.num_classes, set(done.left_out)) == (0, left)
    assert not [key for key in read_weights(done.path).tensors if key.startswith("head")]


def test_random_values_are_not_written(tmp_path):
    # The maps of a dense backbone have norms that a classifier lacks.
    write_weights(tmp_path / "a.safetensors", to_dialect(build(SWIN), "timm"))
    options = {"embed_dim": "16", "depths": "2,2,2", "num_heads": "1,2,4", "window_size": "4"}
    options |= {"img_size": "32", "patch_size": "2", "out_indices": "0,1,2", "out_norm": "each"}
    with pytest.raises(WeightError, match=r"norm"):
        convert_weights(
            tmp_path / "a.safetensors",
            tmp_path / "b.safetensors",
            name="swin_tiny",
            to="microsoft",
            settings=options.items(),
        )
    assert not (tmp_path / "b.safetensors").exists()


# Windows.


def test_tables_of_a_detector_are_written_whole_for_microsoft():
    # Its last map is smaller than the window at `img_size`, which a detector pads to a window.
    peer = swin_peer(replace(SWIN, window_size=8))
    weights = dense(peer)
    body = Swin(replace(SWIN, window_size=8, out_norm="each")).eval()
    file = {f"backbone.{name}": tensor for name, tensor in weights.items()} | DETECTOR
    assert muntin.load_weights(body, file).size_rule == "openmmlab"
    written = to_dialect(body, "microsoft")
    assert all(written[name].equal(tensor) for name, tensor in weights.items())
    twin = openmmlab(without(written, "relative_position_index"), "V1")
    config = replace(SWIN, window_size=8)
    for size in (BUILT, ALIGNED, SMALL, TINY):
        assert_maps(body, lambda x: normalised(openmmlab_maps(twin, x, config), twin), size)


LAST_SHRINKS = {"V1": replace(SWIN, window_size=8), "V2": replace(SWIN_V2, window_size=8)}


@pytest.mark.parametrize("family", LAST_SHRINKS)
@pytest.mark.parametrize("dialect", ["torchvision", "openmmlab"])
def test_a_window_that_shrinks_here_and_not_there_is_refused(dialect, family):
    # The last map is 4 tokens a side: torchvision and mmpretrain would pad it to the window.
    model = build(LAST_SHRINKS[family])
    if (dialect, family) == ("openmmlab", "V2"):
        # mmpretrain's classifiers have a window a stage, which the file records.
        model, again = perturb(model), build(LAST_SHRINKS[family])
        muntin.load_weights(again, to_dialect(model, dialect))
        assert again.backbone.config.windows == (8, 8, 4)
        assert gap(model, again) < TOLERANCE
        return
    with pytest.raises(WeightError, match=r"stage 2 .*window_size=8"):
        to_dialect(model, dialect)
    # The advice.
    other = perturb(build(replace(LAST_SHRINKS[family], window_size=4)))
    peer = swin_peer(replace(LAST_SHRINKS[family], window_size=4))
    peer.load_state_dict(to_dialect(other, "torchvision"), strict=True)
    assert gap(other, peer) < TOLERANCE


@pytest.mark.parametrize("references", [(0, 0, 0), (3, 3, 2)], ids=["alone", "fine-tuned"])
def test_torchvision_reads_the_offsets_of_a_fine_tuned_swin_v2(references):
    config = replace(SWIN_V2, pretrained_windows=references, size_rule="torchvision")
    model = perturb(build(config))
    parts = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    peer = torchvision_swin(config, **parts)
    peer.load_state_dict(to_dialect(model, "torchvision"), strict=True)
    for size in (BUILT, ALIGNED, (48, 80)):
        assert gap(model, peer.eval(), size) < TOLERANCE


def test_branches_of_deit_3_keep_the_names_of_timm():
    config = replace(VIT, layer_scale=0.1, prefix_positions=False)
    body = perturb(ViT(config))
    official = rename(to_dialect(body, "timm"), (r"ls(\d)\.gamma", r"gamma_\1"))
    again = ViT(config)
    assert muntin.load_weights(again, official).reset == ()
    assert to_dialect(again, "timm").keys() == to_dialect(body, "timm").keys()
    assert all(to_dialect(again, "timm")[k].equal(x) for k, x in to_dialect(body, "timm").items())
