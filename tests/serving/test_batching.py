# SPDX-License-Identifier: Apache-2.0
"""The queue: orders, limits, deadlines, clients that are gone, and a worker that dies."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from muntin.serving.batching import Batcher, Job, RefusedError
from muntin.serving.messages import Answer, BatchOptions, BatchReport, WorkItem
from muntin.serving.metrics import Metrics
from muntin.serving.serve_settings import ServeLimits

ONE, TWO = BatchOptions(model="one"), BatchOptions(model="two")


class Sent:
    """A worker that does what a test says, and keeps what it was sent."""

    def __init__(self, **limits: Any) -> None:
        self.metrics = Metrics()
        self.cancelled: list[int] = []
        self.batcher = Batcher(
            ServeLimits(**limits), self.send, self.metrics, self.cancelled.append
        )
        self.batcher.running = True
        self.batches: dict[int, tuple[BatchOptions, list[str]]] = {}
        self.order: list[list[str]] = []

    def send(self, number: int, options: BatchOptions, items: tuple[WorkItem, ...]) -> None:
        self.batches[number] = (options, [item.name for item in items])
        self.order.append([item.name for item in items])

    def job(self, name: str, options: BatchOptions = ONE, **chosen: Any) -> Job:
        chosen = {"pixels": 100, "deadline": time.monotonic() + 60, **chosen}
        future = asyncio.get_running_loop().create_future()
        item = WorkItem(name=name, data=b"")
        return Job(item=item, options=options, answer=future, **chosen)

    def finish(self, number: int, fault: str = "") -> None:
        names = self.batches.pop(number)[1]
        answers = tuple(Answer(text=f"of {name}", fault=fault) for name in names)
        self.batcher.finish(number, BatchReport(answers=answers))

    def finish_all(self) -> None:
        while self.batches:
            self.finish(min(self.batches))

    def count(self, name: str) -> float:
        lines = self.metrics.text().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def looped(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Run a test on a loop of its own."""

    def run() -> None:
        asyncio.run(test())

    run.__name__ = test.__name__
    return run


@looped
async def test_two_batches_are_under_way_and_the_rest_waits_in_order() -> None:
    worker = Sent(batch=3)
    jobs = [worker.job(str(number)) for number in range(10)]
    worker.batcher.submit(jobs[:1])
    worker.batcher.submit(jobs[1:])
    assert worker.order == [["0"], ["1", "2", "3"]]
    worker.finish(1)
    assert worker.order[2:] == [["4", "5", "6"]]
    worker.finish_all()
    assert worker.order[3:] == [["7", "8", "9"]]
    assert [job.answer.result().text for job in jobs] == [f"of {name}" for name in range(10)]
    assert not worker.batcher.busy


@looped
async def test_only_equal_options_share_a_batch_and_the_oldest_goes_first() -> None:
    worker = Sent()
    worker.batcher.running = False
    names = ["a1", "b2", "a3", "b4", "b5", "a6"]
    worker.batcher.submit([worker.job(n, ONE if n[0] == "a" else TWO) for n in names])
    worker.batcher.running = True
    worker.batcher.advance()
    assert worker.order == [["a1", "a3", "a6"], ["b2", "b4", "b5"]]


@looped
async def test_large_and_tiled_images_go_alone() -> None:
    worker = Sent(megapixels=1)
    worker.batcher.running = False
    jobs = [worker.job(str(n), pixels=p) for n, p in enumerate((400_000, 500_000, 200_000, 10**6))]
    tiled = [worker.job(f"t{n}", BatchOptions(model="one", tile=64)) for n in range(2)]
    worker.batcher.submit(jobs + tiled)
    worker.batcher.running = True
    worker.batcher.advance()
    worker.finish_all()
    # What fits may pass what does not, but never the oldest.
    assert worker.order == [["0", "1"], ["2"], ["3"], ["t0"], ["t1"]]


@looped
async def test_places_are_kept_and_given_back() -> None:
    worker = Sent(waiting_images=16)
    with worker.batcher.admit(10):
        assert worker.batcher.num_images == 10
        with pytest.raises(RefusedError, match="10 images wait") as caught, worker.batcher.admit(7):
            pass
        with worker.batcher.admit(6), pytest.raises(RefusedError), worker.batcher.receive():
            pass
    assert caught.value.status == 429
    assert caught.value.retry_after >= 1
    assert worker.batcher.num_images == 0
    with pytest.raises(KeyError), worker.batcher.admit(16):
        raise KeyError
    assert worker.batcher.num_images == 0


@looped
async def test_bytes_are_counted_as_they_come_not_as_they_are_announced() -> None:
    worker = Sent(body_mib=1, waiting_mib=1)
    with worker.batcher.receive() as take, worker.batcher.receive() as other:
        take(2**19)
        other(2**19)
        with pytest.raises(RefusedError, match="1 MiB wait") as caught:
            take(1)
    assert (caught.value.status, caught.value.reason) == (429, "waiting_bytes")
    with worker.batcher.receive() as take:
        take(2**20)


@looped
async def test_what_is_late_or_has_no_client_is_not_sent() -> None:
    worker = Sent()
    worker.batcher.running = False
    late = worker.job("late", deadline=time.monotonic() - 1)
    gone, good = worker.job("gone"), worker.job("good")
    worker.batcher.submit([late, gone, good])
    gone.answer.cancel()
    worker.batcher.running = True
    worker.batcher.advance()
    assert worker.order == [["good"]]
    with pytest.raises(RefusedError) as caught:
        late.answer.result()
    assert caught.value.status == 504
    assert worker.count('muntin_dropped_images_total{reason="client"}') == 1
    assert worker.count('muntin_dropped_images_total{reason="deadline"}') == 1


@looped
async def test_a_batch_is_cancelled_when_nobody_waits_for_any_of_its_images() -> None:
    worker = Sent(batch=2)
    jobs = [worker.job(str(number)) for number in range(5)]
    worker.batcher.submit(jobs[:1])
    worker.batcher.submit(jobs[1:])
    assert worker.order == [["0"], ["1", "2"]]
    jobs[1].answer.cancel()
    await asyncio.sleep(0)
    assert worker.cancelled == []
    jobs[2].answer.cancel()
    await asyncio.sleep(0)
    assert worker.cancelled == [2]
    worker.finish(1)
    await asyncio.sleep(0)
    assert worker.order[2:] == [["3", "4"]]
    # Its place is free when the worker has let go, and nothing of it is tried again.
    worker.finish(2, fault="server")
    assert not worker.batcher._queue
    assert worker.cancelled == [2]


@looped
async def test_a_worker_that_dies_once_costs_time_only() -> None:
    worker = Sent(batch=4)
    jobs = [worker.job(str(number)) for number in range(10)]
    worker.batcher.submit(jobs)
    worker.batcher.worker_died()
    assert not worker.batcher.running
    worker.order.clear()
    worker.batches.clear()
    worker.batcher.running = True
    worker.batcher.advance()
    worker.finish_all()
    # What it had goes alone, one at a time, in order; then batches as before.
    assert worker.order == [*([str(n)] for n in range(8)), ["8", "9"]]
    assert [job.answer.result().text for job in jobs] == [f"of {name}" for name in range(10)]


@looped
async def test_an_image_that_kills_every_worker_takes_no_other_with_it() -> None:
    worker = Sent(batch=3)
    jobs = [worker.job(name) for name in ("a", "POISON", "c", "d", "e", "f", "g")]
    worker.batcher.submit(jobs)
    for _ in range(100):
        if not worker.batches:
            break
        number = min(worker.batches)
        if "POISON" in worker.batches[number][1]:
            worker.batches.clear()
            worker.batcher.worker_died()
            worker.batcher.running = True
            worker.batcher.advance()
        else:
            worker.finish(number)
    found = {job.item.name: job.answer.result() for job in jobs}
    assert found.pop("POISON").fault == "server"
    assert {answer.text for answer in found.values()} == {f"of {name}" for name in "acdefg"}


@looped
async def test_an_image_that_fails_a_batch_fails_alone() -> None:
    worker = Sent()
    worker.batcher.running = False
    jobs = [worker.job(name) for name in "abc"]
    worker.batcher.submit(jobs)
    worker.batcher.running = True
    worker.batcher.advance()
    worker.finish(1, fault="server")
    assert not any(job.answer.done() for job in jobs)
    for name in "abc":
        (number,) = worker.batches
        assert worker.batches[number][1] == [name]
        worker.finish(number, fault="server" if name == "b" else "")
    assert [job.answer.result().fault for job in jobs] == ["", "server", ""]


@looped
async def test_without_a_worker_everything_is_answered_by_an_error() -> None:
    worker = Sent(batch=2)
    jobs = [worker.job(str(number)) for number in range(7)]
    worker.batcher.submit(jobs)
    worker.batcher.fail_all("no worker")
    assert all(job.answer.result().fault == "server" for job in jobs)
    assert jobs[-1].answer.result().text == "no worker"


@looped
async def test_reports_of_a_worker_that_is_gone_change_nothing() -> None:
    worker = Sent()
    job = worker.job("a")
    worker.batcher.submit([job])
    worker.batcher.worker_died()
    worker.batcher.finish(1, BatchReport(answers=(Answer(text="old"),)))
    assert not job.answer.done()


@looped
async def test_any_order_of_events_answers_every_image_by_its_own_name() -> None:
    rng = random.Random(4)
    worker = Sent(batch=4, megapixels=0.001)
    jobs: list[Job] = []
    for step in range(2000):
        kind = rng.random()
        if kind < 0.4:
            options = rng.choice((ONE, TWO))
            jobs.append(worker.job(f"{step}", options, pixels=rng.choice((10, 400, 1000))))
            worker.batcher.submit(jobs[-1:])
        elif kind < 0.75 and worker.batches:
            worker.finish(rng.choice(list(worker.batches)))
        elif kind < 0.8 and jobs:
            rng.choice(jobs).answer.cancel()
        elif kind < 0.81:
            worker.batches.clear()
            worker.batcher.worker_died()
            worker.batcher.running = True
            worker.batcher.advance()
        assert len(worker.batches) <= 2
        assert all(len(names) <= 4 for _, names in worker.batches.values())
    worker.finish_all()
    texts = 0
    for job in jobs:
        assert job.answer.done()
        if not job.answer.cancelled():
            answer = job.answer.result()
            texts += answer.text == f"of {job.item.name}"
            assert answer.fault or answer.text == f"of {job.item.name}"
    assert texts > 500


@looped
async def test_the_wait_that_is_advised_follows_the_speed_of_the_worker() -> None:
    worker = Sent(waiting_images=16)

    def advised() -> int:
        with pytest.raises(RefusedError) as caught, worker.batcher.admit(17):
            pass
        return caught.value.retry_after

    assert advised() == 1
    worker.batcher.submit([worker.job("heavy")])
    worker.batcher._worked_since -= 12.5
    assert advised() == 13
    worker.batcher._worked_since -= 1000
    assert advised() == 60
    worker.finish_all()
    assert advised() == 1
    with worker.batcher.admit(16):
        for number in range(60):
            worker.batcher.submit([worker.job("a")])
            report = BatchReport(answers=(Answer(text=""),), network=1e-9)
            worker.batcher.finish(number + 2, report)
        assert advised() == 1
