# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Swin-T beside its peers in every engine, eight images at a time and one; and ViT-S."""

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

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    content = {
        **record.environment(),
        "throughput": bench_inference("swin_tiny", rounds=options.rounds, log=say),
        "latency": bench_inference("swin_tiny", batch_size=1, rounds=2 * options.rounds, log=say),
        "vit_small": bench_inference("vit_small", peers=("timm",), rounds=options.rounds, log=say),
    }
    print(record.write("inference", f"cpu{os.cpu_count()}", content))


if __name__ == "__main__":
    main()
