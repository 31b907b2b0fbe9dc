# SPDX-License-Identifier: Apache-2.0
"""Clients in threads that ask all the time, and remember what became of each request."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class Asked:
    """One request.

    Attributes:
        begun: Time before it was sent; `sent`: after; `ended`: its answer was there, or it failed.
        status: 0 if the connection failed.
        right: Whether the answer is what is known of the image.
    """

    begun: float
    sent: float = 0.0
    ended: float = 0.0
    status: int = 0
    right: bool = False
    text: str = ""
    retry_after: str = ""


@dataclass(kw_only=True)
class Load:
    """Clients that send images in turn, until they are stopped.

    Attributes:
        images: Bytes and the answer that is known of them; None where it is not.
        path: Of the requests.
        pause: Seconds between the answer to a client and its next request.
    """

    port: int
    images: list[tuple[bytes, Any]]
    clients: int = 8
    path: str = "/predict"
    pause: float = 0.0
    keep_alive: bool = True
    asked: list[Asked] = field(default_factory=list)
    _end: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Load:
        self._threads = [
            threading.Thread(target=self._work, args=(n,), daemon=True) for n in range(self.clients)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Let each client finish its request, and end."""
        self._end.set()
        for thread in self._threads:
            thread.join(90)

    @property
    def statuses(self) -> Counter[int]:
        """How many requests ended with each status code."""
        with self._lock:
            return Counter(each.status for each in self.asked)

    def wrong(self, allowed: Callable[[Asked], bool]) -> list[Asked]:
        """Requests that were not answered rightly, and not in a way that is allowed."""
        with self._lock:
            return [each for each in self.asked if not (each.right or allowed(each))]

    def wait_for(self, count: int, status: int = 200, seconds: float = 60.0) -> None:
        """Wait for a number of answers more."""
        goal, end = self.statuses[status] + count, time.monotonic() + seconds
        while self.statuses[status] < goal:
            assert time.monotonic() < end, self.statuses
            time.sleep(0.02)

    def _work(self, client: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=90)
        number = client
        while not self._end.is_set():
            data, known = self.images[number % len(self.images)]
            number += self.clients
            one = Asked(begun=time.monotonic())
            try:
                self._ask(connection, data, known, one)
            except (OSError, http.client.HTTPException) as error:
                one.text = repr(error)
                connection.close()
            one.ended = time.monotonic()
            with self._lock:
                self.asked.append(one)
            if not self.keep_alive:
                connection.close()
            self._end.wait(self.pause if one.status else 0.05)
        connection.close()

    def _ask(
        self, connection: http.client.HTTPConnection, data: bytes, known: Any, one: Asked
    ) -> None:
        headers = {"Content-Type": "application/octet-stream"}
        connection.request("POST", self.path, data, headers)
        one.sent = time.monotonic()
        answer = connection.getresponse()
        content = answer.read()
        one.status, one.text = answer.status, content[:300].decode("utf-8", "replace")
        one.retry_after = answer.getheader("retry-after", "")
        one.right = answer.status == 200 and (known is None or json.loads(content) == known)


def known(images: Mapping[str, bytes], ask: Callable[[bytes], Any]) -> list[tuple[bytes, Any]]:
    """Images with what is answered now."""
    return [(data, ask(data)) for data in images.values()]
