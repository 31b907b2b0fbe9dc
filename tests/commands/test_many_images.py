# SPDX-License-Identifier: Apache-2.0
"""Folders of many images: flat memory, whole files after Ctrl-C, and a call that goes on."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.exporting.runs import write_run

JOURNAL = ".muntin-results.jsonl"


def write_many(folder, count):
    folder.mkdir()
    for number in range(count):
        pixels = np.full((24, 32, 3), number % 255, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05}.png")
    return folder


def begin(run, images, out, *options):
    words = ["predict", run, images, "--out", out, "--format", "csv,json", "--device", "cpu"]
    call = [sys.executable, "-m", "muntin", *map(str, words), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )


def count_lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def rows_of(out):
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done_and_the_same_call_goes_on(tmp_path):
    run = write_run(tmp_path / "run", "classify").path
    images, out = write_many(tmp_path / "images", 400), tmp_path / "out"
    process = begin(run, images, out)
    while count_lines(out / JOURNAL) < 20:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "--resume" in said
    assert "Traceback" not in said
    done = json.loads((out / "predictions.json").read_text())
    assert 20 <= len(done) < 400
    assert {row["path"] for row in rows_of(out)} == {
        Path(os.path.relpath(one["path"], out)).as_posix() for one in done
    }
    process = begin(run, images, out, "--resume")
    assert f"{len(done)} inputs left out" in process.communicate(timeout=200)[1]
    assert process.returncode == 0
    every = json.loads((out / "predictions.json").read_text())
    assert every[: len(done)] == done
    assert sorted(one["path"] for one in every) == sorted(map(str, images.iterdir()))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory from Linux")
def test_memory_is_flat(tmp_path):
    """After the first 500 of 5,000 images it grows by at most 5 %."""
    run = write_run(tmp_path / "run", "classify").path
    images, out = write_many(tmp_path / "images", 5000), tmp_path / "out"
    process = begin(run, images, out)
    statm, pages = Path(f"/proc/{process.pid}/statm"), {}
    # What Python does when it ends is no part of this.
    while process.poll() is None and not (out / "predictions.csv").exists():
        number = count_lines(out / JOURNAL)
        if number:
            pages[number] = max(pages.get(number, 0), int(statm.read_text().split()[1]))
        time.sleep(0.05)
    assert process.wait(timeout=60) == 0, process.stderr.read()
    process.stderr.close()
    early = max(size for number, size in pages.items() if number <= 600)
    late = max(size for number, size in pages.items() if number > 600)
    assert late <= 1.05 * early
    assert len(rows_of(out)) == 3 * 5000
