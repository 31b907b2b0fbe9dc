# SPDX-License-Identifier: Apache-2.0
"""Processes as they are started: by scripts, the command line and torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from muntin.runs import read_journal
from muntin.synthetic.datasets import write_maps
from tests.small import MODEL, SETTINGS, write_images

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 280
SCRIPT = """
import sys
import torch
from muntin.errors import MuntinError
from tests.small import train_small

data, out, devices = sys.argv[1:]  # without a guard of __main__
print("once", flush=True)
try:
    train_small(data, out, settings={"data.strict": True}, devices=int(devices), val=data)
except MuntinError as error:
    print(type(error).__name__, error)
assert not torch.distributed.is_initialized()
"""
pytestmark = pytest.mark.slow


@pytest.fixture
def data(tmp_path):
    return write_images(tmp_path / "trees")


@pytest.fixture
def env():
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    more = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "MUNTIN_NO_HOOK": "1"}
    return {**os.environ, **more, "PYTHONPATH": paths, "PYTHONWARNINGS": "ignore"}


def words(data: Path, out: Path, *more: str) -> list[str]:
    rows = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
    return [
        "-m", "muntin", "train", "classify", str(data), "--val", str(data), "--out", str(out),
        "--model", MODEL, "--img-size", "16", "--batch-size", "4", "--weights", "none",
        "--precision", "fp32", "--device", "cpu", *rows, *more,
    ]  # fmt: skip


def run(command, env):
    return subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def test_a_script_needs_no_guard(data, env, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"# a test\n{SCRIPT}")
    done = run([sys.executable, script, data, tmp_path / "run", "2"], env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["once"]
    assert len(read_journal(tmp_path / "run")) == 2
    # An error of a process is that of the call.
    (data / "ash" / "3.png").write_bytes(b"")
    done = run([sys.executable, script, data, tmp_path / "other", "2"], env)
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("DataError ")
    assert "data.strict=true makes this an error" in last


def test_started_processes_load_images_that_they_share(env, tmp_path):
    """By workers: images of several sizes are not in one tensor, which classification has."""
    maps = write_maps(tmp_path / "maps", num_train=6, num_val=2, size=(48, 64))
    options = ["--epochs", "1", "--devices", "2", "--set", "machine.workers=1"]
    command = [*words(maps, tmp_path / "run"), *options, "--model", "swin_nano"]
    command[command.index("classify")], command[command.index("16")] = "semantic", "64"
    done = run([sys.executable, *command], env)
    assert done.returncode == 0, done.stderr
    alone = [*command, "--devices", "1", "--out", str(tmp_path / "alone")]
    assert run([sys.executable, *alone], env).returncode == 0
    (one,), (two,) = read_journal(tmp_path / "alone"), read_journal(tmp_path / "run")
    assert two["train_loss"] == pytest.approx(one["train_loss"], abs=1e-4)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_command_ends_all_processes(data, env, tmp_path, number):
    out = tmp_path / "run"
    command = [sys.executable, *words(data, out, "--devices", "2", "--epochs", "1000")]
    with open(tmp_path / "said", "w") as said, open(tmp_path / "wrong", "w") as wrong:
        started = subprocess.Popen(command, env=env, stdout=said, stderr=wrong)
        try:
            until = time.monotonic() + LIMIT_S
            while not (out / "last.ckpt").exists():
                assert time.monotonic() < until
                assert started.poll() is None, (tmp_path / "wrong").read_text()
                time.sleep(0.1)
            ranks = [
                each
                for each in psutil.Process(started.pid).children()
                if "spawn_main" in " ".join(each.cmdline())
            ]
            assert len(ranks) == 2
            (ranks[1] if number == signal.SIGKILL else started).send_signal(number)
            assert started.wait(60) == 1
        finally:
            started.kill()
    assert not psutil.wait_procs(ranks, timeout=20)[1]
    lines = (tmp_path / "wrong").read_text().splitlines()
    if number == signal.SIGKILL:
        (line,) = lines
        assert "rank 1" in line
        assert "SIGKILL" in line
        assert "--resume" in line
    else:
        assert not lines
        assert "--resume" in (tmp_path / "said").read_text().splitlines()[-1]
    before = len(read_journal(out))
    again = ["train", "classify", str(data), "--resume", "--out", str(out), "--epochs", "1001"]
    assert before
    started = subprocess.Popen([sys.executable, "-m", "muntin", *again], env=env)
    try:
        until = time.monotonic() + LIMIT_S
        while len(read_journal(out)) <= before:
            assert time.monotonic() < until
            time.sleep(0.1)
    finally:
        started.terminate()
        assert started.wait(60) == 1


def test_torchrun(data, env, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = run([*launch, *words(data, tmp_path / "run", "--epochs", "2")[0:]], env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 processes, started by torchrun, gloo") == 1
    assert done.stdout.count("next: muntin predict") == 1
    assert len(read_journal(tmp_path / "run")) == 2
    done = run([*launch, *words(data, tmp_path / "other", "--devices", "3")], env)
    assert done.returncode == 1
    assert done.stderr.count("muntin: ") == 1
    assert not (tmp_path / "other").exists()


def test_a_script_under_torchrun_trains_twice(data, env, tmp_path):
    script = tmp_path / "script.py"
    lines = ["import sys", "from tests.small import train_small"]
    lines += [f"train_small(sys.argv[1], sys.argv[2] + '/{name}', epochs=1)" for name in "ab"]
    script.write_text("\n".join(lines))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = run([*launch, script, data, tmp_path], env)
    assert done.returncode == 0, done.stderr
    assert len(read_journal(tmp_path / "b")) == 1


@pytest.mark.parametrize("name", ["RANK", "SLURM_PROCID"])
def test_variables_that_are_no_numbers_are_one_line(data, env, tmp_path, name):
    done = run([sys.executable, *words(data, tmp_path / "run")], {**env, name: "abc"})
    assert done.returncode == 1
    assert done.stderr.startswith(f"muntin: {name} must be a number")
    assert done.stderr.count("\n") == 1


def test_folds_under_torchrun(data, env, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = words(data, tmp_path / "folds", "--epochs", "1", "--folds", "2")
    place = command.index("--val")
    done = run([*launch, *command[:place], *command[place + 2 :]], env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("fold 2 of 2 ") == 1
    assert done.stdout.count("results.md") == 1
    for number in (1, 2):
        assert len(read_journal(tmp_path / "folds" / f"fold_{number}")) == 1
