# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Less memory: smaller batches with accumulated gradients, and activation checkpointing."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from muntin.errors import ConfigError
from muntin.recipes import TrainConfig
from muntin.runs import Run
from muntin.synthetic.datasets import write_coco
from muntin.tasks.task_table import find_task
from muntin.training.auto_batch import MEMORY_SHARE, fit_batch_size, saved_bytes
from muntin.training.journal import read_journal
from muntin.training.recompute import checkpoint_blocks
from muntin.zoo import create_model
from tests.data.scenes import scene_of
from tests.detectors import tiny_detector, train_detector

EXAMPLE = find_task("instance").dense.example

HEADS = ("fcos_small", "mask_rcnn_small", "cascade_mask_rcnn_small")


def detector(head):
    return tiny_detector(head, 6, task="detect" if head.startswith("fcos") else "instance")


@pytest.mark.parametrize("head", HEADS)
def test_measuring_saved_bytes_changes_nothing(head):
    network = detector(head)
    # Batch norms update their statistics in training mode; the network must not change.
    network.head.extra = torch.nn.BatchNorm2d(3)
    network.backbone.register_forward_pre_hook(lambda _, inputs: (network.head.extra(*inputs),))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random, grads = torch.get_rng_state(), torch.is_grad_enabled()
    for mode in (True, False):
        network.train(mode)
        assert saved_bytes(network, (64, 96), EXAMPLE) > 10_000
        assert all(module.training == mode for module in network.modules())
    for name, value in network.state_dict().items():
        assert value.equal(before[name]), name
    assert torch.get_rng_state().equal(random)
    assert torch.is_grad_enabled() == grads
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("head", HEADS)
def test_larger_images_need_more(head):
    network = detector(head)
    small, large = (saved_bytes(network, size, EXAMPLE) for size in ((64, 64), (256, 256)))
    assert small < large
    if head == "fcos_small":  # nothing in it is of a fixed number
        assert large / small == pytest.approx(16, rel=0.25)


def test_small_memory_makes_small_batches():
    network = detector("mask_rcnn_small")
    each = saved_bytes(network, (64, 64), EXAMPLE)
    weights = 4 * sum(p.numel() * p.element_size() for p in network.parameters())
    config = TrainConfig(batch_size=8)
    for images, batch, steps in ((100, 8, 1), (8.5, 8, 1), (4.5, 4, 2), (3.5, 3, 3), (0.1, 1, 8)):
        free = int((images * each + weights) / MEMORY_SHARE["cpu"])
        notes: list[str] = []
        fitted = fit_batch_size(network, config, (64, 64), EXAMPLE, "cpu", notes, free=free)
        assert (fitted.batch_size, fitted.accumulate) == (batch, steps)
        assert bool(notes) == (batch != 8)
        assert fitted.batch_size * fitted.accumulate >= config.batch_size
    twice = TrainConfig(batch_size=8, accumulate=2)
    accumulated = fit_batch_size(network, twice, (64, 64), EXAMPLE, "cpu", [], free=free)
    assert (accumulated.batch_size, accumulated.accumulate) == (1, 16)


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


def test_recomputed_blocks_save_memory():
    network = detector("mask_rcnn_small")
    before = saved_bytes(network, (128, 128), EXAMPLE)
    checkpoint_blocks(network.backbone)
    assert saved_bytes(network, (128, 128), EXAMPLE) < before


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
