# SPDX-License-Identifier: Apache-2.0
"""`muntin serve` beside LitServe and a plain FastAPI handler: the same file, images and requests.

    python benchmarks/bench_serve.py [onnx] [eager] --model swin_tiny --soak 10

A classifier is trained for a moment on generated images, so that each server has a run folder and
an ONNX file of it; speed does not depend on what it learnt. Requests are JSON with one image in
base64, which all three take. For each server: answers a second of 32 clients; latency at 70 % of
that, requests at random times; three times of it; SIGTERM under load. Then, of muntin alone, a
long mixed load, in PyTorch, whose answers are the same to the bit in every batch.
The generator runs on the same cores, and its share is reported. Clients of rivals
without refusals wait for at most 10 s.

LitServe may be installed in another environment, whose Python is named by `--rival-python`.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import record
from PIL import Image, ImageDraw
from serve_load import Known, at_rate, closed, until_stopped

HERE = Path(__file__).resolve().parent
SERVERS = ("muntin", "litserve", "fastapi")
CLIENTS, BATCH = 32, 8
SIZE = (640, 480)


def main() -> None:
    """Measure and write the result."""
    options = record.options(
        __doc__, engines=("onnx", "eager"), model="swin_tiny", seconds=20.0, stops=20, soak=10.0,
        rival_python=sys.executable,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = make_models(folder, options.model)
        network = bench_network(options.model)
        rows = [
            measure(server, engine, sources[engine], options)
            for engine in options.engines
            for server in SERVERS
        ]
        soaked = soak(sources["eager"], options.soak) if options.soak else None
    for row in rows:
        row["share_of_bench"] = round(
            row["at_32_clients"]["answers_per_s"] / network[row["engine"]]["images_per_s"], 3
        )
    content = {
        "what": f"servers of one classifier, images of {SIZE[0]} x {SIZE[1]} pixels in JSON",
        "model": options.model,
        "batch": BATCH,
        "clients": CLIENTS,
        "bench_inference": network,
        "rivals": versions(options.rival_python),
        "rows": rows,
        "soak": soaked,
    }
    record.save("serving", content, ("fastapi", "uvicorn", "onnxruntime"))


def make_models(folder: Path, model: str) -> dict[str, Path]:
    """A run folder and an ONNX file of it."""
    for part, count in (("train", 8), ("val", 2)):
        for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
            place = folder / "data" / part / name
            place.mkdir(parents=True)
            for number in range(count):
                picture(number, colour).save(place / f"{number}.jpg")
    run, file = folder / "run", folder / "model.onnx"
    words = ("--model", model, "--weights", "none", "--epochs", "1", "--batch-size", "4")
    record.muntin("train", "classify", folder / "data", *words, "--out", run)
    record.muntin("export", run, file)
    return {"eager": run, "onnx": file}


def picture(number: int, colour: tuple[int, int, int], size: tuple[int, int] = SIZE) -> Image.Image:
    """A photograph of nothing."""
    rng = random.Random(number)
    small = Image.frombytes("RGB", (32, 24), rng.randbytes(32 * 24 * 3))
    image = small.resize(size, Image.Resampling.BICUBIC)
    ImageDraw.Draw(image).ellipse((size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2), colour)
    return image


def encode(image: Image.Image, form: str = "JPEG") -> bytes:
    """The body of a request."""
    file = io.BytesIO()
    image.save(file, form)
    return json.dumps({"image": base64.b64encode(file.getvalue()).decode()}).encode()


def bench_network(model: str) -> dict[str, dict[str, float]]:
    """Images a second of the network alone, as `muntin bench inference` measures them."""
    words = ("--model", model, "--batch-size", BATCH, "--peers", "onnxruntime", "--json")
    rows = json.loads(record.muntin("bench", "inference", *words, keep=True))["contestants"]
    found = {row["name"]: row for row in rows if row["precision"] == "fp32"}
    names = {"eager": "muntin eager", "onnx": "muntin onnxruntime"}
    rates = {engine: found[name]["images_per_s"] for engine, name in names.items()}
    return {engine: {"images_per_s": rate["median"]} for engine, rate in rates.items()}


@contextlib.contextmanager
def served(server: str, source: Path, python: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run a server until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    words = [str(HERE / "serve_rivals.py"), server, str(source), str(port), str(BATCH)]
    if server == "muntin":
        python = sys.executable
        limits = ("--set", f"limits.batch={BATCH}")
        words = ["-m", "muntin", "serve", str(source), "--port", str(port), "--log-format", "none"]
        words += limits
    folder = os.environ.get("PYTHONPATH", "")
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(record.ROOT / "src"), folder))),
    }
    process = subprocess.Popen(
        [python, *words], env=env, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        end = time.monotonic() + 180
        while not ready(port):
            if process.poll() is not None or time.monotonic() > end:
                message = f"{server} did not start"
                raise RuntimeError(message)
            time.sleep(0.2)
        yield port, process
    finally:
        if process.poll() is None:
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(40)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # workers that a server left behind


def ready(port: int) -> bool:
    """Whether a server says that it answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def ask_known(port: int, bodies: list[bytes]) -> Known:
    """Bodies with the answers of a server that has nothing else to do."""
    found = []
    for body in bodies:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/predict", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            found.append((body, answer.read()))
    return found


def measure(server: str, engine: str, source: Path, options: Any) -> dict[str, Any]:  # noqa: ANN401
    """One server with one engine."""
    record.log(f"{server} {engine}")
    bodies = [encode(picture(number, (30, 200, 30))) for number in range(16)]
    row: dict[str, Any] = {"server": server, "engine": engine}
    with served(server, source, options.rival_python) as (port, _):
        images = ask_known(port, bodies)
        closed(port, images, clients=CLIENTS, seconds=min(5, options.seconds))
        most = closed(port, images, clients=CLIENTS, seconds=options.seconds).summary()
        row["at_32_clients"] = most
        row["ms_of_a_batch"] = round(1000 * BATCH / most["answers_per_s"], 1)
        rate = most["answers_per_s"]
        for name, factor in (("at_70_percent", 0.7), ("at_3_times", 3.0)):
            time.sleep(2)
            row[name] = at_rate(port, images, rate=factor * rate, seconds=options.seconds).summary()
        row["lives"] = ready(port)
    row["p99_over_batch"] = round(
        row["at_70_percent"].get("answer_ms", {}).get("p99", 0) / row["ms_of_a_batch"], 2
    )
    row["goodput"] = round(row["at_3_times"]["answers_per_s"] / rate, 3)
    row["stops"] = stop(server, source, options)
    record.log(json.dumps(row))
    return row


def stop(server: str, source: Path, options: Any) -> dict[str, Any]:  # noqa: ANN401
    """SIGTERM under load, several times."""
    total: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    for _ in range(options.stops):
        with served(server, source, options.rival_python) as (port, process):
            images = ask_known(port, [encode(picture(1, (9, 9, 9)))])
            total += until_stopped(
                port, images, clients=16, stop=lambda: process.send_signal(signal.SIGTERM)
            )
            try:
                codes[str(process.wait(40))] += 1
            except subprocess.TimeoutExpired:
                codes["did not end within 40 s"] += 1
    return {"requests": dict(total), "exit_codes": dict(codes)}


def soak(source: Path, minutes: float) -> dict[str, Any]:
    """Mixed sizes and formats with 1 % broken images, bombs and slow clients, for some minutes."""
    rng = random.Random(5)
    sizes = ((32, 32), (640, 480), (1920, 1080), (100, 900))
    forms = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
    bodies = [
        encode(picture(number, (90, 90, 9), rng.choice(sizes)), forms[number % 6])
        for number in range(99)
    ]
    end, memory = threading.Event(), []
    with served("muntin", source, "") as (port, process):
        images = [*ask_known(port, bodies), (json.dumps({"image": "AAAA"}).encode(), b"")]
        other = threading.Thread(target=disturb, args=(port, end), daemon=True)
        watch = threading.Thread(target=watch_memory, args=(port, end, memory), daemon=True)
        other.start()
        watch.start()
        found = closed(port, images, clients=16, seconds=60 * minutes).summary()
        end.set()
        other.join(30)
        watch.join(30)
        lives = ready(port) and process.poll() is None
    early = [row for row in memory if row["minute"] >= min(2, minutes / 2)][:1]
    growth = {
        key: round(memory[-1][key] / early[0][key], 4)
        for key in ("muntin_memory_bytes", "muntin_worker_memory_bytes")
    }
    return {"minutes": minutes, **found, "lives": lives, "growth_after_minute_2": growth,
            "memory": memory[:: max(1, len(memory) // 20)]}  # fmt: skip


def disturb(port: int, end: threading.Event) -> None:
    """Bombs, and clients that send a byte a second or read nothing."""
    head = b"IHDR" + (30_000).to_bytes(4, "big") * 2 + b"\x08\2\0\0\0"
    bomb = b"\x89PNG\r\n\x1a\n\0\0\0\r" + head + zlib.crc32(head).to_bytes(4, "big")
    slow: list[socket.socket] = []
    while not end.wait(0.5):
        with contextlib.suppress(OSError):
            raw = socket.create_connection(("127.0.0.1", port), timeout=5)
            raw.sendall(
                b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000\r\n\r\n"
            )
            slow.append(raw)
            request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", bomb)
            urllib.request.urlopen(request, timeout=10).close()
        for one in slow:
            with contextlib.suppress(OSError):
                one.send(b"x")
        for one in slow[:-40]:
            one.close()
        del slow[:-40]
    for one in slow:
        one.close()


def watch_memory(port: int, end: threading.Event, memory: list[dict[str, float]]) -> None:
    """Read the memory of both processes from /metrics, every few seconds."""
    begun = time.monotonic()
    while not end.wait(3):
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer,
        ):
            lines = answer.read().decode().splitlines()
            values = dict(
                line.split() for line in lines if "memory_bytes " in line and "#" not in line
            )
            row = {name: float(value) for name, value in values.items()}
            memory.append({"minute": round((time.monotonic() - begun) / 60, 2), **row})


def versions(python: str) -> dict[str, str]:
    """Versions of the rivals, in their environment."""
    code = "import importlib.metadata as m; print(m.version('litserve'), m.version('fastapi'))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    litserve, fastapi = done.stdout.split()
    return {"litserve": litserve, "fastapi": fastapi}


if __name__ == "__main__":
    main()
