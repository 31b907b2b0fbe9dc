# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Time and memory of loading swin_base from safetensors, compared with plain reads of the file.

A bare read only maps the file into memory (safetensors 0.6 and later read nothing until a tensor is
used), so it is also measured with every tensor copied into the model, which is what loading is.
Each measurement is a process of its own; they alternate. Extra memory is the highest resident size
during the load, less that before it (the model is built before).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import record

NAME = "swin_base_patch4_window7_224"


def peak_mib() -> float:
    """Highest resident memory since it was last reset."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def child(what: str, path: str) -> None:
    """Load once and print seconds and extra MiB."""
    import safetensors.torch

    from muntin.weights.weight_loading import load_weights
    from muntin.zoo import create_model

    model = create_model(NAME)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = peak_mib()
    begun = time.perf_counter()
    if what == "muntin":
        load_weights(model, path)
    else:
        read = safetensors.torch.load_file(path)
        if what == "bare and copied":
            own = model.state_dict()
            for key, tensor in read.items():
                own[key].copy_(tensor)
    print(json.dumps([time.perf_counter() - begun, peak_mib() - before]))


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=2)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    from muntin.weights.weight_files import write_weights
    from muntin.zoo import create_model

    contestants = ("bare", "bare and copied", "muntin")
    found: dict[str, list[list[float]]] = {name: [] for name in contestants}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        write_weights(path, create_model(NAME).state_dict())
        size = path.stat().st_size / 2**20
        for _ in range(options.rounds):
            for name in contestants:
                words = [sys.executable, __file__, "--child", name, str(path)]
                done = subprocess.run(words, check=True, capture_output=True, text=True)
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
    rows = {
        name: {
            "seconds": record.spread([row[0] for row in values]),
            "extra_mib": record.spread([row[1] for row in values]),
        }
        for name, values in found.items()
    }
    content = {
        **record.environment(("safetensors",)),
        "what": f"loading {NAME} from safetensors",
        "file_mib": round(size, 1),
        "contestants": rows,
    }
    print(record.write("loading", f"cpu{os.cpu_count()}", content))
    for name, row in rows.items():
        memory = row["extra_mib"]["median"] / size
        print(f"{name:16} {row['seconds']['median']:.3f} s  {memory:.2f} x the file in memory")


if __name__ == "__main__":
    main()
