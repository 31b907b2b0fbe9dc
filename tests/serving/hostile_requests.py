# SPDX-License-Identifier: Apache-2.0
"""Changes requests at random and sends them to a server, for as long as it is left running.

    python -m tests.serving.hostile_requests --minutes 60 [--seed 1]

Each request is a function of the seed and its number. A request is fine if it gets a result, a JSON
error, or, where its head is broken, an answer of 400 or a closed connection.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator

from tests.hostile.fuzz import change
from tests.hostile.mutations import VALUES
from tests.serving.conftest import KINDS
from tests.serving.live import DATA, RUNS, start

SECONDS = 30.0
STATUSES = (200, 400, 403, 404, 405, 408, 409, 411, 413, 415, 422, 429, 431, 503, 504)
Request = tuple[str, bytes]
"""What it is, and its bytes."""

_NUMBERS = ("-1", "0", "1e999", "nan", "9" * 400, "\u0663", "0x10", "1_0", " 1", "+1", "1;2")
_NAMES = (
    "../../../../etc/passwd", "a\"b.png", "<img src=x onerror=alert(1)>.png", "x" * 10_000,
    "\ud83d.png", "CON", "a\0b.png", "\u202egnp.exe", "%00", "a.cr2", "a.dng", "a.svg",
)  # fmt: skip


def pictures() -> list[bytes]:
    """Good images, small and of several formats."""
    return [path.read_bytes() for path in sorted(DATA.rglob("*.png"))[:8]]


def fold(method: str, path: str, headers: dict[str, str], body: bytes) -> bytes:
    """The bytes of a request."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "replace") + body


def _send(path: str, body: bytes, kind: str, **more: str) -> bytes:
    headers = {"Host": "localhost", "Connection": "close", "Content-Type": kind, **more}
    return fold("POST", path, {**headers, "Content-Length": str(len(body))}, body)


class Maker:
    """Makes the requests of a seed."""

    def __init__(self, seed: str, models: list[str]) -> None:
        self.rng = random.Random(seed)
        self.models = models
        self.pictures = pictures()

    def make(self) -> Request:
        """One request."""
        kinds: list[Callable[[], bytes]] = [
            self.image, self.image, self.form, self.body, self.json, self.json, self.options,
            self.head, self.route, self.lie, self.protocol, self.studio, self.noise, self.bomb,
        ]  # fmt: skip
        kind = self.rng.choice(kinds)
        return kind.__name__, kind()

    def picture(self) -> bytes:
        """An image, or what was one."""
        data = self.rng.choice(self.pictures)
        return change(data, self.rng) if self.rng.random() < 0.7 else data

    def image(self) -> bytes:
        kind = self.rng.choice(("image/png", "application/octet-stream", "", "image/../x", "*/*"))
        name = self.rng.choice(("", "?name=a.png", "?model=" + self.rng.choice(self.models)))
        return _send("/predict" + name, self.picture(), kind)

    def form(self) -> bytes:
        rng = self.rng
        parts = []
        for _ in range(rng.randint(1, 4)):
            name = rng.choice((*_NAMES, "a.png")).replace('"', rng.choice(('"', '\\"', "%22")))
            head = f'Content-Disposition: form-data; name="f"; filename="{name}"'
            head = rng.choice((head, head, head.replace("filename", "filename*"), "X: y", ""))
            body = self.picture() if rng.random() < 0.8 else rng.randbytes(50)
            parts.append(
                b"--x\r\n" + head.encode("utf-8", "replace") + b"\r\n\r\n" + body + b"\r\n"
            )
        body = b"".join(parts) + b"--x--\r\n"
        kind = rng.choice(("multipart/form-data; boundary=x",) * 4 + ("multipart/form-data",))
        return _send("/predict", body, kind)

    def body(self) -> bytes:
        """A form whose bytes are changed anywhere."""
        head, end, body = self.form().partition(b"\r\n\r\n")
        changed = change(body, self.rng)
        return re.sub(rb"Length: \d+", b"Length: %d" % len(changed), head) + end + changed

    def json(self) -> bytes:
        rng = self.rng
        picture = base64.b64encode(self.picture()).decode()
        tree = {"images": [picture, {"name": "a", "data": picture}], "threshold": 0.5, "tta": False}
        tree["model"] = rng.choice(self.models)
        place = rng.choice((*tree, "new", "tasks", "tile"))
        tree[place] = rng.choice(list(VALUES.values()))
        if rng.random() < 0.3:
            tree["images"] = [rng.choice(list(VALUES.values()))]
        body = json.dumps(tree).encode()
        body = change(body, rng) if rng.random() < 0.3 else body
        path = rng.choice(("/predict", "/predict", "/explain", "/predict?tile=0"))
        return _send(path, body, "application/json")

    def options(self) -> bytes:
        rng = self.rng
        name = rng.choice(("threshold", "tta", "tile", "model", "name", "x", "threshold[]"))
        value = rng.choice((*_NUMBERS, *_NAMES, "0.5", "true", "auto", "64"))
        text = "".join(f"%{byte:02x}" for byte in value.encode("utf-8", "replace"))
        more = {"X-Timeout": rng.choice(_NUMBERS)} if rng.random() < 0.3 else {}
        return _send(f"/predict?{name}={text}", rng.choice(self.pictures), "image/png", **more)

    def head(self) -> bytes:
        """A good request whose head is changed."""
        head, _, body = self.image().partition(b"\r\n\r\n")
        return change(head, self.rng) + b"\r\n\r\n" + body

    def route(self) -> bytes:
        rng = self.rng
        method = rng.choice(("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE"))
        path = rng.choice(
            ("/", "/docs", "/openapi.json", "/health", "/models", "/models/x", "/metrics", "/v2",
             "/v2/health/ready", "/v2/models/x", "/setup", "/page/", "/page/../app.py", "/predict",
             "/models/%2e%2e%2f", "/page/%2e%2e/%2e%2e/app.py", "/models/" + "x" * 2000, "/\u4f60",
             "/models/x/reload", "//predict", "/predict/", "/page/%00", "*", "http://a/predict")
        )  # fmt: skip
        headers = {"Host": rng.choice(("localhost", "evil.example", "[::1]:1", "", "\ud83d", ":"))}
        headers[rng.choice(("Origin", "Range", "Authorization", "Cookie", "If-None-Match"))] = (
            rng.choice(("null", "bytes=0-", "Bearer x", "x" * 5000, "*"))
        )
        return fold(method, path, {**headers, "Connection": "close"}, b"")

    def lie(self) -> bytes:
        """A body that is not as long as its head says."""
        rng, data = self.rng, self.rng.choice(self.pictures)
        length = rng.choice(("0", "1", str(len(data) + 7), "99999999999", "-5", "5x", "0005", ""))
        headers = {"Host": "localhost", "Connection": "close", "Content-Length": length}
        if rng.random() < 0.4:
            headers = {**headers, "Transfer-Encoding": rng.choice(("chunked", "gzip", "x"))}
            data = rng.choice((b"5\r\nabc", b"zz\r\n", b"ffffffffffffffff1\r\n", b"0\r\n\r\n"))
        return fold("POST", "/predict", headers, data)

    def protocol(self) -> bytes:
        """The Open Inference Protocol."""
        rng = self.rng
        picture = base64.b64encode(self.picture()).decode()
        tree: dict[str, object] = {
            "name": "image",
            "shape": [1],
            "datatype": "BYTES",
            "data": [picture],
        }
        tree[rng.choice(list(tree))] = rng.choice(list(VALUES.values()))
        body = json.dumps({"inputs": [tree], "id": rng.choice(("1", 7, None))}).encode()
        more = {"Inference-Header-Content-Length": rng.choice((*_NUMBERS, str(len(body)), "3"))}
        body += rng.randbytes(20)
        path = f"/v2/models/{rng.choice((*self.models, 'x'))}/infer"
        return _send(path, body, "application/octet-stream", **more)

    def studio(self) -> bytes:
        """Label Studio."""
        tree = {
            "tasks": [{"data": {"image": "/data/local-files/?d=../../etc/passwd"}}],
            "project": "1",
        }
        tree[self.rng.choice(("tasks", "label_config", "params"))] = self.rng.choice(
            list(VALUES.values())
        )
        return _send(
            self.rng.choice(("/predict", "/setup")), json.dumps(tree).encode(), "application/json"
        )

    def noise(self) -> bytes:
        rng = self.rng
        return rng.choice((rng.randbytes(200), b"\r\n" * 50, b"GET / HTTP/1.1\r\n" * 3, b"\0"))

    def bomb(self) -> bytes:
        """A picture that says it is enormous, or holds other things than a picture."""
        rng = self.rng
        png = bytearray(rng.choice(self.pictures))
        png[16:24] = rng.choice((30_000, 2**31 - 1, 0)).to_bytes(4, "big") * 2
        return _send(
            "/predict", rng.choice((bytes(png), b"%!PS", b"<svg>", b"PK\3\4")), "image/png"
        )


def exchange(port: int, data: bytes) -> bytes:
    """Send bytes, and read what comes until the connection ends."""
    got = b""
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as raw:
        try:
            raw.sendall(data)
            raw.shutdown(socket.SHUT_WR) if b"HTTP/1" not in data else None
            while part := raw.recv(65_536):
                got += part
        except ConnectionError:
            pass
    return got


def judge(kind: str, got: bytes) -> str:
    """What is wrong with an answer; "" if nothing is."""
    found = re.match(rb"HTTP/1\.1 (\d\d\d) ", got)
    if found is None:
        return "" if kind in ("head", "lie", "noise") and not got else f"no answer: {got[:80]!r}"
    status = int(found[1])
    if status not in STATUSES:
        return f"status {status}: {got[-300:]!r}"
    head, _, body = got.partition(b"\r\n\r\n")
    if status >= 400 and body:
        length = re.search(rb"\r\ncontent-length: (\d+)", head.lower())
        try:
            text = json.loads(body[: int(length[1])] if length else b"")["error"]
        except (ValueError, KeyError, TypeError):
            return f"no JSON error: {body[:200]!r}"
        if not isinstance(text, str) or not 5 < len(text) < 3000 or "Traceback" in text:
            return f"no clear error: {text!r}"
    if b"nosniff" not in head:
        return f"no security headers: {head!r}"
    return ""


def requests(seed: int, count: int, models: list[str]) -> Iterator[tuple[str, str, bytes]]:
    """Number, kind and bytes of each request."""
    for number in range(count):
        kind, data = Maker(f"{seed}-{number}", models).make()
        yield f"{seed}-{number}", kind, data


def attack(port: int, seed: int, count: int, models: list[str]) -> tuple[list[str], Counter[str]]:
    """Send requests; give the faults, and how many of each kind were sent."""
    faults, sent = [], Counter[str]()
    for number, kind, data in requests(seed, count, models):
        sent[kind] += 1
        try:
            fault = judge(kind, exchange(port, data))
        except OSError as error:
            fault = f"{error!r}"
        if fault:
            faults.append(f"{number} {kind}: {fault}")
    return faults, sent


def main() -> None:
    """Run until the time is over; a line for each fault, and one at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with start(*(RUNS / kind for kind in KINDS), "--log-format", "none") as live:
        end, seed, total, failed = time.monotonic() + 60 * asked.minutes, asked.seed, 0, 0
        while time.monotonic() < end:
            faults, sent = attack(live.port, seed, 200, list(KINDS))
            seed, total, failed = seed + 1, total + sent.total(), failed + len(faults)
            for line in faults:
                sys.stdout.write(line + "\n")
            sys.stdout.flush()
        sys.stdout.write(f"{total} requests, {failed} faults, lives: {live.ready()}\n")


if __name__ == "__main__":
    main()
