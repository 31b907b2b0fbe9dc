# SPDX-License-Identifier: Apache-2.0
"""A run that was stopped and resumed has the same bits as one that never stopped."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file

from muntin.errors import ConfigError, RunError
from muntin.runs import Run, read_journal
from muntin.train_config import MachineConfig
from muntin.training.request import Request
from muntin.training.resume import resume_request
from tests.small import MODEL, image, train_small, write_images

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
    "after the last step": (PLAIN, (8,)),
    "early in a frozen run": ({**PLAIN, "train.freeze": 1, "train.layer_decay": 0.7}, (5,)),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "trees")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Give the run of settings that never stopped, trained once."""

    @cache
    def call(settings: tuple[tuple[str, object], ...]) -> Path:
        folder = tmp_path_factory.mktemp("runs") / "whole"
        return train_small(data, folder, settings=dict(settings)).path

    return lambda settings: call(tuple(settings.items()))


def state_of(run: Path) -> tuple[dict, dict]:
    tensors = load_file(run / "last.ckpt" / "state.safetensors")
    rest = json.loads((run / "last.ckpt" / "state.json").read_text())
    del rest["position"]["elapsed_s"]
    return tensors, rest


def journal_of(run: Path) -> list[dict]:
    measured = {"seconds", "images_per_s", "memory_mib"}
    return [{k: v for k, v in line.items() if k not in measured} for line in read_journal(run)]


@pytest.mark.parametrize("case", CASES)
def test_same_bits(data, whole, tmp_path, case):
    settings, stops = CASES[case]
    settings = {**settings, "data.val_fraction": 0.12}
    stopped = tmp_path / "stopped"
    for number, steps in enumerate(stops):
        run = train_small(
            data, stopped, settings=settings if number == 0 else None,
            resume=number > 0, stop_after=steps,
        )  # fmt: skip
        assert run.interrupted
    assert not train_small(data, stopped, resume=True).interrupted

    one = whole(settings)
    (expected, rest), (got, other) = state_of(one), state_of(stopped)
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].equal(tensor), name
    assert other == rest
    assert journal_of(stopped) == journal_of(one)
    best = load_file(one / "weights.safetensors")
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


@pytest.fixture(scope="module")
def begun(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "begun"
    train_small(data, folder, settings=PLAIN, seed=3, stop_after=1)
    return folder


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"epochs": 1}, r"train\.epochs must be at least 2, got 1"),
        ({"max_time_s": 9.0}, r"train\.max_time_s must be left out"),
        ({"settings": {"train.max_time_s": 9}}, r"train\.max_time_s"),
        ({"seed": 1}, "seed"),
        ({"img_size": 32}, "img_size"),
        ({"recipe": "finetune"}, "recipe"),
        ({"weights": "x.safetensors"}, "weights"),
        ({"precision": "bf16"}, "precision"),
        ({"batch_size": 8}, "batch_size"),
        ({"model": "swin_tiny"}, "model"),
        ({"head": "fcos"}, "head"),
        ({"settings": {"train.seed": 2}}, r"train\.seed"),
        ({"settings": {"model.depths": "1,2"}}, r"model\.depths"),
        ({"settings": {"data.strict": "true"}}, r"data\.strict"),
        ({"settings": {"augment.mixup": 0.5}}, r"augment\.mixup"),
        ({"settings": {"machine.compile": "on"}}, r"machine\.compile"),
    ],
)
def test_a_resumed_run_takes_no_other_settings(data, begun, changed, named):
    with pytest.raises(ConfigError, match=rf"{named}\b.*--resume"):
        train_small(data, begun, resume=True, **changed)


SAME = {
    "model": MODEL, "weights": "none", "recipe": "small-data", "batch_size": 4, "img_size": 16,
    "seed": 3, "device": "cpu", "precision": "fp32", "epochs": 2,
}  # fmt: skip


@pytest.mark.parametrize("same", [*({name: value} for name, value in SAME.items()), SAME])
def test_values_that_are_the_same_are_no_change(begun, same):
    options = {**same}
    if "img_size" in same:
        options["img_size"] = (16, 16)
    where = {name: options.pop(name) for name in ("device", "precision") if name in options}
    request = Request(
        task="classify", data="x", out=str(begun), machine=MachineConfig(**where), **options,
        settings=(("train.optimizer", "adamw"), ("model.embed_dim", "16"), ("train.epochs", "2")),
        base=Run.open(begun).config,
    )  # fmt: skip
    assert resume_request(request, True).base == Run.open(begun).config


def test_a_run_goes_on_for_longer(data, tmp_path):
    """Bit for bit, where the rate does not depend on the length: as if it had begun so."""
    settings = {**PLAIN, "train.warmup": 0, "train.decay": "steps", "train.steps": "1,1"}
    longer = train_small(data, tmp_path / "longer", settings=settings, epochs=3)
    short = train_small(data, tmp_path / "short", settings=settings, epochs=1)
    assert train_small(data, short.path, resume=True, epochs=3).epochs == 3
    assert Run.open(short.path).config.train.epochs == 3
    for (left, rest), (right, other) in [(state_of(longer.path), state_of(short.path))]:
        assert all(left[name].equal(right[name]) for name in left)
        assert rest["position"] == other["position"]
    # What is still longer needs no option once it was given.
    assert train_small(data, short.path, resume=True, settings={"train.epochs": 4}).epochs == 4


def test_the_rate_is_that_of_the_longer_run(data, tmp_path):
    settings = {**PLAIN, "train.warmup": 0, "train.decay": "linear", "train.min_lr": 0}
    short = train_small(data, tmp_path / "short", settings=settings, epochs=1)
    train_small(data, short.path, resume=True, epochs=4)
    lines, steps = read_journal(short.path), 4
    peak = Run.open(short.path).config.train.learning_rate
    # The last step of an epoch: of one at first, then of four.
    expected = [1 - (steps - 1) / steps, *(1 - (n * steps - 1) / (4 * steps) for n in (2, 3, 4))]
    assert [line["learning_rate"] / peak for line in lines] == pytest.approx(expected)


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
    for name in ("state.json", "state.safetensors", "checksums.json"):
        (tmp_path / "run" / "last.ckpt" / name).unlink()
    (tmp_path / "run" / "last.ckpt").rmdir()
    with pytest.raises(RunError, match=r"last\.ckpt"):
        train_small(data, tmp_path / "run", resume=True)
    assert train_small(data, tmp_path / "run").epochs == 2


def test_what_was_killed_at_its_first_checkpoint_can_be_begun_again(data, tmp_path):
    run = train_small(data, tmp_path / "run", settings=PLAIN, epochs=1).path
    shutil.rmtree(run / "last.ckpt")
    (run / ".muntin-partial-1.json").write_text("{")
    with pytest.raises(RunError, match="run"):  # the weights of a whole training
        train_small(data, run, settings=PLAIN, epochs=2)
    values = json.loads((run / "config.json").read_text())
    values["train"]["epochs"] = 2
    (run / "config.json").write_text(json.dumps(values))
    assert train_small(data, run, settings=PLAIN, epochs=2).epochs == 2
    assert [line["epoch"] for line in read_journal(run)] == [1, 2]
    assert not list(run.glob(".*"))


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        (("state", "@numbered", "0", "exp_avg"), None, "same tensors"),
        (("param_groups", 0, "betas"), [0.9], "betas"),
        (("param_groups", 0, "maximize"), 1, "maximize"),
    ],
)
def test_an_optimizer_takes_no_state_that_its_step_would_fail_at(
    data, tmp_path, begun, place, value, named
):
    run = tmp_path / "run"
    shutil.copytree(begun, run)
    (run / "last.ckpt" / "checksums.json").unlink()  # as of earlier versions
    state = json.loads((run / "last.ckpt" / "state.json").read_text())
    inner = state["optimizers"][0]
    for name in place[:-1]:
        inner = inner[name]
    assert inner[place[-1]] != value
    inner[place[-1]] = value
    (run / "last.ckpt" / "state.json").write_text(json.dumps(state))
    with pytest.raises(RunError, match=rf"last\.ckpt.*{named}"):
        train_small(data, run, resume=True)
