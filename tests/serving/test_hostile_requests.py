# SPDX-License-Identifier: Apache-2.0
"""Requests that are wrong or hostile, and a long mixed load: nothing is lost, wrong or kept."""

from __future__ import annotations

import io
import os
import random
import socket
import threading
import time
from typing import Any

import psutil
import pytest
from PIL import Image

from tests.serving.conftest import KINDS
from tests.serving.hostile_requests import attack, judge, pictures, requests
from tests.serving.live import RUNS, Live, start
from tests.serving.load import Asked, Load
from tests.serving.test_uploads import png_of

MINUTES = float(os.environ.get("MUNTIN_SOAK_MINUTES", "1"))
MIB = 2**20


def memory_of(live: Live) -> dict[str, int]:
    """Resident bytes of the server and of its worker."""
    server = psutil.Process(live.process.pid)
    worker = max((each.memory_info().rss for each in server.children()), default=0)
    return {"server": server.memory_info().rss, "worker": worker}


@pytest.mark.parametrize("count", [60, pytest.param(150, marks=pytest.mark.slow)])
def test_hostile_requests_are_answered(served: Live, count: int) -> None:
    faults, sent = attack(served.port, 0, count, list(KINDS))
    assert not faults, "\n".join(faults)
    assert len(sent) == 12
    assert served.ready()


def test_requests_are_a_function_of_the_seed() -> None:
    again = [list(requests(3, 40, ["a"])) for _ in range(2)]
    assert again[0] == again[1]
    assert len({data for _, _, data in again[0]}) > 35


@pytest.mark.parametrize(
    "got",
    [
        b"", b"HTTP/1.1 500 Internal Server Error\r\n\r\nInternal Server Error",
        b"HTTP/1.1 422 x\r\nx-content-type-options: nosniff\r\n\r\n{}",
        b'HTTP/1.1 422 x\r\n\r\n{"error": "a reason"}', b"HTTP/1.1 200 OK\r\n\r\n[]",
        b"HTTP/1.1 422 x\r\nx: nosniff\r\ncontent-length: 46\r\n\r\n"
        b'{"error": "Traceback (most recent call last)"}',
    ],
)  # fmt: skip
def test_a_bad_answer_would_be_found(got: bytes) -> None:
    assert judge("image", got)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_2000_hostile_requests_leave_nothing_behind() -> None:
    with start(*(RUNS / kind for kind in KINDS), "--log-format", "none") as live:
        faults, _ = attack(live.port, 1, 500, list(KINDS))
        before = memory_of(live)
        for seed in (2, 3, 4):
            faults += attack(live.port, seed, 500, list(KINDS))[0]
        after = memory_of(live)
        assert not faults, "\n".join(faults)
        assert live.ready()
        for name, size in after.items():
            assert size < before[name] * 1.05 + 20 * MIB, (name, before, after)


def mixed(rng: random.Random, count: int) -> list[bytes]:
    """Images of many sizes and formats."""
    found = []
    for number in range(count):
        size = rng.choice(((48, 48), (64, 300), (640, 480), (1000, 30), (3, 2)))
        form = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")[number % 6]
        file = io.BytesIO()
        small = Image.frombytes("RGB", (8, 8), rng.randbytes(192))
        small.resize(size).save(file, form)
        found.append(file.getvalue())
    return found


def _disturb(port: int, end: threading.Event, told: list[str]) -> None:
    """Broken images, bombs, and clients that send or read slowly, again and again."""
    rng = random.Random(8)
    broken = [b"\x89PNG\r\n\x1a\nno", pictures()[0][:-30], png_of(30_000, 30_000), b"", b"%PDF"]
    slow: list[socket.socket] = []
    live = Live(process=None, port=port)  # type: ignore[arg-type]
    while not end.wait(0.1):
        try:
            status, body, _ = live.predict(rng.choice(broken))
            if status not in (200, 413, 415, 422, 429):
                told.append(f"{status} {body}")
            raw = socket.create_connection(("127.0.0.1", port), timeout=5)
            raw.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\n")
            slow.append(raw)
        except OSError as error:
            told.append(repr(error))
        for one in slow[:-20]:
            one.close()
        del slow[:-20]
    for one in slow:
        one.close()


def soak(live: Live, minutes: float, path: str) -> dict[str, Any]:
    """Load a server for some minutes; give what went wrong, and its memory over time."""
    images = []
    for data in mixed(random.Random(3), 30):
        status, answer, _ = live.predict(data, path)
        assert status == 200, answer
        images.append((data, answer))
    told: list[str] = []
    end = threading.Event()
    other = threading.Thread(target=_disturb, args=(live.port, end, told), daemon=True)
    memory = []
    with Load(port=live.port, images=images, clients=6, path=path) as load:
        other.start()
        begun = time.monotonic()
        while time.monotonic() - begun < 60 * minutes:
            time.sleep(min(2.0, 6 * minutes))
            memory.append((time.monotonic() - begun, memory_of(live)))
        end.set()
        other.join(60)
    return {"wrong": load.wrong(_refused), "told": told, "memory": memory, "count": load.statuses}


def _refused(one: Asked) -> bool:
    return one.status == 429 and int(one.retry_after) > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_long_mixed_load_loses_nothing_and_keeps_nothing() -> None:
    with start(*(RUNS / kind for kind in KINDS), "--log-format", "none") as live:
        found = soak(live, MINUTES, "/predict?model=semantic")
        assert not found["wrong"], found["wrong"][:3]
        assert not found["told"], found["told"][:3]
        assert found["count"][200] > 100 * MINUTES
        assert live.ready()
    # From the second minute on, or, of a short load, from its second half on.
    early = [each for at, each in found["memory"] if at < min(120, 30 * MINUTES)]
    late = [each for _, each in found["memory"]][-3:]
    for name in ("server", "worker"):
        before, after = max(each[name] for each in early), min(each[name] for each in late)
        assert after < 1.05 * before + 5 * MIB, (name, before, after)
