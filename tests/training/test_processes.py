# SPDX-License-Identifier: Apache-2.0
"""Two processes on the CPU learn what one learns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from muntin.runs import read_journal
from tests.small import write_images

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
import torch
from muntin.errors import MuntinError
from tests.small import train_small

if __name__ == "__main__":
    data, out, devices = sys.argv[1:]
    settings = {
        "train.optimizer": "adamw", "train.start_size": 1, "data.strict": True,
        "train.ema_decay": 0.9, "train.warmup": 0,
    }
    try:
        train_small(data, out, settings=settings, batch_size=7, devices=int(devices), val=data)
    except MuntinError as error:
        print(type(error).__name__, error)
    assert not torch.distributed.is_initialized()
"""


@pytest.fixture
def train_with(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"# a test\n{SCRIPT}")
    data = write_images(tmp_path / "trees", each=30)
    threads = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])

    def train(devices: int) -> tuple[Path, str]:
        out = tmp_path / f"run{devices}"
        done = subprocess.run(
            [sys.executable, script, data, out, str(devices)],
            env={**os.environ, **threads, "PYTHONPATH": paths, "MUNTIN_NO_HOOK": "1"},
            capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return out, done.stdout

    return train


@pytest.mark.slow
def test_two_processes_end_where_one_does(train_with):
    # 90 images in batches of 7: each process has 4 or 3, and the last batch has 6.
    (one, _), (two, _) = train_with(1), train_with(2)
    lines = [read_journal(run) for run in (one, two)]
    for left, right in zip(*lines, strict=True):
        assert left["val_top1"] == right["val_top1"]
        for name in ("train_loss", "val_loss"):
            assert right[name] == pytest.approx(left[name], rel=1e-3)
    weights = [load_file(run / "weights.safetensors") for run in (one, two)]
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).abs().max() < 2e-3, name
    classes = [json.loads((run / "classes.json").read_text()) for run in (one, two)]
    assert classes[0] == classes[1]


@pytest.mark.slow
def test_an_error_in_a_process_is_told_in_one_line(train_with, tmp_path):
    (tmp_path / "trees" / "ash" / "7.png").write_bytes(b"")
    _, said = train_with(2)
    last = said.strip().splitlines()[-1]
    assert last.startswith("DataError ")
    assert "data.strict=true makes this an error" in last
