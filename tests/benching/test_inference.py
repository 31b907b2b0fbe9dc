# SPDX-License-Identifier: Apache-2.0
"""Inference, compared with peers of equal weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from muntin.benching.inference import _make_cases, bench_inference
from muntin.benching.peers import BenchRequest
from muntin.engines.engine_table import ENGINES
from muntin.engines.graphs import Graph
from muntin.errors import RunError


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_implementations_agree():
    request = BenchRequest(
        model="vit_tiny", batch_size=2, peers=("timm", "onnxruntime"), rounds=1, size=(224, 224)
    )
    found = bench_inference(request)
    rows = {(row["name"], row["precision"]): row for row in found["contestants"]}
    assert ("timm onnxruntime", "fp32") in rows
    assert ("timm openvino", "fp32") not in rows
    assert rows["muntin eager", "fp32"]["rival"] is False
    for (_, precision), row in rows.items():
        assert row["max_error"] < {"fp32": 1e-4, "bf16": 0.2, "int8": 1.0}[precision]
        assert row["images_per_s"]["median"] > 0
        assert row["of_ceiling"] > 0  # how much depends on what else the machine does
    assert found["ceilings"]["fp32"] > 0


def test_an_engine_that_fails_costs_its_row_only():
    module, said = nn.Linear(4, 2).eval().requires_grad_(False), []
    graph = Graph(module=module, example=(torch.zeros(2, 4),), inputs=("x",), outputs=("y",))

    def start(name, graph, precision, *, ours):
        if precision == "bf16":
            message = "crashed (SIGSEGV)"
            raise RunError(message)
        return ENGINES[name].start(graph, precision)

    cases = [*_make_cases("muntin", graph, ["eager"], said.append, start)]
    assert [case.precision for case in cases] == ["fp32"]
    assert [line for line in said if "eager bf16" in line and "SIGSEGV" in line]
