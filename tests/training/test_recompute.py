# SPDX-License-Identifier: Apache-2.0
"""Less memory: smaller batches with accumulated gradients, and activation checkpointing."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pytest
import torch

from muntin.errors import ConfigError
from muntin.heads.necks import UPerNet
from muntin.runs import Run, read_journal
from muntin.synthetic.datasets import write_coco
from muntin.training.memory_trace import record_spans
from muntin.training.recompute import checkpoint_blocks, recompute_layers
from muntin.zoo import create_model
from tests.data.scenes import scene_of
from tests.detectors import tiny_detector, train_detector

HEADS = ("fcos_small", "mask_rcnn_small", "cascade_mask_rcnn_small")


def detector(head):
    return tiny_detector(head, 6, task="detect" if head.startswith("fcos") else "instance")


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="needs Linux's /proc")
def test_a_run_with_little_memory(monkeypatch, tmp_path):
    data = write_coco(tmp_path / "shapes", num_train=8, num_val=2, size=(64, 64))
    read = Path.read_text

    def read_text(path, *args, **more):
        """Report that no memory is free."""
        return "MemAvailable: 0 kB" if path == Path("/proc/meminfo") else read(path, *args, **more)

    monkeypatch.setattr(Path, "read_text", read_text)
    run = train_detector("detect", data, tmp_path / "run", batch_size=0, epochs=1)
    config = Run.open(run.path).config.train
    assert config.batch_size == 1
    assert config.accumulate >= 2
    assert config.recomputed_layers
    assert config.recomputed_blocks == 3
    assert read_journal(run.path)[0]["train_loss"] > 0
    asked = train_detector("detect", data, tmp_path / "asked", batch_size=4, epochs=1)
    assert Run.open(asked.path).config.train.batch_size == 4


def gradients_of(network, images, sizes, targets):
    torch.manual_seed(3)
    losses = network.head.losses(network.features(images, sizes), targets)
    sum(losses.values()).sum().backward()
    return {name: p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_recomputed_blocks_have_the_same_gradients(head, drop_path):
    network = detector(head).train()
    for module in network.modules():
        if type(module).__name__ == "DropPath":
            module.rate = drop_path
    scenes = [scene_of(index, (64, 64))[1] for index in range(2)]
    targets = [one._replace(class_ids=one.class_ids % 6) for one in scenes]
    images, sizes = torch.randn(2, 3, 64, 64), torch.full((2, 2), 64)
    other = copy.deepcopy(network)
    assert checkpoint_blocks(other.backbone) == 3
    left, right = (gradients_of(one, images, sizes, targets) for one in (network, other))
    for name, gradient in left.items():
        if gradient is None:
            assert right[name] is None, name
        else:
            assert gradient.equal(right[name]), name
    assert list(network.state_dict()) == list(other.state_dict())


FIELDS = {
    "swin_nano": {},
    "swinv2_tiny": {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)},
    "vit_tiny": {"embed_dim": 48, "depth": 2},
}
"""Of small models of three families."""


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputed_layers_have_the_same_gradients_and_need_less(name, precision):
    network = create_model(name, img_size=(64, 64), num_classes=3, **FIELDS[name]).train()
    other = copy.deepcopy(network)
    assert recompute_layers(other) > 2
    images, peaks = torch.randn(8, 3, 64, 64), []

    def step(one):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            out = one(images)
        out.float().square().sum().backward()

    for one in (network, other):
        spans = record_spans(one, partial(step, one), torch.device("cpu"))
        # Where the backward pass begins, activations of all blocks are stored.
        peaks.append(next(span.live for span in spans if span.backward))
    for left, right in zip(network.parameters(), other.parameters(), strict=True):
        assert left.grad.equal(right.grad)
    assert peaks[1] < 0.65 * peaks[0]


def test_recomputed_layers_of_a_decoder():
    """Convolutions with batch norm; their running statistics count a batch once."""
    decoder = UPerNet((8, 16), 16, (1, 2), norm="batch").train()
    other = copy.deepcopy(decoder)
    assert recompute_layers(other) > 4
    maps = [torch.randn(2, 8, 16, 16), torch.randn(2, 16, 8, 8)]
    for one in (decoder, other):
        one(maps).square().sum().backward()
    for left, right in zip(decoder.parameters(), other.parameters(), strict=True):
        assert left.grad.equal(right.grad)
    for left, right in zip(decoder.buffers(), other.buffers(), strict=True):
        assert left.equal(right)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_resnet"])
def test_recomputed_timm_blocks_have_the_same_gradients(name):
    pytest.importorskip("timm")
    network = create_model(f"timm:{name}", num_classes=3).train()
    other = copy.deepcopy(network)
    assert checkpoint_blocks(other.backbone) == len(network.backbone.blocks) > 3
    images = torch.randn(2, 3, 160, 160)
    for one in (network, other):
        one(images).square().sum().backward()
    for left, right in zip(network.parameters(), other.parameters(), strict=True):
        assert left.grad.equal(right.grad)
    # Batch norms have counted the batch once.
    for key, value in other.state_dict().items():
        assert value.equal(network.state_dict()[key]), key


def test_a_copy_recomputes_its_own_blocks():
    """Averaged weights are a copy of a network whose blocks were changed."""
    network = detector("fcos_small").train()
    checkpoint_blocks(network.backbone)
    other = copy.deepcopy(network)
    images = torch.randn(1, 3, 64, 64)
    before = [level.detach() for level in other.backbone(images)]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    for left, right in zip(before, other.backbone(images), strict=True):
        torch.testing.assert_close(left, right.detach())
        assert left.abs().max() > 0.1


class InPlaceBlock(torch.nn.Module):
    """A block that modifies its input in place."""

    def forward(self, x):
        return x.mul_(2).sigmoid()


def test_blocks_with_in_place_input_changes_are_refused():
    backbone = torch.nn.Module()
    backbone.blocks = torch.nn.ModuleList([InPlaceBlock()])
    checkpoint_blocks(backbone)
    with pytest.raises(ConfigError, match=r"train\.checkpointing.*in place"):
        backbone.blocks[0](torch.ones(3, requires_grad=True) * 2)


def test_a_module_without_blocks_is_refused():
    with pytest.raises(ConfigError, match="Linear"):
        checkpoint_blocks(torch.nn.Linear(2, 2))


def test_a_run_with_checkpointing_has_the_same_losses(tmp_path):
    data = write_coco(tmp_path / "shapes", num_train=4, num_val=1, size=(64, 64))
    losses = []
    for checkpointing in ("false", "true"):
        run = train_detector(
            "instance", data, tmp_path / checkpointing, epochs=2,
            settings={"train.checkpointing": checkpointing, "train.drop_path_rate": 0.3},
        )  # fmt: skip
        losses.append([line["train_loss"] for line in read_journal(run.path)])
        assert Run.open(run.path).load_network() is not None
    assert losses[0] == losses[1]
