# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C asks first, and insists the second time."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from lightning_fabric import Fabric

from muntin.training.interruption import Interruption, leave_to_others


@pytest.fixture(scope="module")
def fabric():
    return Fabric(accelerator="cpu", devices=1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_one_asks(fabric, number):
    before = signal.getsignal(number)
    with Interruption() as interruption:
        assert not interruption.wanted(fabric)
        os.kill(os.getpid(), number)
        assert interruption.wanted(fabric)
        assert interruption.wanted(fabric)
        assert signal.getsignal(number) is before, "the second one is as ever"
    assert signal.getsignal(number) is before


def test_after_some_steps(fabric):
    with Interruption(3) as interruption:
        assert [interruption.wanted(fabric) for _ in range(5)] == [False, False, True, True, True]


def test_other_threads_leave_signals_alone(fabric):
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with Interruption(1) as interruption, leave_to_others():
            seen.append((interruption.wanted(fabric), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(True, before)]


def test_the_parent_of_several_leaves_it_to_them():
    with leave_to_others() as seen:
        os.kill(os.getpid(), signal.SIGINT)
    assert seen == [signal.SIGINT]
