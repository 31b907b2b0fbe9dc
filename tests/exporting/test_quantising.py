# SPDX-License-Identifier: Apache-2.0
"""Layers that 8 bits hurt stay as they are, until the figure is good enough."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from muntin.engines.graphs import Graph
from muntin.engines.openvino_engine import open_openvino
from muntin.errors import ConfigError
from muntin.exporting.quantisation import _rank, quantise


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(8))
        with torch.no_grad():  # one weight so large that the others of its row become 0 in 8 bits
            self.layers[5].weight[:, 0] = 1000.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def graph() -> Graph:
    module = Net().eval().requires_grad_(False)
    return Graph(module=module, example=(torch.randn(2, 16),), inputs=("images",), outputs=("out",))


def rows() -> list[tuple[np.ndarray]]:
    generator = np.random.default_rng(0)
    return [(generator.normal(size=(1, 16)).astype(np.float32),) for _ in range(4)]


def judge_of(figures):
    left = iter(figures)
    return lambda runner: next(left)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_layers_stay_until_the_loss_is_small(tmp_path):
    path, figures, kept = tmp_path / "a.xml", (0.9, 0.5, 0.6, 0.899), 2
    found = quantise(graph(), path, "note", images=rows(), judge=judge_of(figures), max_loss=0.005)
    assert (found.before, found.after) == (figures[0], figures[-1])
    assert (found.layers, found.kept) == (8, kept)
    assert min(found.speeds) > 0
    text = path.read_text()
    # Two quantised inputs for each layer that multiplies in 8 bits.
    assert text.count('type="FakeQuantize"') >= 8 - kept
    assert open_openvino(path, "int8")[1] == "note"


@pytest.mark.filterwarnings("ignore")
def test_a_loss_that_cannot_be_had(tmp_path):
    with pytest.raises(ConfigError, match=r"0\.5.*40\.00.*--max-loss"):
        quantise(
            graph(), tmp_path / "a.xml", "", images=rows(),
            judge=judge_of((0.9, 0.5)), max_loss=0.005, parts=(0.0,),
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_the_worst_layer_is_first():
    made = graph()
    marks = _rank(made, rows())
    worst = made.module.layers[5].weight.double().square().sum().item()
    assert marks[0] == pytest.approx(worst, rel=1e-9)
