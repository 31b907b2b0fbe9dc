# SPDX-License-Identifier: Apache-2.0
"""Start `muntin serve` as a user does, and talk to it by the standard library alone."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "tests" / "golden" / "old"
DATA = ROOT / "tests" / "golden" / "data"
START = 120.0


@dataclass(kw_only=True)
class Live:
    """A server that runs."""

    process: subprocess.Popen[str]
    port: int = 0
    lines: list[str] = field(default_factory=list)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        seconds: float = 60.0,
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, body (parsed where it is JSON), and headers in lower case."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            content = answer.read()
            found = {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()
        if found.get("content-type", "").startswith("application/json"):
            return answer.status, json.loads(content), found
        return answer.status, content, found

    def predict(self, image: bytes, path: str = "/predict") -> tuple[int, Any, dict[str, str]]:
        """Send the bytes of one image."""
        return self.ask("POST", path, image, {"Content-Type": "application/octet-stream"})

    def ready(self) -> bool:
        """Whether it says that it answers."""
        with contextlib.suppress(OSError):
            return self.ask("GET", "/health", seconds=5)[0] == 200
        return False

    def wait_ready(self, seconds: float = START) -> None:
        """Wait until it answers."""
        end = time.monotonic() + seconds
        while not (self.port and self.ready()):
            gone = self.process is not None and self.process.poll() is not None
            if gone or time.monotonic() > end:
                message = f"the server did not start: {self.lines}"
                raise AssertionError(message)
            time.sleep(0.1)


@contextlib.contextmanager
def start(*words: object, ready: bool = True, env: dict[str, str] | None = None) -> Iterator[Live]:
    """Run `muntin serve` on a free port until the block ends."""
    command = [sys.executable, "-m", "muntin", "serve", *map(str, words), "--port", "0"]
    settings = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **(env or {})}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=settings, errors="replace"
    )
    live = Live(process=process)
    reader = threading.Thread(target=_read, args=(live,), daemon=True)
    reader.start()
    try:
        if ready:
            live.wait_ready()
        yield live
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        reader.join(10)  # the worker may write until it has ended
        process.stderr.close()


def _read(live: Live) -> None:
    """Collect what is printed on stderr, the port among it."""
    with live.process.stderr as printed:
        for line in printed:
            live.lines.append(line.rstrip("\n"))
            if found := re.search(r"at http://[^ ]*:(\d+) ", line):
                live.port = int(found[1])
