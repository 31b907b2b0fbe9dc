# SPDX-License-Identifier: Apache-2.0
"""The side of the server: starts the worker, hears it, and replaces it when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from muntin.serving.batching import Batcher, RefusedError
from muntin.serving.messages import DONE, FAILED, SAID, BatchOptions, WorkItem
from muntin.serving.metrics import Metrics
from muntin.serving.serve_settings import ModelSource, ServeSettings
from muntin.serving.worker import work

LOGGER = logging.getLogger("muntin.serve")
_SHORT_LIFE = 10.0
_LONGEST_PAUSE = 30.0
BATCH_TIMEOUT = 300.0
"""Seconds without a word from a worker that has a batch, after which it is replaced."""


class WorkerProcess:
    """The worker, its models, and the batches that it answers; used on the event loop alone.

    Attributes:
        models: Descriptions of the models that are ready, by name.
        failures: Why a model is not ready, by name.
    """

    def __init__(self, settings: ServeSettings, metrics: Metrics) -> None:
        self.settings = settings
        self.batcher = Batcher(
            settings.limits, self._send_batch, metrics, partial(self._send, "cancel")
        )
        self.models: dict[str, dict[str, Any]] = {}
        self.failures: dict[str, str] = {}
        self.loaded = asyncio.Event()
        self._metrics = metrics
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        # Its own: others may be busy with large bodies. Two at once would mix what they send.
        self._sender = ThreadPoolExecutor(1)
        self._outgoing: asyncio.Queue[tuple[Connection, tuple[Any, ...]]] = asyncio.Queue()
        self._reloads: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._heard = time.monotonic()
        self._ready_since = math.inf
        self._pause = 0.0
        self._task_names: dict[str, str] = {}
        self._was_ready = False
        self._stopped = False

    @property
    def ready(self) -> bool:
        """Whether all models are loaded and the worker is alive."""
        return self.batcher.running

    @property
    def pid(self) -> int | None:
        """Process id of the worker; None while there is none."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the worker; `loaded` is set when each model is ready or has failed."""
        self._tasks = [asyncio.create_task(each) for each in (self._write(), self._watch())]
        self._spawn()

    def _spawn(self) -> None:
        self.models, self.failures = {}, {}
        self.loaded.clear()
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        models = tuple(self._keep_task(each) for each in self.settings.models)
        arguments = (theirs, self.settings.load, models)
        self._process = context.Process(target=work, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._heard = time.monotonic()
        self._ready_since = math.inf
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._listen, args=(self._pipe, loop), daemon=True).start()

    def _keep_task(self, model: ModelSource) -> ModelSource:
        """Let a model have the task only that it had at first, by which clients read answers."""
        return replace(model, task=self._task_names.get(model.name, ""))

    def _listen(self, pipe: Connection, loop: asyncio.AbstractEventLoop) -> None:
        """Hear the worker until its pipe ends; in a thread of its own."""
        while True:
            try:
                message = pipe.recv()
            except (EOFError, OSError):
                break
            loop.call_soon_threadsafe(self._hear, message)
        if not self._stopped:
            asyncio.run_coroutine_threadsafe(self._replace(), loop)

    def _hear(self, message: tuple[Any, ...]) -> None:
        self._heard = time.monotonic()
        kind, name, content = message
        if kind == DONE:
            self.batcher.finish(name, content)
            return
        if kind == SAID:
            LOGGER.info("model %s: %s", name, content)
            return
        if (waiting := self._reloads.pop(name, None)) is not None:
            self._finish_reload(waiting, kind, content)
            return
        (self.failures if kind == FAILED else self.models)[name] = content
        if len(self.models) + len(self.failures) < len(self.settings.models):
            return
        self.loaded.set()
        if not self.failures:
            self._task_names = {name: each["task"] for name, each in self.models.items()}
            self._was_ready, self._ready_since = True, time.monotonic()
            self.batcher.running = True
            self.batcher.advance()
        elif self._was_ready:  # the files have changed since: the next one may find them whole
            LOGGER.error("%s", "; ".join(self.failures.values()))
            self.kill()

    def _finish_reload(
        self,
        waiting: asyncio.Future[dict[str, Any]],
        kind: str,
        content: Any,  # noqa: ANN401
    ) -> None:
        if kind != FAILED:
            self.models[content["name"]] = content
        if waiting.done():  # nobody waits any more
            return
        if kind == FAILED:
            waiting.set_exception(RefusedError(409, content, reason="reload"))
        else:
            waiting.set_result(content)

    async def _replace(self) -> None:
        """Start another worker; one that dies young is waited for longer and longer."""
        self._metrics.deaths.inc()
        self.batcher.worker_died()
        process = self._process
        assert process is not None
        await asyncio.to_thread(process.join, 1)
        LOGGER.error("the worker process ended (exit code %s)", process.exitcode)
        for waiting in self._reloads.values():
            text = "the worker process ended while it loaded the model"
            if not waiting.done():
                waiting.set_exception(RefusedError(409, text, reason="reload"))
        self._reloads.clear()
        if not self._was_ready:  # neither would the next one be
            paths = [each.path for each in self.settings.models if each.name not in self.models]
            text = f"the worker process ended (exit code {process.exitcode}) while it loaded"
            self.failures[paths[0]] = f"{text} {paths[0]}"
            self.loaded.set()
            return
        young = time.monotonic() - self._ready_since < _SHORT_LIFE
        self._pause = min(1 + 2 * self._pause, _LONGEST_PAUSE) if young else 0.0
        await asyncio.sleep(self._pause)
        if not self._stopped:
            self._spawn()

    async def reload(self, model: ModelSource) -> dict[str, Any]:
        """Load a model again beside its present version, which answers until the new one is ready.

        Raises:
            RefusedError: It cannot be loaded (the present version stays), or is being loaded.
        """
        if not self.ready:
            text = "the server is loading its models. Try again in 5 s."
            raise RefusedError(503, text, reason="not_ready", retry_after=5)
        if model.name in self._reloads:
            text = f"model {model.name!r} is being loaded already"
            raise RefusedError(409, text, reason="reload", retry_after=5)
        waiting = self._reloads[model.name] = asyncio.get_running_loop().create_future()
        self._send("load", self._keep_task(model))
        return await waiting

    def _send_batch(self, number: int, options: BatchOptions, items: tuple[WorkItem, ...]) -> None:
        self._heard = time.monotonic()
        self._send("batch", number, options, items)

    def _send(self, *message: object) -> None:
        if self._pipe is not None:
            self._outgoing.put_nowait((self._pipe, message))

    async def _write(self) -> None:
        """Send messages in order, from a thread: a pipe that is full blocks."""
        loop = asyncio.get_running_loop()
        while True:
            pipe, message = await self._outgoing.get()
            # When it died, whoever listens to it notices.
            with contextlib.suppress(OSError, ValueError):
                await loop.run_in_executor(self._sender, pipe.send, message)

    async def _watch(self) -> None:
        """End a worker that has work and says nothing."""
        while True:
            await asyncio.sleep(1)
            if self.batcher.busy and time.monotonic() - self._heard > BATCH_TIMEOUT:
                LOGGER.error("the worker has not answered for %d s", BATCH_TIMEOUT)
                self._heard = time.monotonic()
                self.kill()

    def kill(self) -> None:
        """End the worker at once; it is replaced."""
        if self._process is not None:
            self._process.kill()

    async def stop(self) -> None:
        """End the worker for good, and answer what still waits by an error."""
        if self._stopped:
            return
        self._stopped = True
        self.batcher.fail_all("the server is stopping")
        for task in self._tasks:
            task.cancel()
        if self._process is not None and self._pipe is not None:
            stopping = self._sender.submit(self._pipe.send, ("stop",))
            await asyncio.to_thread(self._process.join, 3)
            self._process.kill()
            stopping.cancel()
        self._sender.shutdown(wait=False)
