# SPDX-License-Identifier: Apache-2.0
"""Admission, queue and batches: what is accepted is answered, what cannot be is refused at once.

Images leave the queue whenever the worker is free, as many as wait and suit each other: there is no
time to wait for company. Two batches are under way, one whose images are decoded and one in the
network. When the worker dies, what it had is tried once more, each image alone, so that one image
that kills it takes no other with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from muntin.serving.messages import Answer, BatchOptions, BatchReport, WorkItem
from muntin.serving.metrics import Metrics
from muntin.serving.serve_settings import MIB, ServeLimits

UNDER_WAY = 2
ATTEMPTS = 2


class RefusedError(Exception):
    """A request that is not answered: status code, reason, and seconds until it may come again."""

    def __init__(
        self, status: int, text: str, *, reason: str = "request", retry_after: int = 0
    ) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after


@dataclass(kw_only=True, slots=True, eq=False)
class Job:
    """An image that was accepted, until its answer is there.

    Attributes:
        pixels: Of the image, as its header says; batches of few large images stay small.
        deadline: Time (`time.monotonic`) at which it is dropped, if it still waits.
    """

    item: WorkItem
    options: BatchOptions
    pixels: int
    deadline: float
    answer: asyncio.Future[Answer]
    arrived: float = field(default_factory=time.monotonic)
    attempts: int = 0


class Batcher:
    """The queue in front of the worker.

    Args:
        limits: Limits of the server.
        send: Gives a numbered batch to the worker.
        metrics: Counts what happens.
        cancel: Tells the worker that nobody waits for a numbered batch any more.
    """

    def __init__(
        self,
        limits: ServeLimits,
        send: Callable[[int, BatchOptions, tuple[WorkItem, ...]], None],
        metrics: Metrics,
        cancel: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._limits, self._send, self._metrics = limits, send, metrics
        self._cancel = cancel
        self._queue: deque[Job] = deque()
        self._under_way: dict[int, list[Job]] = {}
        self._number = 0
        self._bytes = 0
        self._admitted = 0
        self._seconds_an_image = 0.1
        self._last_report = 0.0
        self._worked_since = 0.0  # on the oldest batch
        self.running = False

    @property
    def num_images(self) -> int:
        """Images that were admitted and have no answer yet."""
        return self._admitted

    @property
    def busy(self) -> bool:
        """Whether the worker has a batch."""
        return bool(self._under_way)

    @contextlib.contextmanager
    def admit(self, images: int) -> Iterator[None]:
        """Keep a place for images while the block runs.

        Raises:
            RefusedError: There are too many already.
        """
        self._check_images(images)
        self._admitted += images
        try:
            yield
        finally:
            self._admitted -= images

    @contextlib.contextmanager
    def receive(self, images: int = 1) -> Iterator[Callable[[int], None]]:
        """Count the bytes of a body while the block runs.

        A body keeps a place by what came of it, not by what it says will come: clients that send
        slowly keep nobody out. The block is given what takes a number of further bytes, or gives
        back some where the number is negative.

        Raises:
            RefusedError: There is no place now, for so many images or for the bytes.
        """
        self._check_images(images)
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            if self._bytes + size > self._limits.waiting_mib * MIB:
                self._refuse("bytes", f"{self._bytes / MIB:.0f} MiB wait, the limit of the server")
            self._bytes += size
            taken += size

        take(0)
        try:
            yield take
        finally:
            self._bytes -= taken

    def _check_images(self, images: int) -> None:
        if self._admitted + images > self._limits.waiting_images:
            self._refuse("images", f"{self._admitted} images wait, the limit of the server")

    def _refuse(self, what: str, text: str) -> None:
        # What has lasted long already will last: one large image may take minutes.
        age = time.monotonic() - self._worked_since if self._under_way else 0.0
        seconds = max(self._admitted * self._seconds_an_image, age)
        wait = max(1, math.ceil(min(seconds, self._limits.timeout)))
        text = f"{text}. Try again in {wait} s."
        raise RefusedError(429, text, reason=f"waiting_{what}", retry_after=wait)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs, for which there is a place."""
        self._queue.extend(jobs)
        self.advance()

    def advance(self) -> None:
        """Send batches while the worker has room for them."""
        while self.running and self._has_room() and (batch := self._next_batch()):
            self._number += 1
            if not self._under_way:
                self._worked_since = time.monotonic()
            self._under_way[self._number] = batch
            now = time.monotonic()
            for job in batch:
                job.attempts += 1
                self._metrics.stages.labels("queue").observe(now - job.arrived)
                job.answer.add_done_callback(partial(self._cancel_unwanted, self._number))
            self._metrics.batches.observe(len(batch))
            self._send(self._number, batch[0].options, tuple(job.item for job in batch))

    def _cancel_unwanted(self, number: int, _: asyncio.Future[Answer]) -> None:
        """Cancel a batch for whose images nobody waits; its place is free when it is reported."""
        batch = self._under_way.get(number)
        if batch and all(job.answer.done() for job in batch):
            self._cancel(number)

    def _has_room(self) -> bool:
        """Whether the worker takes a batch; an image that was with one that died is alone there."""
        under_way = [job for batch in self._under_way.values() for job in batch]
        tried = any(job.attempts > 1 for job in under_way)
        again = bool(self._queue) and self._queue[0].attempts > 0
        return not under_way or (len(self._under_way) < UNDER_WAY and not (tried or again))

    def _next_batch(self) -> list[Job]:
        """Take the oldest job and those behind it that have its options, within the limits."""
        batch: list[Job] = []
        rest: deque[Job] = deque()
        pixels, now = 0, time.monotonic()
        while self._queue:
            job = self._queue.popleft()
            if job.answer.done():  # its client is gone
                self._metrics.dropped.labels("client").inc()
                continue
            if now > job.deadline:
                self._metrics.dropped.labels("deadline").inc()
                late = f"no answer within the {now - job.arrived:.3g} s that the request has"
                job.answer.set_exception(RefusedError(504, late, reason="deadline"))
                continue
            first = batch[0] if batch else job
            fits = (
                len(batch) < self._limits.batch
                and (not batch or pixels + job.pixels <= self._limits.pixels)
                and job.options == first.options
                and (not batch or job.options.tile is None)
                and (not batch or job.attempts == first.attempts == 0)
            )
            if fits:
                batch.append(job)
                pixels += job.pixels
            else:
                rest.append(job)
        self._queue = rest
        return batch

    def finish(self, number: int, report: BatchReport) -> None:
        """Hand out the answers of a batch, and send the next."""
        batch = self._under_way.pop(number, [])
        self._worked_since = time.monotonic()
        again = []
        for job, answer in zip(batch, report.answers, strict=False):
            if job.answer.done():  # nobody waits for it
                continue
            if len(batch) > 1 and answer.fault in ("server", "request"):
                again.append(job)  # one image must not fail another
            else:
                job.answer.set_result(answer)
        self._queue.extendleft(reversed(again))
        for name in ("decode", "network", "encode"):
            self._metrics.stages.labels(name).observe(getattr(report, name))
        if batch:
            # The time between two reports is what an image costs while work is waiting.
            now = time.monotonic()
            busy = min(now - self._last_report, report.decode + report.network + report.encode)
            self._last_report = now
            self._seconds_an_image += 0.2 * (busy / len(batch) - self._seconds_an_image)
        self.advance()

    def worker_died(self) -> None:
        """Queue again what the worker had, or answer it by an error the second time."""
        self.running = False
        lost = [job for batch in self._under_way.values() for job in batch]
        self._under_way.clear()
        for job in reversed(lost):
            if job.answer.done():
                continue
            if job.attempts < ATTEMPTS:
                self._queue.appendleft(job)
            else:
                text = "the worker process ended while it worked on this image, twice"
                job.answer.set_result(Answer(text=text, fault="server"))

    def fail_all(self, text: str) -> None:
        """Answer everything that waits by an error: no worker will come."""
        self.worker_died()
        while self._queue:
            job = self._queue.popleft()
            if not job.answer.done():
                job.answer.set_result(Answer(text=text, fault="server"))
