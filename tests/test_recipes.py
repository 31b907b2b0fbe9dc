# SPDX-License-Identifier: Apache-2.0
"""Every recipe can be read, and invalid values are errors."""

from __future__ import annotations

import pytest

from muntin.configs import from_dict, to_dict
from muntin.errors import ConfigError
from muntin.recipes import AUGMENTS, RECIPES, find_recipe
from muntin.train_config import MachineConfig, TrainConfig

ROWS = [(group, name) for group, recipes in RECIPES.items() for name in recipes]


@pytest.mark.parametrize(("group", "name"), ROWS)
def test_recipes(group, name):
    recipe = find_recipe(name, group)
    assert isinstance(recipe.augment, AUGMENTS[group])
    assert recipe.train.recipe == name
    assert recipe.source
    assert from_dict(TrainConfig, to_dict(recipe.train)) == recipe.train
    assert from_dict(type(recipe.augment), to_dict(recipe.augment)) == recipe.augment


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0), ("max_time_s", -1.0), ("batch_size", -1), ("accumulate", 0),
        ("learning_rate", -1e-3), ("muon_learning_rate", -1.0), ("weight_decay", -0.1),
        ("layer_decay", 1.1), ("warmup", 1.0), ("min_lr", 2.0), ("clip_grad", -1.0),
        ("label_smoothing", 1.0), ("ema_decay", 1.0), ("freeze", -2), ("early_stop", -1),
        ("start_size", 0.0), ("full_size_from", 1.5),
    ],
)  # fmt: skip
def test_wrong_training_values(name, value):
    with pytest.raises(ConfigError, match=rf"train\.{name}\b.*{value}"):
        TrainConfig(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("devices", 0), ("workers", -2)])
def test_wrong_machine_values(name, value):
    with pytest.raises(ConfigError, match=rf"machine\.{name}\b.*{value}"):
        MachineConfig(**{name: value})


def test_unknown_recipe():
    with pytest.raises(ConfigError, match=r"'imagnet'.*'imagenet'"):
        find_recipe("imagnet")
    with pytest.raises(ConfigError, match=r"'coco-3x'.*imagenet"):
        find_recipe("coco-3x")
    with pytest.raises(ConfigError, match=r"'imagenet'.*coco-3x"):
        find_recipe("imagenet", "detection")
