# SPDX-License-Identifier: Apache-2.0
"""Processes that share one network learn what one process learns."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file
from torch import Tensor

from muntin.data.batches import Batch
from muntin.data.transforms import Preprocessing
from muntin.run_config import RunConfig
from muntin.runs import Run
from muntin.samples import Classes, Entry, Listing
from muntin.train_config import TrainConfig
from muntin.training.checkpoint import read_checkpoint, write_checkpoint
from muntin.training.run_objective import build_objective
from muntin.training.sharding import own_part, save_rows
from muntin.training.trainer import Trainer
from muntin.zoo import model_config

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")

NAMES = ("a", "b", "c")
LISTING = Listing(
    source="here",
    entries=tuple(Entry(path=str(i), class_ids=(i % 3,)) for i in range(8)),
    class_names=NAMES,
)
MODELS = {
    "vit": ("vit_tiny_patch16_224", {"embed_dim": 12, "depth": 2, "num_heads": 2, "img_size": 32}),
    "swin": (
        "swin_nano_patch2_window4_32",
        {"embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2), "out_indices": (0, 1)},
    ),
}
CONFIG = TrainConfig(
    batch_size=8, lr_batch=0, learning_rate=1e-2, clip_grad=0.05, layer_decay=0.8, ema_decay=0.9,
    accumulate=2, shard=True,
)  # fmt: skip


def make(fabric: Fabric, model: str, config: TrainConfig) -> Trainer:
    name, values = MODELS[model]
    run = Run(
        path=Path("nowhere"),
        config=RunConfig(
            task="classify", data="", model_name=name, model=model_config(name, values),
            train=config,
        ),
        classes=Classes(names=NAMES),
        preprocessing=Preprocessing(img_size=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3),
    )  # fmt: skip
    torch.manual_seed(0)
    network = run.build_network()
    objective = build_objective(run, LISTING, fabric.device, network)
    return Trainer(fabric, config, network, objective)


def batch(step: int) -> Batch:
    images = torch.randint(
        256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(step)
    )
    sides = torch.full((8, 2), 32)
    return Batch(
        images=images, sizes=sides, originals=sides, indices=torch.arange(8),
        weights=torch.ones(8), num_real=8,
    )  # fmt: skip


def learn(trainer: Trainer, steps: range) -> dict[str, Tensor]:
    """Losses of whole batches, norms of the gradients, and the averaged weights after the steps."""
    fabric, losses = trainer.fabric, []
    own = torch.arange(8).chunk(fabric.world_size)[fabric.global_rank]
    for step in steps:
        part = replace(batch(step).select(own), num_real=8)
        last = step % 2 == 1
        value = trainer.accumulate_gradients([part], 0, step, share=0.5, last=last)
        losses.append(float(fabric.all_reduce(torch.tensor(value), reduce_op="sum")))
        if last:
            trainer.update_weights(1.0)
    state = {k: v.clone() for k, v in trainer.best_network.state_dict().items()}
    return {**state, "losses": torch.tensor(losses)}


def beside(count: int, work: Callable[[Fabric], None]) -> None:
    """Do the work in so many processes at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.start_processes(
        _work, (count, port, work), nprocs=count, start_method="fork", join=False
    )
    assert context is not None
    ends = time.monotonic() + 200
    try:
        while not context.join(timeout=5):  # true when all have ended
            assert time.monotonic() < ends, "a process hangs"
    finally:
        for process in context.processes:
            process.kill()


def _work(rank: int, count: int, port: int, work: Callable[[Fabric], None]) -> None:
    os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=count, strategy="ddp" if count > 1 else "auto")
    fabric.launch()
    work(fabric)
    if count > 1:
        torch.distributed.destroy_process_group()


def check_learning(tmp_path: Path, model: str, config: TrainConfig, tolerance: float) -> None:
    """One process learns 8 steps; two learn 4 and save, and one, two and four go on from there."""

    def save(fabric: Fabric) -> None:
        trainer = make(fabric, model, config)
        learnt = learn(trainer, range(4))
        together = {"save": save_rows, "first": fabric.is_global_zero}
        write_checkpoint(tmp_path, {"position": {}, **trainer.state()}, **together)
        if fabric.is_global_zero:
            save_file(learnt, tmp_path / "first.safetensors")

    def resume(fabric: Fabric) -> None:
        trainer = make(fabric, model, config)
        trainer.load_state(read_checkpoint(tmp_path))
        learnt = learn(trainer, range(4, 8))
        if fabric.is_global_zero:
            save_file(learnt, tmp_path / f"{fabric.world_size}.safetensors")

    trainer = make(Fabric(accelerator="cpu", devices=1), model, config)
    wanted = learn(trainer, range(4)), learn(trainer, range(4, 8))
    beside(2, save)
    found = [(wanted[0], load_file(tmp_path / "first.safetensors"))]
    for count in (2, 1, 4):
        beside(count, resume)
        found.append((wanted[1], load_file(tmp_path / f"{count}.safetensors")))
    for left, right in found:
        assert left.keys() == right.keys()
        torch.testing.assert_close(right["losses"], left["losses"], rtol=0, atol=1e-4 * 8)
        for name, values in left.items():
            assert (values.float() - right[name].float()).abs().max() <= tolerance, name


def test_two_processes_learn_what_one_does(tmp_path):
    check_learning(tmp_path, "vit", CONFIG, 1e-4)
