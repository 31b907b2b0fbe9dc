# SPDX-License-Identifier: Apache-2.0
"""From data to a run folder: choices, settings, data of every kind, and how it ends."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import muntin
from muntin.errors import ConfigError, DataError, RunError, TrainingError
from muntin.runs import Run, read_journal, read_results
from muntin.training.checkpoint import read_checkpoint, write_checkpoint
from tests.small import CLASSES, MODEL, image, train_small, write_images

pytestmark = pytest.mark.filterwarnings("ignore:the run was trained on")

PLAIN = {"train.optimizer": "adamw", "train.start_size": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "trees")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    return train_small(
        data, tmp_path_factory.mktemp("runs") / "trees", settings=PLAIN, pictures=True
    )


def test_everything_in_the_folder(trained):
    for name in (
        "config.json", "weights.safetensors", "last.ckpt/state.safetensors", "classes.json",
        "last.ckpt/state.json", "preprocessing.json", "journal.jsonl", "split.json",
        "results.json", "pictures/batch.png", "pictures/curves.png",
    ):  # fmt: skip
        assert (trained.path / name).stat().st_size > 0, name
    assert list((trained.path / "events").glob("events.*"))
    assert not list(trained.path.rglob("*.partial*"))
    assert not torch.distributed.is_initialized()


def test_journal(trained):
    lines = read_journal(trained.path)
    assert [line["epoch"] for line in lines] == [1, 2]
    wanted = {"train_loss", "val_loss", "val_top1", "learning_rate", "images_per_s", "memory_mib"}
    assert all(wanted <= line.keys() for line in lines)
    best = max(line["val_top1"] for line in lines)
    assert trained.metrics["top1"] == best


def test_figures_of_the_weights_that_are_kept(trained):
    results = read_results(Run.open(trained.path))
    assert results.figures == trained.metrics
    lines = {line["epoch"]: line for line in read_journal(trained.path)}
    assert lines[results.epoch]["val_top1"] == results.figures["top1"]


def same_bits(one, other):
    left, right = (load_file(run.path / "weights.safetensors") for run in (one, other))
    return left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)


def test_nothing_is_drawn_unless_it_is_wanted(data, trained, tmp_path):
    plain = train_small(data, tmp_path / "plain", settings=PLAIN, pictures=False)
    assert not (plain.path / "pictures").exists()
    assert same_bits(trained, plain)


def test_same_seed_same_bits_other_seed_other_bits(data, trained, tmp_path):
    same = train_small(data, tmp_path / "same", settings=PLAIN)
    assert same_bits(trained, same)
    other = train_small(data, tmp_path / "other", settings=PLAIN, seed=1)
    assert not same_bits(trained, other)


@pytest.mark.parametrize("settings", [{}, {"train.seed": 3, "train.init": "mimetic"}])
def test_a_config_repeats_its_run(data, tmp_path, settings):
    first = train_small(data, tmp_path / "first", settings={**PLAIN, **settings}, weights="none")
    again = train_small(data, tmp_path / "again", config=first.path / "config.json")
    assert same_bits(first, again)
    assert (first.path / "split.json").read_text() == (again.path / "split.json").read_text()
    assert Run.open(again.path).config == Run.open(first.path).config


def test_a_config_remembers_its_first_weights(data, trained, tmp_path):
    first = train_small(
        data, tmp_path / "first", settings=PLAIN, weights=str(trained.path), epochs=1
    )
    again = train_small(data, tmp_path / "again", config=first.path / "config.json")
    assert same_bits(first, again)
    assert (first.path / "split.json").read_text() == (again.path / "split.json").read_text()


def test_a_config_has_its_recipe(data, trained, tmp_path):
    with pytest.raises(ConfigError, match="--recipe finetune"):
        train_small(data, tmp_path / "x", config=trained.path / "config.json", recipe="finetune")


def test_settings_are_stored(data, tmp_path):
    settings = {**PLAIN, "train.betas": (0.8, 0.9), "augment.erase": 0.25, "data.strict": True}
    config = Run.open(train_small(data, tmp_path / "r", settings=settings, epochs=1).path).config
    assert config.train.betas == (0.8, 0.9)
    assert config.augment.erase == 0.25
    assert config.data_config.strict is True
    assert config.model.depths == (1, 1)
    assert (config.train.epochs, config.train.batch_size) == (1, 4)


def test_a_batch_that_somebody_asked_for_stays(data, tmp_path):
    run = train_small(
        data, tmp_path / "r", settings={**PLAIN, "train.batch_size": 9}, batch_size=0, epochs=1
    )
    assert Run.open(run.path).config.train.batch_size == 9
    run = train_small(data, tmp_path / "s", settings=PLAIN, batch_size=0, epochs=1)
    assert Run.open(run.path).config.train.batch_size == 4  # a handful of images


WRONG = {
    "train.epoch": ("3", r"train\.epoch'.*'train\.epochs'"),
    "trian.epochs": ("3", r"'trian\.epochs'.*'train\.epochs'"),
    "epochs": ("3", r"'epochs'.*train\.epochs"),
    "train.epochs": ("many", r"epochs.*'many'"),
    "train.epochs.x": ("3", r"'epochs\.x'"),
    "train.optimizer": ("adam", "'adamw'"),
    "data.strict": ("maybe", r"strict.*'maybe'"),
    "train.warmup": ("2", r"train\.warmup.* 2"),
    "model.windw_size": ("4", r"'model\.window_size'"),
    "model.depths": ("1,1,1", r"\(1, 1, 1\)"),
    "machine.devices": ("0", r"machine\.devices"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings(data, tmp_path, name):
    value, text = WRONG[name]
    with pytest.raises(ConfigError, match=text):
        train_small(data, tmp_path / "run", settings={**PLAIN, name: value})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"model": "swin_tiney"}, "'swin_tiney'.*'swin_tiny'"),
        ({"recipe": "fintune"}, "'fintune'.*'finetune'"),
        ({"precision": "fp8"}, "precision.*fp8"),
        ({"device": "tpu"}, "device.*tpu"),
        ({"precision": "fp16"}, "fp16.*cpu"),
    ],
)
def test_wrong_options(data, tmp_path, options, text):
    with pytest.raises(ConfigError, match=text):
        train_small(data, tmp_path / "run", settings=PLAIN, **options)


def test_unknown_task(data, tmp_path):
    with pytest.raises(ConfigError, match=r"'clasify'.*'classify'"):
        muntin.train("clasify", data, out=tmp_path / "run", quiet=True)


def test_weights_for_another_model(data, trained, tmp_path):
    settings = {**PLAIN, "model.embed_dim": 32}
    with pytest.raises(muntin.weights.weight_loading.WeightError, match="Swin"):
        train_small(data, tmp_path / "run", settings=settings, weights=str(trained.path))
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_start_where_it_cannot_be_written(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file could not"):
        train_small(data, tmp_path / "file", settings=PLAIN)


FAMILIES = {
    "swinv2_tiny": {"embed_dim": 24, "depths": "1,1,1,1", "window_size": 4},
    "deit_tiny_distilled_patch16_224": {"depth": 1, "patch_size": 8},
    "deit3_small": {"embed_dim": 48, "num_heads": 2, "depth": 1, "patch_size": 8},
    "simmim_vit_base_patch16_224": {"embed_dim": 48, "num_heads": 2, "depth": 1, "patch_size": 8},
    "t2t_vit_7": {"depth": 1},
    "vit_tiny": {"embed_dim": 12, "depth": 1},
    "hiera_tiny": {"embed_dim": 16, "depths": "1,1,1,1"},
    "timm:resnet10t": {},
}


# Of plain transformers one learns here; parity tests hold how each of them differs.
ALIKE = ("deit3_small", "simmim_vit_base_patch16_224", "vit_tiny")


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=pytest.mark.slow) if one in ALIKE else one for one in FAMILIES],
)
def test_every_family_is_trained_and_used(data, tmp_path, name):
    settings = {f"model.{field}": value for field, value in FAMILIES[name].items()}
    run = muntin.train(
        "classify", data, out=tmp_path / "run", model=name, weights="none", epochs=1, img_size=32,
        settings={**settings, "machine.workers": 0}, device="cpu", quiet=True, pictures=False,
    )  # fmt: skip
    assert len(muntin.load(run.path)(data / "ash" / "0.png")[0].scores) == 3


def test_choices_for_small_images(data, tmp_path, capsys):
    muntin.train(
        "classify", data, out=tmp_path / "run", epochs=1, stop_after=1, device="cpu",
        pictures=False,
    )  # fmt: skip
    said = capsys.readouterr().out
    for figure in ("18", "--model", "small-data", "learning rate"):
        assert figure in said
    assert f"muntin train classify {data} --resume --out {tmp_path / 'run'}" in said


def test_early_stop(data, tmp_path):
    settings = {**PLAIN, "train.early_stop": 2, "train.learning_rate": 0}
    run = train_small(data, tmp_path / "run", settings=settings, epochs=50)
    assert run.epochs == 3  # the first one is the best, two more are not better


def test_the_shortest_time_gives_a_run_that_can_be_used(data, tmp_path):
    run = train_small(data, tmp_path / "run", settings=PLAIN, epochs=0, max_time_s=0.001)
    assert run.metrics["num_images"] > 0
    assert muntin.load(run.path)(data / "ash" / "0.png")[0].best in CLASSES


def test_a_loss_that_is_no_number_keeps_the_best_weights(data, tmp_path):
    settings = {**PLAIN, "train.clip_grad": 0, "train.warmup": 0}
    run = train_small(data, tmp_path / "run", settings=settings, epochs=3, stop_after=5)
    best = load_file(run.path / "weights.safetensors")
    state = read_checkpoint(run.path)
    state["network"]["head.fc.weight"][:] = torch.nan
    write_checkpoint(run.path, state)
    with pytest.raises(TrainingError, match=r"nan.*epoch 2, step 2"):
        train_small(data, run.path, resume=True)
    kept = load_file(run.path / "weights.safetensors")
    assert all(kept[name].equal(tensor) for name, tensor in best.items())


@pytest.mark.parametrize("cache", [64, 0])
def test_images_that_cannot_be_read(tmp_path, cache):
    data = write_images(tmp_path / "trees", each=20)
    for name in ("ash/3.png", "birch/5.png"):
        (data / name).write_bytes(b"")
    settings = {**PLAIN, "data.cache_mib": cache}
    with pytest.warns(UserWarning, match=r"\d+.*trees"):
        run = train_small(data, tmp_path / "run", settings=settings, batch_size=16, epochs=1)
    assert run.metrics["num_images"] > 0
    with pytest.raises(DataError, match=r"data\.strict=true"):
        train_small(data, tmp_path / "strict", settings={**settings, "data.strict": True}, epochs=1)


@pytest.mark.filterwarnings("ignore:.*cannot be read:UserWarning")
def test_nothing_can_be_read(tmp_path):
    data = write_images(tmp_path / "trees")
    for path in data.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="trees"):
        train_small(data, tmp_path / "run", settings=PLAIN)


def test_validation_images_of_their_own(data, tmp_path):
    val = write_images(tmp_path / "val", each=2)
    run = train_small(data, tmp_path / "run", settings=PLAIN, val=val)
    assert run.metrics["num_images"] == 6
    assert Run.open(run.path).config.val == str(val)
    again = train_small(data, tmp_path / "again", config=run.path / "config.json")
    assert again.metrics["num_images"] == 6
    shutil.rmtree(val)
    write_images(val, each=2, classes=("ash", "oak"))
    with pytest.raises(DataError, match="oak"):
        train_small(data, tmp_path / "other", settings=PLAIN, val=val)


def write_table(folder, rows):
    folder.mkdir()
    for number, row in enumerate(rows):
        image(number % 3, number).save(folder / f"{number}.png")
        rows[number] = f"{number}.png,{row}"
    table = folder / "set.csv"
    table.write_text("path,class,group\n" + "\n".join(rows) + "\n")
    return table


def test_several_labels_a_image(tmp_path):
    table = write_table(tmp_path / "set", ["red;big,", "red,", "big,", ","] * 6)
    settings = {**PLAIN, "augment.mixup": 0.5, "augment.cutmix": 0.5, "train.class_weights": True}
    run = train_small(table, tmp_path / "run", settings={**settings, "data.sampler": "balanced"})
    assert 0 <= run.metrics["map"] <= 1
    figures = muntin.evaluate(run.path, table, pictures=False)
    assert figures["num_images"] == 24
    assert {"map", "macro_f1", "micro_f1", "exact_match", "average_precision"} <= figures.keys()
    (result,) = muntin.load(run.path)(table.parent / "0.png")
    assert set(result.class_names) == {"big", "red"}
    assert all(0 <= score <= 1 for score in result.scores)
    one = write_table(tmp_path / "one", ["red,", "big,"] * 4)
    single = train_small(one, tmp_path / "single", settings=PLAIN, epochs=1)
    with pytest.raises(DataError, match="set"):
        muntin.evaluate(single.path, table)
    with pytest.raises(DataError, match="valid"):
        train_small(one, tmp_path / "mixed", settings=PLAIN, val=table)


def test_groups_are_not_parted(tmp_path):
    table = write_table(tmp_path / "set", [f"{'ab'[i % 2]},g{i // 4}" for i in range(32)])
    run = train_small(table, tmp_path / "run", settings=PLAIN, epochs=1)
    taken = json.loads((run.path / "split.json").read_text())["val"][1]
    groups = {int(name.partition(".")[0]) // 4 for name in taken}
    assert taken
    assert len(taken) == 4 * len(groups)


def test_grey_images(data, tmp_path):
    run = train_small(data, tmp_path / "run", settings={**PLAIN, "model.in_chans": 1})
    opened = Run.open(run.path)
    assert opened.preprocessing.in_chans == 1
    assert len(opened.preprocessing.mean) == 1
    assert muntin.evaluate(run.path, data, pictures=False)["num_images"] == 18
    grey = np.full((9, 20), 77, np.uint8)
    results = muntin.load(run.path)([grey, Image.fromarray(grey), data / "ash" / "0.png"])
    assert [len(result) for result in results] == [3, 3, 3]


def test_reduced_precision_and_model_name(data, tmp_path):
    run = train_small(data, tmp_path / "run", settings=PLAIN, precision="bf16", epochs=1)
    opened = Run.open(run.path)
    assert opened.config.machine.precision == "bf16"
    assert opened.config.model_name == MODEL
    assert all(
        t.dtype == torch.float32 for t in load_file(run.path / "weights.safetensors").values()
    )
