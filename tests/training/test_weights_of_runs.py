# SPDX-License-Identifier: Apache-2.0
"""The weights that a training starts with: of a run, of a folder, or fresh ones with a warning."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from muntin import create_model
from muntin.errors import ConfigError, MuntinWarning, RunError, WeightError
from muntin.published import open_published
from muntin.synthetic.datasets import write_coco
from muntin.train_config import MachineConfig
from muntin.training.machine import choose_machine
from muntin.training.request import Request
from muntin.training.setup import prepare
from muntin.weights.weight_files import fetch, write_weights
from tests.small import MODEL, train_small, write_images


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "trees")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    settings = {"train.learning_rate": 4e-3, "train.muon_learning_rate": 1e-2}
    folder = tmp_path_factory.mktemp("runs") / "trees"
    return train_small(data, folder, settings=settings, weights="none", epochs=1).path


def request_of(data, **options):
    machine = choose_machine(None, "fp32", "cpu", 1)
    return Request(task="classify", data=str(data), out="nowhere", machine=machine, **options)


def test_a_run_goes_on_with_its_recipe_and_less_of_its_rates(data, trained):
    prepared = prepare(request_of(data, weights=str(trained), epochs=2))
    config = prepared.run.config.train
    assert (config.recipe, config.optimizer, config.epochs) == ("small-data", "muon", 2)
    assert config.learning_rate == pytest.approx(1.2e-3)
    assert config.muon_learning_rate == pytest.approx(3e-3)
    assert config.start_size == 1
    assert any(f"recipe small-data: that of {trained}" in note for note in prepared.notes)


def test_other_classes_are_learnt_at_full_rates(data, trained, tmp_path):
    """Of the run, or of the recipe where they are higher: of one that went on at lower ones."""
    other = write_images(tmp_path / "other", each=3, classes=("elm", "fir"))
    slow = {"train.learning_rate": 1e-4, "train.muon_learning_rate": 1e-4}
    again = train_small(data, tmp_path / "again", weights=str(trained), model="", settings=slow)
    for run, rates in ((trained, (4e-3, 1e-2)), (again.path, (2e-3, 5e-3))):
        config = prepare(request_of(other, weights=str(run))).run.config.train
        assert (config.learning_rate, config.muon_learning_rate) == pytest.approx(rates)


def test_what_went_on_once_keeps_its_rates(data, trained, tmp_path):
    second = train_small(data, tmp_path / "second", weights=str(trained), model="", img_size=16)
    config = prepare(request_of(data, weights=str(second.path))).run.config.train
    assert config.learning_rate == pytest.approx(1.2e-3)


def test_a_recipe_or_a_rate_that_is_given_goes_first(data, trained):
    named = prepare(request_of(data, weights=str(trained), recipe="finetune")).run.config.train
    assert (named.recipe, named.learning_rate) == ("finetune", 1e-3)
    rows = (("train.learning_rate", "0.5"),)
    given = prepare(request_of(data, weights=str(trained), settings=rows)).run.config.train
    assert (given.recipe, given.learning_rate) == ("small-data", 0.5)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, "16x16"),
        ({"img_size": (24, 24)}, "24x24"),
        ({"settings": (("model.img_size", "16,32"),)}, "16x32"),
        ({"model": MODEL, "img_size": (8, 8)}, "8x8"),
    ],
)
def test_the_size_that_is_told_is_the_one_that_is_used(data, options, size):
    prepared = prepare(request_of(data, weights="none", **options))
    (note,) = [note for note in prepared.notes if note.startswith("model ")]
    assert f" at {size} pixels" in note
    assert "x".join(map(str, prepared.run.preprocessing.img_size)) == size


@pytest.mark.parametrize(
    "options", [{"img_size": (3, 3)}, {"settings": (("model.img_size", "16,4"),)}]
)
def test_images_can_be_too_small(data, options):
    with pytest.raises(ConfigError, match=r"img_size must be at least 8 pixels.*(3, 3|16, 4)"):
        prepare(request_of(data, weights="none", **options))


def told(data, **options):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        prepared = prepare(request_of(data, **options))
    return prepared, [str(one.message) for one in found if one.category is MuntinWarning]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Images for which the default model is a large one, what is prepared of them, and warnings."""
    data = write_images(tmp_path_factory.mktemp("large") / "trees", each=2, side=100)
    return data, *told(data)


def test_fresh_weights_instead_of_published_ones_are_a_warning(large, tmp_path):
    data, _, (default,) = large
    named, (asked,) = told(data, model="vit_tiny", img_size=(32, 32))
    for text, model in ((default, "swin_tiny"), (asked, "vit_tiny")):
        assert text.startswith("fresh weights instead of published ones")
        for way in (model, "--weights FILE", "HF_ENDPOINT", "MUNTIN_WEIGHTS"):
            assert way in text
    assert named.run.config.weights == ""
    assert told(data, weights="none", model="vit_tiny", img_size=(32, 32))[1] == []
    assert told(write_images(tmp_path / "small", each=2))[1] == [], "none are published for these"


NAME = "timm/net.in1k"


@pytest.mark.parametrize(
    "place",
    [
        "timm/net.in1k/model.safetensors", "net.in1k/pytorch_model.bin", "net.in1k.safetensors",
        "net.in1k.pth", "net.pth",
    ],
)  # fmt: skip
def test_a_folder_of_downloaded_weights(tmp_path, monkeypatch, place):
    monkeypatch.setenv("MUNTIN_WEIGHTS", str(tmp_path))
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    save_file({"x": torch.zeros(1)}, tmp_path / place)
    assert fetch(NAME) == tmp_path / place
    with pytest.raises(WeightError, match="timm/other"):
        fetch("timm/other.in1k")


def test_a_folder_that_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("MUNTIN_WEIGHTS", str(tmp_path / "none"))
    with pytest.raises(WeightError, match=r"MUNTIN_WEIGHTS.*none"):
        fetch(NAME)


def test_the_default_model_takes_them_from_there(large, tmp_path, monkeypatch):
    data, _, _ = large
    published = create_model("swin_tiny", num_classes=3, img_size=(32, 32)).state_dict()
    name = "swin_tiny_patch4_window7_224.ms_in1k"
    (tmp_path / "weights").mkdir()
    state = {k.removeprefix("backbone."): v for k, v in published.items()}
    save_file(state, tmp_path / "weights" / f"{name}.safetensors")
    monkeypatch.setenv("MUNTIN_WEIGHTS", str(tmp_path / "weights"))
    found, texts = told(data, img_size=(32, 32))
    assert texts == []
    assert found.run.config.weights == f"timm/{name}"
    key = "backbone.patch_embed.proj.weight"
    assert found.network.state_dict()[key].equal(published[key])


TASKS = ("classify", "detect", "instance", "semantic", "pose")
BODY = (("model.embed_dim", "8"), ("model.depths", "1,1,1"), ("model.num_heads", "1,1,2"))


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """One data set a task, and a run of each as it is before training, with norms that differ."""
    folder = tmp_path_factory.mktemp("tasks")
    scenes = write_coco(folder / "scenes", num_train=4, num_val=1, size=(64, 64))
    sets = {**dict.fromkeys(TASKS, scenes), "classify": data}
    for task in TASKS:
        model = {"model": "swin_nano_patch4_window4_64", "settings": BODY, "img_size": (64, 64)}
        start = start_of(task, sets[task], weights="none", out=str(folder / task), **model)
        start.run.write()
        state = {name: tensor + 0.25 for name, tensor in start.network.state_dict().items()}
        write_weights(start.run.path / "weights.safetensors", state)
    return folder, sets


def start_of(task, data, **options):
    machine = MachineConfig(device="cpu", precision="fp32", workers=0)
    return prepare(Request(task=task, data=str(data), machine=machine, **options))


@pytest.mark.parametrize("source", TASKS)
def test_every_task_starts_with_the_backbone_of_every_other(runs, source):
    """Everything but norms of outputs that a task has and the other lacks, which are named."""
    folder, sets = runs
    theirs = load_file(folder / source / "weights.safetensors")
    for task in set(TASKS) - {source}:
        start = start_of(task, sets[task], out="nowhere", weights=str(folder / source))
        (note,) = (note for note in start.notes if note.startswith("weights: "))
        assert "; backbone only" in note
        body = {k: x for k, x in start.network.state_dict().items() if k.startswith("backbone.")}
        lacking = {key for key in body if key not in theirs}
        assert all("norm" in key.split(".")[1] for key in lacking)
        assert ("random: " in note) == bool(lacking)
        assert all(key in note for key in lacking)
        for key in body.keys() & theirs.keys():
            assert body[key].equal(theirs[key]), (task, key)


def test_a_run_whose_weights_changed_is_not_gone_on_from(data, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "damaged")
    file = tmp_path / "damaged" / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunError, match="checksum"):
        prepare(request_of(data, weights=str(tmp_path / "damaged")))


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """A folder as transformers writes it; fields that no shape shows differ from the defaults."""
    config = transformers.ViTMAEConfig(
        image_size=32, patch_size=16, hidden_size=24, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=96, decoder_hidden_size=16, decoder_num_hidden_layers=2,
        decoder_num_attention_heads=4, decoder_intermediate_size=64, norm_pix_loss=False,
        mask_ratio=0.5,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("published") / "mae"
    transformers.ViTMAEForPreTraining(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["", "vit_tiny_patch16_224"])
def test_model_and_decoder_are_those_that_files_beside_the_weights_state(data, autoencoder, name):
    fields = {"img_size": "32", "patch_size": "16", "embed_dim": "24", "depth": "1"}
    given = [(f"model.{key}", text) for key, text in {**fields, "num_heads": "2"}.items()]
    settings = [*(given if name else []), ("head.mask_ratio", "0.25")]
    request = request_of(data, weights=str(autoencoder), model=name, settings=tuple(settings))
    config = prepare(replace(request, task="pretrain")).run.config
    body, head = config.model, config.head
    assert (config.model_name, body.img_size) == ("vit_tiny_patch16_224", (32, 32))
    assert (body.embed_dim, body.depth, body.num_heads) == (24, 1, 2)
    assert (head.dim, head.depth, head.num_heads) == (16, 2, 4)
    assert (head.norm_pix, head.mask_ratio) == (False, 0.25)


def test_training_for_a_task_takes_the_model_that_is_stated(data, autoencoder):
    config = prepare(request_of(data, weights=str(autoencoder))).run.config
    assert (config.model.embed_dim, config.model.patch_size) == (24, 16)
    advice = "Train one: muntin train classify DATA --weights"
    with pytest.raises(ConfigError, match=advice):
        open_published(autoencoder, autoencoder / "run")


def test_another_decoder_is_refused_with_the_heads_that_are_stated(data, autoencoder):
    request = request_of(data, weights=str(autoencoder), settings=(("head.dim", "32"),))
    with pytest.raises(WeightError, match=r"head\.num_heads=4, as"):
        prepare(replace(request, task="pretrain"))
