# SPDX-License-Identifier: Apache-2.0
"""Two processes on the CPU learn objects together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from muntin.runs import read_journal
from muntin.synthetic.datasets import write_coco
from tests.detectors import empty_images

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from tests.detectors import train_detector

if __name__ == "__main__":
    task, data, out, devices = sys.argv[1:]
    train_detector(task, data, out, devices=int(devices), batch_size=4, epochs=2)
"""


@pytest.fixture
def train_with(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"# a test\n{SCRIPT}")
    data = write_coco(tmp_path / "shapes", num_train=9, num_val=5, size=(64, 64))
    # One process may have nothing but images without objects.
    empty_images(data, "train", {1, 3, 4, 7, 8})
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    more = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "MUNTIN_NO_HOOK": "1"}

    def train(task: str, devices: int) -> Path:
        out = tmp_path / f"{task}{devices}"
        done = subprocess.run(
            [sys.executable, script, task, data, out, str(devices)],
            env={**os.environ, **more, "PYTHONPATH": paths},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return out

    return train


@pytest.mark.slow
def test_boxes_are_learnt_as_by_one_process(train_with):
    """FCOS draws nothing at random; its losses are divided by what each process has to learn."""
    one, two = train_with("detect", 1), train_with("detect", 2)
    for left, right in zip(read_journal(one), read_journal(two), strict=True):
        assert right["train_loss"] == pytest.approx(left["train_loss"], rel=0.4)
        assert right["val_box_ap"] == pytest.approx(left["val_box_ap"], abs=0.02)
        assert right["val_num_images"] == left["val_num_images"] == 5
    left, right = (load_file(run / "weights.safetensors") for run in (one, two))
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert (tensor - right[name]).abs().max() < 0.02, name


@pytest.mark.slow
def test_masks_are_learnt_by_two_processes(train_with):
    run = train_with("instance", 2)
    lines = read_journal(run)
    assert len(lines) == 2
    assert all(0 < line["train_loss"] < 100 for line in lines)
    assert lines[-1]["val_num_images"] == 5
