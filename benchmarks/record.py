# SPDX-License-Identifier: Apache-2.0
"""Environment of a measurement, processes of its own, and the file that stores the result."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DATA = os.environ.get("MUNTIN_DATA", str(ROOT.parent / "shared" / "data"))

T = TypeVar("T")


def device_name() -> str:
    """Name of the GPU, or of the CPU and the cores that may be used."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name, flags = cpu()
    extras = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if f" {flag}" in flags]
    return f"{cores} cores of {name}" + f" ({', '.join(extras)})" * bool(flags)


def cpu() -> tuple[str, str]:
    """Name of the CPU, and what Linux tells about it; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    found = re.search(r"model name\s*: (.+)", text)
    return found[1].strip() if found else platform.processor() or platform.machine(), text


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


def options(description: str | None, **defaults: Any) -> argparse.Namespace:
    """Parse the command line: an option per default, of its type; a tuple is the arguments."""
    parser = argparse.ArgumentParser(description=description)
    for name, default in defaults.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(default, tuple):
            words = f"some of {', '.join(default)} (default: all)"
            parser.add_argument(name, nargs="*", default=default, metavar=name.upper(), help=words)
        elif isinstance(default, bool):
            parser.add_argument(option, action="store_true")
        else:
            words = "(default: %(default)s)"
            parser.add_argument(option, type=type(default), default=default, help=words)
    return parser.parse_args()


def alone(work: Callable[..., T], *arguments: object) -> T:
    """Call a function of a script in a process of its own, whose peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def train_and_score(
    task: str,
    learn: Path,
    score: Path,
    run: Path,
    minutes: float,
    *,
    options: tuple[str, ...] = (),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train from scratch for some minutes and score, as a user does, with further `options`.

    Returns:
        What is reported, and the run's config.
    """
    begun = time.monotonic()
    length = f"{minutes:g}m"
    given = ("--weights", "none", "--max-time", length, "--out", run, *options)
    muntin("train", task, learn, *given)
    seconds = time.monotonic() - begun
    figures = json.loads(muntin("eval", run, score, "--json", keep=True))
    journal = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    config = json.loads((run / "config.json").read_text())
    result = {
        "wall_seconds": round(seconds, 1),
        "test": figures,
        "epochs": len(journal),
        "images_per_s": [line["images_per_s"] for line in journal],
        "memory_mib": max(line["memory_mib"] for line in journal),
        "model": config["model_name"],
        "img_size": config["model"]["img_size"],
    }
    return result, config


def train_peer(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Iterator[torch.Tensor],
    *,
    limit: tuple[float, float],
    rate: Callable[[float, int], float],
    clip: float | None = None,
) -> dict[str, Any]:
    """Train a peer's network until its time is over.

    Args:
        network: In training mode.
        optimizer: Of its parameters, with one group.
        losses: Losses of batches, without end.
        limit: When its time began (`time.monotonic`), and minutes of wall time.
        rate: From the share of the time that is over and the number of steps to a learning rate.
        clip: Largest norm of the gradients.

    Returns:
        Steps and wall time.
    """
    (begun, minutes), steps = limit, 0
    while (done := (time.monotonic() - begun) / (minutes * 60 - 5)) < 1:
        optimizer.param_groups[0]["lr"] = rate(done, steps)
        loss = next(losses)
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
        steps += 1
    return {"wall_seconds": round(time.monotonic() - begun, 1), "steps": steps}


def write(topic: str, device: str, content: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Keep a result; an earlier one of the same day is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{content['date']}_{device}_{topic}.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def save(topic: str, content: dict[str, Any], libraries: tuple[str, ...] = ()) -> None:
    """Print a result on this CPU, and keep it with its environment."""
    content = {**environment(libraries), **content}
    print(json.dumps(content, indent=2))
    print(write(topic, f"cpu{os.cpu_count()}", content))


def log(line: str) -> None:
    """Print a progress message beside the result."""
    print(line, file=sys.stderr)


def _words() -> list[str]:
    """The options; where a folder of this machine is named, its last part only."""
    return [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
