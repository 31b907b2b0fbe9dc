# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What a GPU makes of all this, section by section: first whether it is right, then how fast.

Every section runs in a process of its own, takes four minutes at most and leaves one JSON file. One
that has its file for this commit and device is skipped, so calling again goes on where time ran
out. Sections come in the order of their worth. The last thing printed is a short table.

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
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECTION_S = 240
"""A section is stopped after so many seconds."""

if __name__ == "__main__" and "--tiny" in sys.argv:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported


SECTIONS = {
    "correctness": "gpu_kernels.check",
    "attention": "gpu_kernels.time_attention",
    "inference": "gpu_models.time_inference",
    "training": "gpu_models.time_training",
    "latency": "gpu_models.time_latency",
    "inference_compiled": "gpu_models.time_compiled_inference",
    "training_compiled": "gpu_models.time_compiled_training",
    "vit_compiled": "gpu_models.time_compiled_vit",
    "fused_compiled": "gpu_models.time_compiled_fused",
    "shift": "gpu_kernels.time_shift",
    "neighbours": "gpu_neighbours.time_neighbours",
    "plan": "gpu_models.check_plan",
}
"""Name to function, in the order of worth."""


def main() -> None:
    """Run what is missing, then print what is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="no section starts after these")
    parser.add_argument("--only", choices=SECTIONS, help="this section, even if it is there")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try the script")
    parser.add_argument("--commit", default="", help="where git does not know it")
    parser.add_argument("--out", default="", help="folder of the results")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        _run_inside(options)
        return
    import record

    folder = Path(options.out) if options.out else record.RESULTS
    commit = options.commit or record.environment()["commit"]
    begun = time.perf_counter()
    for name in [options.only] if options.only else SECTIONS:
        known = _find(folder, name, commit)
        if known and not options.only:
            print(f"{name}: there already, {known.name}")
            continue
        left = 60 * options.minutes - (time.perf_counter() - begun)
        if left < 60 and not options.only:
            print(f"{name}: no time left, call again")
            continue
        _run_outside(name, options, min(SECTION_S, left) if not options.only else SECTION_S)
    _print_table(folder, commit)


def _find(folder: Path, name: str, commit: str) -> Path | None:
    """The result of a section for this commit."""
    for path in sorted(folder.glob(f"*_gpu_{name}.json"), reverse=True):
        content = json.loads(path.read_text("utf-8"))
        if content["commit"] == commit and not content.get("failed"):
            return path
    return None


def _run_outside(name: str, options: argparse.Namespace, seconds: float) -> None:
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
        return
    took = time.perf_counter() - begun
    print(f"{name}: {'done' if code == 0 else f'failed ({code})'} in {took:.0f} s", flush=True)


def _run_inside(options: argparse.Namespace) -> None:
    """Do a section's work and write its file; a failure is written too."""
    import record

    content = {**record.environment(("timm", "transformers")), "section": options.only}
    if options.commit:
        content["commit"] = options.commit
    content["tiny"] = options.tiny
    try:
        content |= _find_work(options.only)(options)
    except Exception as error:  # what went wrong is a result as well
        content |= {"failed": f"{type(error).__name__}: {error}"[:2000]}
        traceback.print_exc()
    if options.out:
        record.RESULTS = Path(options.out)
    # An H100's result must not replace an H200's.
    device = "".join(c for c in content["device"].lower() if c.isalnum())[:24]
    print(record.write(f"gpu_{options.only}", device, content), flush=True)
    sys.exit(bool(content.get("failed")))


def _find_work(name: str) -> Callable[[argparse.Namespace], dict[str, Any]]:
    """Import late: torch takes seconds, and a section needs only its own file."""
    module, function = SECTIONS[name].split(".")
    work: Callable[[argparse.Namespace], dict[str, Any]]
    work = getattr(importlib.import_module(module), function)
    return work


def _print_table(folder: Path, commit: str) -> None:
    print()
    for name in SECTIONS:
        path = _find(folder, name, commit)
        if path is None:
            print(f"{name:20} not measured for this commit")
            continue
        content = json.loads(path.read_text("utf-8"))
        for line in content["lines"]:
            print(f"{name:20} {line}")


if __name__ == "__main__":
    main()
