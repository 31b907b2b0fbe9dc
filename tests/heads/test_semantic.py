# SPDX-License-Identifier: Apache-2.0
"""UPerNet beside transformers', with the same weights; and what both heads promise."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import SwinConfig, UperNetConfig, UperNetForSemanticSegmentation

from muntin.heads.network import Network
from muntin.heads.semantic_head import MAP_HEADS, SemanticConfig, SemanticHead
from muntin.targets import IGNORED
from muntin.weights.weight_loading import load_weights
from muntin.zoo import create_backbone

DIM, CLASSES = 24, 7


def theirs():
    torch.manual_seed(0)
    body = SwinConfig(
        embed_dim=DIM, depths=[2, 2, 2, 2], num_heads=[2, 4, 4, 8], window_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"], image_size=224, drop_path_rate=0.0,
    )  # fmt: skip
    config = UperNetConfig(
        backbone_config=body, hidden_size=32, num_labels=CLASSES, auxiliary_channels=16,
        auxiliary_in_channels=4 * DIM,
    )  # fmt: skip
    model = UperNetForSemanticSegmentation(config)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def ours():
    body = create_backbone(
        "swin_tiny", embed_dim=DIM, depths=(2, 2, 2, 2), num_heads=(2, 4, 4, 8), out_norm="each",
        drop_path_rate=0.0,
    )  # fmt: skip
    config = SemanticConfig(channels=32, aux_channels=16, dropout=0.0)
    return Network(body, SemanticHead(body, CLASSES, config))


def losses_of(model, images, labels):
    return model.head.losses(model.features(images), labels)


@pytest.mark.parametrize("size", [(224, 224), (250, 334)])
def test_equal_to_transformers(size):
    reference, model = theirs(), ours()
    load_weights(model, reference.state_dict(), dialect="transformers")
    torch.manual_seed(1)
    images = torch.randn(2, 3, *size)
    labels = torch.randint(0, CLASSES, (2, *size))
    labels[:, :40] = 255
    with torch.no_grad():
        wanted = theirs_fresh(reference).eval()(images).logits
        logits = F.interpolate(
            model.eval()(images), size=size, mode="bilinear", align_corners=False
        )
    assert (logits - wanted).abs().max() < 1e-5
    reference, model = reference.train(), model.train()
    loss = theirs_fresh(reference)(images, labels=labels).loss.detach()
    mine = losses_of(model, images, torch.where(labels == 255, IGNORED, labels))
    # Both images have as many labelled pixels, so the mean of means is the mean.
    assert abs(float(sum(mine.values()).mean().detach() - loss)) < 1e-5


def theirs_fresh(reference):
    """Transformers' Swin remembers the sizes of small maps; compare with one that has seen none."""
    fresh = UperNetForSemanticSegmentation(reference.config)
    fresh.load_state_dict(reference.state_dict())
    return fresh.train(reference.training)


@pytest.mark.parametrize("name", MAP_HEADS)
@pytest.mark.parametrize("size", [(64, 64), (50, 75), (32, 32)])
def test_every_head_gives_a_map_and_learns(name, size):
    body = create_backbone("swin_nano_patch4_window4_64", out_norm="each")
    model = Network(body, SemanticHead(body, 3, MAP_HEADS[name]))
    images = torch.randn(1, 3, *size)
    logits = model.eval()(images)
    assert logits.shape == (1, 3, -(-size[0] // 4), -(-size[1] // 4))
    labels = torch.randint(0, 3, (1, *size)).to(torch.int16)
    losses = losses_of(model.train(), images, labels)
    sum(losses.values()).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_plain_vit_has_a_pyramid():
    body = create_backbone("vit_tiny_patch16_224", out_indices=(2, 5, 8, 11))
    model = Network(body, SemanticHead(body, 3, MAP_HEADS["light_small"])).eval()
    assert model(torch.randn(1, 3, 64, 96)).shape == (1, 3, 16, 24)


def small_vit(rule="muntin"):
    body = create_backbone(
        "deit_tiny_patch16_224", embed_dim=16, num_heads=2, depth=2, out_indices=(0, 1),
        drop_path_rate=0.0, size_rule=rule,
    )  # fmt: skip
    torch.manual_seed(0)
    config = SemanticConfig(decoder="light", channels=16, norm="layer", dropout=0.0, aux_level=1)
    return Network(body, SemanticHead(body, 3, config))


@pytest.mark.parametrize("size", [(100, 100), (33, 62), (16, 31), (96, 64)])
def test_cells_of_a_plain_vit_are_those_of_the_image(size):
    model = small_vit().eval()
    images = torch.randn(2, 3, *size)
    logits = model(images)
    assert logits.shape == (2, 3, -(-size[0] // 4), -(-size[1] // 4))
    padded = F.pad(images, (0, -size[1] % 16, 0, -size[0] % 16))
    whole = model(padded)[:, :, : logits.shape[2], : logits.shape[3]]
    assert torch.equal(whole, logits)
    assert (model(images[:1]) - logits[:1]).abs().max() < 1e-5


@pytest.mark.parametrize("size", [(100, 100), (33, 62)])
def test_a_plain_vit_learns_where_pixels_are(size):
    model = small_vit().train()
    images, labels = torch.randn(2, 3, *size), torch.randint(0, 3, (2, *size)).to(torch.int16)
    rest = (0, -size[1] % 16, 0, -size[0] % 16)
    losses = losses_of(model, images, labels)
    wanted = losses_of(model, F.pad(images, rest), F.pad(labels, rest, value=IGNORED))
    for name, loss in losses.items():
        torch.testing.assert_close(loss, wanted[name])


def test_a_plain_vit_that_crops_gives_every_cell():
    model = small_vit("transformers")
    images, labels = torch.randn(1, 3, 44, 35), torch.zeros(1, 44, 35, dtype=torch.int16)
    logits = model.eval()(images)
    assert logits.shape == (1, 3, 11, 9)
    assert torch.equal(logits[:, :, 8:], logits[:, :, 7:8].expand(-1, -1, 3, -1))
    assert torch.isfinite(sum(losses_of(model.train(), images, labels).values())).all()
