# SPDX-License-Identifier: Apache-2.0
"""Start-up time of the command and of the import, as whole processes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import record

from muntin.benching.result_rows import BenchmarkCase, summarize, time_interleaved


def main() -> None:
    """Measure and write the result."""
    command = shutil.which("muntin", path=str(Path(sys.executable).parent)) or "muntin"
    words = {
        "muntin --help": [command, "--help"],
        "import muntin": [sys.executable, "-c", "import muntin"],
        "python itself": [sys.executable, "-c", "pass"],
    }
    cases = [BenchmarkCase(owner=name, run=partial(call, row)) for name, row in words.items()]
    timings = time_interleaved(cases, rounds=10, warmups=2)
    rows = {timing.case.owner: summarize(timing.seconds) for timing in timings}
    record.save("startup", {"what": "seconds of a whole process", "seconds": rows})


def call(words: list[str]) -> np.ndarray:
    """Run a process to its end."""
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return np.zeros(0, np.float32)


if __name__ == "__main__":
    main()
