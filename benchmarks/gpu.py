# SPDX-License-Identifier: Apache-2.0
"""What a GPU makes of all this, section by section: first whether it is right, then how fast.

Every section runs in a process of its own, takes four minutes at most and leaves one JSON file. One
that has its file for this commit and device is skipped, so calling again goes on where time ran
out; one that failed is tried again. Sections come in the order of their worth. The last thing
printed is a short table. The exit status is 1 when a section failed or was stopped.

    python benchmarks/gpu.py --minutes 9        what fits into nine minutes
    python benchmarks/gpu.py --only attention   one section, again
    python benchmarks/gpu.py --tiny --device cpu    everything on toy sizes, to try the script
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

SECTION_S = 240
"""A section is stopped after so many seconds."""

if __name__ == "__main__" and "--tiny" in sys.argv:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported

SECTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "correctness": ("gpu_kernels.check", {}),
    "attention": ("gpu_kernels.time_attention", {}),
    "latency": ("gpu_models.time_inference", {"model": "swin_tiny", "batch_size": 1}),
    "inference": ("gpu_models.time_inference", {"model": "swin_tiny", "batch_size": 64}),
    "training": ("gpu_models.time_training", {}),
    "inference_8": ("gpu_models.time_inference", {"model": "swin_tiny", "batch_size": 8}),
    "inference_vit": ("gpu_models.time_inference", {"model": "vit_small", "batch_size": 64}),
}
"""Name to function and arguments, in the order of worth. Memory is in every row."""

Run = Callable[[str, argparse.Namespace, float], bool]


def main(words: Sequence[str] | None = None, run: Run | None = None) -> None:
    """Run what is missing, then print what is known.

    Args:
        words: The command line; default: that of this process.
        run: Runs a section within so many seconds and says whether it came to its end; default: in
            a process of its own.
    """
    options = _read_words(words)
    if options.inside:
        sys.exit(not work_inside(options))
    import record

    if options.tiny and not options.out:
        options.out = tempfile.mkdtemp(prefix="muntin_gpu_tiny_")
        print(f"results: {options.out}")
    folder = Path(options.out) if options.out else record.RESULTS
    facts = record.environment()
    same = {
        "commit": options.commit or facts["commit"],
        "device": facts["device"],
        "tiny": options.tiny,
    }
    begun, right = time.perf_counter(), True
    for name in [options.only] if options.only else SECTIONS:
        known = find_result(folder, name, same)
        if known and not options.only:
            print(f"{name}: there already, {known.name}")
            continue
        left = 60 * options.minutes - (time.perf_counter() - begun)
        if left < 60 and not options.only:
            print(f"{name}: no time left, call again")
            continue
        seconds = SECTION_S if options.only else min(SECTION_S, left)
        right = (run or _run_outside)(name, options, seconds) and right
    _print_table(folder, same)
    sys.exit(not right)


def _read_words(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; without a GPU only a trial on toy sizes makes sense."""
    parser = argparse.ArgumentParser(description=f"{__doc__.splitlines()[0]} Needs an NVIDIA GPU.")
    parser.add_argument(
        "--minutes",
        type=float,
        default=9.0,
        help="minutes of wall time, after which no section starts (default: 9)",
    )
    parser.add_argument("--only", choices=SECTIONS, help="this section, even if it is there")
    parser.add_argument(
        "--device",
        default="cuda",
        choices=("cuda", "cpu"),
        help="cpu only together with --tiny (default: cuda)",
    )
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try the script")
    parser.add_argument("--commit", default="", help="where git does not know it")
    parser.add_argument(
        "--out",
        default="",
        help="folder of the results (default: benchmarks/results; a temporary one with --tiny)",
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    import torch

    trial = "--tiny --device cpu tries the script on toy sizes"
    if options.device == "cpu" and not options.tiny:
        parser.exit(2, f"gpu.py needs an NVIDIA GPU, got --device cpu; {trial}\n")
    if options.device == "cuda" and not (torch.version.cuda and torch.cuda.is_available()):
        parser.exit(2, f"gpu.py needs an NVIDIA GPU, found none; {trial}\n")
    return options


def find_result(folder: Path, name: str, same: Mapping[str, Any]) -> Path | None:
    """The result of a section that worked, of the same commit, device and sizes."""
    for path in sorted(folder.glob(f"*_gpu_{name}.json"), reverse=True):
        content = json.loads(path.read_text("utf-8"))
        if not content.get("failed") and all(content.get(key) == same[key] for key in same):
            return path
    return None


def _run_outside(name: str, options: argparse.Namespace, seconds: float) -> bool:
    """Start a section as a process, so that neither time nor memory of one hurts another."""
    words = [sys.executable, __file__, "--inside", "--only", name, "--device", options.device]
    words += ["--tiny"] * options.tiny
    for key in ("commit", "out"):
        words += [f"--{key}", getattr(options, key)] if getattr(options, key) else []
    print(f"{name}: begun", flush=True)
    begun = time.perf_counter()
    try:
        code = subprocess.run(words, timeout=seconds, check=False).returncode
    except subprocess.TimeoutExpired:
        print(f"{name}: stopped after {seconds:.0f} s", flush=True)
        return False
    took = time.perf_counter() - begun
    print(f"{name}: {'done' if code == 0 else f'failed ({code})'} in {took:.0f} s", flush=True)
    return code == 0


def work_inside(
    options: argparse.Namespace, work: Callable[[], dict[str, Any]] | None = None
) -> bool:
    """Do a section's work and write its file; a failure is written too.

    Args:
        options: The command line.
        work: Gives the section's content; default: that of `SECTIONS`.

    Returns:
        Whether something was measured.
    """
    import record

    content = {**record.environment(("timm",)), "section": options.only, "tiny": options.tiny}
    if options.commit:
        content["commit"] = options.commit
    try:
        content |= work() if work else _work(options)
        rows = content.get("rows", [])
        if rows and all("failed" in row for row in rows):
            content["failed"] = f"nothing was measured: {rows[0]['failed']}"[:2000]
    except Exception as error:  # what went wrong is a result as well
        content |= {"failed": f"{type(error).__name__}: {error}"[:2000]}
        traceback.print_exc()
    # An H100's result must not replace an H200's.
    device = "".join(c for c in content["device"].lower() if c.isalnum())[:24]
    folder = Path(options.out) if options.out else record.RESULTS
    print(record.write(f"gpu_{options.only}", device, content, folder), flush=True)
    return "failed" not in content


def _work(options: argparse.Namespace) -> dict[str, Any]:
    """Import late: torch takes seconds, and a section needs only its own file."""
    from gpu_timing import Settings

    (where, arguments) = SECTIONS[options.only]
    module, function = where.split(".")
    work: Callable[..., dict[str, Any]] = getattr(importlib.import_module(module), function)
    return work(Settings(device=options.device, tiny=options.tiny), **arguments)


def _print_table(folder: Path, same: Mapping[str, Any]) -> None:
    print()
    for name in SECTIONS:
        path = find_result(folder, name, same)
        lines = ["not measured for this commit"]
        if path is not None:
            lines = json.loads(path.read_text("utf-8"))["lines"]
        for line in lines:
            print(f"{name:20} {line}")


if __name__ == "__main__":
    main()
