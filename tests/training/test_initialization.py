# SPDX-License-Identifier: Apache-2.0
"""Detectors that begin with weights of others: of a classifier, of timm, of another detector."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from muntin.errors import WeightError
from muntin.published import open_published
from muntin.synthetic.datasets import write_coco
from muntin.train_config import MachineConfig
from muntin.training.request import Request
from muntin.training.session import train
from muntin.training.setup import prepare
from tests.detectors import BODY, BODY_SETTINGS, head_settings, train_detector
from tests.small import write_images


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_coco(
        tmp_path_factory.mktemp("data") / "shapes", num_train=4, num_val=1, size=(64, 64)
    )


def prepared(data, weights, *, model=BODY, task="detect", head="fcos_small", **more):
    body = BODY_SETTINGS if model == BODY else {"machine.workers": 0}
    settings = {**body, **head_settings(head), **more}
    return prepare(
        Request(
            task=task, data=str(data), out="nowhere", model=model, head=head,
            weights=str(weights), img_size=(64, 64), batch_size=2, recipe="finetune",
            machine=MachineConfig(device="cpu", precision="fp32"),
            settings=tuple((name, str(value)) for name, value in settings.items()),
        )
    )  # fmt: skip


def agrees(network, state, *, without=("out_norms", "norm.")):
    count = 0
    for name, tensor in network.state_dict().items():
        if name in state and not any(part in name for part in (*without, "head.")):
            assert tensor.equal(state[name]), name
            count += 1
    return count


def test_a_classifier_of_ours(data, tmp_path):
    trees = write_images(tmp_path / "trees", side=64)
    run = train(
        "classify", trees, out=tmp_path / "run", quiet=True, model=BODY, weights="none",
        epochs=1, batch_size=4, settings=BODY_SETTINGS, device="cpu", precision="fp32",
    )  # fmt: skip
    file = run.path / "weights.safetensors"
    ready = prepared(data, file)
    assert agrees(ready.network, load_file(file)) > 20
    assert ready.run.config.weights == str(file)
    (note,) = [note for note in ready.notes if note.startswith("weights: ")]
    assert "not loaded: backbone.norm1.weight" in note


def test_timms_swin(data, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    theirs = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False)
    file = tmp_path / "swin.safetensors"
    save_file(theirs.state_dict(), file)
    ready = prepared(data, file, model="swin_tiny_patch4_window7_224")
    state = ready.network.state_dict()
    blocks = [
        name for name in theirs.state_dict() if name.startswith("layers.") and "blocks" in name
    ]
    found = [name for name in blocks if f"backbone.{name}" in state]
    assert len(found) > 100
    for name in found:
        if state[f"backbone.{name}"].shape == theirs.state_dict()[name].shape:
            assert state[f"backbone.{name}"].equal(theirs.state_dict()[name]), name
    assert ready.run.config.augment.scale == (0.6, 1.6), "trained weights are fine-tuned"


def test_another_detector(data, tmp_path):
    run = train_detector("detect", data, tmp_path / "run", epochs=1)
    file = run.path / "weights.safetensors"
    ready = prepared(data, file)
    state = load_file(file)
    for name, tensor in ready.network.state_dict().items():
        assert tensor.equal(state[name]), name


def test_what_does_not_fit(data, tmp_path):
    run = train_detector("detect", data, tmp_path / "run", epochs=1)
    file = run.path / "weights.safetensors"
    with pytest.raises(WeightError, match=r"run.weights\.safetensors"):
        prepared(data, file, **{"model.embed_dim": 24, "model.num_heads": "1,1,2"})
    with pytest.raises(WeightError, match=r"nothing\.safetensors"):
        prepared(data, tmp_path / "nothing.safetensors")


def test_freezing_everything_after_a_warm_start(data, tmp_path):
    first = train_detector("detect", data, tmp_path / "first", epochs=1)
    file = first.path / "weights.safetensors"
    again = train_detector(
        "detect", data, tmp_path / "again", epochs=1, weights=str(file),
        settings={"train.freeze": -1, "train.ema_decay": 0},
    )  # fmt: skip
    before, after = load_file(file), load_file(again.path / "weights.safetensors")
    body = [name for name in before if name.startswith("backbone.")]
    assert all(before[name].equal(after[name]) for name in body)
    assert not all(before[name].equal(after[name]) for name in before)


def test_images_are_normalised_as_for_the_weights(data, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=64, patch_size=16, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=192, num_labels=2,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "theirs")
    colours = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}, **colours).save_pretrained(
        tmp_path / "theirs"
    )
    run, _ = open_published(tmp_path / "theirs", tmp_path / "run")
    body = {"model.embed_dim": 48, "model.depth": 2, "model.num_heads": 4}
    for weights in (tmp_path / "theirs", run.path):
        ready = prepared(data, weights, model="vit_tiny_patch16_224", **body)
        assert ready.run.preprocessing.mean == (0.4, 0.5, 0.6)
        assert ready.run.preprocessing.std == (0.2, 0.3, 0.4)
        assert ready.run.config.model.norm_eps == ready.network.backbone.norm.eps
        assert any("mean (0.4, 0.5, 0.6)" in note for note in ready.notes)
