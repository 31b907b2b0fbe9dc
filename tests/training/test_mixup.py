# SPDX-License-Identifier: Apache-2.0
"""Labels are mixed as the images are."""

from __future__ import annotations

import pytest
import torch

from muntin.data.classification_transforms import AugmentConfig
from muntin.training.run_objective import build_mixup


def test_nothing_to_mix():
    assert build_mixup(AugmentConfig(), 3) is None


@pytest.mark.parametrize("config", [AugmentConfig(mixup=1.0), AugmentConfig(cutmix=1.0)])
@pytest.mark.parametrize("multi_label", [False, True])
def test_shares_tell_what_is_in_the_image(config, multi_label):
    ids = torch.arange(4)
    # An image of one value: the mean of a mixed one tells the shares.
    images = ids.float().view(4, 1, 1, 1).expand(4, 1, 8, 8)
    targets = torch.eye(4) if multi_label else ids
    mixed, shares = build_mixup(config, 4)(images, targets)
    assert shares.shape == (4, 4)
    torch.testing.assert_close(shares.sum(1), torch.ones(4))
    torch.testing.assert_close(mixed.mean((1, 2, 3)), shares @ ids.float())


def test_both_kinds_come():
    mix = build_mixup(AugmentConfig(mixup=1.0, cutmix=1.0), 2)
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    kinds = set()
    for seed in range(20):
        torch.manual_seed(seed)
        values = mix(images, torch.arange(2))[0]
        kinds.add(bool(((values == 0) | (values == 1)).all()))
    assert kinds == {True, False}
