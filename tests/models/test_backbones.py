# SPDX-License-Identifier: Apache-2.0
"""Every backbone family, by table: shapes, gradients, repeatability, configs, export, types."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from muntin.configs import from_dict, to_dict
from muntin.errors import ConfigError, ShapeError
from muntin.features import Backbone
from muntin.heads.classification_head import LinearHead
from muntin.heads.network import Network
from muntin.models.swin import Swin, SwinConfig
from muntin.models.vit import ViT, ViTConfig
from muntin.models.vit_det import ViTDet, ViTDetConfig
from muntin.ops.positions import SIZE_RULES

SWIN = SwinConfig(
    embed_dim=8,
    depths=(2, 2, 1),
    num_heads=(1, 2, 4),
    window_size=4,
    img_size=(32, 32),
    patch_size=2,
    out_indices=(0, 1, 2),
    drop_path_rate=0.0,
)
VIT = ViTConfig(embed_dim=12, depth=2, num_heads=3, patch_size=8, img_size=(32, 32))
VIT_DET = ViTDetConfig(
    embed_dim=12,
    depth=2,
    num_heads=3,
    global_blocks=(-1,),
    window_size=3,
    patch_size=8,
    img_size=(32, 32),
    pretrain_img_size=(16, 16),
)

CONFIGS = {
    "swin": SWIN,
    "swin, window a stage": replace(SWIN, window_size=(2, 4, 3)),
    "swin, absolute positions": replace(SWIN, absolute_pos_embed=True, patch_norm=False),
    "swin, no qkv bias": replace(SWIN, qkv_bias=False, mlp_ratio=2.5),
    "swin, tanh": replace(SWIN, activation="gelu_tanh"),
    "swin, two maps": replace(SWIN, out_indices=(0, 1), out_norm="none"),
    "swin, one map": replace(SWIN, out_indices=(2,), in_chans=3),
    "swin, sdpa": replace(SWIN, attention="sdpa"),
    "vit": VIT,
    "vit, mean": replace(VIT, pool="mean", pool_norm="after"),
    "vit, mean, no class token": replace(VIT, pool="mean", class_token=False),
    "vit, no positions": replace(VIT, absolute_pos_embed=False, qkv_bias=False),
    "vit, logistic": replace(VIT, activation="quick_gelu"),
    "vit, registers": replace(VIT, registers=2, layer_scale=0.1, activation="swiglu"),
    "vit, registers without positions": replace(
        VIT, registers=1, prefix_positions=False, pool="token_and_mean"
    ),
    "vit_det": VIT_DET,
    "vit_det, two maps": replace(VIT_DET, out_indices=(0, -1), window_size=2),
    "vit, two maps": replace(VIT, out_indices=(0, -1), out_norm="none"),
}
# Batch 1, not square, smaller than a window, one patch, no multiple of anything.
AWKWARD = [(2, 32, 32), (1, 32, 64), (1, 37, 59), (3, 6, 10), (1, 1, 1), (1, 8, 70)]

tables = pytest.mark.parametrize("name", CONFIGS)


def build(config):
    return {SwinConfig: Swin, ViTConfig: ViT, ViTDetConfig: ViTDet}[type(config)](config)


def pixels(batch, height, width):
    return torch.randn(batch, 3, height, width)


@tables
@pytest.mark.parametrize("shape", AWKWARD)
def test_maps_have_the_shapes_that_spec_promises(name, shape):
    body = build(CONFIGS[name]).eval()
    assert isinstance(body, Backbone)
    batch, height, width = shape
    with torch.no_grad():
        maps = body(pixels(*shape))
        embedded = body.embed(pixels(*shape))
    assert len(maps) == len(body.spec.channels) == len(body.spec.strides)
    for features, channels, stride in zip(maps, body.spec.channels, body.spec.strides, strict=True):
        assert features.shape == (batch, channels, -(-height // stride), -(-width // stride))
        assert features.isfinite().all()
    assert embedded.shape == (batch, body.embed_channels)


@tables
def test_gradient_reaches_every_parameter(name):
    config = CONFIGS[name]
    body = build(config)
    model = Network(body, LinearHead(body.embed_channels, 3))
    images = pixels(2, 37, 59).requires_grad_()
    loss = model(images).square().sum() + sum(part.square().sum() for part in body(images))
    loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key
    assert images.grad.any()


@tables
def test_calls_repeat_and_forget(name):
    body = build(CONFIGS[name]).eval()
    before = vars(body).copy(), body.state_dict()
    large, small = pixels(1, 64, 96), pixels(2, 6, 10)
    with torch.no_grad():
        first = body(large)
        body(small)
        second = body(large)
    assert all(torch.equal(left, right) for left, right in zip(first, second, strict=True))
    assert vars(body) == before[0]
    assert body.state_dict().keys() == before[1].keys()


@tables
def test_an_image_does_not_depend_on_its_batch(name):
    body = build(CONFIGS[name]).eval()
    images = pixels(3, 37, 59)
    with torch.no_grad():
        together = body(images)[-1]
        alone = torch.cat([body(image[None])[-1] for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@tables
def test_state_dict_and_config_round_trip(name):
    config = CONFIGS[name]
    assert from_dict(type(config), to_dict(config)) == config
    body, other = build(config).eval(), build(config).eval()
    other.load_state_dict(body.state_dict())
    images = pixels(1, 37, 59)
    with torch.no_grad():
        for left, right in zip(body(images), other(images), strict=True):
            assert torch.equal(left, right)


@tables
def test_meta_device_builds_the_same_parameters(name):
    with torch.device("meta"):
        body = build(CONFIGS[name])
    real = {key: tensor.shape for key, tensor in build(CONFIGS[name]).state_dict().items()}
    assert {key: tensor.shape for key, tensor in body.state_dict().items()} == real


EXPORTED = [
    ("swin", (32, 32)),
    *((name, (37, 59)) for name in ("swin", "vit", "vit, mean", "vit_det")),
    # Without padding a graph is part of those above.
    *(
        pytest.param(name, (32, 32), marks=pytest.mark.slow)
        for name in ("vit", "swin, window a stage", "vit, mean", "vit_det")
    ),
    pytest.param("swin, window a stage", (37, 59), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "size"), EXPORTED)
def test_export_equals_eager(name, size):
    body = build(CONFIGS[name]).eval()
    images = pixels(2, *size)
    exported = torch.export.export(body, (images,)).module()
    with torch.no_grad():
        for left, right in zip(exported(images), body(images), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


@tables
@pytest.mark.parametrize("size", [(32, 32), (37, 59)])
def test_bfloat16_is_close_to_float32(name, size):
    body = build(CONFIGS[name]).eval()
    images = pixels(1, *size)
    with torch.no_grad():
        expected = body(images)
        with torch.autocast("cpu", torch.bfloat16):
            under_autocast = body(images)
        half = build(CONFIGS[name]).eval()
        half.load_state_dict(body.state_dict())
        whole = half.bfloat16()(images.bfloat16())
    for got in (under_autocast, whole):
        for left, right in zip(got, expected, strict=True):
            assert (left.float() - right).abs().max() < 0.1 * right.abs().max()


@tables
def test_channels_last_and_non_contiguous_images_run(name):
    body = build(CONFIGS[name]).eval()
    images = pixels(2, 36, 60)
    with torch.no_grad():
        expected = body(images)[-1]
        for same in (
            images.to(memory_format=torch.channels_last),
            images.transpose(2, 3).contiguous().transpose(2, 3),
        ):
            torch.testing.assert_close(body(same)[-1], expected, rtol=1e-4, atol=1e-5)


def test_nan_pixel_stays_in_its_image():
    body = build(SWIN).eval()
    images = pixels(2, 32, 32)
    images[0, 0, 0, 0] = torch.nan
    with torch.no_grad():
        maps = body(images)[-1]
    assert maps[0].isnan().any()
    assert maps[1].isfinite().all()


@pytest.mark.parametrize("build_config", [SWIN, VIT], ids=["swin", "vit"])
@pytest.mark.parametrize("rule", SIZE_RULES)
def test_every_size_rule_runs_where_it_says_so(rule, build_config):
    body = build(replace(build_config, size_rule=rule)).eval()
    with torch.no_grad():
        assert body(pixels(1, 64, 32))[-1].isfinite().all()
        if SIZE_RULES[rule].patch == "refuse":
            with pytest.raises(ShapeError, match=r"patch_size=\d.*\b37\b.*\b59\b"):
                body(pixels(1, 37, 59))
        else:
            assert body(pixels(1, 37, 59))[-1].isfinite().all()


@pytest.mark.parametrize("name", ["swin", "vit"])
def test_drop_path_and_dropout_act_in_training_only(name):
    rates = {"drop_path_rate": 0.5, "drop_rate": 0.2, "attn_drop_rate": 0.2}
    body = build(replace(CONFIGS[name], **rates))
    images = pixels(2, 32, 32)
    assert not torch.equal(body(images)[-1], body(images)[-1])
    body.eval()
    plain = build(CONFIGS[name]).eval()
    plain.load_state_dict(body.state_dict())
    assert torch.equal(body(images)[-1], plain(images)[-1])


def test_head_without_classes_gives_the_vector():
    body = build(SWIN).eval()
    model = Network(body, LinearHead(body.embed_channels, 0)).eval()
    images = pixels(2, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(images), body.embed(images))


WRONG = [
    (SWIN, {"num_heads": (1, 2)}, "depths"),
    (SWIN, {"depths": ()}, "depths"),
    (SWIN, {"window_size": (4, 4)}, "window_size"),
    (SWIN, {"window_size": 0}, "window_size"),
    (SWIN, {"num_heads": (1, 2, 5)}, r"num_heads=\(1, 2, 5\).*\(8, 16, 32\)"),
    (SWIN, {"img_size": (0, 32)}, "img_size"),
    (SWIN, {"out_indices": (0, 3)}, "out_indices.*0 to 2"),
    (SWIN, {"out_indices": ()}, "out_indices.*0 to 2"),
    (SWIN, {"out_indices": (1, 0, 2)}, r"out_indices.*\(1, 0, 2\)"),
    (SWIN, {"out_indices": (0, 1)}, 'out_norm="last".*out_indices|out_indices.*out_norm="last"'),
    (SWIN, {"drop_path_rate": 1.0}, r"drop_path_rate.*1\.0"),
    (VIT, {"depth": 0}, "depth"),
    (VIT, {"num_heads": 5}, "num_heads=5.*embed_dim=12"),
    (VIT, {"img_size": (4, 32)}, r"img_size=\(4, 32\).*\b8\b"),
    (VIT, {"class_token": False}, 'pool="token".*class_token=True'),
    (VIT, {"class_token": False, "pool": "token_and_mean"}, "token_and_mean.*class_token=True"),
    (VIT, {"registers": -1}, "registers.*-1"),
    (VIT, {"registers": 1, "relative_pos_bias": True}, "relative_pos_bias"),
    (VIT, {"out_indices": (2,)}, "out_indices.*0 to 1"),
    (VIT, {"out_indices": (1, 0)}, r"out_indices.*\(1, 0\)"),
    (VIT, {"out_indices": (0,)}, 'out_norm="last".*out_indices|out_indices.*out_norm="last"'),
    (VIT, {"drop_path_rate": -0.1}, "drop_path_rate.*-0.1"),
    (VIT_DET, {"global_blocks": (2,)}, r"global_blocks.*depth=2.*\(2,\)"),
    (VIT_DET, {"num_heads": 5}, "num_heads=5.*embed_dim=12"),
    (VIT_DET, {"pretrain_img_size": (4, 32)}, r"patch of 8"),
    (VIT_DET, {"window_size": 0}, "window"),
    (VIT_DET, {"out_indices": (2,)}, "out_indices.*0 to 1"),
]


@pytest.mark.parametrize(("config", "changes", "text"), WRONG)
def test_wrong_configs_are_refused(config, changes, text):
    with pytest.raises(ConfigError, match=text):
        replace(config, **changes)
