# SPDX-License-Identifier: Apache-2.0
"""The auxiliary loss that tells how far apart two tokens lie."""

import torch

from muntin.features import Features, FeatureSpec
from muntin.objectives.relative_location import NUM_PAIRS, RelativeLocation


def features_of(*maps: torch.Tensor) -> Features:
    images = torch.zeros(len(maps[0]), 3, 32, 48)
    return Features(images, maps=lambda: [*maps], vector=lambda: maps[-1].mean((2, 3)))


def test_loss_is_the_mean_distance_where_nothing_is_predicted() -> None:
    """Pair by pair in plain Python, on a map that is not square."""
    loss = RelativeLocation(FeatureSpec((3,), (8,)), (32, 48), hidden=4)
    for parameter in loss.parameters():
        torch.nn.init.zeros_(parameter)
    features = features_of(torch.rand(2, 3, 4, 6))
    torch.manual_seed(5)
    got = loss(features)
    torch.manual_seed(5)
    first, second = torch.randint(24, (2, 2, NUM_PAIRS)).tolist()
    for image in range(2):
        errors = [
            (abs(a // 6 - b // 6) / 4 + abs(a % 6 - b % 6) / 6) / 2
            for a, b in zip(first[image], second[image], strict=True)
        ]
        assert abs(got[image].item() - sum(errors) / len(errors)) < 1e-6


def test_places_are_learnt_from_tokens_that_hold_them() -> None:
    """Below the error of the best constant, which is that of the median distance."""
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    places = torch.stack([rows / 4, columns / 6]).expand(8, 2, 4, 6)
    loss = RelativeLocation(FeatureSpec((2,), (8,)), (32, 48), hidden=32)
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(loss.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        value = loss(features_of(places)).mean()
        value.backward()
        optimizer.step()
    assert value.item() < 0.08  # 0.19 with the best constant


def test_coarsest_map_with_enough_cells_is_compared() -> None:
    spec = FeatureSpec((2, 3, 4), (4, 8, 16))
    assert [RelativeLocation(spec, (s, s)).level for s in (16, 32, 63, 64)] == [0, 1, 1, 2]
    assert RelativeLocation(spec, (64, 16)).level == 1
    assert RelativeLocation(spec, (8, 8)).level == 0  # too small for any
