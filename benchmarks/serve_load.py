# SPDX-License-Identifier: Apache-2.0
"""A load generator on one event loop: clients that wait for answers, or requests in time."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What became of requests.

    Attributes:
        seconds: From the time at which a request was due to its answer, by status code; 0 stands
            for connections that failed, -1 for answers that did not come in time.
        wrong: Answers that differ from what is known of the image.
        cpu: Share of a core that the generator itself took.
    """

    seconds: dict[int, list[float]] = field(default_factory=dict)
    wrong: int = 0
    wall: float = 0.0
    cpu: float = 0.0

    def add(self, status: int, seconds: float, *, right: bool = True) -> None:
        """Count a request."""
        self.seconds.setdefault(status, []).append(seconds)
        self.wrong += status == 200 and not right

    def summary(self) -> dict[str, Any]:
        """Numbers for a result."""
        good = self.seconds.get(200, [])
        refused = [s for status in (429, 503) for s in self.seconds.get(status, [])]
        found: dict[str, Any] = {
            "answers_per_s": round(len(good) / self.wall, 2),
            "statuses": {str(k): len(v) for k, v in sorted(self.seconds.items())},
            "wrong": self.wrong,
            "generator_cores": round(self.cpu, 3),
        }
        for name, values in (("answer", good), ("refusal", refused)):
            if values:
                low, high = np.percentile(values, (50, 99))
                found[f"{name}_ms"] = {
                    "p50": round(1000 * low, 1), "p99": round(1000 * high, 1),
                    "max": round(1000 * max(values), 1),
                }  # fmt: skip
        return found


Known = list[tuple[bytes, bytes]]
"""Bodies of requests, and their answers; b"" where no answer is known."""


class Client:
    """One connection, opened when it is needed."""

    def __init__(self, port: int, timeout: float) -> None:
        self._port, self._timeout = port, timeout
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of an answer; 0 if the connection failed, -1 if it took too long."""
        try:
            async with asyncio.timeout(self._timeout):
                return await self._ask(body)
        except TimeoutError:
            self.close()
            return -1, b""
        except (OSError, asyncio.IncompleteReadError, ValueError):
            self.close()
            return 0, b""

    async def _ask(self, body: bytes) -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        head = (
            f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        top = (await reader.readuntil(b"\r\n\r\n")).lower()
        status = int(top[9:12])
        length = int(top.partition(b"content-length:")[2].partition(b"\r\n")[0])
        content = await reader.readexactly(length)
        if b"connection: close" in top:
            self.close()
        return status, content

    def close(self) -> None:
        """End the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _measure(outcome: Outcome, work: Callable[[], Any]) -> Outcome:
    begun, cpu = time.perf_counter(), time.process_time()
    await work()
    outcome.wall = time.perf_counter() - begun
    outcome.cpu = (time.process_time() - cpu) / outcome.wall
    return outcome


def closed(port: int, images: Known, *, clients: int, seconds: float) -> Outcome:
    """Let clients ask again as soon as they are answered."""
    outcome = Outcome()

    async def client(number: int, end: float) -> None:
        one = Client(port, 60)
        while time.perf_counter() < end:
            body, known = images[number % len(images)]
            number += clients
            begun = time.perf_counter()
            status, answer = await one.ask(body)
            outcome.add(status, time.perf_counter() - begun, right=not known or answer == known)
            if status != 200:
                await asyncio.sleep(0.02)
        one.close()

    async def work() -> None:
        end = time.perf_counter() + seconds
        await asyncio.gather(*(client(number, end) for number in range(clients)))

    return asyncio.run(_measure(outcome, work))


def at_rate(
    port: int, images: Known, *, rate: float, seconds: float, timeout: float = 10.0
) -> Outcome:
    """Send requests at random times, `rate` a second, whatever becomes of those before."""
    outcome, rng = Outcome(), random.Random(0)
    free: list[Client] = []

    async def one(body: bytes, known: bytes, due: float) -> None:
        client = free.pop() if free else Client(port, timeout)
        status, answer = await client.ask(body)
        outcome.add(status, time.perf_counter() - due, right=not known or answer == known)
        free.append(client)

    async def work() -> None:
        tasks, due = set(), time.perf_counter()
        end, number = due + seconds, 0
        while due < end:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.add(asyncio.create_task(one(*images[number % len(images)], due)))
            due, number = due + rng.expovariate(rate), number + 1
        await asyncio.gather(*tasks)
        for client in free:
            client.close()

    return asyncio.run(_measure(outcome, work))


def until_stopped(
    port: int, images: Known, *, clients: int, stop: Callable[[], None]
) -> Counter[str]:
    """Ask with clients, call `stop` after a second, and count what became of the requests.

    A request is lost if it was sent before the call, and is not answered by 200 or a refusal.
    """
    found: Counter[str] = Counter()

    async def client(number: int, told: asyncio.Event) -> None:
        one = Client(port, 60)
        while True:
            early = not told.is_set()
            status, _ = await one.ask(images[number % len(images)][0])
            name = "answered" if status == 200 else "refused" if status in (429, 503) else "lost"
            found[name if early else f"{name}, sent later"] += 1
            if not early or status not in (200, 429):
                return
            number += clients

    async def work() -> None:
        told = asyncio.Event()
        tasks = [asyncio.create_task(client(number, told)) for number in range(clients)]
        await asyncio.sleep(1)
        stop()
        await asyncio.sleep(0.02)  # what was sent in the same moment counts as sent before
        told.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*tasks), 60)

    asyncio.run(work())
    return found
