# SPDX-License-Identifier: Apache-2.0
"""Memory of a step: the trace, the fitted model, and recomputation."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from muntin.errors import ConfigError
from muntin.features import Backbone
from muntin.training.memory_model import (
    LinearFit,
    MemoryModel,
    Phase,
    Recompute,
    StepMemory,
    find_largest,
    fit_memory_model,
)
from muntin.training.memory_trace import NetworkPart, list_parts, record_spans
from muntin.training.recompute import checkpoint_blocks
from muntin.zoo import create_model

CPU = torch.device("cpu")
MIB = 2**20


class ToyBackbone(Backbone):
    stage_unit = "block"

    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sigmoid() for _ in range(blocks))

    def stage_of(self, name):
        return int(name.removeprefix("blocks.")) + 1


class Toy(nn.Module):
    """A network of known memory: each block needs one MiB an image."""

    def __init__(self, blocks=2):
        super().__init__()
        self.backbone = ToyBackbone(blocks)

    def forward(self, x):
        for block in self.backbone.blocks:
            x = block(x)
        return x


def toy_step(network, count):
    x = torch.zeros(count, MIB // 4, requires_grad=True)
    network(x).sum().backward()


def test_spans_of_a_toy_network():
    network = Toy()
    spans = record_spans(network, partial(toy_step, network, 3), CPU)
    names = [(span.part, span.backward) for span in spans]
    first, second = "backbone.blocks.0", "backbone.blocks.1"
    assert names == [
        ("", False), (first, False), ("", False), (second, False), ("", False),
        (second, True), (first, True),
    ]  # fmt: skip
    live = [round(span.live / MIB) for span in spans]
    assert live[:5] == [0, 3, 6, 6, 9]
    assert spans[2].output == spans[4].output == 3 * MIB
    assert max(span.peak for span in spans) >= 9 * MIB
    assert not any(block._forward_hooks for block in network.backbone.blocks)


def test_parts_of_real_networks():
    swin = list_parts(create_model("swin_nano"))
    assert swin[0] == NetworkPart(name="backbone.patch_embed", stage=0, is_block=False)
    assert [part.stage for part in swin if part.is_block] == [1, 1, 2, 2, 3, 3]
    assert [part.stage for part in swin if "downsample" in part.name] == [1, 2]
    vit = list_parts(create_model("vit_tiny"))
    assert [part.stage for part in vit if part.is_block] == [1] * 12
    assert list_parts(nn.Linear(2, 2)) == ()


def test_parts_of_networks_of_timm():
    pytest.importorskip("timm")
    resnet = list_parts(create_model("timm:test_resnet"))
    blocks = [f"backbone.net.layer{stage}.0" for stage in (1, 2, 3, 4)]
    assert [part.name for part in resnet if part.is_block] == blocks
    assert {part.stage for part in resnet if not part.is_block} == {0}
    convnext = list_parts(create_model("timm:test_convnext"))
    assert [part.stage for part in convnext if part.is_block] == [1, 2, 2, 3, 3, 3, 3, 4, 4]
    assert [part.stage for part in convnext if "downsample" in part.name] == [2, 3, 4]
    caformer = list_parts(create_model("timm:caformer_s18"))  # no group matcher: by its maps
    assert [part.stage for part in caformer if part.is_block].count(3) == 9


def model_of(network, side=64, batches=(2, 4)):
    images = torch.randn(8, 3, side, side)

    def step(count):
        network(images[:count]).square().sum().backward()
        network.zero_grad()

    step(1)
    persistent = sum(p.numel() * p.element_size() for p in network.parameters())
    return fit_memory_model(network, step, persistent, CPU, batches), step


@pytest.mark.parametrize("name", ["swin_nano", "vit_tiny"])
def test_two_small_steps_predict_a_larger_one(name):
    fields = {"embed_dim": 48, "depth": 3} if name == "vit_tiny" else {}
    network = create_model(name, img_size=(64, 64), drop_path_rate=0.0, **fields).train()
    model, step = model_of(network)
    for batch in (6, 8):
        spans = record_spans(network, partial(step, batch), CPU)
        real = model.persistent + max(span.peak for span in spans)
        assert model.peak(batch).total == pytest.approx(real, rel=0.05)


def test_savings_by_recomputation_are_predicted():
    network = create_model("swin_nano", img_size=(64, 64), drop_path_rate=0.0).train()
    model, step = model_of(network)
    assert model.num_blocks == 6
    totals = [model.peak(8, count).total for count in range(7)]
    assert totals == sorted(totals, reverse=True)
    checkpoint_blocks(network.backbone, 2)
    spans = record_spans(network, partial(step, 8), CPU)
    real = model.persistent + max(span.peak for span in spans)
    assert totals[2] == pytest.approx(real, rel=0.12)
    assert totals[2] < 0.95 * totals[0]


def model_with(*phases, blocks=2):
    """Two blocks that save 3 bytes an image and output 1, with the given phases."""
    return MemoryModel(
        persistent=10,
        gradients=4,
        parts=tuple(NetworkPart(name=str(n), stage=1, is_block=True) for n in range(blocks)),
        phases=phases,
        saved=(LinearFit(0, 3),) * blocks,
        outputs=(LinearFit(0, 1),) * blocks,
    )


def test_the_peak_is_the_highest_line():
    early = Phase(part="", backward=False, num_saved=2, peak=LinearFit(0, 6))
    late = Phase(part="0", backward=True, num_saved=0, peak=LinearFit(20, 1))
    model = model_with(early, late)
    assert model.peak(1).total == 10 + 21
    assert model.peak(1).gradients == 4
    assert model.peak(1).saved == (0, 0)
    assert model.peak(10).total == 10 + 60
    assert model.peak(10).saved == (30, 30)
    # Recomputed blocks save only their output; the end of the backward pass does not change.
    assert model.peak(10, 1).total == 10 + 60 - 20
    assert model.peak(10, 2).total == 10 + 30
    assert model.peak(10, 2).saved == (0, 0)


def test_the_cheapest_recomputation_that_fits():
    plain, leaner = (
        model_with(Phase(part="", backward=False, num_saved=2, peak=LinearFit(0, each)))
        for each in (6, 5)
    )
    asked = []
    memory = StepMemory(plain, lambda: asked.append(1) or leaner)
    nothing = Recompute()
    assert memory.choose(10, 10 + 60, nothing) == nothing
    assert memory.choose(10, 10 + 40, nothing) == (False, 1)
    assert not asked  # steps with recomputed layers are measured when they are needed
    assert memory.choose(10, 10 + 30, nothing) == (False, 2)
    assert memory.choose(10, 10 + 10, nothing) == (True, 2)
    assert memory.choose(10, 1, nothing) == (True, 2)
    assert memory.choose(10, 10 + 60, Recompute(blocks=1)) == (False, 1)
    assert memory.choose(10, 10 + 50, Recompute(layers=True)) == (True, 0)
    without = StepMemory(plain, lambda: plain)
    assert without.choose(10, 1, nothing) == (False, 2)
    # The setting changes nothing here, and must not keep the blocks from being recomputed.
    assert without.choose(10, 10 + 40, Recompute(layers=True)) == (True, 1)
    assert memory.slowdown(Recompute(True, 2)) > memory.slowdown(Recompute(False, 2)) > 0


def test_the_largest_batch():
    for limit, right in ((100, 9), (5, 5), (0, 0)):
        assert find_largest(lambda batch: batch <= 9, limit) == right
    assert find_largest(lambda batch: False, 100) == 0


def test_steps_that_differ_are_refused():
    network = Toy()

    def step(count):
        for _ in range(count):
            toy_step(network, 1)

    with pytest.raises(ConfigError, match=r"Toy.*1 and 2"):
        fit_memory_model(network, step, 0, CPU)
