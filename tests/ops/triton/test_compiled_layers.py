# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Compiled graphs hold the fused layers whole; exported ones hold plain operations."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from muntin.ops.fused_layers import apply_linear

pytest.importorskip("triton")

PROGRAM = """
import torch
from muntin.ops.fused_layers import apply_linear, apply_mlp, embed_patches, merge_tokens

torch.manual_seed(0)

def call(pixels, weights):
    fill = weights[0][:3, 0].contiguous()
    x = embed_patches(
        pixels, weights[0], None, fill, patch=4, grid=(3, 5), backend="fused"
    )
    x = apply_linear(x, weights[1], sums=weights[1].sum(1), residual=x, backend="fused")
    x = apply_mlp(x, weights[2], weights[2].sum(1), weights[3], weights[3].sum(1),
                  sums=weights[2].sum(1), backend="fused")
    return merge_tokens(x, weights[4], backend="fused")

pixels = torch.randint(0, 256, (2, 3, 12, 20), dtype=torch.uint8)
shapes = ((16, 48), (16, 16), (64, 16), (16, 64), (8, 64))
weights = [torch.randn(shape) * 0.1 for shape in shapes]
held = []

def look(graph, examples):
    held.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
    return graph.forward

with torch.no_grad():
    wanted = call(pixels, weights)
    compiled = torch.compile(call, fullgraph=True, backend=look)
    torch.testing.assert_close(compiled(pixels, weights), wanted)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(pixels, weights), wanted)
print([name for name in held if "fused" in name])
"""


@pytest.mark.slow
def test_whole_graphs():
    told = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        capture_output=True,
        text=True,
        env={**os.environ, "MUNTIN_NO_HOOK": "1", "TRITON_INTERPRET": "1"},
        check=False,
    )
    assert told.returncode == 0, told.stderr[-3000:]
    for name in ("patches", "linear", "mlp", "merge"):
        assert f"fused_{name}" in told.stdout


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 16), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return apply_linear(x, self.weight, sums=self.weight.sum(1))


def test_exported_graphs_are_plain():
    layer = Layer().eval()
    program = torch.export.export(layer, (torch.randn(3, 16),))
    assert "fused" not in str(program.graph)
    x = torch.randn(3, 16)
    torch.testing.assert_close(program.module()(x), layer(x))
