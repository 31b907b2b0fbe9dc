# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Start-up time of the command and of the import, as whole processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import record


def main() -> None:
    """Measure and write the result."""
    command = shutil.which("muntin", path=str(Path(sys.executable).parent)) or "muntin"
    rows = {}
    for name, words in {
        "muntin --help": [command, "--help"],
        "import muntin": [sys.executable, "-c", "import muntin"],
        "python itself": [sys.executable, "-c", "pass"],
    }.items():
        seconds = []
        for _ in range(12):
            begun = time.perf_counter()
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - begun)
        rows[name] = record.spread(seconds[2:])
        print(f"{name:16} {rows[name]['median']:.3f} s")
    content = {**record.environment(), "what": "seconds of a whole process", "seconds": rows}
    print(record.write("startup", f"cpu{os.cpu_count()}", content))


if __name__ == "__main__":
    main()
