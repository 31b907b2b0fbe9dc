# SPDX-License-Identifier: Apache-2.0
"""Time and memory of loading swin_base from safetensors, compared with plain reads of the file.

A bare read only maps the file into memory (safetensors 0.6 and later read nothing until a tensor is
used), so it is also measured with every tensor copied into the model, which is what loading is.
Each measurement is a process of its own; they alternate. Extra memory is the highest resident size
during the load, less that before it (the model is built before).
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import record
import safetensors.torch

from muntin.benching.result_rows import summarize
from muntin.devices import peak_mib, reset_peak
from muntin.weights.weight_files import write_weights
from muntin.weights.weight_loading import load_weights
from muntin.zoo import create_model

NAME = "swin_base_patch4_window7_224"
CONTESTANTS = ("bare", "bare and copied", "muntin")


def load(what: str, path: str) -> tuple[float, float]:
    """Load once; give seconds and extra MiB."""
    model = create_model(NAME)
    reset_peak()
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
    return time.perf_counter() - begun, peak_mib() - before


def main() -> None:
    """Measure and write the result."""
    options = record.options(__doc__, rounds=7)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTESTANTS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        write_weights(path, create_model(NAME).state_dict())
        size = path.stat().st_size / 2**20
        for _ in range(options.rounds):
            for name, answers in found.items():
                answers.append(record.alone(load, name, str(path)))
    rows = {
        name: {
            "seconds": summarize([seconds for seconds, _ in values]),
            "extra_mib": summarize([extra for _, extra in values]),
        }
        for name, values in found.items()
    }
    content = {
        "what": f"loading {NAME} from safetensors",
        "file_mib": round(size, 1),
        "contestants": rows,
    }
    record.save("loading", content, ("safetensors",))


if __name__ == "__main__":
    main()
