# SPDX-License-Identifier: Apache-2.0
"""Training within a memory budget."""

from __future__ import annotations

import pytest
import torch

import muntin
from muntin.errors import ConfigError
from muntin.runs import Run, read_journal
from muntin.train_config import TrainConfig
from muntin.training.recompute import checkpoint_blocks, narrow_residual
from muntin.zoo import create_model
from tests.small import MODEL, SETTINGS, train_small, write_images


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("pictures"), each=8, side=32)


DEEP = {"model.depths": "8,1", "train.start_size": 1}


@pytest.mark.slow
def test_a_budget_does_not_change_the_losses(data, tmp_path):
    options = {"model": MODEL, "img_size": 64, "precision": "fp32", "device": "cpu"}
    plan = muntin.plan(
        "classify", data, batch_size=16, weights="none", settings={**SETTINGS, **DEEP}, **options
    )
    needed = (plan.peak - plan.process) / 1024
    losses = []
    for gib in (0, 0.75 * needed):
        settings = {**DEEP, "train.memory_gib": gib, "train.drop_path_rate": 0.2}
        run = train_small(
            data, tmp_path / str(bool(gib)), batch_size=16, img_size=64, settings=settings
        )
        config = Run.open(run.path).config.train
        assert (0 < config.recomputed_blocks < 9) == bool(gib)
        assert not config.recomputed_layers  # a few blocks take less time
        assert config.batch_size == 16
        losses.append([line["train_loss"] for line in read_journal(run.path)])
    assert losses[0] == losses[1]


def test_the_error_names_a_batch_that_fits(data, tmp_path):
    options = {"batch_size": 16, "img_size": 64}
    expected = r"16.*--batch-size \d+"
    with pytest.raises(ConfigError, match=expected):
        train_small(data, tmp_path / "run", settings={"train.memory_gib": 0.004}, **options)
    with pytest.raises(ConfigError, match=r"0\.\d+"):
        train_small(data, tmp_path / "run", settings={"train.memory_gib": 1e-5}, **options)


def test_recompute_leading_blocks():
    backbone = create_model("swin_nano").backbone
    assert checkpoint_blocks(backbone, 2) == 2
    with pytest.raises(ConfigError, match=r"6.*Swin.*7"):
        checkpoint_blocks(backbone, 7)
    changed = ["forward" in vars(block) for stage in backbone.layers for block in stage.blocks]
    assert changed == [True, True, False, False, False, False]


def test_residual_in_half_precision(data, tmp_path):
    model = create_model("swin_nano").train()
    narrow_residual(model.backbone)
    seen = []
    for stage in model.backbone.layers:
        for block in stage.blocks:
            block.register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    images = torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        model(images).float().sum().backward()
    assert set(seen) == {torch.bfloat16}
    assert all(p.grad.isfinite().all() for p in model.parameters())
    seen.clear()
    model(images)
    assert set(seen) == {torch.float32}
    with pytest.raises(ConfigError, match="Linear"):
        narrow_residual(torch.nn.Linear(2, 2))
    settings = {"train.residual": "half"}
    with pytest.raises(ConfigError, match=r"train\.residual=half.*bf16"):
        train_small(data, tmp_path / "run", settings=settings)
    run = train_small(data, tmp_path / "bf16", settings=settings, precision="bf16", epochs=1)
    assert Run.open(run.path).config.train.residual == "half"


def test_ranges():
    with pytest.raises(ConfigError, match=r"train\.memory_gib"):
        TrainConfig(memory_gib=-1)
    with pytest.raises(ConfigError, match=r"train\.recomputed_blocks"):
        TrainConfig(recomputed_blocks=-1)
