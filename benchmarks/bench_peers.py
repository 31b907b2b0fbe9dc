# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of `muntin bench`, stored with their environment; attention also with peers'."""

from __future__ import annotations

from typing import Any

import record
from attention_peers import ATTENTIONS

from muntin.benching.attention import bench_attention
from muntin.benching.benchmark_kinds import KINDS, run_benchmark
from muntin.benching.peers import BenchRequest
from muntin.engines.engine_table import is_installed


def main() -> None:
    """Measure and write the results."""
    options = record.options(__doc__, kinds=tuple(KINDS), model="swin_tiny", rounds=5)
    for kind in options.kinds:
        if kind == "inference":
            record.save("inference", measure_engines(options.model, options.rounds))
            continue
        request = BenchRequest(model=options.model, rounds=options.rounds, log=record.log)
        if kind == "attention":
            others = [name for name in ATTENTIONS if is_installed(name.split()[0])]
            found = bench_attention(request, {name: ATTENTIONS[name] for name in others})
        else:
            found = run_benchmark(kind, request)
        record.save(f"peers_{kind}", found, ("timm", "transformers"))


def measure_engines(model: str, rounds: int) -> dict[str, Any]:
    """Measure a model in every engine at batch 8 and 1, and ViT-S beside timm's."""
    requests = {
        "throughput": BenchRequest(model=model, rounds=rounds, log=record.log),
        "latency": BenchRequest(model=model, batch_size=1, rounds=2 * rounds, log=record.log),
        "vit_small": BenchRequest(
            model="vit_small", peers=("timm",), rounds=rounds, log=record.log
        ),
    }
    return {name: run_benchmark("inference", request) for name, request in requests.items()}


if __name__ == "__main__":
    main()
