# SPDX-License-Identifier: Apache-2.0
"""The first Ctrl-C requests a stop, the second one interrupts."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from lightning_fabric import Fabric

from muntin.training.checkpoint import Interruption, defer_interrupts


@pytest.fixture(scope="module")
def fabric():
    return Fabric(accelerator="cpu", devices=1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_requests_a_stop(fabric, number):
    before = signal.getsignal(number)
    with Interruption() as interruption:
        assert not interruption.requested(fabric)
        os.kill(os.getpid(), number)
        assert interruption.requested(fabric)
        assert interruption.requested(fabric)
        assert signal.getsignal(number) is before, "the second signal acts as usual"
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
        with Interruption(1) as interruption, defer_interrupts():
            seen.append((interruption.requested(fabric), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(True, before)]


def test_the_parent_process_defers_to_its_children():
    with defer_interrupts() as received:
        os.kill(os.getpid(), signal.SIGINT)
    assert received == [signal.SIGINT]
