# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""All benchmarks of `muntin bench` except inference, stored with their environment."""

from __future__ import annotations

import argparse
import os
import sys

import record

from muntin.benching.bench_request import KINDS, bench_by_name


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", help="all but inference, which has its own script")
    parser.add_argument("--model", default="swin_tiny")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    def log(line: str) -> None:
        print(line, file=sys.stderr)

    for kind in options.kinds or [name for name in KINDS if name != "inference"]:
        found = bench_by_name(kind, options.model, rounds=options.rounds, log=log)
        content = {**record.environment(("timm", "transformers")), **found}
        print(record.write(f"peers_{kind}", f"cpu{os.cpu_count()}", content))


if __name__ == "__main__":
    main()
