# SPDX-License-Identifier: Apache-2.0
"""The bundle for Ray Serve, deployed on a cluster of two replicas on this machine."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from muntin.serving.bundles import write_bundle
from tests.serving.live import DATA, ROOT, RUNS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_spec("ray") is None, reason="ray[serve] is not installed"),
]

# An application whose replicas wait while a file is there, and leave a file of their own meanwhile.
GATED = """
import os, time
import muntin_app
from muntin.serving.replica import Replica

GATE = {gate!r}

class Waiting(Replica):
    def answer(self, jobs):
        if os.path.exists(GATE):
            open(f"{{GATE}}-{{os.getpid()}}", "w").close()
        while os.path.exists(GATE):
            time.sleep(0.02)
        return super().answer(jobs)

app = muntin_app.Muntin.bind(make=Waiting)
"""
SECONDS = 240.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(port: int, body: bytes | None = None, path: str = "/predict") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    with contextlib.closing(connection):
        headers = {"Content-Type": "application/octet-stream"}
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


@contextlib.contextmanager
def deployed(out: Path, port: int):
    """Run the command of the README until the block ends."""
    command = [sys.executable, "-m", "ray.serve.scripts", "run", "serve_config.yaml"]
    places = os.pathsep.join([str(ROOT / "src"), str(out)])
    env = {**os.environ, "PYTHONPATH": places, "RAY_USAGE_STATS_ENABLED": "0"}
    with (out / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command, cwd=out, env=env, stdout=log, stderr=log, start_new_session=True
        )
        try:
            end = time.monotonic() + SECONDS
            while True:
                with contextlib.suppress(OSError):
                    if ask(port, path="/health")[0] == 200:
                        break
                log_text = (out / "log.txt").read_text(errors="replace")
                assert process.poll() is None, log_text
                assert time.monotonic() < end, log_text
                time.sleep(0.5)
            yield
        finally:
            process.send_signal(signal.SIGINT)  # it ends its cluster
            try:
                process.wait(90)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture
def bundle(tmp_path):
    file = tmp_path / "classify.onnx"
    file.write_bytes(gzip.decompress((RUNS / "classify.onnx.gz").read_bytes()))
    out = tmp_path / "out"
    list(write_bundle("ray", [f"cells={file}"], out))
    return out


def change(out: Path, port: int, path: str = "muntin_app:app", **options: int) -> None:
    """Set the port of the configuration, and options of its deployment."""
    place = out / "serve_config.yaml"
    config = yaml.safe_load(place.read_text(encoding="utf-8"))
    config["http_options"]["port"] = port
    (application,) = config["applications"]
    application["import_path"] = path
    application["deployments"][0].update(options)
    place.write_text(yaml.safe_dump(config), encoding="utf-8")


def approximate(value):
    """Values with numbers that may differ in the last digits: batches are others."""
    if isinstance(value, dict):
        return {key: approximate(one) for key, one in value.items()}
    if isinstance(value, list):
        return [approximate(one) for one in value]
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


def test_two_replicas_answer_as_predict_does(bundle):
    port = free_port()
    change(bundle, port)
    images = sorted((DATA / "classify").rglob("*.png"))
    done = subprocess.run(
        [sys.executable, "-m", "muntin", "predict", bundle / "models" / "cells.onnx", *images,
         "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, check=True,
    )  # fmt: skip
    right = json.loads(done.stdout)
    assert len(right) == len(images) > 2
    with deployed(bundle, port), ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda path: ask(port, path.read_bytes()), images))
        for (status, body), theirs in zip(found, right, strict=True):
            assert status == 200
            assert json.loads(body) == [approximate({**theirs, "path": ""})]
        assert json.loads(ask(port, images[0].read_bytes(), "/")[1]) == json.loads(found[0][1])
        (model,) = json.loads(ask(port, path="/models")[1])
        assert model["name"] == "cells"
        assert ask(port, b"no image")[0] == 415
        assert ask(port, images[0].read_bytes(), "/predict?model=none")[0] == 404
        assert ask(port, images[0].read_bytes()[:300])[0] == 422


def test_the_excess_is_refused_and_what_was_accepted_is_answered(bundle, tmp_path):
    port, gate = free_port(), tmp_path / "gate"
    (bundle / "gated.py").write_text(GATED.format(gate=str(gate)), encoding="utf-8")
    change(bundle, port, "gated:app", max_ongoing_requests=1, max_queued_requests=1)
    image = sorted((DATA / "classify").rglob("*.png"))[0].read_bytes()
    with deployed(bundle, port), ThreadPoolExecutor(16) as pool:
        status, alone = ask(port, image)
        assert status == 200
        gate.touch()
        try:
            accepted = []
            for number in (1, 2):  # one for each replica
                accepted.append(pool.submit(ask, port, image))
                end = time.monotonic() + 60
                while len(list(tmp_path.glob("gate-*"))) < number:
                    assert time.monotonic() < end
                    time.sleep(0.05)
            accepted.append(pool.submit(ask, port, image))  # and one that waits
            time.sleep(2)
            assert {ask(port, image)[0] for _ in range(10)} == {503}
            assert not any(one.done() for one in accepted)
        finally:
            gate.unlink()
        assert [one.result()[0] for one in accepted] == [200] * 3
        assert all(json.loads(one.result()[1]) == json.loads(alone) for one in accepted)
