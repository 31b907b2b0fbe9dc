# SPDX-License-Identifier: Apache-2.0
"""Plans: sums, settings, and advice on what fits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import muntin
from muntin.commands.plan import show_plan
from muntin.errors import ConfigError, DataError
from muntin.planning.estimate import MemoryRequirements
from muntin.synthetic.datasets import write_coco, write_maps
from muntin.train_config import TrainConfig
from muntin.training.memory_model import (
    LinearFit,
    MemoryModel,
    Phase,
    Recompute,
    StepMemory,
)
from tests.small import MODEL, SETTINGS, write_images

SMALL = {**SETTINGS, "train.start_size": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("pictures"), each=8)


def make_plan(data, task="classify", settings=None, **options):
    chosen = {"model": MODEL, "img_size": 32, "batch_size": 8, "precision": "fp32"}
    chosen |= {"device": "cpu", "weights": "none", **options}
    return muntin.plan(task, data, settings={**SMALL, **(settings or {})}, **chosen)


@pytest.fixture(scope="module")
def plain(data):
    return make_plan(data)


def test_a_plan_adds_up(plain):
    plan = plain
    persistent = [plan.parameters, plan.optimizer, plan.averaged]
    temporary = [plan.gradients, plan.workspace, *dict(plan.activations).values()]
    assert 0 < plan.holes < sum(temporary)
    total = sum(persistent) + sum(temporary) + plan.holes + plan.process
    assert total == pytest.approx(plan.peak, rel=0.01)
    assert list(dict(plan.activations)) == ["patches", "stage 1", "stage 2"]
    assert plan.steps == 3
    assert plan.epoch_s >= 3 * plan.step_s > 0
    assert plan.fits
    assert plan.largest_batch_again >= plan.largest_batch > 8
    assert dict(plan.measured).keys() == {
        "step of 2", "step of 4", "reading an image", "validating an image",
    }  # fmt: skip
    found = json.loads(json.dumps(plan.to_dict()))
    assert f"<td>peak</td><td>{plan.peak:.4g}</td>" in plan._repr_html_()
    assert found["fits"] is True
    assert found["img_size"] == [32, 32]
    assert found["activations"].keys() == dict(plan.activations).keys()


def test_larger_batches_need_more(data):
    small, large = (make_plan(data, batch_size=count, img_size=64) for count in (2, 16))
    # A constant and a part for each image; how much is constant depends on the threads.
    grown = [plan.peak - plan.process - plan.parameters for plan in (small, large)]
    assert 2 < grown[1] / grown[0] <= 8.1
    assert large.parameters == small.parameters


def test_averaged_weights_and_checkpointing(data, plain):
    plan = make_plan(data, settings={"train.ema_decay": 0.9, "train.checkpointing": "true"})
    assert plain.averaged == 0
    assert plan.averaged == pytest.approx(plan.parameters, rel=0.05)
    assert plan.recomputed_blocks == plan.num_blocks == 2
    assert sum(dict(plan.activations).values()) <= sum(dict(plain.activations).values())


THREE_STAGES = {
    "model.depths": "1,1,1", "model.num_heads": "1,2,4", "model.out_indices": "0,1,2",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("task", "write"), [("detect", write_coco), ("semantic", write_maps)])
def test_dense_tasks(tmp_path, task, write):
    scenes = write(tmp_path / "data", num_train=6, num_val=2, size=(64, 64))
    plan = make_plan(scenes, task, img_size=64, batch_size=4, settings=THREE_STAGES)
    assert plan.peak > plan.process > 0
    assert "stage 3" in dict(plan.activations)


def test_advice_if_a_run_does_not_fit(data):
    plan = make_plan(data, batch_size=64, img_size=64, settings={"train.memory_gib": 0.02})
    assert not plan.fits
    assert plan.recomputed_layers
    assert plan.recomputed_blocks == plan.num_blocks
    assert 0 < plan.largest_batch < 64
    assert any("train.memory_gib=0.02" in note for note in plan.notes)
    assert any(f"--batch-size {plan.largest_batch}" in note for note in plan.notes)
    none = make_plan(data, batch_size=64, settings={"train.memory_gib": 1e-4})
    assert none.largest_batch_again == 0
    assert none.largest_batch == 0


def test_errors_are_those_of_training(data, tmp_path):
    with pytest.raises(ConfigError, match=r"'swin_tiney'.*'swin_tiny'"):
        make_plan(data, model="swin_tiney")
    with pytest.raises(DataError):
        make_plan(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="nothing"):
        make_plan(data, settings={"train.nothing": 1})


PLAIN = Recompute()


def requirements(*, each=1.0, validation=1.0, validation_batch=lambda batch: max(64, batch)):
    """Of a step that needs `each` bytes an image, with nothing to recompute, and 100 bytes."""
    model = MemoryModel(
        persistent=0, gradients=0, parts=(), phases=(Phase("", False, 0, LinearFit(0, each)),),
        saved=(), outputs=(),
    )  # fmt: skip
    return MemoryRequirements(
        steps=StepMemory(model, lambda: model), validation_memory=LinearFit(0, validation),
        weights=0, validation_batch=validation_batch, budget=100.0, max_batch=64,
    )  # fmt: skip


def test_validation_must_fit_too():
    assert requirements().largest(PLAIN) == 64
    assert requirements(validation=2.0).largest(PLAIN) == 0
    small = requirements(validation=3.0, validation_batch=lambda batch: batch)
    assert small.largest(PLAIN) == 33
    assert small.fits(33, PLAIN)
    assert not small.fits(34, PLAIN)


def test_a_memory_limit_limits_the_validation_batch():
    assert TrainConfig(batch_size=8).validation_batch == 64
    assert TrainConfig(batch_size=8, memory_gib=1).validation_batch == 8


def test_printed_plan(plain, capsys):
    figures = {"process": 950.0, "room": 1052.4, "peak": 1000.0, "inference": 1000.0}
    plan = replace(plain, recomputed_blocks=1, memory_gib=0.1, **figures)
    assert plan.fits
    assert not replace(plan, inference=1100.0).fits
    show_plan(plan)
    printed = capsys.readouterr().out
    for figure in ("1 of 2", plan.moment, "950", "1052", "train.memory_gib 0.1"):
        assert figure in printed


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_out_of_memory_is_reported_in_gib(data):
    """The address space is limited to less than an image of 2048 x 2048 needs."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    held = pages * resource.getpagesize()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (held + 2**27, hard))
        with pytest.raises(ConfigError, match=r"GiB.*--img-size"):
            make_plan(data, img_size=2048)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
