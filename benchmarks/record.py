# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Environment of a measurement, and the file that stores the result."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def device_name() -> str:
    """Name of the GPU, or of the CPU and the cores that may be used."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"model name\s*: (.+)", info.read_text())
        flags = info.read_text()
        extras = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if f" {flag}" in flags]
        name = f"{found[1].strip() if found else name} ({', '.join(extras)})"
    return f"{cores} cores of {name}"


def environment(libraries: tuple[str, ...] = ()) -> dict[str, Any]:
    """Command, commit, date, device and versions."""
    versions = {name: importlib.metadata.version(name) for name in ("torchvision", *libraries)}
    return {
        "command": "python " + shlex.join([f"benchmarks/{Path(sys.argv[0]).name}", *_words()]),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no", "src")),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **versions,
    }


def muntin(*words: object, keep: bool = False, folder: str | None = None) -> str:
    """Run the command line as a user does; return its output if `keep` is set."""
    command = [sys.executable, "-m", "muntin", *map(str, words)]
    pipe = subprocess.PIPE if keep else None
    done = subprocess.run(command, cwd=folder, check=True, stdout=pipe, text=True)
    return done.stdout or ""


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest of repeated measurements."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "count": len(values),
    }


def write(topic: str, device: str, content: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Keep a result; an earlier one of the same day is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{content['date']}_{device}_{topic}.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def _words() -> list[str]:
    """The options; where a folder of this machine is named, its last part only."""
    return [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
