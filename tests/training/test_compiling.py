# SPDX-License-Identifier: Apache-2.0
"""Compiled steps equal eager ones, and are done without where there is no compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from muntin import train
from muntin.runs import Run
from tests.small import MODEL, SETTINGS, write_images

ROOT = Path(__file__).resolve().parents[2]
COMPILE = """
import torch
from muntin.zoo import create_model

torch.manual_seed(0)
model = create_model(
    "swin_nano_patch2_window4_32", num_classes=3, embed_dim=16, depths=(2, 1), num_heads=(1, 2),
    out_indices=(0, 1),
).eval()
images = torch.randn(2, 3, 20, 28)
with torch.no_grad():
    expected = model(images)
    got = torch.compile(model, fullgraph=True)(images)
torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
"""
TRAIN = """
import sys
from muntin import train
from muntin.runs import Run
from tests.small import MODEL, SETTINGS

if __name__ == "__main__":
    data, out = sys.argv[1:]
    settings = {**SETTINGS, "machine.compile": "on", "train.start_size": 1}
    run = train(
        "classify", data, model=MODEL, img_size=16, epochs=2, batch_size=8, device="cpu",
        precision="fp32", out=out, settings=settings,
    )
    assert Run.open(run.path).config.machine.compile == "on"
    assert run.metrics["top1"] >= 0
"""


def execute(code, *arguments):
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    chosen = {"PYTHONPATH": paths, "MUNTIN_NO_HOOK": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], env={**os.environ, **chosen},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_one_graph_that_equals_eager():
    execute(COMPILE)


@pytest.mark.slow
def test_training_with_compiled_steps(tmp_path):
    said = execute(TRAIN, write_images(tmp_path / "trees", each=10), tmp_path / "run")
    assert "machine.compile" not in said


@pytest.mark.usefixtures("no_compiler")
def test_training_where_there_is_no_compiler(tmp_path, capsys):
    data = write_images(tmp_path / "trees", each=3)
    settings = {**SETTINGS, "machine.compile": "on", "train.start_size": 1}
    run = train(
        "classify", data, model=MODEL, img_size=16, epochs=1, batch_size=8, device="cpu",
        precision="fp32", out=tmp_path / "run", settings=settings, pictures=False,
    )  # fmt: skip
    assert Run.open(run.path).config.machine.compile == "off"
    assert "machine.compile" in capsys.readouterr().out
