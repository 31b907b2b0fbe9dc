# SPDX-License-Identifier: Apache-2.0
"""Runs the application until it is told to stop: address, signals, and the end of accepted work."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator

import uvicorn

from muntin.errors import ConfigError, RunError, first_line
from muntin.serving.app import create_app
from muntin.serving.connections import bound
from muntin.serving.gate import HEADERS
from muntin.serving.serve_settings import ServeSettings
from muntin.serving.service import Service

LOGGER = logging.getLogger("muntin.serve")
_OTHER_FILES = 200


def serve(settings: ServeSettings, say: Callable[[str], None] = print) -> None:
    """Serve until SIGTERM or Ctrl-C; what was accepted by then is finished.

    Args:
        settings: What is served, and how.
        say: Is called with a line that names what is loaded, and, when all models are ready, with
            one that names the address.

    Raises:
        ConfigError: The address cannot be used.
        RunError: A model cannot be loaded.
    """
    _start_log(settings)
    _allow_files(settings.limits.connections)
    listening = _bind(settings.host, settings.port)
    with contextlib.closing(listening):
        asyncio.run(_serve(settings, listening, say))


def _start_log(settings: ServeSettings) -> None:
    if LOGGER.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(message)s")
    handler.setFormatter(_JsonFormatter() if settings.log == "json" else plain)
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    for name in ("asyncio", "uvicorn.error"):  # their faults in the same form
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.propagate = False


class _JsonFormatter(logging.Formatter):
    """Writes each record as a line of JSON, a request by its values."""

    def format(self, record: logging.LogRecord) -> str:
        values = getattr(record, "values", None) or {"message": record.getMessage()}
        if record.exc_info:
            values = {**values, "traceback": self.formatException(record.exc_info)}
        return json.dumps({"time": record.created, "level": record.levelname.lower(), **values})


def _allow_files(connections: int) -> None:
    """Raise the limit of open files of this process to what its connections may need."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = connections + _OTHER_FILES
        wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(1024)
    except (OSError, UnicodeError, OverflowError) as error:
        taken = getattr(error, "errno", None) == errno.EADDRINUSE
        advice = "Choose another --port." if taken else "Check --host and --port."
        reason = getattr(error, "strerror", None) or first_line(error)
        message = f"the address {host}:{port} must be free, got: {reason}. {advice}"
        raise ConfigError(message) from error
    return listening


class _Server(uvicorn.Server):
    """Leaves signals to `_serve`, which ends with 0 after them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def build_server(settings: ServeSettings, service: Service) -> uvicorn.Server:
    """Make what serves an application of `service` on sockets, with bounded connections."""
    config = uvicorn.Config(
        create_app(settings, service),
        http=bound(settings.limits, HEADERS),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=max(1, int(settings.drain)),
    )
    return _Server(config)


async def _serve(
    settings: ServeSettings, listening: socket.socket, say: Callable[[str], None]
) -> None:
    service = Service(settings)
    server = build_server(settings, service)

    ending: list[asyncio.Task[None]] = []

    def stop() -> None:
        if ending:  # a second signal does not wait
            server.force_exit = server.should_exit = True
            return
        service.draining = True
        ending.append(asyncio.create_task(_finish(settings, service, server)))

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):  # on Windows
            loop.add_signal_handler(number, stop)
    names = ", ".join(f"{model.name} ({model.path})" for model in settings.models)
    engine = settings.load.engine
    say(f"loading {names}" + (f" for the engine {engine}" if engine != "eager" else ""))
    running = asyncio.create_task(server.serve([listening]))
    starting = asyncio.create_task(service.worker.loaded.wait())
    try:
        await asyncio.wait({running, starting}, return_when=asyncio.FIRST_COMPLETED)
        # A model may get ready, or fail, while the server ends: then nobody hears of it.
        going = not (service.draining or running.done())
        if going and starting.done() and service.worker.failures:
            stop()
            await running
            raise RunError("; ".join(service.worker.failures.values()))
        if going and starting.done():
            say(_describe(settings, service, listening))
        starting.cancel()
        await running
    finally:
        if server.force_exit:  # which leaves the end of the application out
            await server.lifespan.shutdown()
        await service.worker.stop()


async def _finish(settings: ServeSettings, service: Service, server: uvicorn.Server) -> None:
    """End a server after the requests that it had; until then new ones are told that it stops."""
    end = time.monotonic() + settings.drain
    while service.accepted and time.monotonic() < end:
        await asyncio.sleep(0.05)
    # What is left of the time is for answers on their way.
    left = end - time.monotonic()
    server.config.timeout_graceful_shutdown = max(1, int(left))
    server.should_exit = True


def _describe(settings: ServeSettings, service: Service, listening: socket.socket) -> str:
    models = ", ".join(
        f"{name} ({model['task']}, {model['model']}, {model['engine']} on {model['device']})"
        for name, model in service.worker.models.items()
    )
    host = f"[{settings.host}]" if ":" in settings.host.strip("[]") else settings.host
    port = listening.getsockname()[1]
    return f"serving {models} at http://{host}:{port} (API: /docs, metrics: /metrics)"
