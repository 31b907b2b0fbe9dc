# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Recorded graphs: batch sizes, memory that is used again, threads, and too little memory.

What records is handed in, so that everything but the recording is tested without a GPU.
"""

from __future__ import annotations

import threading
import time

import pytest
import torch

from muntin.errors import ConfigError, RunError, ShapeError
from muntin.inference.cuda_graphs import GraphRunner, call_directly

CPU = torch.device("cpu")


def record(call):
    """As a GPU does it: the work is done again into the same memory, which is all that is seen."""
    held = tuple(part.clone() for part in call())

    def replay():
        for place, part in zip(held, call(), strict=True):
            place.copy_(part)
        return held

    return held, replay


def runner(function, **options):
    return GraphRunner(function, CPU, capture=record, **options)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 8, 9, 23])
def test_any_number_of_images(count):
    seen = []

    def double(x):
        seen.append(len(x))
        return x * 2

    images = torch.randn(count, 3, 4, 5)
    said = runner(double, buckets=(1, 2, 4, 8))(images)
    torch.testing.assert_close(said, images * 2)
    assert set(seen) <= {1, 2, 4, 8}


def test_answers_are_the_callers_to_keep():
    run = runner(lambda x: (x + 1, [x * 3][0]), buckets=(4,))
    first = run(torch.ones(3, 2))
    kept = [part.clone() for part in first]
    run(torch.zeros(4, 2))
    for one, other in zip(first, kept, strict=True):
        assert torch.equal(one, other)


def test_a_tensor_stays_a_tensor_and_several_stay_several():
    single = runner(lambda x: x, buckets=(2,))
    several = runner(lambda x, y: [x, y.sum(1)], buckets=(2,))
    for count in (1, 5):
        x = torch.arange(count * 2.0).view(count, 2)
        assert torch.equal(single(x), x)
        one, two = several(x, x.long())
        assert torch.equal(one, x)
        assert torch.equal(two, x.long().sum(1))


def test_what_was_shown_before_does_not_matter():
    run = runner(lambda x: x.cumsum(1), buckets=(8,))
    run(torch.full((8, 3), torch.inf))
    assert torch.equal(run(torch.ones(2, 3)), torch.ones(2, 3).cumsum(1))


def test_one_graph_a_batch_size_and_kind_of_image():
    recorded = []

    def note(call):
        recorded.append(True)
        return record(call)

    run = GraphRunner(lambda x: x.float(), CPU, buckets=(1, 4), max_graphs=3, capture=note)
    for count, shape, dtype in [
        (1, (3,), torch.float32), (3, (3,), torch.float32), (1, (3,), torch.float32),
        (1, (5,), torch.float32), (1, (3,), torch.uint8), (1, (3,), torch.uint8),
    ]:  # fmt: skip
        run(torch.ones((count, *shape), dtype=dtype))
    assert len(recorded) == 4
    assert run.num_graphs == 3
    run(torch.ones(1, 3))  # used again after the second one, so still there
    assert len(recorded) == 4
    run(torch.ones(4, 3))
    assert len(recorded) == 5


def test_threads_take_turns():
    inside, most = [], []

    def slow(x):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.002)
        inside.pop()
        return x * 2

    run, wrong = runner(slow, buckets=(1, 2, 4)), []

    def ask(number):
        for count in (1, 3, 2):
            x = torch.full((count, 2), float(number))
            if not torch.equal(run(x), x * 2):
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert max(most) == 1


def test_other_graphs_are_freed_before_running_out_of_memory():
    room = [2]

    def greedy(call):
        if len(run._graphs) >= room[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")
        return record(call)

    run = GraphRunner(lambda x: x, CPU, buckets=(1, 2, 4), capture=greedy)
    for count in (1, 2, 4):
        assert len(run(torch.ones(count, 3))) == count
    assert run.num_graphs == 1
    room[0] = 0
    with pytest.raises(RunError, match=r"\b2\b.*\(3\).*\b1\b"):
        run(torch.ones(2, 3))


def test_images_of_two_numbers():
    with pytest.raises(ShapeError, match=r"\[2, 3\]"):
        runner(lambda x, y: x)(torch.ones(2, 1), torch.ones(3, 1))


@pytest.mark.parametrize(
    "options", [{"buckets": ()}, {"buckets": (4, 2)}, {"buckets": (0, 1)}, {"max_graphs": 0}]
)
def test_bad_buckets(options):
    with pytest.raises(ConfigError, match="buckets"):
        runner(lambda x: x, **options)


def test_without_recording():
    run = GraphRunner(lambda x: x + 1, CPU, buckets=(2,), capture=call_directly)
    for value in (0.0, 5.0):
        assert torch.equal(run(torch.full((1, 2), value)), torch.full((1, 2), value + 1))
