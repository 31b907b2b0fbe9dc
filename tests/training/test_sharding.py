# SPDX-License-Identifier: Apache-2.0
"""Processes that share one network learn what one process learns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from muntin.configs import with_texts
from muntin.data.batches import Batch
from muntin.data.cache import ImageCache
from muntin.data.loading import Processes, TrainLoader
from muntin.errors import ConfigError
from muntin.run_config import RunConfig
from muntin.synthetic.datasets import write_coco, write_frames, write_maps
from muntin.train_config import MachineConfig, TrainConfig
from muntin.training.checkpoint import read_checkpoint, write_checkpoint
from muntin.training.distillation import add_teacher, read_answers
from muntin.training.global_batch import see_whole_batch
from muntin.training.low_rank import merged_state
from muntin.training.machine import build_fabric
from muntin.training.processes import find_place, take_part
from muntin.training.progress import Reporter
from muntin.training.request import PreparedRun, Request
from muntin.training.run_objective import build_objective
from muntin.training.setup import prepare
from muntin.training.sharding import (
    check_sharding,
    gradient_norm,
    join_unused,
    own_part,
    rows_of,
)
from muntin.training.trainer import Trainer
from tests.detectors import BODY, BODY_SETTINGS, head_settings
from tests.forked import train_forked
from tests.small import MODEL, SETTINGS, train_small, write_images

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")

COUNT, TOLERANCE = 8, 1e-4
VIT = {"model.embed_dim": 16, "model.depth": 2, "model.num_heads": 2, "model.patch_size": 4}
DECODER = {"head.dim": 16, "head.depth": 1, "head.num_heads": 2}


def beside(count: int, config: RunConfig, work: Callable[[Fabric], None]) -> None:
    """Do the work in so many processes at once."""
    train_forked(count, lambda: take_part(find_place(), config, work) or True)


def prepared(
    task: str, data: Path, out: Path, options: dict[str, Any], settings: dict[str, Any]
) -> PreparedRun:
    """A run of a tiny network."""
    precision = options.pop("precision", "fp32")
    machine = MachineConfig(device="cpu", precision=precision, workers=0, devices=2)
    same: dict[str, Any] = {
        "train.shard": True, "train.lr_batch": 0, "train.learning_rate": 1e-3,
        "train.clip_grad": 0.5, "train.layer_decay": 0.8,
        "train.accumulate": 2, "train.ema_decay": 0.9, "machine.workers": 0,
    }  # fmt: skip
    if task == "classify":
        same |= {"augment.mixup": 0.8, "augment.cutmix": 1}
    texts = tuple((name, str(value)) for name, value in {**same, **settings}.items())
    chosen: dict[str, Any] = {"img_size": (16, 16), "batch_size": COUNT, "weights": "none"}
    run = prepare(
        Request(
            task=task, data=str(data), out=str(out), machine=machine, settings=texts,
            **{**chosen, **options},
        )
    )  # fmt: skip
    return replace(run, answers=read_answers(run, Reporter(None)))


class Branches(torch.nn.Module):
    """A layer that only the first of two processes uses, and one that both do."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.first = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)

    def forward(self, rank: int) -> Tensor:
        loss = self.both(torch.ones(2)).sum()
        return loss if rank else loss + 4 * self.first(torch.ones(2)).sum()


def check_branches(fabric: Fabric) -> None:
    """A branch that one process does not need is learnt by both, and nobody waits."""
    step = Branches()
    fully_shard(step)
    join_unused(step(fabric.global_rank), step).backward()
    weight: Any = step.first.weight.grad
    assert weight.full_tensor().tolist() == [[2.0, 2.0]]  # the mean of 4 and 0


class Learner:
    """A trainer of a prepared run, with this process's part of each batch."""

    def __init__(self, fabric: Fabric, run: PreparedRun, *, shard: bool = True) -> None:
        run = replace(run, network=copy.deepcopy(run.network))
        see_whole_batch(run.network)
        config = run.run.config
        objective = build_objective(run.run, run.train, fabric.device, run.network)
        taught = add_teacher(objective, run.run, run.network.spec, fabric, run.answers)
        self.fabric, self.run, self.objective = fabric, run, taught
        store = ImageCache(run.train, run.run.preprocessing, config.data_config, training=True)
        self.loaders = [
            TrainLoader(
                store, config.augment, batch_size=COUNT, seed=0, view=view,
                processes=Processes(fabric.global_rank, fabric.world_size, 0),
            )
            for view in range(taught.views)
        ]  # fmt: skip
        tuned = replace(config.train, shard=shard)
        self.trainer = Trainer(fabric, tuned, run.network, taught)

    def batches(self, epoch: int) -> Iterator[list[Batch]]:
        size = self.run.run.preprocessing.img_size
        each = [loader.batches(epoch, 0, size) for loader in self.loaders]
        yield from map(list, zip(*each, strict=True))

    def learn(self, epochs: range) -> dict[str, Tensor]:
        """Losses and norms of the gradients of steps of two batches, and the weights to save."""
        trainer, losses, norms = self.trainer, [], []
        for epoch in epochs:
            with closing(self.batches(epoch)) as batches:
                for step, views in enumerate(batches):
                    last = step % 2 == 1 or step + 1 == len(self.loaders[0])
                    loss = torch.tensor(
                        trainer.accumulate_gradients(views, epoch, step, share=0.5, last=last)
                    )
                    losses.append(self.fabric.all_reduce(loss, reduce_op="sum") / COUNT)
                    if last:
                        gradients = [p.grad for p in self.run.network.parameters()]
                        norms.append(
                            gradient_norm([each for each in gradients if each is not None])
                        )
                        trainer.update_weights(1.0)
        weights = {k: v.clone() for k, v in merged_state(trainer.best_network).items()}
        return {"losses": torch.tensor(losses), "norms": torch.tensor(norms), **weights}

    def save(self, folder: Path) -> None:
        write_checkpoint(folder, {"position": {}, **self.trainer.state()}, together=True)

    def bytes_kept(self) -> int:
        """Bytes of parameters, averages and moments of this process."""
        state = self.trainer.state()
        found, rest = 0, [state["network"], state["averaged"], *state["optimizers"]]
        while rest:
            value = rest.pop()
            if isinstance(value, Tensor):
                found += own_part(value).nbytes if value.is_floating_point() else 0
            elif isinstance(value, dict):
                rest += value.values()
        return found


def compare(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    assert len(wanted["losses"])
    torch.testing.assert_close(found["losses"], wanted["losses"], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found["norms"], wanted["norms"], rtol=50 * tolerance, atol=tolerance)
    for name, values in wanted.items():
        # The mean: adamw makes steps of gradients that are nothing but rounding.
        assert (values.float() - found[name].float()).abs().mean() <= 5 * tolerance, name


def check_learning(tmp_path: Path, run: PreparedRun, tolerance: float = TOLERANCE) -> None:
    """Two processes learn and save; one, two and four go on, all as one process does."""

    def keep(learner: Learner, epochs: range, name: str) -> None:
        learnt = learner.learn(epochs)
        if learner.fabric.is_global_zero:
            save_file(learnt, tmp_path / name)

    def begin(fabric: Fabric) -> None:
        keep(Learner(fabric, run, shard=False), range(2), "ddp")
        learner = Learner(fabric, run)
        keep(learner, range(2), "shards")
        learner.save(tmp_path)

    def go_on(fabric: Fabric) -> None:
        learner = Learner(fabric, run)
        learner.trainer.load_state(read_checkpoint(tmp_path))
        keep(learner, range(2, 4), str(fabric.world_size))

    one = Learner(build_fabric(replace(run.run.config.machine, devices=1), 1), run)
    first, second = one.learn(range(2)), one.learn(range(2, 4))
    beside(2, run.run.config, begin)
    shards = load_file(tmp_path / "shards")
    compare(shards, load_file(tmp_path / "ddp"), tolerance)
    compare(shards, first, tolerance)
    for count in (2, 4):
        beside(count, run.run.config, go_on)
        compare(load_file(tmp_path / str(count)), second, tolerance)
    alone = Learner(build_fabric(replace(run.run.config.machine, devices=1), 1), run)
    alone.trainer.load_state(read_checkpoint(tmp_path))
    compare(alone.learn(range(2, 4)), second, tolerance)


CLASSIFIERS = {
    "swin": (MODEL, {**SETTINGS, "train.location_loss": 0.5}),
    "vit": ("vit_tiny_patch16_224", VIT),
    "vit recomputed": ("vit_tiny_patch16_224", {**VIT, "train.checkpointing": True}),
    "vit layers": ("vit_tiny_patch16_224", {**VIT, "train.recomputed_layers": True}),
    "vit frozen": ("vit_tiny_patch16_224", {**VIT, "train.freeze": 1}),
    "vit adapters": (
        "vit_tiny_patch16_224",
        {**VIT, "train.adapt": "lora", "train.lora_rank": 3, "train.ema_decay": 0},
    ),
    "vit muon": (
        "vit_tiny_patch16_224",
        {**VIT, "train.optimizer": "muon", "train.muon_learning_rate": 1e-3},
    ),
}


@pytest.fixture(scope="module")
def trees(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "trees", each=8)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:train.adapt=lora with random weights")
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classes_are_learnt_as_by_one_process(trees, tmp_path, name):
    model, settings = CLASSIFIERS[name]
    check_learning(
        tmp_path, prepared("classify", trees, tmp_path / "run", {"model": model}, settings)
    )


@pytest.mark.slow
def test_half_precision_is_that_of_one_process(trees, tmp_path):
    options = {"model": "vit_tiny_patch16_224", "precision": "bf16"}
    check_learning(
        tmp_path, prepared("classify", trees, tmp_path / "run", options, VIT), tolerance=1e-2
    )


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detect", "instance", "semantic", "pose"])
def test_dense_tasks_are_learnt_as_by_one_process(tmp_path, task):
    write = {"semantic": write_maps, "pose": write_frames}.get(task, write_coco)
    data = write(tmp_path / "shapes", num_train=16, num_val=2, size=(64, 64))
    options: dict[str, Any] = {"model": BODY, "img_size": (64, 64)}
    settings = {**BODY_SETTINGS, "head.channels": 16}
    if task in ("detect", "instance"):
        options["head"] = "fcos_small" if task == "detect" else "dense_small"
        settings = {**BODY_SETTINGS, **head_settings(options["head"])}
    if task == "instance":  # cells are chosen by rank: larger steps let rounding change the choice
        settings["train.learning_rate"] = 1e-5
    check_learning(tmp_path, prepared(task, data, tmp_path / "run", options, settings))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["mae", "views"])
def test_pretraining_is_that_of_one_process(trees, tmp_path, objective):
    options = {"model": "vit_tiny_patch16_224", "head": objective}
    settings = {**VIT, **(DECODER if objective == "mae" else {})}
    check_learning(tmp_path, prepared("pretrain", trees, tmp_path / "run", options, settings))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["soft", "features"])
def test_a_teacher_teaches_as_it_does_one_process(trees, tmp_path, kind):
    teacher = train_small(trees, tmp_path / "teacher", epochs=1).path
    options = {"model": MODEL, "teacher": str(teacher)}
    settings = {**SETTINGS, "distill.kind": kind}
    check_learning(tmp_path, prepared("classify", trees, tmp_path / "run", options, settings))


def test_two_processes_share_a_network(tmp_path):
    """Adamw and muon, the norm of the gradient, half of the memory, and a checkpoint of one."""
    data = write_images(tmp_path / "trees", each=8, classes=("ash", "birch"))
    settings = {**VIT, "model.depth": 1, "train.optimizer": "muon"}
    run = prepared("classify", data, tmp_path / "run", {"model": "vit_tiny_patch16_224"}, settings)

    def begin(fabric: Fabric) -> None:
        check_branches(fabric)
        learner = Learner(fabric, run)
        learnt = learner.learn(range(1))
        learner.save(tmp_path)
        kept = list(torch.zeros(2, dtype=torch.long).split(1))
        torch.distributed.all_gather(kept, torch.tensor([learner.bytes_kept()]))
        if fabric.is_global_zero:
            save_file({**learnt, "kept": torch.cat(kept)}, tmp_path / "shards")

    beside(2, run.run.config, begin)
    one = Learner(build_fabric(replace(run.run.config.machine, devices=1), 1), run)
    wanted, found = one.learn(range(1)), load_file(tmp_path / "shards")
    kept, all_bytes = found.pop("kept"), one.bytes_kept()
    # Nothing twice but the counts of steps; one process has what is of one row, as positions are.
    assert all_bytes <= int(kept.sum()) < all_bytes + 4 * 40
    assert int(kept.max()) < 0.55 * all_bytes
    compare(found, wanted, TOLERANCE)
    alone = Learner(one.fabric, run)
    alone.trainer.load_state(read_checkpoint(tmp_path))
    compare(alone.learn(range(1, 2)), one.learn(range(1, 2)), TOLERANCE)
    path = tmp_path / "last.ckpt" / "state.safetensors"
    save_file(load_file(path), tmp_path / "again")
    assert path.read_bytes() == (tmp_path / "again").read_bytes()


@pytest.mark.parametrize("count", [0, 1, 3, 4, 7])
def test_rows_are_those_of_chunks(count):
    rows = torch.arange(count)
    chunks = [chunk.tolist() for chunk in rows.chunk(4)]
    found = [rows[slice(*rows_of(count, rank, 4))].tolist() for rank in range(4)]
    assert [each for each in found if each] == [each for each in chunks if each]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([("compile", "on")], "machine.compile=off"),
        ([("precision", "fp16")], "got fp16"),
        ([("device", "mps")], "got mps"),
    ],
)
def test_what_shards_do_not_work_with_is_refused(settings, said):
    machine = with_texts(MachineConfig(compile="off"), settings)
    check_sharding(TrainConfig(), machine)
    with pytest.raises(ConfigError, match=said):
        check_sharding(TrainConfig(shard=True), machine)
