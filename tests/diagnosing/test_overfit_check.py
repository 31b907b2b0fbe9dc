# SPDX-License-Identifier: Apache-2.0
"""A few images must be learnt before a long training; what keeps them from it is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from muntin.errors import TrainingError
from muntin.synthetic.datasets import write_coco, write_frames, write_maps
from muntin.training import overfit_check
from muntin.training.progress import Reporter
from muntin.training.session import train
from tests.small import MODEL, SETTINGS, train_small, write_images

ON = {"train.overfit_check": "on", "train.optimizer": "adamw", "train.lr_batch": 0}


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "trees")


def test_a_run_has_the_same_bits_with_and_without(trees, tmp_path):
    settings = {**ON, "train.learning_rate": 0.01}  # learns eight images in few steps
    runs = [
        train_small(trees, tmp_path / mode, settings={**settings, **more}, epochs=1).path
        for mode, more in (("on", {}), ("off", {"train.overfit_check": "off"}))
    ]
    weights = [load_file(run / "weights.safetensors") for run in runs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "rate", "epochs"), [("rate-high", 30.0, 2), ("rate-low", 1e-9, 2)]
)
def test_a_wrong_rate_stops_the_training(code, rate, epochs, trees, tmp_path):
    settings = {**ON, "train.learning_rate": rate}
    with pytest.raises(TrainingError, match=f"{code}: .*overfit_check"):
        train_small(trees, tmp_path / "run", settings=settings, epochs=epochs)
    assert not (tmp_path / "run" / "weights.safetensors").exists()


def test_faulty_data_stop_the_training(tmp_path):
    data = write_images(tmp_path / "data")
    for path in data.rglob("*.png"):
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(path)
    with pytest.raises(TrainingError, match="blank-images: "):
        train_small(data, tmp_path / "run", settings=ON)
    # Of folds, the first is checked.
    later = {**ON, "data.folds": 2, "data.fold": 2}
    assert train_small(data, tmp_path / "run", settings=later, epochs=1).epochs == 1


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detect", "instance", "semantic", "pose"])
def test_clean_data_of_every_task_pass(task, tmp_path):
    writers = {"semantic": write_maps, "pose": write_frames}
    data = writers.get(task, write_coco)(tmp_path / "data", num_train=24, num_val=8, size=(64, 64))
    settings = {**SETTINGS, "train.overfit_check": "on"}
    options = {"model": MODEL, "img_size": 64, "epochs": 1, "device": "cpu", "pictures": False}
    run = train(task, data, out=tmp_path / "run", settings=settings, quiet=True, **options)
    assert run.epochs == 1


@pytest.mark.parametrize(
    ("ends", "found"),
    [
        (((900.0, 5), (700.0, 3), (0.5, 5)), "rate-high"),
        (((900.0, 5), (700.0, 3), (1.0, 2)), "rate-high"),  # too few steps for the third
        (
            ((900.0, 5), (0.5, 5)),
            "too few steps to tell",
        ),  # a longer warmup than that of the check will do
        (((900.0, 5), (1.0, 3)), "too few steps to tell"),
        (((1.2, 5),), "too few steps to tell"),
        (((0.95, 50), (0.5, 50)), "no fault found, but slow"),
    ],
)
def test_few_steps_tell_only_that_a_loss_burst(ends, found, trees, tmp_path, monkeypatch):
    curves = iter(ends)

    def learn(self, factor, share):
        self.profiler = self.start_steps(self.prepared)
        end, steps = next(curves)
        return overfit_check._LossCurve(start=1.0, end=end, steps=steps)

    notes = []
    monkeypatch.setattr(overfit_check._OverfitCheck, "_learn", learn)
    monkeypatch.setattr(Reporter, "note", lambda self, text: notes.append(text))
    settings = {**ON, "train.learning_rate": 0.01}
    try:
        train_small(trees, tmp_path / "run", settings=settings, epochs=1)
    except TrainingError as error:
        notes.append(str(error))
    assert next(curves, None) is None, "every curve was asked for"
    assert found in next(text for text in notes if "loss 1 -> " in text)
