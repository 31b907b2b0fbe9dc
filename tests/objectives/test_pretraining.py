# SPDX-License-Identifier: Apache-2.0
"""Every way to learn without labels, on every family that it suits, in tiny."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from muntin.configs import replace as change
from muntin.data.batches import Batch
from muntin.data.transforms import Preprocessing, normalise
from muntin.errors import ConfigError, ShapeError
from muntin.features import Backbone, TokenMask
from muntin.heads.head_table import build_head
from muntin.heads.mae_head import MAEConfig
from muntin.heads.network import Network
from muntin.heads.simmim_head import SimMIMConfig
from muntin.objectives.objective import TrainingStep
from muntin.objectives.pretraining import PRETRAINING, choose_pretraining
from muntin.ops.gaussian_distance import sketch_gaussian
from muntin.ops.masks import Mask
from muntin.training.recompute import checkpoint_blocks, recompute_layers
from muntin.zoo.model_building import model_config
from muntin.zoo.model_zoo import MODELS, BackboneConfig, build_backbone

CPU = torch.device("cpu")
SIZE = (32, 64)
SWIN = {"embed_dim": 16, "depths": (1, 1, 1), "num_heads": (1, 1, 2), "window_size": 4}
VIT = {"embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 8}
FAMILIES = {
    "swin": ("swin_nano_patch4_window4_64", SWIN),
    "swin_v2": ("swinv2_tiny_window8_256", {**SWIN, "pretrained_windows": (0, 0, 0)}),
    "vit": ("mae_vit_base_patch16", VIT),
    "deit": ("deit_tiny_distilled_patch16_224", VIT),
    "simmim_vit": ("simmim_vit_base_patch16_224", VIT),
    "hiera": ("hiera_tiny_224", {"embed_dim": 8, "depths": (1, 1, 1, 1)}),
}
CASES = [
    (name, way, uniform)
    for name, ways in {
        "swin": ("simmim", "uniform"),
        "swin_v2": ("simmim", "uniform"),
        "vit": ("mae", "simmim"),
        "deit": ("mae", "simmim"),
        "simmim_vit": ("mae", "simmim"),
        "hiera": ("mae",),
    }.items()
    for way, uniform in (
        ("simmim", way == "uniform") if way == "uniform" else (way, False) for way in ways
    )
]


def a_model(name: str, in_chans: int = 3) -> BackboneConfig:
    family, fields = FAMILIES[name]
    fields = {**fields, "img_size": SIZE, "in_chans": in_chans, "drop_path_rate": 0.0}
    return change(model_config(family), fields)


def a_batch(in_chans: int = 3, count: int = 3) -> Batch:
    rng = np.random.default_rng(0)
    sides = torch.tensor([SIZE] * count)
    return Batch(
        images=torch.from_numpy(rng.integers(0, 256, (count, in_chans, *SIZE), dtype=np.uint8)),
        sizes=sides, originals=sides, indices=torch.arange(count), weights=torch.ones(count),
        num_real=count,
    )  # fmt: skip


def preprocess(in_chans: int = 3) -> Preprocessing:
    # Of images with more channels than 3 only what the objectives read.
    made = Preprocessing(img_size=SIZE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    for field in ("mean", "std"):
        object.__setattr__(made, field, (getattr(made, field) * 2)[:in_chans])
    return made


def prepare(name: str, way: str, uniform: bool, in_chans: int = 3):
    torch.manual_seed(0)
    row = choose_pretraining(way, a_model(name)).value
    backbone = build_backbone(row.fit_model(a_model(name, in_chans)))
    head = row.default_head(a_model(name))
    if way == "simmim" and head.uniform is not uniform:
        head = change(head, {"uniform": uniform})
    network = Network(backbone, build_head(head, backbone))
    return network, row.build_objective(head, backbone, preprocess(in_chans))


@pytest.mark.parametrize(("name", "way", "uniform"), CASES)
def test_every_parameter_learns_and_pictures_are_made(name, way, uniform):
    network, objective = prepare(name, way, uniform)
    torch.manual_seed(1)
    losses = TrainingStep(network, objective)(objective.prepare((a_batch(),), CPU))
    assert {key: tuple(value.shape) for key, value in losses.items()} == {"reconstruction": (3,)}
    sum(value.sum() for value in losses.values()).backward()
    assert not [k for k, p in network.named_parameters() if p.grad is None and p.requires_grad]
    # The same pixels are hidden each time; what was seen is as it was.
    images, masked, predicted = objective.reconstruct(network.eval(), a_batch(), CPU)
    assert masked.dtype == predicted.dtype == torch.uint8
    assert masked.shape == predicted.shape == images.shape
    again = objective.reconstruct(network, a_batch(), CPU)
    assert again.predicted.equal(predicted)
    assert again.masked.equal(masked)
    seen = (masked == images).all(dim=1)
    assert 0.1 < seen.float().mean() < 0.9
    assert (predicted == images).all(dim=1)[seen].all()
    hidden = masked.permute(0, 2, 3, 1)[~seen]
    assert hidden.unique(dim=0).tolist() == [[102, 128, 153]]  # the mean of images


@pytest.mark.parametrize("in_chans", [1, 4])
@pytest.mark.parametrize(
    ("name", "way", "uniform"),
    [("swin", "simmim", False), ("swin_v2", "simmim", True), ("vit", "mae", False),
     ("hiera", "mae", False)],
)  # fmt: skip
def test_any_number_of_channels(name, way, uniform, in_chans):
    network, objective = prepare(name, way, uniform, in_chans)
    losses = objective.losses(network, objective.prepare((a_batch(in_chans),), CPU))
    assert losses["reconstruction"].isfinite().all()
    assert objective.reconstruct(network, a_batch(in_chans), CPU).predicted.shape[1] == in_chans


@pytest.mark.parametrize(("name", "way", "uniform"), CASES)
def test_half_precision_and_recomputation(name, way, uniform):
    network, objective = prepare(name, way, uniform)
    inputs = objective.prepare((a_batch(),), CPU)
    exact = objective.losses(network, inputs)["reconstruction"]
    exact.sum().backward()
    wanted = {key: p.grad.clone() for key, p in network.named_parameters()}
    network.zero_grad()
    checkpoint_blocks(network.backbone)
    recompute_layers(network)
    again = objective.losses(network, inputs)["reconstruction"]
    again.sum().backward()
    assert again.equal(exact)
    assert all(p.grad.equal(wanted[key]) for key, p in network.named_parameters())
    with torch.autocast("cpu", torch.bfloat16):
        half = objective.losses(network, inputs)["reconstruction"]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=0.05, atol=0.05)


def test_the_loss_of_uniform_masking_by_hand():
    network, objective = prepare("swin", "simmim", True)
    inputs = objective.prepare((a_batch(),), CPU)
    head, unit = network.head, network.head.patch
    features = network.features(inputs.images, mask=head.make_mask(inputs.mask))
    rows, columns = SIZE[0] // unit, SIZE[1] // unit
    cell = torch.nn.PixelShuffle(head.cells)(features.maps[-1])  # a cell for each kept unit
    tokens = cell.flatten(2).transpose(1, 2)
    keep = inputs.mask.keep.unflatten(1, (SIZE[0] // 4, SIZE[1] // 4))
    for image in range(3):
        places = torch.full((rows, columns), -1)
        hidden = []
        for row in range(rows):
            for column in range(columns):
                chosen = int(inputs.mask.quarter[image, row // 2, column // 2])
                if chosen == row % 2 * 2 + column % 2:
                    places[row, column] = row // 2 * (columns // 2) + column // 2
                step = unit // 4
                if not keep[image, row * step, column * step]:
                    hidden.append((row, column))
        predicted = head.decoder(
            tokens[image : image + 1], places.flatten()[None], (rows, columns)
        )[0]
        errors = []
        for row, column in hidden:
            top, left = row * unit, column * unit
            patch = inputs.images[image, :, top : top + unit, left : left + unit]
            patch = patch.permute(1, 2, 0).flatten()
            wanted = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            errors.append((predicted[row * columns + column] - wanted).square().mean())
        loss = head.losses(features, inputs.images)["reconstruction"][image]
        torch.testing.assert_close(loss, torch.stack(errors).mean())
        # Three of four are dropped, and a quarter of the others is hidden.
        assert len(hidden) == rows * columns * 13 / 16


@pytest.mark.parametrize("name", ["vit", "deit"])
def test_positions_of_an_encoder_start_as_waves(name):
    network, _ = prepare(name, "mae", False)
    body, decoder = network.backbone, network.head.decoder
    prefix = body.config.positioned_tokens
    assert not body.pos_embed[:, :prefix].any()
    # By hand: column 3 and row 2, of the slowest and the fastest wave.
    place = prefix + 2 * SIZE[1] // 8 + 3
    waves = body.pos_embed[0, place].tolist()
    quarter = body.config.embed_dim // 4
    for first, value in ((0, 3.0), (2 * quarter, 2.0)):
        assert waves[first] == pytest.approx(np.sin(value), abs=1e-6)
        assert waves[first + quarter] == pytest.approx(np.cos(value), abs=1e-6)
    last = 3 * 10000 ** (-(quarter - 1) / quarter)
    assert waves[quarter - 1] == pytest.approx(np.sin(last), abs=1e-6)
    assert decoder.pos_embed.shape == (1, body.num_prefix + SIZE[0] * SIZE[1] // 64, 32)
    assert not decoder.pos_embed.requires_grad
    assert body.pos_embed.requires_grad


def test_what_suits_which_model():
    chosen = {name: choose_pretraining("auto", a_model(name)).value.name for name in FAMILIES}
    assert chosen == {
        "swin": "simmim", "swin_v2": "simmim", "vit": "mae", "deit": "mae", "simmim_vit": "mae",
        "hiera": "mae",
    }  # fmt: skip
    assert choose_pretraining("auto", a_model("swin")).notes
    for name in ("t2t_vit_7", "timm:resnet18"):
        assert choose_pretraining("auto", model_config(name)).value.name == "views"
    with pytest.raises(ConfigError, match="mea"):
        choose_pretraining("mea", a_model("vit"))
    for name, way, family in (("mae", "swin", "Swin"), ("simmim", "hiera", "Hiera")):
        with pytest.raises(ConfigError, match=f"{name}.*{family}"):
            choose_pretraining(name, a_model(way))


@pytest.mark.parametrize(
    ("model", "way", "head"),
    [
        ("mae_vit_base_patch16", "mae", MAEConfig()),
        ("hiera_tiny_224", "mae", MAEConfig(mask_ratio=0.6)),
        ("vit_tiny_patch16_224", "mae", MAEConfig(dim=128, depth=2, num_heads=4)),
        ("simmim_vit_base_patch16_224", "simmim", SimMIMConfig()),
        ("simmim_swin_base_window6_192", "simmim",
         SimMIMConfig(uniform=True, mask_ratio=0.25, mask_unit=16)),
        ("swin_nano_patch4_window4_64", "simmim",
         SimMIMConfig(uniform=True, mask_ratio=0.25, mask_unit=8, dim=64, num_heads=2)),
    ],
)  # fmt: skip
def test_heads_by_the_model(model, way, head):
    assert PRETRAINING[way].default_head(MODELS[model].config) == head


def test_fields_of_uniform_masking_follow():
    plain, uniform = SimMIMConfig(), SimMIMConfig(uniform=True, mask_ratio=0.25, mask_unit=16)
    assert change(uniform, {"uniform": False}) == plain
    assert change(plain, {"uniform": True}) == uniform
    assert change(plain, {"uniform": True, "mask_ratio": 0.1}) == replace(uniform, mask_ratio=0.1)


@pytest.mark.parametrize(
    ("name", "head", "said"),
    [
        ("swin", MAEConfig(), "Swin"),
        ("vit", SimMIMConfig(uniform=True, mask_unit=8), "head.uniform"),
        ("vit", SimMIMConfig(mask_unit=12), "head.mask_unit.*12"),
        ("vit", SimMIMConfig(mask_unit=64), "img_size.*head.mask_unit=64"),
        ("swin", SimMIMConfig(uniform=True, mask_unit=32), "head.mask_unit.*32"),
    ],
)
def test_heads_that_do_not_suit(name, head, said):
    with pytest.raises(ConfigError, match=said):
        build_head(head, build_backbone(a_model(name)))


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("vit", MAEConfig()),
        ("swin", SimMIMConfig(uniform=True, mask_unit=8)),
        ("hiera", MAEConfig()),
    ],
)
def test_images_that_are_not_whole_patches(name, head):
    backbone: Backbone = build_backbone(change(a_model(name), {"img_size": (64, 36)}))
    with pytest.raises(ConfigError, match=r"img_size.*64x36"):
        build_head(head, backbone)


def test_units_may_reach_beyond_an_image():
    """Patches of 16 pixels, units of 32; where an encoder crops images, they are refused."""
    model = change(a_model("hiera"), {"pooled_stages": 2, "out_norm": "none"})
    backbone = build_backbone(model)
    network = Network(backbone, build_head(MAEConfig(dim=16, depth=1, num_heads=2), backbone))
    images = torch.rand(1, 3, 48, 32)
    keep = torch.tensor([[True, False]])
    features = network.features(images, mask=TokenMask(keep))
    painted, hidden = network.head.reconstruct(features, images)
    assert hidden.tolist() == [[[False] * 32] * 32 + [[True] * 32] * 16]
    assert painted[:, :, :32].equal(images[:, :, :32])
    cropping = build_backbone(change(a_model("vit"), {"size_rule": "torchvision"}))
    network = Network(cropping, build_head(SimMIMConfig(mask_unit=8), cropping))
    mask = network.head.make_mask(Mask(torch.tensor([[True, False]])))
    images = torch.rand(1, 3, 8, 18)
    with pytest.raises(ShapeError, match=r"1 x 3 cells.* got 2\. Resize .* multiples of 8"):
        network.head.losses(network.features(images, mask=mask), images)


def test_an_image_of_a_single_unit_has_nothing_to_hide():
    backbone = build_backbone(change(a_model("hiera"), {"img_size": (32, 32)}))
    with pytest.raises(ConfigError, match=r"img_size.*32x32"):
        build_head(MAEConfig(), backbone)


VIEWED = ("swin", "deit", "hiera", "t2t", "timm")


def prepare_views(name: str, in_chans: int = 3):
    torch.manual_seed(0)
    others = {"t2t": ("t2t_vit_7", {"depth": 1, "embed_dim": 32, "num_heads": 2}),
              "timm": ("timm:resnet18", {})}  # fmt: skip
    if name in others:
        model, fields = others[name]
        config = change(model_config(model), {**fields, "img_size": SIZE, "in_chans": in_chans})
    else:
        config = a_model(name, in_chans)
    row = PRETRAINING["views"]
    head, backbone = replace(row.default_head(config), hidden_dim=32), build_backbone(config)
    network = Network(backbone, build_head(head, backbone))
    return network, row.build_objective(head, backbone, preprocess(in_chans))


@pytest.mark.parametrize("name", VIEWED)
def test_views_on_every_backbone(name):
    network, objective = prepare_views(name)
    batches = (a_batch(), replace(a_batch(), images=a_batch().images.flip(3)))
    inputs = objective.prepare(batches, CPU)
    losses = TrainingStep(network, objective)(inputs)
    assert {key: tuple(value.shape) for key, value in losses.items()} == {
        "agreement": (3,), "spread": (3,)
    }  # fmt: skip
    sum(value.sum() for value in losses.values()).backward()
    assert not [k for k, p in network.named_parameters() if p.grad is None and p.requires_grad]
    assert objective.reconstruct(network, a_batch(), CPU) is None
    # By hand, from the projection of each view alone.
    network.eval()
    projected = [network.head(network.features(half)) for half in inputs.images.chunk(2)]
    found = objective.losses(network, inputs)
    wanted = (projected[0] - projected[1]).square().mean(dim=1) / 4
    torch.testing.assert_close(found["agreement"], 0.95 * wanted, rtol=1e-3, atol=1e-6)
    spread = sum(sketch_gaussian(one, inputs.directions) for one in projected) / 2
    torch.testing.assert_close(found["spread"], 0.05 * spread.expand(3), rtol=1e-3, atol=1e-6)


def test_views_of_validation_are_random_parts_and_always_the_same():
    network, objective = prepare_views("swin", 4)
    first, second = (objective.draw_fixed(a_batch(4), CPU) for _ in range(2))
    assert first.images.equal(second.images)
    assert first.images.shape == (6, 4, *SIZE)
    whole, part = first.images.chunk(2)
    assert whole.equal(normalise(a_batch(4).images, preprocess(4)))
    assert not part.isclose(whole).all(dim=(1, 2, 3)).any()
    assert part.amax() <= whole.amax()
    with torch.autocast("cpu", torch.bfloat16):
        half = objective.losses(network, first)["agreement"]
    torch.testing.assert_close(
        half, objective.losses(network, first)["agreement"], rtol=0.3, atol=0.01
    )
