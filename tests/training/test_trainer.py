# SPDX-License-Identifier: Apache-2.0
"""One step at a time: gradients, averages, weights of classes, what is no number."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric

from muntin.data.batches import Batch
from muntin.data.classification_transforms import AugmentConfig
from muntin.data.transforms import Preprocessing
from muntin.errors import TrainingError
from muntin.run_config import RunConfig
from muntin.runs import Run
from muntin.samples import Classes, Entry, Listing
from muntin.train_config import TrainConfig
from muntin.training.run_objective import build_objective
from muntin.training.trainer import Trainer
from muntin.zoo import model_config

NAMES = ("a", "b", "c")
IDS = (0, 0, 0, 0, 1, 1, 2, 0)
LISTING = Listing(
    source="here",
    entries=tuple(Entry(path=str(i), class_ids=(k,)) for i, k in enumerate(IDS)),
    class_names=NAMES,
)
SMALL = {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2), "out_indices": (0, 1)}
CONFIG = TrainConfig(
    batch_size=8, lr_batch=0, learning_rate=1e-2, label_smoothing=0.0, clip_grad=0.0, warmup=0.0
)


def make(config=CONFIG, augment=None, seed=0) -> Trainer:
    run = Run(
        path=Path("nowhere"),
        config=RunConfig(
            task="classify",
            data="",
            model_name="swin_nano_patch2_window4_32",
            model=model_config("swin_nano_patch2_window4_32", SMALL),
            train=config,
            augment=augment or AugmentConfig(),
        ),
        classes=Classes(names=NAMES),
        preprocessing=Preprocessing(img_size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3),
    )
    torch.manual_seed(seed)
    network = run.build_network()
    objective = build_objective(run, LISTING, torch.device("cpu"), network)
    return Trainer(Fabric(accelerator="cpu", devices=1), config, network, objective)


def batch(indices=range(8), weights=None, num_real=0) -> Batch:
    places = torch.tensor(list(indices))
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)[places]
    weights = torch.ones(len(places)) if weights is None else torch.tensor(weights)
    sides = torch.full((len(places), 2), 16)
    return Batch(
        images=images, sizes=sides, originals=sides, indices=places, weights=weights,
        num_real=num_real or len(places),
    )  # fmt: skip


@pytest.fixture
def whole() -> Batch:
    return batch()


def part(of: Batch, rows: slice) -> Batch:
    places = torch.arange(len(of.indices))[rows]
    return replace(of.select(places), num_real=4)


def gradients(trainer: Trainer) -> list[torch.Tensor]:
    return [parameter.grad for parameter in trainer.network.parameters()]


def test_loss_and_gradient_are_those_of_the_mean(whole):
    trainer = make()
    value = trainer.accumulate_gradients((whole,), 0, 0, share=1.0, last=True)
    got = [gradient.clone() for gradient in gradients(trainer)]
    trainer.network.zero_grad()
    logits = trainer.network((whole.images.float() / 255 - 0.5) / 0.25)
    loss = F.cross_entropy(logits, torch.tensor(IDS))
    loss.backward()
    assert value == pytest.approx(float(loss.detach()) * 8, rel=1e-5)
    for left, right in zip(got, gradients(trainer), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-6)


def test_accumulated_gradient_is_that_of_the_large_batch(whole):
    large, small = make(), make()
    large.accumulate_gradients((whole,), 0, 0, share=1.0, last=True)
    small.accumulate_gradients((part(whole, slice(0, 4)),), 0, 0, share=0.5, last=False)
    small.accumulate_gradients((part(whole, slice(4, 8)),), 0, 1, share=0.5, last=True)
    for left, right in zip(gradients(large), gradients(small), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-6)


def test_a_image_of_weight_0_does_not_teach(whole):
    one, other = make(), make()
    one.accumulate_gradients((part(whole, slice(0, 4)),), 0, 0, share=1.0, last=True)
    blank = replace(whole, weights=torch.tensor([1.0] * 4 + [0.0] * 4), num_real=4)
    other.accumulate_gradients((blank,), 0, 0, share=1.0, last=True)
    for left, right in zip(gradients(one), gradients(other), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-6)


def test_rare_classes_count_more(whole):
    trainer = make(TrainConfig(batch_size=8, class_weights=True, label_smoothing=0.0))
    value = trainer.accumulate_gradients((whole,), 0, 0, share=1.0, last=True)
    logits = trainer.network((whole.images.float() / 255 - 0.5) / 0.25)
    rare = torch.tensor([1 / 5, 1 / 2, 1.0])
    losses = F.cross_entropy(logits, torch.tensor(IDS), reduction="none")
    expected = (losses * (rare / rare.mean())[list(IDS)]).sum()
    assert value == pytest.approx(float(expected.detach()), rel=1e-5)


def test_clipping_bounds_the_gradient(whole):
    trainer = make(TrainConfig(batch_size=8, clip_grad=1e-3, lr_batch=0))
    trainer.accumulate_gradients((whole,), 0, 0, share=1.0, last=True)
    before = torch.stack([g.norm() for g in gradients(trainer)]).norm()
    norms = []
    optimizer = trainer._optimizers[0].optimizer
    optimizer.register_step_pre_hook(
        lambda *_: norms.append(torch.stack([g.norm() for g in gradients(trainer)]).norm())
    )
    trainer.update_weights(1.0)
    assert before > 1e-2
    assert norms[0] == pytest.approx(1e-3, rel=1e-3)


def test_the_rate_is_peak_times_factor(whole):
    trainer = make()
    trainer.accumulate_gradients((whole,), 0, 0, share=1.0, last=True)
    trainer.update_weights(0.25)
    assert trainer.learning_rate == pytest.approx(0.25e-2)


def test_averaged_weights_follow_the_formula(whole):
    trainer = make(TrainConfig(batch_size=8, ema_decay=0.5, lr_batch=0, learning_rate=1e-2))
    expected = None
    for step in range(6):
        trainer.accumulate_gradients((whole,), 0, step, share=1.0, last=True)
        trainer.update_weights(1.0)
        now = trainer.network.head.fc.weight.detach().clone()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = now if expected is None else decay * expected + (1 - decay) * now
    kept = trainer.best_network.head.fc.weight
    torch.testing.assert_close(kept, expected)
    assert not kept.equal(trainer.network.head.fc.weight)
    plain = make()
    assert plain.best_network.head.fc.weight is plain.network.head.fc.weight, "nothing to average"


@pytest.mark.parametrize("decay", [0.999, 0.9999])
def test_averaged_weights_of_a_short_run_forget_the_start(whole, decay):
    trainer = make(TrainConfig(batch_size=8, ema_decay=decay, lr_batch=0, learning_rate=1e-2))
    start = trainer.network.head.fc.weight.detach().clone()
    for step in range(30):
        trainer.accumulate_gradients((whole,), 0, step, share=1.0, last=True)
        trainer.update_weights(1.0)
    moved = (trainer.network.head.fc.weight - start).norm()
    assert (trainer.best_network.head.fc.weight - start).norm() > 0.5 * moved


def test_frozen_weights_stay(whole):
    trainer = make(TrainConfig(batch_size=8, freeze=1, lr_batch=0, learning_rate=1e-2))
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    trainer.accumulate_gradients((whole,), 0, 0, share=1.0, last=True)
    trainer.update_weights(1.0)
    for name, parameter in trainer.network.named_parameters():
        stays = name.startswith(("backbone.layers.0.", "backbone.patch_embed."))
        assert parameter.equal(before[name]) == stays, name


@pytest.mark.parametrize("augment", [AugmentConfig(mixup=0.8), AugmentConfig(cutmix=1.0)])
def test_mixing_depends_on_the_step_alone(whole, augment):
    one, other = make(augment=augment), make(augment=augment)
    other.accumulate_gradients((whole,), 3, 9, share=1.0, last=True)
    torch.rand(7)
    values = [
        trainer.accumulate_gradients((whole,), 1, 2, share=1.0, last=True)
        for trainer in (one, other)
    ]
    assert values[0] == values[1]
    assert one.accumulate_gradients((whole,), 1, 3, share=1.0, last=True) != values[0]


def test_a_loss_that_is_no_number_is_named(whole):
    trainer = make()
    with torch.no_grad():
        trainer.network.head.fc.weight.fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"nan .*epoch 3, step 5.*train\.learning_rate"):
        trainer.accumulate_gradients((whole,), 2, 4, share=1.0, last=True)


def test_location_loss_is_trained_beside_the_network_and_restored(whole) -> None:
    """The perceptron moves, is part of the state, and adds no key to the network."""
    config = replace(CONFIG, location_loss=0.5)
    trainer, plain, other = make(config), make(), make(config, seed=1)
    before = copy.deepcopy(trainer.objective.auxiliary.state_dict())
    inputs = trainer.objective.prepare([whole], torch.device("cpu"))
    assert trainer.objective.losses(trainer.network, inputs).keys() == {"classes", "location"}
    trainer.accumulate_gradients([whole], 0, 0, share=1.0, last=True)
    trainer.update_weights(1.0)
    assert trainer.network.state_dict().keys() == plain.network.state_dict().keys()
    other.load_state(trainer.state())
    after = other.objective.auxiliary.state_dict()
    assert all(torch.equal(after[n], v) for n, v in trainer.state()["auxiliary"].items())
    assert not any(torch.equal(after[name], before[name]) for name in before)
