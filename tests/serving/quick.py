# SPDX-License-Identifier: Apache-2.0
"""The real HTTP side of a server, in a thread, with a worker that answers without a model.

It starts in a tenth of a second, and can be made slow, or to wait, or to die.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from muntin.serving.messages import Answer, BatchOptions, BatchReport, WorkItem
from muntin.serving.serve_settings import ModelSource, ServeLimits, ServeSettings
from muntin.serving.server import build_server
from muntin.serving.service import Service
from muntin.serving.worker_process import WorkerProcess
from tests.serving.live import Live

MODELS = (ModelSource(name="first", path="runs/first"), ModelSource(name="second", path="b.onnx"))


def image(side: int = 8, form: str = "PNG", shade: int = 0) -> bytes:
    """A small image file."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), (shade % 256, shade // 256 % 256, 90)).save(file, form)
    return file.getvalue()


def digest(data: bytes) -> str:
    """What the worker without a model answers for these bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


class EchoWorker(WorkerProcess):
    """Answers each image by the digest of its bytes, after some seconds, or when told to."""

    def __init__(self, service: Service, seconds: float) -> None:
        super().__init__(service.settings, service.metrics)
        self.seconds = seconds
        self.held = False
        self.padding = ""
        self.batches: list[tuple[BatchOptions, tuple[WorkItem, ...]]] = []
        self._kept: list[Callable[[], None]] = []
        self._free = 0.0  # when the one that is worked on is done

    async def start(self) -> None:
        for model in self.settings.models:
            self.models[model.name] = {
                "name": model.name, "kind": "detection", "task": "detect", "engine": "eager",
                "model": "none", "device": "cpu", "version": "1",
            }  # fmt: skip
        self.loaded.set()
        self.batcher.running = True

    async def stop(self) -> None:
        self.batcher.fail_all("the server is stopping")

    def _send_batch(self, number: int, options: BatchOptions, items: tuple[WorkItem, ...]) -> None:
        self.batches.append((options, items))
        more = {"padding": self.padding} if self.padding else {}
        answers = tuple(
            Answer(
                text=json.dumps({"path": item.name, "digest": digest(item.data), **more}, indent=2)
            )
            for item in items
        )
        report = BatchReport(answers=answers, network=self.seconds)
        loop = asyncio.get_running_loop()
        if self.held:
            self._kept.append(lambda: self.batcher.finish(number, report))
            return
        self._free = max(self._free, loop.time()) + self.seconds * len(items)
        loop.call_at(self._free, self.batcher.finish, number, report)

    def release(self) -> None:
        """Answer what was held."""
        self.held = False
        while self._kept:
            self._kept.pop(0)()


@dataclass(kw_only=True)
class Quick(Live):
    """A server in a thread of this process."""

    process: Any = None
    service: Service
    server: Any = None
    loop: Any = None
    faults: list[str] = field(default_factory=list)

    @property
    def worker(self) -> EchoWorker:
        return self.service.worker

    def connections(self) -> set[Any]:
        """Connections that are open."""
        return self.server.server_state.connections

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function on the loop of the server."""

        async def run() -> Any:
            return function(*arguments)

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    def talk(self, data: bytes, seconds: float = 10.0, *, end: bool = False) -> bytes:
        """Send raw bytes, and read until the server closes, or `seconds` are over."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as raw:
            raw.sendall(data)
            if end:
                raw.shutdown(socket.SHUT_WR)
            got = b""
            with contextlib.suppress(TimeoutError, ConnectionError):
                while part := raw.recv(65_536):
                    got += part
            return got


@contextlib.contextmanager
def run(seconds: float = 0.0, limits: ServeLimits | None = None, **chosen: Any) -> Iterator[Quick]:
    """Serve two models that do not exist; `seconds` is what the worker takes for an image."""
    settings = ServeSettings(
        **{
            "models": MODELS,
            "log": "none",
            "drain": 5.0,
            "limits": limits or ServeLimits(),
            **chosen,
        }
    )
    service = Service(settings)
    service.worker = EchoWorker(service, seconds)
    quick = Quick(service=service)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        quick.port = listening.getsockname()[1]
        server = quick.server = build_server(settings, service)

        async def serve() -> None:
            quick.loop = asyncio.get_running_loop()
            quick.loop.set_exception_handler(lambda _, context: quick.faults.append(str(context)))
            await server.serve([listening])

        thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        thread.start()
        quick.wait_ready(10)
        try:
            yield quick
        finally:
            server.should_exit = True
            thread.join(10)
    assert not thread.is_alive(), "the server did not end"
    assert not quick.faults, quick.faults
