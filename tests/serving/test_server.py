# SPDX-License-Identifier: Apache-2.0
"""The HTTP side: what every answer holds, who may ask, and clients that are slow, odd or gone."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from muntin.serving.app import create_app
from muntin.serving.explanations import file_name
from muntin.serving.serve_settings import ServeLimits, ServeSettings
from tests.serving.quick import MODELS, Quick, digest, image, run

OCTETS = {"Content-Type": "application/octet-stream"}
PICTURE = image()


@pytest.fixture(scope="module")
def quick() -> Iterator[Quick]:
    """One server of a fast worker, for tests that leave it as it is."""
    with run() as server:
        yield server


def request(body: bytes = PICTURE, *, path: str = "/predict", more: str = "") -> bytes:
    """The bytes of a request that is right."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n{more}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def statuses(raw: bytes) -> list[int]:
    """Status codes of the answers in raw bytes."""
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d\d\d) ", raw)]


CLOSE = "Connection: close\r\n"


def test_an_image_is_answered_in_each_form_of_a_body(quick: Quick) -> None:
    status, answer, _ = quick.predict(PICTURE, "/predict?name=a%20b.png")
    assert (status, answer) == (200, [{"path": "a b.png", "digest": digest(PICTURE)}])
    other = image(9)
    form = (
        b'--x\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\n' + PICTURE
        + b'\r\n--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nsecond'
        + b'\r\n--x\r\nContent-Disposition: form-data; name="g"; filename="b.png"\r\n\r\n' + other
        + b"\r\n--x--\r\n"
    )  # fmt: skip
    status, answer, _ = quick.ask(
        "POST", "/predict", form, {"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert status == 200
    assert [(each["path"], each["digest"]) for each in answer] == [
        ("a.png", digest(PICTURE)),
        ("b.png", digest(other)),
    ]
    assert quick.worker.batches[-1][0].model == "second"


def test_the_description_holds_refusals_and_the_token(quick: Quick) -> None:
    paths = quick.ask("GET", "/openapi.json")[1]["paths"]
    found = {
        (path, method): {code: list(each.get("content", ())) for code, each in answers.items()}
        for path, all_ in paths.items()
        for method, answers in ((method, each["responses"]) for method, each in all_.items())
    }
    assert found["/metrics", "get"]["200"] == ["text/plain"]
    assert found["/explain", "post"]["200"] == ["text/html"]
    assert set(found["/models/{name}", "get"]) == {"200", "403", "404", "503"}
    assert {"401", "413", "415", "429", "504"} - set(found["/predict", "post"]) == {"401"}
    assert all("HTTPValidationError" not in json.dumps(each) for each in paths.values())
    bodies = paths["/predict"]["post"]["requestBody"]["content"]
    for kind in ("multipart/form-data", "application/json"):
        assert {"model", "threshold", "tta", "tile"} < set(bodies[kind]["schema"]["properties"])
    settings = ServeSettings(models=MODELS, token="0123456789abcdef")
    described = create_app(settings).openapi()
    assert set(described["components"]["securitySchemes"]) == {"bearer", "basic"}
    asked = {path for path, all_ in described["paths"].items() if "401" in str(all_)}
    assert set(described["paths"]) - asked == {"/health", "/v2/health/live", "/v2/health/ready"}


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a photo.JPG", "a photo.JPG"), ("../../etc/passwd", "passwd"), ("c:\\d\\e.png", "e.png"),
        ("", "image"), ("..", "image"), ("*?[", "image"), ("-rf.png", "rf.png"),
        ("list.txt", "list_txt"), ("a\0b\ud83d.png", "a_b_.png"), ("a.b.tif", "a_b.tif"),
        ("\u4f60" * 90 + ".png", "\u4f60" * 66 + ".png"),
    ],
)  # fmt: skip
def test_an_explanation_has_the_name_of_its_image(name: str, file: str) -> None:
    assert file_name(name) == file


def test_an_unknown_model_is_told_before_the_image_is_read(quick: Quick) -> None:
    for path in ("/predict", "/explain"):
        status, answer, _ = quick.predict(b"no image", path + "?model=nope")
        assert (status, "'nope'" in answer["error"]) == (404, True)
        body = json.dumps({"image": "@@@", "model": "nope"}).encode()
        status, answer, _ = quick.ask("POST", path, body, {"Content-Type": "application/json"})
        assert (status, "'nope'" in answer["error"]) == (404, True)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200), ("GET", "/models", 200), ("GET", "/models/first", 200),
        ("GET", "/models/none", 404), ("GET", "/metrics", 200), ("GET", "/openapi.json", 200),
        ("GET", "/nowhere", 404), ("GET", "/predict", 405), ("POST", "/predict", 422),
        ("GET", "/page/../../../settings.py", 404), ("GET", "/page/%2e%2e/settings.py", 404),
        ("OPTIONS", "/predict", 405), ("DELETE", "/models/first", 405), ("GET", "//", 404),
        ("POST", "/explain", 422), ("GET", "/%00%ff/%0d%0aX:%20y", 404), ("TRACE", "/", 405),
    ],
)  # fmt: skip
def test_every_answer_has_its_headers(quick: Quick, method: str, path: str, status: int) -> None:
    found, body, headers = quick.ask(method, path)
    assert found == status
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"].startswith("default-src 'self'")
    assert headers["cache-control"] == "no-store"
    assert headers["x-frame-options"] == "DENY"
    assert re.fullmatch(r"[0-9a-f]{16}", headers["x-request-id"])
    assert "server" not in headers
    if status >= 400:
        assert list(body) == ["error"]
        assert 5 < len(body["error"]) < 500


def test_head_is_answered_as_get_without_a_body(quick: Quick) -> None:
    raw = quick.talk(f"HEAD /health HTTP/1.1\r\nHost: localhost\r\n{CLOSE}\r\n".encode())
    head, _, body = raw.partition(b"\r\n\r\n")
    assert statuses(raw) == [200]
    assert not body
    assert b"content-length: " in head.lower()


def test_request_ids_are_kept_if_they_are_plain(quick: Quick) -> None:
    for given, kept in (("a-1.b:2", True), ("x" * 100, True), ("x" * 101, False), ("<b>", False)):
        headers = quick.ask("GET", "/health", headers={"X-Request-Id": given})[2]
        assert (headers["x-request-id"] == given) is kept


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("localhost:8000", 200), ("127.0.0.1:1", 200), ("[::1]", 200),
        ("[::1]:8000", 200), ("LOCALHOST", 200), ("evil.example", 403), ("evil.example:8000", 403),
        ("localhost.evil.example", 403), ("127.0.0.1.evil.example", 403), ("10.0.0.1", 403),
        ("localhost@evil.example", 403), ("", 200),
    ],
)  # fmt: skip
def test_a_name_of_another_site_does_not_lead_in(quick: Quick, host: str, status: int) -> None:
    text = f"GET /models HTTP/1.1\r\nHost: {host}\r\n{CLOSE}\r\n"
    assert statuses(quick.talk(text.encode())) == [status]


@pytest.mark.parametrize(
    ("method", "site", "status"),
    [("POST", "cross-site", 403), ("POST", "same-origin", 404), ("GET", "cross-site", 405)],
)
def test_a_page_of_another_site_changes_nothing(
    quick: Quick, method: str, site: str, status: int
) -> None:
    text = f"{method} /models/x/reload HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: {site}\r\n"
    raw = quick.talk(f"{text}{CLOSE}\r\n".encode())
    assert raw.split(b" ", 2)[1] == str(status).encode()


def test_a_token_is_asked_for() -> None:
    with run(token="s3cret-and-long-enough", host="127.0.0.1") as quick:
        right = {"Authorization": "Bearer s3cret-and-long-enough"}
        for wrong in (
            {}, {"Authorization": "Bearer s3cret"}, {"Authorization": "Basic czpz"},
            {"Authorization": "Bearer"}, {"Authorization": "s3cret-and-long-enough"},
            {"Authorization": "Bearer s3cret-and-long-enougH"}, {"Authorization": "Bearer \xff"},
            {"X-Api-Key": "s3cret-and-long-enough"},
        ):  # fmt: skip
            for method, path in (("GET", "/models"), ("POST", "/predict"), ("GET", "/metrics")):
                status, body, headers = quick.ask(method, path, headers=wrong)
                assert (status, headers["www-authenticate"]) == (401, "Bearer")
                assert "s3cret" not in json.dumps(body)
        assert quick.ask("GET", "/models", headers=right)[0] == 200
        assert quick.ask("GET", "/models", headers={"authorization": right["Authorization"]})[0]
        assert quick.ask("POST", "/predict", PICTURE, {**right, **OCTETS})[0] == 200
        # What load balancers and browsers ask before they know it.
        assert quick.ask("GET", "/health")[0] == 200
        assert quick.ask("GET", "/page/../models")[0] in (401, 404)


def test_a_body_may_come_in_chunks(quick: Quick) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    parts = [PICTURE[:10], PICTURE[10:11], PICTURE[11:]]
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    raw = quick.talk(head + CLOSE.encode() + b"\r\n" + body)
    assert statuses(raw) == [200]
    assert digest(PICTURE).encode() in raw


def test_a_client_that_asks_first_sends_no_body_in_vain() -> None:
    with run(limits=ServeLimits(body_mib=0.01, waiting_mib=0.01)) as quick:
        expect = f"Expect: 100-continue\r\n{CLOSE}"
        raw = quick.talk(request(more=expect))
        assert statuses(raw) == [100, 200]
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\n{expect}Content-Length: 99999\r\n\r\n"
        assert statuses(quick.talk(head.encode(), 2)) == [413]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("Content-Length: 99999999999999", 413), ("Content-Length: -1", 400),
        ("Content-Length: 5x", 400), ("Content-Length: 3\r\nContent-Length: 4", 400),
        ("Content-Length: 3\r\nTransfer-Encoding: chunked", 400), ("Content-Encoding: gzip", 415),
        ("Transfer-Encoding: gzip, chunked\r\nContent-Encoding: br", 415),
        ("Content-Length: 99999999999999999999999999", 400), ("Bad Header: 1", 400),
        ("X: a\0b", 400), ("Content-Length: 0", 422), ("Content-Type: multipart/form-data", 400),
        ("Content-Type: application/json", 400), ("X-Timeout: soon", 422), ("Upgrade: h2c", 422),
    ],
)  # fmt: skip
def test_odd_heads_are_refused(quick: Quick, head: str, status: int) -> None:
    text = f"POST /predict HTTP/1.1\r\nHost: localhost\r\n{CLOSE}{head}\r\n\r\n"
    if "Length" not in head and "chunked" not in head:
        text = text.replace("\r\n\r\n", "\r\nContent-Length: 0\r\n\r\n")
    raw = quick.talk(text.encode() + (b"0\r\n\r\n" if "chunked" in head else b""))
    assert statuses(raw)[0] == status
    head_, _, body = raw.partition(b"\r\n\r\n")
    assert list(json.loads(body)) == ["error"]
    assert b"nosniff" in head_


@pytest.mark.parametrize(
    "raw",
    [
        b"\0" * 100, b"GET\r\n\r\n", b"hello world\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"GET / HTTP/9.9\r\n\r\n", b"GET /\xff HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET http:// HTTP/1.1\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_not_http_is_told_so(quick: Quick, raw: bytes) -> None:
    answer = quick.talk(raw, 2)
    assert statuses(answer)[0] in (400, 404, 405)
    assert b'{"error": ' in answer.replace(b'{"error":"', b'{"error": "')
    assert quick.ready()


@pytest.mark.parametrize(
    "lines",
    [[f"X: {'y' * 100_000}"], [f"X-{n}: y" for n in range(20_000)], ["X" * 100_000 + ": y"]],
)
def test_a_head_has_a_largest_size(quick: Quick, lines: list[str]) -> None:
    text = "\r\n".join(["GET /health HTTP/1.1", "Host: localhost", *lines, "", ""])
    assert statuses(quick.talk(text.encode())) == [431]
    assert statuses(quick.talk(f"GET /{'a' * 100_000} HTTP/1.1\r\n\r\n".encode())) == [431]
    usual = f"GET /health HTTP/1.1\r\nHost: localhost\r\nX: {'y' * 40_000}\r\n{CLOSE}\r\n"
    assert statuses(quick.talk(usual.encode())) == [200]


def test_requests_sent_ahead_are_answered_in_order(quick: Quick) -> None:
    pictures = [image(shade=shade) for shade in range(10)]
    texts = [request(each, path=f"/predict?name={n}") for n, each in enumerate(pictures[:-1])]
    raw = quick.talk(b"".join(texts) + request(pictures[-1], more=CLOSE))
    assert re.findall(rb'"digest": "(\w+)"', raw) == [digest(each).encode() for each in pictures]


def test_too_many_requests_sent_ahead_end_the_connection() -> None:
    with run() as quick:
        quick.worker.held = True
        with socket.create_connection(("127.0.0.1", quick.port), timeout=5) as raw:
            with contextlib.suppress(ConnectionError):
                raw.sendall(request() + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5000)
            time.sleep(0.3)
            connections = quick.call(len, quick.worker.batches)
            quick.call(quick.worker.release)
            got = b""
            with contextlib.suppress(ConnectionError):
                while part := raw.recv(65536):
                    got += part
        assert connections == 1
        # What was let in is answered, the rest is not.
        assert statuses(got)[0] == 200
        assert len(statuses(got)) < 40


def test_an_error_after_a_request_does_not_lose_it() -> None:
    with run() as quick:
        quick.worker.held = True
        threading.Timer(0.3, lambda: quick.call(quick.worker.release)).start()
        raw = quick.talk(request() + b"\0\0nonsense\r\n\r\n")
        assert statuses(raw) == [200]
        assert b"connection: close" in raw.lower()


def test_a_body_that_is_cut_off_leaves_no_trace(quick: Quick) -> None:
    before = quick.call(lambda: quick.worker.batcher.num_images)
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", quick.port)) as raw:
            raw.sendall(request()[:-10])
    assert quick.predict(PICTURE)[0] == 200
    wait_for(lambda: quick.call(lambda: quick.worker.batcher.num_images) == before)
    assert 'route="/predict",status="500"' not in quick.ask("GET", "/metrics")[1].decode()


def wait_for(true: object, seconds: float = 10.0) -> None:
    """Wait until a function is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def _open(quick: Quick, data: bytes) -> socket.socket:
    raw = socket.create_connection(("127.0.0.1", quick.port), timeout=10)
    raw.sendall(data)
    return raw


@pytest.mark.parametrize("tens", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_slow_clients_keep_nobody_out(tens: int) -> None:
    heads, silent, bodies = 3 * tens, 2 * tens, 4 * tens
    limits = ServeLimits(receive=0.4, waiting_images=16)
    with run(limits=limits) as quick, contextlib.ExitStack() as stack:
        quick.worker.padding = "x" * 3_000_000
        unread = [_open(quick, request()) for _ in range(tens)]
        wait_for(lambda: len(quick.worker.batches) and not quick.worker.batcher.busy)
        quick.worker.padding = ""
        begun = [
            *(_open(quick, b"POST /pred") for _ in range(heads)),
            *(_open(quick, b"") for _ in range(silent)),
            # Announces the largest body, and sends a byte of it.
            *(_open(quick, request(b"x" * 30_000_000)[:300]) for _ in range(bodies)),
        ]
        for raw in (*unread, *begun):
            stack.callback(raw.close)
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            assert quick.predict(PICTURE)[0] == 200
            with contextlib.suppress(ConnectionError):
                for raw in begun[:heads]:
                    raw.sendall(b"i")
            time.sleep(0.2)
        # In the end each is told, or closed.
        told = [b"".join(iter(lambda raw=raw: _receive(raw), b"")) for raw in begun]
        assert {tuple(statuses(each)) for each in told[:heads]} <= {(408,), ()}
        assert {tuple(statuses(each)) for each in told[heads:-bodies]} == {()}
        assert {tuple(statuses(each)) for each in told[-bodies:]} == {(408,)}
        # Those whose answer fits into buffers of the system may ask again for a while.
        wait_for(lambda: quick.call(_connections, quick) <= 1 + tens)
        assert quick.call(lambda: quick.worker.batcher.num_images) == 0


def _receive(raw: socket.socket) -> bytes:
    try:
        return raw.recv(65_536)
    except ConnectionError:
        return b""


def _connections(quick: Quick) -> int:
    return len(quick.connections())


def test_a_second_request_must_arrive_in_time_too() -> None:
    with run(limits=ServeLimits(receive=0.5)) as quick:
        with socket.create_connection(("127.0.0.1", quick.port), timeout=5) as raw:
            raw.sendall(request())
            assert statuses(raw.recv(65_536)) == [200]
            begun = time.monotonic()
            with contextlib.suppress(ConnectionError):
                for letter in b"GET /health HTTP/1.1\r\n" * 3:
                    raw.sendall(bytes([letter]))
                    time.sleep(0.05)
            rest = b"".join(iter(lambda: _receive(raw), b""))
        assert statuses(rest) in ([408], [])
        assert time.monotonic() - begun < 5


def test_a_refused_body_is_not_waited_for_without_end() -> None:
    with (
        run(limits=ServeLimits(receive=0.5, body_mib=0.1)) as quick,
        _open(quick, request(b"x" * 200_000)[:1000]) as raw,
    ):
        assert statuses(raw.recv(65_536)) == [413]
        sent = 0
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                sent += raw.send(b"x")
                time.sleep(0.05)
        assert sent < 60


def test_overload_is_refused_at_once_and_what_is_accepted_is_answered() -> None:
    limits = ServeLimits(waiting_images=16, batch=4)
    with run(seconds=0.02, limits=limits) as quick:
        seconds: dict[int, list[float]] = {200: [], 429: []}
        waits: set[str] = set()
        lock = threading.Lock()

        def ask(number: int) -> None:
            picture = image(shade=number)
            for _ in range(4):
                begun = time.monotonic()
                status, answer, headers = quick.predict(picture)
                with lock:
                    seconds[status].append(time.monotonic() - begun)
                    waits.add(headers.get("retry-after", ""))
                if status == 200:
                    assert answer[0]["digest"] == digest(picture)
                else:
                    assert "images wait" in answer["error"]
                    time.sleep(0.05)

        with ThreadPoolExecutor(48) as pool:
            list(pool.map(ask, range(48)))
    assert len(seconds[200]) >= 16
    assert len(seconds[429]) >= 16
    assert all(wait == "" or int(wait) >= 1 for wait in waits)
    assert sorted(seconds[429])[len(seconds[429]) // 2] < 0.5  # 50 ms, on a machine that is free


def test_work_without_a_client_is_dropped() -> None:
    with run(limits=ServeLimits(batch=1)) as quick:
        quick.worker.held = True
        open_ = [_open(quick, request(image(shade=n))) for n in range(10)]
        wait_for(lambda: quick.call(lambda: quick.worker.batcher.num_images) == 10)
        for raw in open_[2:]:
            raw.close()
        wait_for(lambda: quick.call(lambda: quick.worker.batcher.num_images) == 2)
        quick.call(quick.worker.release)
        assert statuses(open_[0].recv(65_536)) == statuses(open_[1].recv(65_536)) == [200]
        assert len(quick.worker.batches) == 2
        metrics = quick.ask("GET", "/metrics")[1].decode()
        assert 'muntin_dropped_images_total{reason="client"} 8.0' in metrics
        for raw in open_:
            raw.close()


def test_a_deadline_is_kept() -> None:
    with run() as quick:
        quick.worker.held = True
        for text, low, high in (("0.3", 0.2, 3.0), ("1e-9", 0.0, 1.0)):
            begun = time.monotonic()
            status, body, _ = quick.ask("POST", "/predict", PICTURE, {**OCTETS, "X-Timeout": text})
            assert status == 504
            assert "no answer within" in body["error"]
            assert low <= time.monotonic() - begun < high
        for text in ("0", "-1", "nan", "soon", "1e", "--"):
            headers = {**OCTETS, "X-Timeout": text}
            status, body, _ = quick.ask("POST", "/predict", PICTURE, headers)
            assert (status, "X-Timeout" in body["error"]) == (422, True)
        threading.Timer(0.2, lambda: quick.call(quick.worker.release)).start()
        headers = {**OCTETS, "X-Timeout": "inf"}
        assert quick.ask("POST", "/predict", PICTURE, headers)[0] == 200


def test_connections_beyond_the_limit_are_closed() -> None:
    with run(limits=ServeLimits(connections=5)) as quick:
        wait_for(lambda: quick.call(_connections, quick) == 0)
        kept = [_open(quick, b"GET") for _ in range(5)]
        wait_for(lambda: quick.call(_connections, quick) == 5)
        with socket.create_connection(("127.0.0.1", quick.port), timeout=5) as more:
            with contextlib.suppress(ConnectionError):
                more.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert _receive(more) == b""
        for raw in kept:
            raw.close()
        quick.wait_ready(5)


def test_the_server_lives_through_a_fault_of_its_own() -> None:
    with run() as quick:

        def fail(*_: object) -> None:
            raise RuntimeError("a bug")

        quick.service.find_model = fail
        status, body, headers = quick.predict(PICTURE)
        assert status == 500
        assert headers["x-request-id"] in body["error"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "bug" not in body["error"]
        del quick.service.find_model
        assert quick.predict(PICTURE)[0] == 200
        assert 'route="/predict",status="500"} 1.0' in quick.ask("GET", "/metrics")[1].decode()


def test_metrics_count_what_happened() -> None:
    with run(limits=ServeLimits(waiting_images=16)) as quick:
        for n in range(3):
            quick.predict(image(shade=n))
        quick.predict(b"nothing")
        quick.ask("GET", "/models/nowhere")
        text = quick.ask("GET", "/metrics")[1].decode()
        for line in (
            'muntin_requests_total{route="/predict",status="200"} 3.0',
            'muntin_requests_total{route="/predict",status="415"} 1.0',
            'muntin_requests_total{route="/models/{name}",status="404"} 1.0',
            "muntin_batch_images_count 3.0", 'muntin_stage_seconds_count{stage="queue"} 3.0',
            'muntin_stage_seconds_count{stage="network"} 3.0', "muntin_ready 1.0",
            'muntin_refused_total{reason="format"} 1.0', "muntin_waiting_images 0.0",
        ):  # fmt: skip
            assert line in text.splitlines(), line
        assert re.search(r"^muntin_memory_bytes [1-9]", text, re.MULTILINE)
        # Addresses of strangers make no rows.
        for n in range(50):
            quick.ask("GET", f"/no/{n}")
        assert text.count("\n") + 45 > quick.ask("GET", "/metrics")[1].decode().count("\n")


def test_an_unknown_model_is_told_before_the_image_is_judged(quick: Quick) -> None:
    status, answer, _ = quick.predict(b"no image", "/predict?model=nope")
    assert (status, "'nope'" in answer["error"]) == (404, True)
    body = b'{"images": ["bm8gaW1hZ2U="], "model": "nope"}'
    headers = {"Content-Type": "application/json"}
    status, answer, _ = quick.ask("POST", "/predict", body, headers)
    assert (status, "'nope'" in answer["error"]) == (404, True)


def test_an_answer_names_its_model(quick: Quick) -> None:
    assert quick.predict(PICTURE)[2]["x-model"] == "first"
    assert quick.predict(PICTURE, "/predict?model=second")[2]["x-model"] == "second"


def test_keep_alive_is_used(quick: Quick) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", quick.port, timeout=10)
    connection.connect()
    own = connection.sock
    for n in range(5):
        connection.request("POST", "/predict", image(shade=n), OCTETS)
        assert connection.getresponse().read()
        assert connection.sock is own
    connection.close()
