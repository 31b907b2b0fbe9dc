# SPDX-License-Identifier: Apache-2.0
"""A run whose attention was forced to be fused can be used, and gone on from, on any machine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import muntin
from muntin.errors import ConfigError
from muntin.runs import Run
from muntin.train_config import MachineConfig
from muntin.training import setup
from muntin.training.request import Request
from tests.exporting.runs import write_run
from tests.small import write_images


@pytest.fixture
def forced(tmp_path, no_fused_kernels) -> Run:
    """A run that was trained with fused kernels, where they cannot run."""
    run = write_run(tmp_path / "run", "classify")
    config = replace(run.config, model=replace(run.config.model, attention="fused"))
    run = replace(run, config=config)
    run.write()
    return run


def test_it_predicts(forced):
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    with pytest.raises(ConfigError, match="MUNTIN_FUSED"):
        muntin.Predictor(
            forced.build_network().eval(), forced.task, forced.classes, forced.preprocessing,
            device="cpu",
        )([image])  # fmt: skip
    assert Run.open(forced.path).config.model.attention == "fused"
    assert len(muntin.load(forced.path, device="cpu")([image])) == 1


@pytest.mark.parametrize("way", ["weights", "config"])
def test_training_goes_on_from_it(forced, tmp_path, way):
    start = {"weights": str(forced.path)} if way == "weights" else {"base": forced.config}
    asked = Request(
        task="classify", data=str(write_images(tmp_path / "d")), out="nowhere",
        machine=MachineConfig(device="cpu", precision="fp32"), **start,
    )  # fmt: skip
    found = setup.prepare(asked)
    assert found.run.config.model.attention == "auto"
    assert any("MUNTIN_FUSED" in note for note in found.notes)
    insists = replace(asked, settings=(("model.attention", "fused"),))
    with pytest.raises(ConfigError, match=r"model\.attention=fused"):
        setup.prepare(insists)
