# SPDX-License-Identifier: Apache-2.0
"""Files of weights from one ecosystem to another, and models with another window or size."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product

import pytest
import torch

from muntin.commands import main
from muntin.errors import ConfigError, WeightError
from muntin.models.swin_v2 import SwinV2
from muntin.weights.dialects import to_dialect
from muntin.weights.weight_files import read_weights, write_weights
from muntin.weights.weight_loading import load_weights
from muntin.zoo import change_model, create_backbone, create_model, find_model
from muntin.zoo.weight_conversion import convert_weights

NANO = "swin_nano_patch4_window4_64"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)
    model = create_model(NANO, num_classes=6)
    path = tmp_path_factory.mktemp("weights") / "timm.safetensors"
    texts = {"class_names": '["a", "b"]', "license": "CC-BY-NC-4.0"}
    write_weights(path, to_dialect(model, "timm"), texts)
    return path


pytestmark = pytest.mark.filterwarnings("ignore:weights from .* no commercial use")


@pytest.mark.parametrize(
    ("to", "suffix"),
    [
        *product(["timm", "torchvision", "transformers", "openmmlab", "muntin"], [".safetensors"]),
        ("microsoft", ".pth"),
    ],
)
def test_there_and_back_is_bit_exact(source, tmp_path, to, suffix):
    there, back = tmp_path / f"there{suffix}", tmp_path / "back.safetensors"
    done = convert_weights(source, there, name=NANO, to=to)
    assert done.num_classes == 6
    assert done.report.dialect == "timm"
    assert convert_weights(there, back, name=NANO, to="timm").report.dialect == to
    before, after = read_weights(source), read_weights(back)
    assert before.tensors.keys() == after.tensors.keys()
    assert all(torch.equal(after.tensors[key], before.tensors[key]) for key in before.tensors)
    if suffix == ".safetensors":
        texts = read_weights(there).metadata
        assert texts["license"] == "CC-BY-NC-4.0"
        assert texts["class_names"] == '["a", "b"]'


def test_a_vit_round_trips_with_google(tmp_path):
    name = "vit_tiny_patch16_224"
    model = create_model(name, num_classes=3)
    write_weights(tmp_path / "a.safetensors", model.state_dict())
    convert_weights(tmp_path / "a.safetensors", tmp_path / "b.npz", name=name, to="google")
    again = create_model(name, num_classes=3)
    assert load_weights(again, tmp_path / "b.npz").dialect == "google"
    state = model.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in again.state_dict().items())


def test_a_backbone_converts_to_detectron2_without_its_head(tmp_path):
    body = create_backbone(NANO, out_norm="each")
    state = to_dialect(body, "detectron2")
    assert "backbone.bottom_up.norm2.weight" in state
    again = create_backbone(NANO, out_norm="each")
    assert load_weights(again, {"model": state}).size_rule == "openmmlab"
    assert torch.equal(again.norm2.weight, body.norm2.weight)


def test_unsupported_conversions_are_rejected(source, tmp_path):
    with pytest.raises(WeightError, match=r"\.npz.*a\.txt"):
        convert_weights(source, tmp_path / "a.txt", name=NANO, to="timm")
    with pytest.raises(WeightError, match=r"'tim'.*'timm'"):
        convert_weights(source, tmp_path / "a.pth", name=NANO, to="tim")
    with pytest.raises(WeightError, match="T2T"):
        convert_weights(source, tmp_path / "a.pth", name="t2t_vit_7", to="timm")
    with pytest.raises(WeightError, match="Swin"):
        convert_weights(source, tmp_path / "a.pth", name="swin_tiny", to="timm")
    settings = [("window_size", "8"), ("img_size", "128")]
    with pytest.raises(WeightError, match=r"window_size|relative_position_bias_table"):
        convert_weights(source, tmp_path / "a.pth", name=NANO, to="timm", settings=settings)
    assert not list(tmp_path.iterdir())
    with pytest.raises(WeightError, match=re.escape(str(source))):
        convert_weights(source, source, name=NANO, to="timm")


def test_a_model_that_was_built_otherwise_is_converted_as_it_was_built(tmp_path):
    model = create_model(NANO, num_classes=2, in_chans=1, depths=(1, 1, 1), img_size=96)
    write_weights(tmp_path / "a.safetensors", to_dialect(model, "timm"))
    done = convert_weights(
        tmp_path / "a.safetensors",
        tmp_path / "b.safetensors",
        name=NANO,
        to="microsoft",
        settings=[("depths", "1,1,1"), ("img_size", "96")],
    )
    assert done.num_classes == 2


def test_a_model_of_timm_is_converted(tmp_path):
    model = create_model("timm:resnet10t", num_classes=3, in_chans=4)
    write_weights(tmp_path / "a.safetensors", to_dialect(model, "timm"))
    paths = (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert convert_weights(*paths, name="timm:resnet10t", to="muntin").num_classes == 3
    other = create_model("timm:resnet10t", num_classes=3, in_chans=1)
    assert load_weights(other, paths[1]).resized == ("backbone.net.conv1.0.weight",)


def test_tables_of_smaller_windows_are_refused_with_a_size_that_fits(tmp_path):
    model = create_model("swin_nano", img_size=56, window_size=7, num_classes=3)
    write_weights(tmp_path / "in.safetensors", to_dialect(model, "muntin"), {})
    out, fields = tmp_path / "out.safetensors", {"window_size": "7", "img_size": "56"}
    out.write_bytes(b"of before")
    given = {"name": "swin_nano", "to": "timm", "force": True}
    with pytest.raises(WeightError, match=r"of timm.*img_size=224"):
        convert_weights(tmp_path / "in.safetensors", out, settings=fields.items(), **given)
    assert out.read_bytes() == b"of before"
    fields["img_size"] = "224"
    convert_weights(tmp_path / "in.safetensors", out, settings=fields.items(), **given)
    assert {path.name for path in tmp_path.iterdir()} == {"in.safetensors", "out.safetensors"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_half_precision(tmp_path, dtype):
    state = to_dialect(create_model(NANO, num_classes=3), "timm")
    half = {key: tensor.to(dtype) for key, tensor in state.items()}
    write_weights(tmp_path / "a.safetensors", half)
    convert_weights(
        tmp_path / "a.safetensors", tmp_path / "b.safetensors", name=NANO, to="torchvision"
    )
    convert_weights(tmp_path / "b.safetensors", tmp_path / "c.safetensors", name=NANO, to="timm")
    back = read_weights(tmp_path / "c.safetensors").tensors
    assert all(torch.equal(back[key], tensor) for key, tensor in half.items())
    assert back["norm.weight"].dtype is dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_positions_that_become_part_of_tokens_change_no_output(tmp_path, dtype):
    fields = {"registers": 2, "img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2}
    name = "vit_tiny_patch16_224"
    model = create_model(name, num_classes=3, **fields).to(dtype).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter).to(dtype))
    state = {key: tensor.to(dtype) for key, tensor in model.state_dict().items()}
    write_weights(tmp_path / "a.safetensors", state)
    settings = [(key, str(value)) for key, value in fields.items()]
    done = convert_weights(
        tmp_path / "a.safetensors", tmp_path / "b.safetensors",
        name=name, to="timm", settings=settings,
    )  # fmt: skip
    written = read_weights(done.path).tensors
    assert written["pos_embed"].shape[1] == 4
    assert written["head.weight"].dtype is dtype
    body = model.backbone
    assert torch.equal(written["cls_token"], body.cls_token + body.pos_embed[:, :1])
    again = create_model(name, num_classes=3, **fields).eval()
    load_weights(again, done.path)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(again(images), model(images))


def test_an_explicit_size_rule_is_kept(source):
    model = create_model(NANO, num_classes=6, weights=source, size_rule="muntin").eval()
    assert model(torch.rand(1, 3, 37, 50)).shape == (1, 6)
    assert create_model(NANO, num_classes=6, weights=source).backbone.config.size_rule == "timm"


def test_another_number_of_stages_outputs_all():
    body = create_backbone("swinv2_tiny", embed_dim=24, depths=(1, 1), num_heads=(1, 2))
    assert body.spec.channels == (24, 48)


def test_the_command_reports_the_conversion(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("warnings.showwarning", None)
    out = str(tmp_path / "b.pth")
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(source), out, "--model", NANO, "--to", "microsoft"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    for token in ("timm", "microsoft", "6", "CC-BY-NC-4.0", out):
        assert token in said


def test_another_window_and_size_after_loading():
    model = create_model(NANO, num_classes=3).eval()
    changed = change_model(model, window_size=8, img_size=128)
    assert model.backbone.config.window_size == 4
    assert changed.backbone.config.window_size == 8
    assert not changed.training
    assert changed(torch.rand(1, 3, 100, 70)).shape == (1, 3)
    same = change_model(model, window_size=4)
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(same(images), model(images))
    with pytest.raises(ConfigError, match=r"'windw_size'.*'window_size'"):
        change_model(model, windw_size=3)
    with pytest.raises(WeightError, match=r"patch_embed\.proj\.weight"):
        change_model(model, embed_dim=96)


def test_continuous_positions_need_no_table_for_another_window():
    config = replace(find_model("swinv2_tiny").config, embed_dim=24, depths=(1, 1, 1, 1))
    body = SwinV2(config).eval()
    wide = change_model(body, window_size=16, pretrained_windows=(8, 8, 8, 8))
    assert wide.state_dict().keys() == body.state_dict().keys()
    assert all(torch.equal(wide.state_dict()[k], t) for k, t in body.state_dict().items())
    assert [m.shape[2] for m in wide(torch.rand(1, 3, 256, 256))] == [64, 32, 16, 8]


def test_patches_and_channels_after_loading():
    model = create_model("vit_tiny", num_classes=3, depth=1).eval()
    changed = change_model(model, patch_size=8, in_chans=4, img_size=112)
    assert changed(torch.rand(1, 4, 112, 112)).shape == (1, 3)
