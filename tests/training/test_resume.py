# SPDX-License-Identifier: Apache-2.0
"""A run that was stopped and resumed has the same bits as one that never stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from muntin.errors import ConfigError, RunError
from muntin.runs import read_journal
from tests.small import image, train_small, write_images

PLAIN = {"train.optimizer": "adamw", "train.start_size": 1}
MIXED = {
    "train.optimizer": "adamw",
    "train.ema_decay": 0.9,
    "model.drop_path_rate": 0.3,
    "train.drop_path_rate": 0.3,
    "augment.mixup": 0.8,
    "augment.cutmix": 1,
    "augment.erase": 0.5,
    "augment.auto": "trivialaugment",
}
# 18 images: 16 to learn from, 4 steps an epoch.
CASES = {
    "first step": (PLAIN, (1,)),
    "epoch end": (PLAIN, (4,)),
    "three sittings": (PLAIN, (3, 2)),
    "muon and growing images": (
        {"train.optimizer": "muon", "train.start_size": 0.5, "train.full_size_from": 0.6},
        (3, 3),
    ),
    "everything random": (MIXED, (2,)),
    "accumulation": ({**PLAIN, "train.accumulate": 3}, (1, 1)),
    "accumulation, last step": ({**PLAIN, "train.accumulate": 3}, (4,)),
    "balanced sampler": (
        {**PLAIN, "data.sampler": "balanced", "train.class_weights": "true"},
        (6,),
    ),
    "early in a frozen run": ({**PLAIN, "train.freeze": 1, "train.layer_decay": 0.7}, (5,)),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "trees")


def state_of(run: Path) -> tuple[dict, dict]:
    tensors = load_file(run / "last.ckpt" / "state.safetensors")
    rest = json.loads((run / "last.ckpt" / "state.json").read_text())
    del rest["position"]["elapsed_s"]
    return tensors, rest


def journal_of(run: Path) -> list[dict]:
    measured = {"seconds", "images_per_s", "memory_mib"}
    return [{k: v for k, v in line.items() if k not in measured} for line in read_journal(run)]


@pytest.mark.parametrize("case", CASES)
def test_same_bits(data, tmp_path, case):
    settings, stops = CASES[case]
    settings = {**settings, "data.val_fraction": 0.12}
    train_small(data, tmp_path / "whole", settings=settings)
    stopped = tmp_path / "stopped"
    for number, steps in enumerate(stops):
        run = train_small(
            data, stopped, settings=settings if number == 0 else None,
            resume=number > 0, stop_after=steps,
        )  # fmt: skip
        assert run.interrupted
    assert not train_small(data, stopped, resume=True).interrupted

    (expected, rest), (got, other) = state_of(tmp_path / "whole"), state_of(stopped)
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].equal(tensor), name
    assert other == rest
    assert journal_of(stopped) == journal_of(tmp_path / "whole")
    best = load_file(tmp_path / "whole" / "weights.safetensors")
    for name, tensor in load_file(stopped / "weights.safetensors").items():
        assert tensor.equal(best[name]), name


def test_the_cases_learn_something(data, tmp_path):
    # Otherwise equal bits would show nothing.
    train_small(data, tmp_path / "one", settings=MIXED)
    train_small(data, tmp_path / "two", settings=MIXED, seed=1)
    one, two = state_of(tmp_path / "one")[0], state_of(tmp_path / "two")[0]
    assert any(not one[name].equal(two[name]) for name in one)


def test_a_finished_run_stays_as_it_is(data, tmp_path):
    run = train_small(data, tmp_path / "run", settings=PLAIN)
    before = (run.path / "last.ckpt" / "state.safetensors").read_bytes(), journal_of(run.path)
    again = train_small(data, tmp_path / "run", resume=True)
    after = (run.path / "last.ckpt" / "state.safetensors").read_bytes(), journal_of(run.path)
    assert after == before
    assert again.metrics == run.metrics
    assert again.epochs == 2


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"epochs": 5}, "epochs"),
        ({"seed": 1}, "seed"),
        ({"max_time_s": 9.0}, "max_time_s"),
        ({"img_size": 32}, "img_size"),
        ({"recipe": "finetune"}, "recipe"),
        ({"weights": "x.safetensors"}, "weights"),
        ({"devices": 2}, "machine"),
        ({"settings": {"train.seed": 2}}, "settings"),
    ],
)
def test_a_resumed_run_takes_no_new_settings(data, tmp_path, changed, named):
    with pytest.raises(ConfigError, match=rf"\b{named}\b.*--resume"):
        train_small(data, tmp_path / "run", resume=True, **changed)


def test_resuming_needs_a_run(data, tmp_path):
    with pytest.raises(ConfigError, match="--out"):
        train_small(data, "", resume=True)
    with pytest.raises(RunError, match=r"--resume.*none") as caught:
        train_small(data, tmp_path / "none", resume=True)
    assert "export" not in str(caught.value)


def test_resuming_needs_the_same_images(tmp_path):
    data = write_images(tmp_path / "trees")
    train_small(data, tmp_path / "run", settings=PLAIN, stop_after=1)
    moved = data.rename(tmp_path / "moved")
    image(0, 99).save(moved / "ash" / "99.png")
    with pytest.raises(RunError, match="moved"):
        train_small(moved, tmp_path / "run", resume=True)
    (moved / "ash" / "99.png").unlink()
    assert train_small(moved, tmp_path / "run", resume=True).epochs == 2


def test_a_run_is_not_overwritten(data, tmp_path):
    train_small(data, tmp_path / "run", settings=PLAIN, stop_after=1)
    with pytest.raises(RunError, match="run"):
        train_small(data, tmp_path / "run")


def test_what_never_began_can_be_begun_again(data, tmp_path):
    train_small(data, tmp_path / "run", settings=PLAIN, stop_after=1)
    for name in ("state.json", "state.safetensors"):
        (tmp_path / "run" / "last.ckpt" / name).unlink()
    (tmp_path / "run" / "last.ckpt").rmdir()
    with pytest.raises(RunError, match=r"last\.ckpt"):
        train_small(data, tmp_path / "run", resume=True)
    assert train_small(data, tmp_path / "run").epochs == 2
