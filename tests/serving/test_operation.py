# SPDX-License-Identifier: Apache-2.0
"""A real server under load that is told to stop, loses its worker, or gets another model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.serving.live import DATA, ROOT, RUNS, Live, start
from tests.serving.load import Asked, Load

PICTURES = [path.read_bytes() for path in sorted(DATA.rglob("*.png"))[:6]]


def known(live: Live, path: str = "/predict") -> list[tuple[bytes, Any]]:
    """Images and their answers."""
    found = []
    for data in PICTURES:
        status, answer, _ = live.predict(data, path)
        assert status == 200, answer
        found.append((data, answer))
    return found


def worker_of(live: Live) -> psutil.Process:
    """The worker process, which has loaded most."""
    children = psutil.Process(live.process.pid).children()
    return max(children, key=lambda each: each.memory_info().rss)


def wait_for(true: Any, seconds: float = 60.0) -> float:
    """Seconds until a function was true."""
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < seconds
        time.sleep(0.02)
    return time.monotonic() - begun


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_server_that_is_told_to_stop_while_it_loads_ends_with_0(number: int) -> None:
    with start(RUNS / "classify", ready=False) as live:
        wait_for(lambda: psutil.Process(live.process.pid).children())
        live.process.send_signal(number)
        assert live.process.wait(30) == 0
    (line,) = live.lines
    assert line.startswith("muntin: loading classify (")


def test_new_requests_are_told_of_the_end_while_accepted_ones_are_finished() -> None:
    with start(RUNS / "classify") as live:
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(PICTURES[0])}"
        with socket.create_connection(("127.0.0.1", live.port), timeout=30) as raw:
            raw.sendall(f"{head}\r\nX-Timeout: 50\r\n\r\n".encode())
            wait_for(lambda: live.ask("GET", "/health")[0] == 200)
            live.process.send_signal(signal.SIGTERM)
            wait_for(lambda: live.ask("GET", "/v2/health/ready")[0] != 200, 10)
            status, answer, headers = live.predict(PICTURES[0])
            assert (status, "stopping" in answer["error"]) == (503, True)
            assert int(headers["retry-after"]) >= 1
            assert live.ask("GET", "/v2/health/ready")[0] == 503
            raw.sendall(PICTURES[0])
            assert raw.recv(65_536).startswith(b"HTTP/1.1 200")
        assert live.process.wait(20) == 0


def stop_under_load(live: Live, load: Load) -> None:
    """SIGTERM while clients ask; nothing that was accepted is lost."""
    load.pause = 0.0
    load.wait_for(10)
    told = time.monotonic()
    live.process.send_signal(signal.SIGTERM)
    assert live.process.wait(20) == 0
    load.stop()
    # A request that reached the server is answered. The rest is told so, or finds nobody.
    lost = load.wrong(lambda one: one.begun > told - 0.02 and one.status in (0, 503))
    lost = [one for one in lost if one.status != 429]
    assert not lost, lost[:3]
    assert any(one.status == 200 and one.ended > told for one in load.asked)
    assert not [line for line in live.lines if "Traceback" in line], live.lines[-20:]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a run, which tests change."""
    place = tmp_path_factory.mktemp("runs") / "m"
    shutil.copytree(RUNS / "semantic", place)
    return place


def test_one_server_through_its_life(run_folder: Path) -> None:
    """Loading, a new version, a broken one, a dead worker, and the end, all under load."""
    with start(run_folder, "--log-format", "json", ready=False) as live:
        seen = []
        while not live.lines or "serving" not in live.lines[-1]:
            assert live.process.poll() is None, live.lines
            time.sleep(0.05)
            seen.append(bool(live.port))
        live.wait_ready()
        images = known(live)
        with Load(port=live.port, images=images, clients=6) as load:
            load.wait_for(20)
            _reload(live, load, run_folder)
            assert not load.wrong(lambda one: False), load.wrong(lambda one: False)[:2]
            _kill_worker(live, load)
            stop_under_load(live, load)
        requests = [json.loads(line) for line in live.lines if line.startswith("{")]
        assert {"time", "level", "request", "method", "path", "status", "ms"} <= set(requests[0])
        assert all(line.startswith(("{", "muntin: ")) for line in live.lines), live.lines


def _reload(live: Live, load: Load, place: Path) -> None:
    first = live.ask("GET", "/models/m")[1]
    weights = (place / "weights.safetensors").read_bytes()
    (place / "weights.safetensors").write_bytes(b"broken")
    status, body, _ = live.ask("POST", "/models/m/reload")
    assert (status, "weights" in body["error"]) == (409, True)
    assert live.ask("GET", "/models/m")[1] == first
    assert live.ready()
    (place / "weights.safetensors").write_bytes(weights)
    # The same network with another name for a class.
    classes = json.loads((place / "classes.json").read_text())
    names = json.dumps(classes).replace(classes["names"][0], "renamed")
    (place / "classes.json").write_text(names)
    load.images[:] = [(data, None) for data, _ in load.images]
    status, second, _ = live.ask("POST", "/models/m/reload")
    assert status == 200, second
    assert second["version"] != first["version"]
    assert second["class_names"][0] == "renamed"
    assert live.ask("GET", "/models/m")[1] == second
    load.images[:] = known(live)
    load.wait_for(10)


def _kill_worker(live: Live, load: Load) -> None:
    load.pause = 0.05
    load.wait_for(5)
    killed = time.monotonic()
    worker_of(live).kill()
    gone = wait_for(lambda: live.ask("GET", "/health", seconds=5)[0] == 503)
    back = wait_for(live.ready)
    load.wait_for(20)
    lost = load.wrong(lambda one: one.ended > killed and one.status == 503)
    assert not lost, lost[:2]
    assert gone < 3.0  # a second, on a machine that is free
    # What was accepted before was answered after.
    late = [one for one in load.asked if one.begun < killed and one.ended > killed + back / 2]
    assert any(one.right for one in late) or not late
    refused = [one for one in load.asked if one.status == 503]
    assert all(int(one.retry_after) > 0 for one in refused)
    assert "muntin_worker_deaths_total 1.0" in live.ask("GET", "/metrics")[1].decode()
    load.asked.clear()  # its refusals are judged; what follows has none


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_20_stops_under_load_lose_nothing() -> None:
    for turn in range(20):
        with start(RUNS / "semantic", "--log-format", "none") as live:
            images = known(live)
            keep = bool(turn % 2)
            with Load(port=live.port, images=images, clients=12, keep_alive=keep) as load:
                stop_under_load(live, load)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_wait(number: int) -> None:
    with start(RUNS / "detect") as live:
        worker = worker_of(live)
        # A client that sends nothing more keeps the first one waiting.
        with socket.create_connection(("127.0.0.1", live.port)) as raw:
            raw.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
            time.sleep(0.3)
            live.process.send_signal(number)
            time.sleep(0.5)
            assert live.process.poll() is None
            live.process.send_signal(number)
            assert live.process.wait(10) == 0
        wait_for(lambda: not worker.is_running(), 10)
        assert not [line for line in live.lines if "Traceback" in line], live.lines


@pytest.mark.slow
def test_a_worker_that_cannot_start_again_is_tried_again(tmp_path: Path) -> None:
    place = tmp_path / "m"
    shutil.copytree(RUNS / "detect", place)
    with start(place) as live:
        kept = place.rename(tmp_path / "away")
        worker_of(live).kill()
        wait_for(lambda: live.ask("GET", "/health")[0] == 503)
        status, body, headers = live.predict(PICTURES[0])
        assert (status, "loading" in body["error"]) == (503, True)
        assert int(headers["retry-after"]) > 0
        wait_for(lambda: "failures" in live.ask("GET", "/health")[1])
        kept.rename(place)
        wait_for(live.ready, 60)
        assert live.predict(PICTURES[0])[0] == 200
        assert live.process.poll() is None


@pytest.mark.slow
def test_the_worker_ends_with_its_server() -> None:
    with start(RUNS / "detect") as live:
        worker = worker_of(live)
        live.process.kill()
        wait_for(lambda: not worker.is_running(), 10)


def command(*words: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a server that does not start."""
    line = [sys.executable, "-m", "muntin", "serve", *map(str, words)]
    settings = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **env}
    return subprocess.run(
        line, capture_output=True, text=True, env=settings, timeout=120, check=False
    )


def one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Check that it ended with one line that says these words."""
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1, done.stderr
    assert len(lines) == 1, done.stderr
    assert all(word in lines[0] for word in words), done.stderr


def test_a_port_in_use_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        one_line(command(RUNS / "detect", "--port", port), str(port), "in use", "another --port")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere/run"], ["nowhere/run"]), ([RUNS / "detect", RUNS / "detect"], ["detect2="]),
        ([RUNS / "detect", "--host", "0.0.0.0"], ["--open"]),
        ([RUNS / "detect", "--host", "no.such.host.invalid", "--open"], ["--host"]),
        ([RUNS / "detect", "--set", "limits.batch=0"], ["limits.batch"]),
        ([RUNS / "detect", "--set", "limits.bach=2"], ["limits.bach"]),
        ([RUNS / "detect", "--set", "train.epochs=2"], ["train.epochs"]),
        ([RUNS / "detect", "--token-file", "nowhere"], ["--token-file"]),
        ([RUNS / "detect", "--log-format", "xml"], ["--log-format"]),
        ([ROOT / "pyproject.toml"], ["pyproject.toml"]),
        ([RUNS / "detect", "--engine", "magic"], ["magic"]),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_told(words: list[object], said: list[str]) -> None:
    one_line(command(*words), *said)


@pytest.mark.slow
def test_a_broken_run_folder_is_told(tmp_path: Path) -> None:
    place = tmp_path / "m"
    shutil.copytree(RUNS / "detect", place)
    (place / "weights.safetensors").write_bytes(b"x" * 100)
    one_line(command(place, "--port", 0), "weights")


@pytest.mark.slow
@pytest.mark.parametrize(
    "library", ["fastapi", "uvicorn", "httptools", "prometheus_client", "python_multipart"]
)
def test_a_missing_extra_is_told(tmp_path: Path, library: str) -> None:
    # Stands in for an installation without the library.
    (tmp_path / f"{library}.py").write_text(f"raise ModuleNotFoundError('none', name={library!r})")
    path = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    one_line(command(RUNS / "detect", PYTHONPATH=path), library, "pip install 'muntin[serve]'")


def unlucky(one: Asked) -> bool:
    """Whether a request was refused as it should be."""
    return one.status == 429 and int(one.retry_after) > 0


@pytest.mark.slow
def test_overload_loses_nothing() -> None:
    words = ("--set", "limits.waiting_images=16", "--set", "limits.images=4")
    with start(RUNS / "semantic", *words, "--log-format", "none") as live:
        images = known(live)
        with Load(port=live.port, images=images, clients=48) as load:
            load.wait_for(200)
        assert not load.wrong(unlucky), load.wrong(unlucky)[:3]
        refused = sorted(one.ended - one.begun for one in load.asked if one.status == 429)
        assert len(refused) > 50
        assert refused[len(refused) // 2] < 1.0  # 50 ms, on a machine that is free
