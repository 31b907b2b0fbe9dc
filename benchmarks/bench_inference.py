# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Swin-T compared with its peers in every engine, at batch 8 and 1; and ViT-S."""

from __future__ import annotations

import argparse
import os
import sys

import record

from muntin.benching.inference import bench_inference


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()

    def log(line: str) -> None:
        print(line, file=sys.stderr)

    content = {
        **record.environment(),
        "throughput": bench_inference("swin_tiny", rounds=options.rounds, log=log),
        "latency": bench_inference("swin_tiny", batch_size=1, rounds=2 * options.rounds, log=log),
        "vit_small": bench_inference("vit_small", peers=("timm",), rounds=options.rounds, log=log),
    }
    print(record.write("inference", f"cpu{os.cpu_count()}", content))


if __name__ == "__main__":
    main()
