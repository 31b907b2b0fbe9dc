# SPDX-License-Identifier: Apache-2.0
"""The first Ctrl-C requests a stop, the second one interrupts."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import torch
from lightning_fabric import Fabric

from muntin.heads.classification_head import LinearHead
from muntin.objectives.objective import MeanLoss, Objective
from muntin.runs import read_journal
from muntin.scoring.evaluator import Outputs, Scored, join_outputs
from muntin.training.checkpoint import Interruption, Stopped, pass_signals
from tests.objectives.fitting import DIM, fit_objective


@pytest.fixture(scope="module")
def fabric():
    return Fabric(accelerator="cpu", devices=1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_requests_a_stop(fabric, number):
    before = signal.getsignal(number)
    now, usual = [0.0], []
    signal.signal(number, lambda *_: usual.append(now[0]))
    try:
        with Interruption(clock=lambda: now[0]) as interruption:
            assert not interruption.requested(fabric)
            for now[0], acts in ((0.0, []), (0.0, []), (0.9, []), (1.0, [1.0]), (1.1, [1.0, 1.1])):
                os.kill(os.getpid(), number)
                assert usual == acts, "within a second it is the same request"
                assert interruption.requested(fabric)
    finally:
        signal.signal(number, before)
    assert signal.getsignal(number) is before


def test_after_some_steps(fabric):
    with Interruption(3) as interruption:
        assert [interruption.requested(fabric) for _ in range(5)] == [
            False,
            False,
            True,
            True,
            True,
        ]


def test_other_threads_leave_signals_alone(fabric):
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with Interruption(1) as interruption, pass_signals(list):
            seen.append((interruption.requested(fabric), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(True, before)]


def test_the_parent_process_defers_to_its_children():
    with pass_signals(list) as received:
        os.kill(os.getpid(), signal.SIGINT)
    assert received == [signal.SIGINT]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_wait_at_once(fabric, number):
    with Interruption() as interruption:
        with pytest.raises(Stopped), interruption.waiting(fabric):
            os.kill(os.getpid(), number)
        assert interruption.requested(fabric)


def test_a_signal_before_a_wait_lets_the_step_end(fabric):
    with Interruption() as interruption:
        with interruption.waiting(fabric):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.requested(fabric)


class Signalled(Objective):
    """A signal arrives during validation number `at`."""

    def __init__(self, at=0):
        self.at, self.validations = at, 0

    def prepare(self, views, device):
        return views[0].images.float() / 255

    def losses(self, network, inputs):
        logits = network.head(network.features(inputs))
        return {"loss": (logits - 1).square().mean(dim=1)}

    def evaluate(self, network, loader, device, autocast):
        self.validations += 1
        if self.validations == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        with torch.no_grad():
            losses = torch.cat([self.losses(network, b.images / 255)["loss"] for b in loader])
        empty = torch.empty(0)
        return Outputs(answers=empty, truth=empty, losses=losses, indices=empty)

    def score(self, parts, listing):
        outputs, metric = join_outputs(parts), MeanLoss()
        metric.update(outputs.losses)
        return Scored(figures=metric.compute(), metric=metric, outputs=outputs, listing=listing)

    def goal(self, figures):
        return "loss", -figures["loss"]


def test_a_signal_during_validation_loses_nothing(tmp_path):
    def run(name, at=0, **options):
        torch.manual_seed(1)
        return fit_objective(tmp_path, name, Signalled(at), LinearHead(DIM, 4), **options)

    whole = run("whole")
    stopped = run("parts", at=2)
    assert (stopped.interrupted, stopped.epochs) == (True, 1)
    resumed = run("parts", resume=True)
    assert (resumed.interrupted, resumed.epochs) == (False, 4)
    assert resumed.figures == whole.figures
    losses = [
        [line["train_loss"] for line in read_journal(tmp_path / n)] for n in ("whole", "parts")
    ]
    assert losses[0] == losses[1]
