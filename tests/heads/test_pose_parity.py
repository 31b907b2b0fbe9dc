# SPDX-License-Identifier: Apache-2.0
"""ViTPose beside transformers', with the same weights; and what all heads of keypoints promise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation

import muntin
from muntin.errors import ConfigError
from muntin.heads.pose_head import POSE_HEADS, PoseConfig

DIM, DEPTH, HEADS, POINTS = 48, 3, 4, 9


def theirs(size=(256, 192), *, simple=False):
    torch.manual_seed(0)
    body = VitPoseBackboneConfig(
        image_size=list(size), hidden_size=DIM, num_hidden_layers=DEPTH,
        num_attention_heads=HEADS, layer_norm_eps=1e-6,
    )  # fmt: skip
    config = VitPoseConfig(
        backbone_config=body, use_simple_decoder=simple, num_labels=POINTS, scale_factor=4
    )
    model = VitPoseForPoseEstimation(config)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    for name, parameter in model.named_parameters():
        if "position" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def ours(size=(256, 192), *, simple=False):
    return muntin.create_pose_estimator(
        "vitpose_base", head="vitpose_simple" if simple else "vitpose", num_keypoints=POINTS,
        embed_dim=DIM, depth=DEPTH, num_heads=HEADS, img_size=size,
    )  # fmt: skip


@pytest.mark.parity
@pytest.mark.parametrize("simple", [False, True])
@pytest.mark.parametrize("size", [(256, 192), (96, 160)])
def test_equal_to_transformers(simple, size):
    reference, model = theirs(size, simple=simple).eval(), ours(size, simple=simple).eval()
    report = muntin.load_weights(model, reference.state_dict())
    assert report.dialect == "transformers"
    assert not report.reset
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        wanted, found = reference(images).heatmaps, model(images)
    assert found.shape == wanted.shape == (2, POINTS, size[0] // 4, size[1] // 4)
    assert (found - wanted).abs().max() < 1e-5
    back = muntin.to_dialect(model, "transformers")
    state = reference.state_dict()
    assert back.keys() == state.keys()
    assert all(back[key].equal(state[key]) for key in state)


@pytest.mark.parity
def test_gradients_equal_transformers():
    reference, model = theirs().eval(), ours().eval()
    muntin.load_weights(model, reference.state_dict())
    images = torch.randn(1, 3, 256, 192)
    weights = torch.randn(1, POINTS, 64, 48)
    gradients = []
    for network in (lambda x: reference(x).heatmaps, model):
        x = images.clone().requires_grad_()
        (network(x) * weights).sum().backward()
        gradients.append(x.grad)
    assert torch.allclose(*gradients, atol=1e-5 * gradients[0].abs().max())


def test_vitpose_small_has_twelve_heads():
    body = muntin.create_pose_estimator("vitpose_small", head="vitpose").backbone
    assert body.config.num_heads == 12
    assert body.config.patch_padding == 2
    assert body.pos_embed.shape == (1, 193, 384)
    assert not hasattr(body, "cls_token")


@pytest.mark.parametrize("head", POSE_HEADS)
@pytest.mark.parametrize("body", ["swin_nano", "vit_tiny"])
def test_every_head_gives_heatmaps_at_a_quarter_and_learns(head, body):
    torch.manual_seed(0)
    options = {"depth": 1} if body == "vit_tiny" else {}
    model = muntin.create_pose_estimator(body, head=head, num_keypoints=3, **options)
    images = torch.randn(2, 3, 128, 96)
    with torch.no_grad():
        assert model.eval()(images).shape == (2, 3, 32, 24)
    points, known = torch.rand(2, 3, 2) * 90, torch.tensor([[True] * 3, [True, False, False]])
    losses = losses_of(model.train(), images, points, known)
    assert {name: part.shape for name, part in losses.items()} == {"heatmaps": (2,)}
    sum(losses.values()).sum().backward()
    assert all(p.grad is not None for p in model.head.parameters())


def test_the_loss_is_the_mean_square_over_cells_and_keypoints():
    head = replace(POSE_HEADS["light_pose_small"], loss="square")
    model = muntin.create_pose_estimator("swin_nano", head=head, num_keypoints=2).eval()
    images = torch.randn(1, 3, 64, 64)
    points, known = torch.tensor([[[20.0, 30.0], [1.0, 1.0]]]), torch.tensor([[True, False]])
    found = model(images)
    loss = losses_of(model, images, points, known)["heatmaps"]
    cells = torch.arange(16.0)
    x, y = points[0, 0] * 15 / 63
    wanted = torch.exp(-((cells[None] - x) ** 2 + (cells[:, None] - y) ** 2) / 8)
    near = ((cells[None] - (x + 0.5).floor()).abs() <= 6) & (
        (cells[:, None] - (y + 0.5).floor()).abs() <= 6
    )
    error = (found[0, 0] - wanted * near).square().mean() / 2
    assert torch.allclose(loss, error[None], rtol=1e-5)


def losses_of(model, images, points, known):
    return model.head.losses(model.features(images), points, known)


class Says(torch.nn.Module):
    """A decoder that always says the same."""

    def __init__(self, maps):
        super().__init__()
        self.maps = maps

    def forward(self, _):
        return self.maps


def test_a_distribution_that_is_right_costs_nothing_and_is_one_at_its_peak():
    model = muntin.create_pose_estimator("swin_nano", head="light_pose_small", num_keypoints=1)
    cells = torch.arange(16.0)
    wanted = -((cells[None] - 7) ** 2 + (cells[:, None] - 8) ** 2) / 8
    model.head.classifier = torch.nn.Identity()
    model.head.decoder = Says(wanted[None, None] / 10)
    images, known = torch.zeros(1, 3, 64, 64), torch.tensor([[True]])
    points = torch.tensor([[[7.0, 8.0]]]) * 63 / 15
    assert losses_of(model, images, points, known)["heatmaps"].item() < 0.02
    found = model(images)
    assert found.max().item() == pytest.approx(1, abs=0.02)
    assert found.argmax().item() == 8 * 16 + 7
    other = torch.tensor([[[2.0, 3.0]]]) * 63 / 15
    assert losses_of(model, images, other, known)["heatmaps"].item() > 3


def test_nothing_known_costs_nothing():
    model = muntin.create_pose_estimator("swin_nano", head="light_pose_small", num_keypoints=2)
    none = torch.zeros(1, 2, dtype=torch.bool)
    images, points = torch.randn(1, 3, 64, 64), torch.full((1, 2, 2), torch.nan)
    loss = losses_of(model, images, points, none)["heatmaps"]
    assert loss.item() == 0
    loss.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("size", [(100, 70), (65, 130)])
def test_odd_sizes(size):
    model = muntin.create_pose_estimator("swin_nano", head="light_pose_small").eval()
    assert model(torch.zeros(1, 3, *size)).shape[:2] == (1, 17)


def test_nonsense_is_refused():
    with pytest.raises(ConfigError, match="num_keypoints"):
        muntin.create_pose_estimator("swin_nano", num_keypoints=0)
    with pytest.raises(ConfigError, match="simple_baseline"):
        muntin.create_pose_estimator("swin_nano", head="simple_baselin")
    with pytest.raises(ConfigError, match=r"head\.sigma"):
        PoseConfig(sigma=0)
