# SPDX-License-Identifier: Apache-2.0
"""Start-up time of commands, as whole processes in turns with ``import torch``.

Each command answers for one generated image of a small run of each task, trained for one epoch;
what a prediction imports is listed by the ten slowest packages.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import record

from muntin.benching.result_rows import BenchmarkCase, summarize, time_interleaved
from muntin.synthetic.datasets import write_classify, write_coco, write_frames, write_maps

PYTHON = [sys.executable, "-c"]


def main() -> None:
    """Measure and write the result."""
    options = record.options(__doc__, rounds=7)
    command = shutil.which("muntin", path=str(Path(sys.executable).parent)) or "muntin"
    with tempfile.TemporaryDirectory() as folder:
        words = {
            "python itself": [*PYTHON, "pass"],
            "import torch": [*PYTHON, "import torch"],
            "import torch, torchvision": [*PYTHON, "import torch, torchvision"],
            "import muntin": [*PYTHON, "import muntin"],
            "muntin --help": [command, "--help"],
            **list_commands(command, Path(folder)),
        }
        cases = [BenchmarkCase(owner=name, run=partial(call, row)) for name, row in words.items()]
        timings = time_interleaved(cases, rounds=options.rounds, warmups=1)
        predict = words["muntin predict, classify"][1:]
        slowest = list_imports([sys.executable, "-X", "importtime", "-m", "muntin", *predict])
    rows = {timing.case.owner: summarize(timing.seconds) for timing in timings}
    torch = rows["import torch"]["median"]
    for name, row in rows.items():
        if name.startswith("muntin "):
            print(f"{name:32} {row['median']:.2f} s, {row['median'] - torch:+.2f} s beside torch")
    content = {"what": "seconds of a whole process", "seconds": rows, "slowest_imports": slowest}
    record.save("startup", content)


def list_commands(command: str, folder: Path) -> dict[str, list[str]]:
    """Train a run of each task for an epoch, and list the commands to measure by their names."""
    counts = {"num_train": 8, "num_val": 1}
    data = {
        "classify": write_classify(folder / "c", num_train_per_class=4, num_val_per_class=1),
        "detect": write_coco(folder / "d", **counts),
        "semantic": write_maps(folder / "s", **counts),
        "pose": write_frames(folder / "p", **counts),
    }
    data["instance"] = data["detect"]
    commands = {}
    for task, place in data.items():
        run = folder / f"{task}_run"
        record.muntin("train", task, place, "--epochs", "1", "--weights", "none", "--out", run)
        image = next(file for file in sorted(place.rglob("*")) if file.suffix in (".png", ".jpg"))
        calls = {
            "predict": [command, "predict", str(run), str(image)],
            "eval": [command, "eval", str(run), str(place)],
            "check": [command, "check", task, str(place)],
        }
        commands |= {f"muntin {verb}, {task}": words for verb, words in calls.items()}
    return commands


def list_imports(words: list[str]) -> dict[str, float]:
    """Seconds of the ten packages that take the longest to import, in a process of its own."""
    text = subprocess.run(words, check=True, capture_output=True, text=True).stderr
    spent: Counter[str] = Counter()
    for microseconds, name in re.findall(r"import time: +(\d+) \| +\d+ \| +([\w.]+)", text):
        spent[name.partition(".")[0]] += int(microseconds)
    return {name: round(count / 1e6, 3) for name, count in spent.most_common(10)}


def call(words: list[str]) -> np.ndarray:
    """Run a process to its end."""
    quiet = subprocess.DEVNULL
    subprocess.run(words, check=True, stdout=quiet, stderr=quiet)
    return np.zeros(0, np.float32)


if __name__ == "__main__":
    main()
