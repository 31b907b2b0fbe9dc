# SPDX-License-Identifier: Apache-2.0
"""Masked reconstruction: a second objective, which the loop trains without knowing it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from muntin.errors import ConfigError, ShapeError
from muntin.features import TokenMask
from muntin.heads.head_table import build_head
from muntin.heads.mae_head import MAEConfig
from muntin.heads.network import Network
from muntin.heads.pixel_decoder import cut_patches, join_patches
from muntin.objectives.pretraining import PRETRAINING, choose_pretraining
from muntin.ops.masks import draw_masks
from muntin.runs import read_journal
from muntin.zoo.model_zoo import build_backbone
from tests.objectives.fitting import MODEL, PATCH, PRE, SIDE, fit_objective

SMALL = MAEConfig(dim=16, depth=1, num_heads=2)


def a_network() -> Network:
    torch.manual_seed(0)
    backbone = build_backbone(MODEL)
    return Network(backbone, build_head(SMALL, backbone))


def test_patches_are_cut_row_by_row():
    images = torch.randn(2, 3, 16, 24)
    patches = cut_patches(images, 8)
    for row in range(2):
        for column in range(3):
            part = images[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            assert patches[:, 3 * row + column].equal(part.permute(0, 2, 3, 1).flatten(1))
    with pytest.raises(ShapeError, match=r"16x25"):
        cut_patches(torch.zeros(1, 3, 16, 25), 8)
    assert join_patches(patches, 8, (16, 24)).equal(images)


@pytest.mark.parametrize(("ratio", "kept"), [(0.75, 4), (0.5, 8), (0.99, 1), (0.01, 15)])
def test_masks_keep_equally_many_and_never_all(ratio, kept):
    keep = draw_masks(5, 16, ratio, torch.Generator().manual_seed(0))
    assert keep.sum(dim=1).tolist() == [kept] * 5
    assert len({tuple(row.tolist()) for row in keep}) > 1
    with pytest.raises(ConfigError, match="mask_ratio"):
        MAEConfig(mask_ratio=1.0)


def test_the_loss_is_the_mean_error_of_the_dropped_patches():
    network = a_network().eval()
    images = torch.randn(2, 3, SIDE, SIDE)
    keep = draw_masks(2, 16, 0.75, torch.Generator().manual_seed(1))
    features = network.features(images, mask=TokenMask(keep))
    predicted = network.head(features)
    patches = cut_patches(images, PATCH)
    for row in range(2):
        errors = []
        for number in torch.where(~keep[row])[0].tolist():
            patch = patches[row, number]
            wanted = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            errors.append((predicted[row, number] - wanted).square().mean())
        expected = torch.stack(errors).mean()
        found = network.head.losses(features, images)["reconstruction"][row]
        torch.testing.assert_close(found, expected)


def test_what_was_dropped_is_not_seen():
    network = a_network().eval()
    images = torch.randn(1, 3, SIDE, SIDE)
    keep = draw_masks(1, 16, 0.75, torch.Generator().manual_seed(1))
    before = network.head(network.features(images, mask=TokenMask(keep)))
    changed = images.clone()
    place = int(torch.where(~keep[0])[0][0])
    row, column = place // 4 * PATCH, place % 4 * PATCH
    changed[:, :, row : row + PATCH, column : column + PATCH] += 1
    after = network.head(network.features(changed, mask=TokenMask(keep)))
    assert before.equal(after)


def test_the_loop_trains_it_and_resumes_bit_for_bit(tmp_path):
    def train(name: str, **options):
        torch.manual_seed(1)
        row, backbone = choose_pretraining("auto", MODEL).value, build_backbone(MODEL)
        assert row is PRETRAINING["mae"]
        decoder, objective = build_head(SMALL, backbone), row.build_objective(SMALL, backbone, PRE)
        return fit_objective(tmp_path, name, objective, decoder, **options)

    whole = train("whole")
    losses = [line["val_loss"] for line in read_journal(tmp_path / "whole")]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert whole.figures["num_images"] == 6
    assert train("parts", stop_after=5).interrupted
    resumed = train("parts", resume=True)
    assert replace(resumed, seconds=0.0, best=None) == replace(whole, seconds=0.0, best=None)
