# SPDX-License-Identifier: Apache-2.0
"""Several processes learn what one learns, and end together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch

import muntin
from muntin.collectives import add_numbers
from muntin.errors import ConfigError
from muntin.runs import read_journal
from muntin.synthetic.datasets import write_coco, write_frames, write_maps
from muntin.train_config import MachineConfig
from muntin.training import local_processes, processes
from muntin.training.processes import Place, find_place
from tests.detectors import (
    BODY,
    BODY_SETTINGS,
    empty_images,
    mixed_sizes,
    train_dense,
    train_detector,
)
from tests.forked import Forked, train_forked
from tests.small import MODEL, SETTINGS, train_small, write_images

DRAWS = {
    # Everything that is random in a step, and what looks at a whole batch.
    "train.start_size": 1, "train.ema_decay": 0.9, "train.accumulate": 2, "augment.mixup": 0.8,
    "augment.cutmix": 1.0, "model.drop_path_rate": 0.3, "model.drop_rate": 0.1,
    "model.attn_drop_rate": 0.1, "train.location_loss": 0.5,
}  # fmt: skip
TOLERANCE = 1e-4


def figures(out: Path) -> list[tuple[float, float]]:
    return [(line["train_loss"], line.get("val_loss", 0.0)) for line in read_journal(out)]


def assert_same_curve(one: Path, other: Path) -> None:
    left, right = figures(one), figures(other)
    assert len(left) == len(right) >= 1
    for mine, theirs in zip(left, right, strict=True):
        assert theirs == pytest.approx(mine, abs=TOLERANCE)


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "trees")


def classify(trees, out, **options):
    """17 images in batches of 7: shares of 4 and 3 or of 2 and 1, and a process without any."""
    options = {"val": trees, "batch_size": 7, "settings": DRAWS, **options}
    return train_small(trees, out, **options).path


def test_two_processes_learn_what_one_learns(trees, tmp_path):
    # Two updates; the slow tests have more.
    classify(trees, tmp_path / "one", epochs=1)
    train_forked(2, lambda: classify(trees, tmp_path / "two", epochs=1))
    assert_same_curve(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_processes(trees, tmp_path):
    again = partial(train_small, trees, tmp_path / "more", resume=True)
    classify(trees, tmp_path / "one", epochs=3)
    train_forked(4, lambda: classify(trees, tmp_path / "more", epochs=3, stop_after=2))
    train_forked(2, lambda: again(stop_after=2).path)
    again()
    assert_same_curve(tmp_path / "one", tmp_path / "more")


def shapes(folder: Path) -> Path:
    """One process may have nothing but images without objects."""
    data = write_coco(folder, num_train=9, num_val=5, size=(64, 64))
    empty_images(data, "train", {1, 3, 4, 7, 8})
    return data


def keypoints(data: Path, out: Path) -> object:
    settings = {
        **BODY_SETTINGS, "head.neck.channels": 16, "head.mask_convs": 1, "head.mask_dim": 16,
        **SLOW_STEPS,
    }  # fmt: skip
    return muntin.train(
        "pose", data, out=out, quiet=True, head="keypoint_rcnn_small", model=BODY, img_size=64,
        epochs=2, batch_size=4, weights="none", precision="fp32", device="cpu", pictures=False,
        settings=settings,
    )  # fmt: skip


def pretrain(data: Path, out: Path, objective: str, model: str, settings) -> object:
    return muntin.pretrain(
        data, out=out, objective=objective, model=model, settings=settings, img_size=16, epochs=2,
        batch_size=5, precision="fp32", device="cpu", pictures=False, quiet=True,
    )  # fmt: skip


SLOW_STEPS = {"train.learning_rate": 1e-5}
"""Regions and cells are chosen by rank: larger steps let rounding change the choice."""
DENSE = {"head": "dense_small", "settings": SLOW_STEPS}

VIT = {
    "model.embed_dim": 16, "model.depth": 2, "model.num_heads": 2, "model.patch_size": 4,
    "head.dim": 16, "head.depth": 1, "head.num_heads": 2, "machine.workers": 0,
}  # fmt: skip
VIEWS = {**SETTINGS, "head.dim": 8, "head.hidden_dim": 16}
TASKS = {
    "classify": (write_images, classify),
    "detect": (shapes, partial(train_detector, "detect")),
    "detect-sizes": (mixed_sizes, partial(train_detector, "detect")),
    "instance": (shapes, partial(train_detector, "instance", settings=SLOW_STEPS)),
    "detect-dense": (shapes, partial(train_detector, "detect", **DENSE)),
    "instance-dense": (shapes, partial(train_detector, "instance", **DENSE)),
    "semantic": (
        partial(write_maps, num_train=9, num_val=3, size=(64, 80)),
        partial(train_dense, "semantic", head="upernet"),
    ),
    "pose": (
        partial(write_frames, num_train=9, num_val=3, size=(64, 80)),
        partial(train_dense, "pose", head="simple_baseline"),
    ),
    "pose-regions": (
        partial(write_coco, num_train=7, num_val=3, size=(96, 96), max_objects=3),
        keypoints,
    ),
    "mae": (
        write_images,
        partial(pretrain, objective="mae", model="vit_tiny_patch16_224", settings=VIT),
    ),
    "simmim": (write_images, partial(pretrain, objective="simmim", model=MODEL, settings=SETTINGS)),
    "views": (write_images, partial(pretrain, objective="views", model=MODEL, settings=VIEWS)),
}


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_learnt_alike(tmp_path, task):
    write, train = TASKS[task]
    data = write(tmp_path / "data")
    train(data, tmp_path / "1")
    for world in (2, 4):
        out = tmp_path / str(world)
        train_forked(world, lambda out=out: str(train(data, out)))
        assert_same_curve(tmp_path / "1", out)
        ends = [read_journal(run)[-1] for run in (tmp_path / "1", out)]
        assert ends[0]["val_num_images"] == ends[1]["val_num_images"]


def wait_for(path: Path, timeout_s: float = 280) -> None:
    until = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_the_end_of_one_ends_the_others(trees, tmp_path):
    out = tmp_path / "run"
    started = Forked(3, lambda: classify(trees, out, epochs=1000))
    wait_for(out / "last.ckpt")
    started.processes[1].kill()
    killed_at = time.monotonic()
    outcomes = started.end(100)
    assert time.monotonic() - killed_at < 60
    assert [one.error for one in outcomes] == ["ProcessError", "", "ProcessError"]
    assert all("rank 1" in one.text and "epoch" in one.text for one in (outcomes[0], outcomes[2]))
    before = len(read_journal(out))
    done = train_forked(2, lambda: train_small(trees, out, resume=True, stop_after=9).epochs)
    assert done[0].value >= before


@pytest.mark.slow
def test_one_that_hangs_is_named(trees, tmp_path):
    out = tmp_path / "run"
    settings = {**DRAWS, "machine.timeout_s": 15}
    started = Forked(3, lambda: classify(trees, out, epochs=1000, settings=settings))
    wait_for(out / "last.ckpt")
    os.kill(started.processes[2].pid, signal.SIGSTOP)
    try:
        for pipe in started.pipes[:2]:
            assert pipe.poll(100)
    finally:
        started.processes[2].kill()
    outcomes = started.end(60)
    for one in outcomes[:2]:
        assert one.error == "ProcessError"
        assert "15 s" in one.text
        assert "rank 2" in one.text


def test_other_versions_and_other_files_are_refused(trees, tmp_path):
    def other_version():
        if os.environ["RANK"] == "1":
            processes.__version__ = "9.9"  # in this process only
        return classify(trees, tmp_path / "run")

    def other_files():
        if os.environ["RANK"] == "1":
            own = write_images(tmp_path / "own", each=6, side=24)
            os.chdir(own.parent)
            own.rename("trees")
        else:
            os.chdir(trees.parent)
        return classify("trees", tmp_path / "run")

    for work, named in ((other_version, "9.9"), (other_files, ".png")):
        outcomes = Forked(2, work).end(100)
        assert [one.error for one in outcomes] == ["TrainingError"] * 2, outcomes
        assert all(named in one.text and "rank 1" in one.text for one in outcomes)
        assert not (tmp_path / "run" / "last.ckpt").exists()


TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2",
}  # fmt: skip
SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "6", "SLURM_PROCID": "4",
    "SLURM_STEP_NUM_TASKS": "6", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NTASKS_PER_NODE": "3",
}  # fmt: skip


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        (TORCHRUN, (5, 8, 1, 4, 2, "torchrun")),
        (SLURM, (4, 6, 1, 3, 2, "SLURM")),
        # A batch script that does not start its tasks by srun is one process.
        ({**SLURM, "SLURM_STEP_NUM_TASKS": ""}, (0, 1, 0, 1, 1, "")),
        ({}, (0, 1, 0, 1, 1, "")),
    ],
)
def test_the_environment_is_recognised(monkeypatch, variables, place):
    for name in (*TORCHRUN, *SLURM):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        if value:
            monkeypatch.setenv(name, value)
    assert tuple(find_place()) == place
    assert find_place(devices=place[3], nodes=place[4]) == find_place()
    if variables and place[5]:
        said = find_place().describe("gloo")
        assert said == f"{place[1]} processes on 2 nodes, started by {place[5]}, gloo"


@pytest.mark.parametrize(
    ("changed", "asked", "named"),
    [
        ({}, {"devices": 2}, "--devices .*4, got 2"),
        ({}, {"nodes": 3}, "--nodes .*2, got 3"),
        ({"RANK": "first"}, {}, "RANK .*'first'"),
        ({"WORLD_SIZE": "7"}, {}, "got 7 on 2"),
        ({"LOCAL_RANK": "4"}, {}, r"\(local rank 4\)"),
        ({"LOCAL_RANK": "\u00b2"}, {}, "LOCAL_RANK"),
        ({"GROUP_WORLD_SIZE": "two"}, {}, "GROUP_WORLD_SIZE .*'two'"),
        (
            {"TORCHELASTIC_RUN_ID": None, "MASTER_ADDR": "a", "LOCAL_WORLD_SIZE": ""},
            {},
            "LOCAL_WORLD_SIZE",
        ),
        ({"TORCHELASTIC_RUN_ID": None}, {"nodes": 2, "devices": 4}, "--nnodes=2 .*node=4"),
    ],
)
def test_contradictions_are_refused(monkeypatch, changed, asked, named):
    for name, value in {**TORCHRUN, **changed}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=named):
        find_place(**asked)


def test_a_job_of_slurm_has_a_number(monkeypatch):
    for name, value in {**SLURM, "SLURM_JOB_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"SLURM_JOB_ID .*'x'"):
        find_place()


def test_a_script_may_train_twice(trees, tmp_path):
    def work() -> list[int]:
        names = ("one", "two")
        return [train_small(trees, tmp_path / name, epochs=1).epochs for name in names]

    assert [one.value for one in train_forked(2, work)] == [[1, 1]] * 2
    assert figures(tmp_path / "one") == figures(tmp_path / "two")


def test_one_that_hangs_is_named_with_its_last_place():
    machine = MachineConfig(device="cpu", precision="fp32", timeout_s=3)

    def work() -> None:
        place = find_place()
        with processes.joined(place, machine), processes.telling_losses(machine):
            if place.rank:
                processes.note_progress("epoch 1, step 1")
                processes.note_progress("epoch 1, step 2")
                time.sleep(100)
            add_numbers(1)

    started = Forked(2, work)
    assert started.pipes[0].poll(60)
    started.processes[1].kill()
    told = started.end(60)[0]
    assert told.error == "ProcessError"
    assert "rank 1 (last seen at epoch 1, step 2), for which rank 0 waited (at the st" in told.text


def test_threads_are_shared_once(monkeypatch):
    # As of a script under SLURM that trains twice, where nobody says how many there are.
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(8)
    try:
        for _ in range(2):
            with processes._sharing_threads(Place(local_world=4)):
                seen.append(torch.get_num_threads())
        assert (seen, torch.get_num_threads()) == ([2, 2], 8)
    finally:
        torch.set_num_threads(before)


class TwoWordError(Exception):
    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} {other}")


class Unreadable:
    def __reduce__(self):
        return fail, ()


def fail():
    raise TwoWordError("no", "luck")


def test_an_error_that_cannot_be_made_again_is_told(monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setenv("MASTER_ADDR", "")
    mine, theirs = multiprocessing.Pipe()
    mine.send(Unreadable())
    local_processes._run(Place(), 1, theirs, torch.are_deterministic_algorithms_enabled())
    assert "no luck" in str(mine.recv().error)
    # Who would hear it has ended: no traceback follows.
    mine.close()
    local_processes._run(Place(), 1, theirs, torch.are_deterministic_algorithms_enabled())
