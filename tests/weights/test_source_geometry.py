# SPDX-License-Identifier: Apache-2.0
"""Weights made for another image size: on their own grid, by the rule of their ecosystem."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models.beit import Beit
from timm.models.beit import checkpoint_filter_fn as filter_of_beit
from torchvision.models.vision_transformer import interpolate_embeddings

import muntin
from muntin.errors import WeightError
from muntin.published import open_published
from muntin.weights.dialects import to_dialect
from muntin.zoo.weight_conversion import convert_weights
from tests.parity.peers import TOLERANCE, distance, perturb

SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 3}
BICUBIC = {"mode": "bicubic"}


def vit(img_size, name="vit_tiny_patch16_224", **fields):
    return perturb(muntin.create_model(name, num_classes=5, img_size=img_size, **SMALL, **fields))


def run(model, size, seed=3):
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model(images)


def stretch(positions, old, new, prefix=1, **how):
    """Positions on another grid, by a formula of its own."""
    grid = positions[:, prefix:].reshape(1, *old, -1).permute(0, 3, 1, 2)
    if "scale_factor" not in how:
        how["size"] = new
    grid = F.interpolate(grid, **how).flatten(2).transpose(1, 2)
    return torch.cat([positions[:, :prefix], grid], dim=1)


SIZES = [(64, 256), (128, 512), (256, 64), (96, 48), (128, 128)]


@pytest.mark.parametrize("new", SIZES)
@pytest.mark.parametrize("old", [(64, 256), (128, 48), (64, 64)])
def test_a_changed_model_keeps_the_grid_of_its_positions(old, new):
    model = vit(old)
    changed = muntin.change_model(model, img_size=new)
    grids = [(height // 16, width // 16) for height, width in (old, new)]
    expected = stretch(model.backbone.pos_embed, *grids, antialias=True, **BICUBIC)
    if old == new:
        expected = model.backbone.pos_embed
    torch.testing.assert_close(changed.backbone.pos_embed, expected)
    assert distance(run(changed, new), run(model, new)) < TOLERANCE


OTHERS = {
    "swin": (
        "swin_nano_patch4_window4_64",
        {"embed_dim": 12, "depths": (1, 2, 1), "absolute_pos_embed": True},
    ),
    "hiera": ("hiera_tiny_224", {"embed_dim": 12, "depths": (1, 1, 1, 1)}),
    "t2t_vit": ("t2t_vit_7", {"embed_dim": 24, "depth": 1, "num_heads": 2, "token_dim": 8}),
    "swin_v2": (
        "swinv2_tiny_window8_256",
        {"embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2), "bias_hidden": 8},
    ),
}


@pytest.mark.parametrize("new", [(96, 192), (64, 64), (192, 96)])
@pytest.mark.parametrize("family", OTHERS)
def test_every_family_keeps_its_function_at_another_size(family, new):
    name, fields = OTHERS[family]
    model = perturb(muntin.create_model(name, num_classes=5, img_size=(64, 128), **fields))
    changed = muntin.change_model(model, img_size=new)
    assert distance(run(changed, new), run(model, new)) < TOLERANCE


def scaled(grid):
    return {"scale_factor": [(side + 0.1) / 4 for side in grid], "mode": "bicubic"}


CONVENTIONS = {
    "timm": ("timm", lambda state: state, lambda grid: {"antialias": True, **BICUBIC}),
    "deit": ("timm", lambda state: {"model": state}, lambda grid: BICUBIC),
    "mae": (
        "timm",
        lambda state: {**state, "decoder_embed.weight": torch.zeros(4, 24)},
        lambda grid: BICUBIC,
    ),
    "dinov2": ("timm", lambda state: {**state, "mask_token": torch.zeros(1, 24)}, scaled),
    "transformers": ("transformers", lambda state: state, lambda grid: BICUBIC),
    "openmmlab": ("openmmlab", lambda state: state, lambda grid: BICUBIC),
    "torchvision": (
        "torchvision",
        lambda state: state,
        lambda grid: {"align_corners": True, **BICUBIC},
    ),
    "google": (
        "google",
        lambda state: state,
        lambda grid: {"mode": "bilinear", "align_corners": True},
    ),
}


@pytest.mark.parametrize("new", [(96, 96), (32, 80), (112, 64)])
@pytest.mark.parametrize("name", CONVENTIONS)
def test_positions_follow_the_rule_of_their_ecosystem(name, new):
    dialect, wrap, how = CONVENTIONS[name]
    source = vit((64, 64))
    state = wrap(to_dialect(source, dialect))
    same, other = vit((64, 64)), vit(new)
    first, second = muntin.load_weights(same, state), muntin.load_weights(other, state)
    assert first.dialect == dialect
    assert first.size_rule == second.size_rule != ""
    assert second.resized == ("backbone.pos_embed",)
    grid = (new[0] // 16, new[1] // 16)
    expected = stretch(source.backbone.pos_embed, (4, 4), grid, **how(grid))
    torch.testing.assert_close(other.backbone.pos_embed, expected)
    assert distance(run(other, new), run(same, new)) < TOLERANCE
    again = muntin.change_model(same, img_size=new)
    assert distance(run(again, new), run(same, new)) < TOLERANCE


def test_positions_of_torchvision_are_those_of_its_own_function():
    source = vit((64, 64))
    state = to_dialect(source, "torchvision")
    theirs = interpolate_embeddings(96, 16, dict(state))["encoder.pos_embedding"]
    model = vit((96, 96))
    muntin.load_weights(model, state)
    torch.testing.assert_close(model.backbone.pos_embed, theirs)


def beit(size):
    table = {"use_abs_pos_emb": False, "use_rel_pos_bias": True, "init_values": 0.1}
    return perturb(Beit(img_size=size, patch_size=16, num_classes=5, **table, **SMALL))


def ours_of_beit(size):
    fields = {"absolute_pos_embed": False, "relative_pos_bias": True, "key_bias": False}
    return vit(size, **fields, layer_scale=0.1, pool="mean", pool_norm="after")


ignore_timm = pytest.mark.filterwarnings(
    "ignore:Using a non-tuple", "ignore:torch.searchsorted", "ignore:non-square"
)


@ignore_timm
@pytest.mark.parametrize("new", [(64, 128), (128, 64), (96, 96)])
def test_tables_of_beit_are_resized_as_timm_does(new):
    source, peer = beit((64, 64)), beit(new)
    peer.load_state_dict(filter_of_beit(dict(source.state_dict()), peer))
    same, model = ours_of_beit((64, 64)), ours_of_beit(new)
    muntin.load_weights(same, source.state_dict())
    assert len(muntin.load_weights(model, source.state_dict()).resized) == 2
    for one in (model, same, muntin.change_model(same, img_size=new)):
        assert distance(run(one, new), run(peer, new)) < TOLERANCE


@ignore_timm
def test_tables_of_a_grid_that_is_no_square_are_resized_by_rows_and_columns():
    source = beit((64, 128))
    model = ours_of_beit((64, 128))
    muntin.load_weights(model, source.state_dict())
    for new in ((96, 160), (128, 64), (64, 64)):
        peer = copy.deepcopy(source)
        peer.set_input_size(img_size=new)
        changed = muntin.change_model(model, img_size=new)
        assert distance(run(changed, new), run(peer, new)) < TOLERANCE


def test_a_square_that_nothing_tells_is_said():
    model = vit((96, 160))
    report = muntin.load_weights(model, to_dialect(vit((64, 64)), "timm"))
    assert "square" in report.assumed
    assert report.assumed in report.summary()
    told = muntin.load_weights(model, to_dialect(vit((64, 64)), "timm"), made_with={"img_size": 64})
    assert not told.assumed
    assert not muntin.load_weights(vit((96, 96)), to_dialect(vit((64, 64)), "timm")).assumed


def test_a_grid_that_is_no_square_is_said_even_where_nothing_is_resized():
    source, model = vit((64, 96)), vit((96, 64))
    state = to_dialect(source, "timm")
    assert "6 x 4" in muntin.load_weights(model, state).assumed
    told = muntin.load_weights(model, state, made_with={"img_size": (64, 96)})
    assert (told.assumed, told.resized) == ("", ("backbone.pos_embed",))
    muntin.load_weights(source, state)
    assert distance(run(model, (96, 64)), run(source, (96, 64))) < TOLERANCE


def test_a_file_that_describes_another_size_is_not_believed(tmp_path):
    save_file(dict(vit((96, 96)).state_dict()), tmp_path / "model.safetensors")
    described = {"architecture": "vit", "pretrained_cfg": {"input_size": [3, 64, 64]}}
    (tmp_path / "config.json").write_text(json.dumps(described), encoding="utf-8")
    assert not muntin.load_weights(vit((96, 96)), tmp_path).resized
    assert muntin.load_weights(vit((64, 64)), tmp_path).resized == ("backbone.pos_embed",)


def test_a_grid_that_nothing_tells_is_asked_for():
    source = vit((64, 256))
    state = to_dialect(source, "timm")
    for size, grids in (((128, 512), "8 x 8 or 4 x 16"), ((384, 128), "")):
        model = vit(size)
        before = model.backbone.pos_embed.clone()
        if grids:
            with pytest.raises(WeightError, match=rf"65 positions.*{grids}.*made_with"):
                muntin.load_weights(model, state)
            assert torch.equal(model.backbone.pos_embed, before)
        muntin.load_weights(model, state, made_with={"img_size": (64, 256)})
        muntin.load_weights(source, state)
        assert distance(run(model, size), run(source, size)) < TOLERANCE
    with pytest.raises(WeightError, match=r"made_with.*\(4, 8\).*65 positions|\(4, 8\).*65"):
        muntin.load_weights(vit((32, 32)), state, made_with={"img_size": (64, 128)})


def test_a_number_that_is_no_square_is_asked_for_and_the_advice_helps(tmp_path):
    source = vit((128, 64))
    state = {key: tensor.contiguous() for key, tensor in to_dialect(source, "timm").items()}
    save_file(state, tmp_path / "theirs.safetensors")
    model = vit((96, 192))
    with pytest.raises(WeightError, match=r"33 positions.*convert"):
        muntin.load_weights(model, tmp_path / "theirs.safetensors")
    settings = [(key, str(value)) for key, value in {**SMALL, "img_size": "128,64"}.items()]
    convert_weights(
        tmp_path / "theirs.safetensors",
        tmp_path / "ours.safetensors",
        name="vit_tiny_patch16_224",
        to="muntin",
        settings=settings,
    )
    muntin.load_weights(model, tmp_path / "ours.safetensors")
    assert distance(run(model, (96, 192)), run(source, (96, 192))) < TOLERANCE


BESIDE = {
    "a run": {"task": "classify", "model": {"kind": "vit", "img_size": [64, 256]}},
    "transformers": {"model_type": "vit", "image_size": [64, 256], "patch_size": 16},
    "a ViTPose of transformers": {"backbone_config": {"image_size": [64, 256]}},
    "timm": {"architecture": "vit", "pretrained_cfg": {"input_size": [3, 64, 256]}},
}


@pytest.mark.parametrize("kind", BESIDE)
def test_the_config_beside_a_file_tells_the_grid(tmp_path, kind):
    source = vit((64, 256))
    save_file(dict(source.state_dict()), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(BESIDE[kind]), encoding="utf-8")
    model = vit((256, 64))
    muntin.load_weights(model, tmp_path)
    assert distance(run(model, (256, 64)), run(source, (256, 64))) < TOLERANCE


@pytest.mark.parametrize("content", ["[1]", '{"model": {"img_size": "large"}}', '{"model": 3}'])
def test_a_config_that_tells_nothing_is_no_hindrance(tmp_path, content):
    source = vit((64, 64))
    save_file(dict(source.state_dict()), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    model = vit((96, 96))
    assert muntin.load_weights(model, tmp_path).resized == ("backbone.pos_embed",)


@pytest.mark.parametrize("new", [(384, 288), (256, 256), (128, 96), (224, 224)])
@pytest.mark.parametrize("dialect", ["muntin", "transformers"])
def test_a_vitpose_may_have_another_size(dialect, new):
    def build(size):
        return perturb(
            muntin.create_pose_estimator("vitpose_base", num_keypoints=5, img_size=size, **SMALL)
        )

    source = build((256, 192))
    model = build(new)
    state = to_dialect(source, dialect)
    muntin.load_weights(model, state)
    muntin.load_weights(source, state)
    assert distance(run(model, new), run(source, new)) < TOLERANCE


def test_a_published_vitpose_is_fine_tuned_at_another_size(tmp_path):
    source = muntin.create_pose_estimator("vitpose_base", head="vitpose", num_keypoints=17, **SMALL)
    perturb(source)
    save_file(dict(source.state_dict()), tmp_path / "vitpose.safetensors")
    settings = {key: str(value) for key, value in SMALL.items()}
    run_of, _ = open_published(
        tmp_path / "vitpose.safetensors",
        tmp_path / "run",
        model="vitpose_base",
        head="vitpose",
        settings=settings,
    )
    for new in ((128, 96), (96, 128)):
        model = muntin.create_pose_estimator(
            "vitpose_base", head="vitpose", num_keypoints=17, img_size=new, **SMALL
        ).eval()
        muntin.load_weights(model, run_of.path)  # as `muntin train pose ... --weights RUN` does
        assert distance(run(model, new), run(source, new)) < TOLERANCE


@pytest.mark.parametrize("size", [(250, 190), (252, 196), (240, 183), (257, 193)])
def test_a_vitpose_drops_what_is_no_whole_patch(size):
    body = perturb(muntin.create_backbone("vitpose_base", **SMALL))
    images = torch.randn(1, 3, *size)
    grid = F.conv2d(images, torch.zeros(1, 3, 16, 16), stride=16, padding=2).shape[2:]
    assert body.mask_grid(size) == tuple(grid)
    assert body(images)[0].shape[2:] == grid
    assert math.prod(grid) > 0


V2 = {
    "embed_dim": 12,
    "depths": (2, 2, 1),
    "num_heads": (1, 2, 4),
    "bias_hidden": 8,
    "window_size": 4,
    "img_size": (64, 64),
}


@pytest.mark.parametrize("changes", [{"window_size": 8}, {"window_size": 6, "img_size": (96, 128)}])
def test_a_swin_v2_keeps_the_offsets_of_its_own_window(changes):
    model = perturb(muntin.create_model("swinv2_tiny_window8_256", num_classes=5, **V2))
    changed = muntin.change_model(model, **changes)
    assert changed.backbone.config.pretrained_windows == (4, 4, 4)
    size = changes.get("img_size", (64, 64))
    twin = muntin.create_model(
        "swinv2_tiny_window8_256", num_classes=5, **{**V2, **changes}, pretrained_windows=(4, 4, 4)
    ).eval()
    twin.load_state_dict(model.state_dict())
    assert distance(run(changed, size), run(twin, size)) < TOLERANCE
    free = muntin.change_model(model, **changes, pretrained_windows=(0, 0, 0))
    assert free.backbone.config.pretrained_windows == (0, 0, 0)
    assert distance(run(free, size), run(twin, size)) > TOLERANCE


@pytest.mark.parametrize(
    "made_with", [{"pretrained_windows": (2, 2, 2)}, {"window_size": 2}, {"img_size": (64, 64)}]
)
def test_windows_are_known_without_the_size_of_images(made_with):
    fields = {**V2, **made_with}
    source = perturb(muntin.create_model("swinv2_tiny_window8_256", num_classes=5, **fields))
    model = muntin.create_model("swinv2_tiny_window8_256", num_classes=5, **V2).eval()
    state = to_dialect(source, "timm")
    state = {key: x for key, x in state.items() if "coords_table" not in key}
    report = muntin.load_weights(model, state, made_with=made_with)
    side = (made_with.get("window_size"),) * 3
    references = made_with.get("pretrained_windows", side if side[0] else (0, 0, 0))
    assert model.backbone.config.pretrained_windows == references
    assert bool(report.adopted) == ("img_size" not in made_with)
    twin = muntin.create_model(
        "swinv2_tiny_window8_256", num_classes=5, **{**V2, "pretrained_windows": references}
    ).eval()
    twin.load_state_dict(source.state_dict())
    assert distance(run(model, (64, 64)), run(twin, (64, 64))) < TOLERANCE


def test_windows_that_are_no_squares_are_refused_before_anything_is_copied():
    source = perturb(muntin.create_model("swinv2_tiny_window8_256", num_classes=5, **V2))
    model = muntin.create_model("swinv2_tiny_window8_256", num_classes=5, **V2)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state = {k: x for k, x in to_dialect(source, "timm").items() if "coords_table" not in k}
    with pytest.raises(muntin.errors.ConfigError, match=r"pretrained_windows.*\(64, 32\)"):
        muntin.load_weights(model, state, made_with={"img_size": (64, 32)})
    assert all(tensor.equal(before[key]) for key, tensor in model.state_dict().items())
