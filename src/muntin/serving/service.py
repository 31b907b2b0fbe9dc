# SPDX-License-Identifier: Apache-2.0
"""What all protocols of a server share: admission, models, answers and deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect

from muntin.errors import unknown_name
from muntin.serving.batching import Job, RefusedError
from muntin.serving.gate import BEGUN
from muntin.serving.messages import Answer, BatchOptions, WorkItem
from muntin.serving.metrics import Metrics, resident_bytes
from muntin.serving.serve_settings import ModelSource, ServeSettings
from muntin.serving.uploads import PredictRequest, check_length, refuse
from muntin.serving.worker_process import WorkerProcess

_FAULT_STATUS = {"image": 422, "request": 422, "server": 500}
"""Status codes of `Answer.fault`."""


class Service:
    """Models, and requests on their way.

    Attributes:
        draining: Whether the server finishes what it has and accepts nothing new.
        accepted: Requests that came before the server was told to stop, and have no answer yet.
        noted: What the log was told once, and is not told again.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.limits = settings.limits
        self.metrics = Metrics()
        self.worker = WorkerProcess(settings, self.metrics)
        self.draining = False
        self.accepted = 0
        self.noted: set[str] = set()
        gauge, own = self.metrics.gauge, os.getpid()
        gauge("ready", "1 when requests are answered", lambda: float(self.ready))
        gauge("waiting_images", "Images without an answer yet",
              lambda: float(self.worker.batcher.num_images))  # fmt: skip
        gauge("memory_bytes", "Memory of the server process", lambda: resident_bytes(own))
        gauge("worker_memory_bytes", "Memory of the worker",
              lambda: resident_bytes(self.worker.pid))  # fmt: skip

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return self.worker.ready and not self.draining

    @contextlib.asynccontextmanager
    async def admitted(self, request: Request, images: int = 1) -> AsyncIterator[None]:
        """Let a request in, before its body is read, and count that while the block runs.

        Raises:
            RefusedError: The server is not ready or has no place left, or the body is too large.
        """
        if not self.ready:
            what = "is stopping" if self.draining else "is loading its models"
            raise RefusedError(
                503, f"the server {what}. Try again in 5 s.", reason="not_ready", retry_after=5
            )
        check_length(request, self.limits)
        with self.worker.batcher.receive(images) as request.state.take:
            yield

    def find_model(self, name: str) -> dict[str, Any]:
        """Describe a model, the first for "".

        Raises:
            RefusedError: There is none of this name (404), or it is not loaded (503).
        """
        known = [model.name for model in self.settings.models]
        chosen = name or known[0]
        if chosen not in known:
            raise refuse(404, unknown_name("model", chosen[:100], known), "model")
        if chosen not in self.worker.models:
            text = f"model {chosen!r} is not loaded yet."
            raise RefusedError(503, text, reason="not_ready", retry_after=5)
        return self.worker.models[chosen]

    def source(self, name: str) -> ModelSource:
        """The run folder or file of a model."""
        return next(model for model in self.settings.models if model.name == name)

    def deadline(self, request: Request) -> float:
        """Time by which a request must be answered; its header ``X-Timeout`` may shorten it."""
        seconds = self.limits.timeout
        if text := request.headers.get("x-timeout", ""):
            try:
                asked = float(text)
            except ValueError:
                asked = math.nan
            if not asked > 0:
                raise refuse(422, f"X-Timeout must be a number of seconds, got {text[:100]!r}.")
            seconds = min(seconds, asked)
        return float(request.scope.get(BEGUN, time.monotonic())) + seconds

    async def answer(self, request: Request, asked: PredictRequest) -> list[str]:
        """Predict the images of a request: the JSON text of each result, in order.

        Raises:
            RefusedError: An image cannot be read, or the time is over.
            ClientDisconnect: Nobody waits any more.
        """
        return texts_of(await self.answer_each(request, asked))

    async def answer_each(self, request: Request, asked: PredictRequest) -> list[Answer]:
        """Predict the images of a request, one that cannot be read by an answer with its fault.

        Raises:
            RefusedError: The options do not suit the model, or the time is over.
            ClientDisconnect: Nobody waits any more.
        """
        model = self.find_model(asked.model)
        deadline = self.deadline(request)
        options, items = to_batch(model, asked)
        loop = asyncio.get_running_loop()
        jobs = [
            Job(
                item=item,
                options=options,
                pixels=each.pixels,
                deadline=deadline,
                answer=loop.create_future(),
            )
            for item, each in zip(items, asked.uploads, strict=True)
        ]
        with self.worker.batcher.admit(len(jobs)):
            return await self._wait(request, jobs, deadline)

    async def _wait(self, request: Request, jobs: Sequence[Job], deadline: float) -> list[Answer]:
        self.worker.batcher.submit(jobs)
        gone = asyncio.create_task(_until_gone(request))
        left: set[asyncio.Future[Any]] = {job.answer for job in jobs}
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                while left:
                    done, _ = await asyncio.wait({*left, gone}, return_when=asyncio.FIRST_COMPLETED)
                    left -= done
                    if left and gone in done:
                        raise ClientDisconnect
            return [job.answer.result() for job in jobs]
        except TimeoutError:
            seconds = time.monotonic() - jobs[0].arrived
            message = f"no answer within the {seconds:.3g} s that the request has"
            raise RefusedError(504, message, reason="deadline") from None
        finally:
            gone.cancel()
            for job in jobs:  # what still waits is dropped from the queue
                if not job.answer.cancel() and not job.answer.cancelled():
                    job.answer.exception()  # is known then


def texts_of(answers: Sequence[Answer]) -> list[str]:
    """The JSON text of each answer.

    Raises:
        RefusedError: One of them has a fault.
    """
    for number, answer in enumerate(answers, 1):
        if answer.fault:
            where = f"image {number} of {len(answers)}: " if len(answers) > 1 else ""
            raise refuse(_FAULT_STATUS[answer.fault], where + answer.text, answer.fault)
    return [answer.text for answer in answers]


def to_batch(
    model: Mapping[str, Any], asked: PredictRequest
) -> tuple[BatchOptions, list[WorkItem]]:
    """Give a request to a model, described as in `GET /models`: options, and each image.

    Raises:
        RefusedError: They do not suit it.
    """
    if asked.threshold is not None and model["kind"] == "segmentation":
        text = "threshold has no effect on segmentation: every pixel gets a class. Omit it."
        raise refuse(422, text)
    # As of `muntin predict`: a detector that finds the instances selects its boxes by it.
    least = asked.threshold if "detector_threshold" in model else None
    options = BatchOptions(model=model["name"], tta=asked.tta, tile=asked.tile, least_box=least)
    score = asked.threshold or 0.0
    return options, [
        WorkItem(name=each.name, data=each.data, shape=each.shape, threshold=score)
        for each in asked.uploads
    ]


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
