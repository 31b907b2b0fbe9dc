# SPDX-License-Identifier: Apache-2.0
"""The worker, in a thread: its answers are those of `muntin predict`, in whatever batch."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
import multiprocessing
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from muntin.commands import main
from muntin.serving.messages import (
    DONE,
    FAILED,
    LOADED,
    Answer,
    BatchOptions,
    BatchReport,
    WorkItem,
)
from muntin.serving.metrics import Metrics
from muntin.serving.serve_settings import LoadOptions, ModelSource, ServeSettings
from muntin.serving.service import to_batch
from muntin.serving.uploads import PredictRequest, Upload
from muntin.serving.worker import Worker, load_model
from muntin.serving.worker_process import WorkerProcess
from muntin.staging import list_json
from tests.serving.conftest import KINDS
from tests.serving.live import DATA, RUNS

BROKEN = b"\x89PNG\r\n\x1a\nnothing"


class Talk:
    """A worker in a thread, and the end of its pipe."""

    def __init__(self, *models: ModelSource, detector: str = "") -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self.worker = Worker(theirs, LoadOptions(device="cpu", detector=detector))
        self.thread = threading.Thread(target=self.worker.run, args=(models,), daemon=True)
        self.thread.start()
        self.loaded = [self.receive() for _ in models]
        self._number = itertools.count()

    def receive(self) -> tuple[str, Any, Any]:
        assert self.pipe.poll(60), "the worker says nothing"
        return self.pipe.recv()

    def send(self, options: BatchOptions, items: Sequence[WorkItem]) -> int:
        number = next(self._number)
        self.pipe.send(("batch", number, options, tuple(items)))
        return number

    def ask(self, options: BatchOptions, *items: WorkItem) -> tuple[Answer, ...]:
        """Answers of one batch."""
        number = self.send(options, items)
        kind, found, report = self.receive()
        assert (kind, found) == (DONE, number)
        assert isinstance(report, BatchReport)
        return report.answers

    def end(self) -> None:
        self.pipe.send(("stop",))
        self.thread.join(10)
        assert not self.thread.is_alive()


def source(kind: str) -> ModelSource:
    return ModelSource(name=kind, path=str(RUNS / kind))


QUICK = ("classify", "detect", "semantic")


@pytest.fixture(scope="module")
def talk() -> Iterator[Talk]:
    """A worker of runs of three kinds."""
    talk = Talk(*(source(kind) for kind in QUICK))
    yield talk
    talk.end()


def pictures() -> list[tuple[str, bytes]]:
    """Images of different sizes, formats and shapes."""
    rng = random.Random(7)
    first = next(iter(sorted(DATA.rglob("*.png")))).read_bytes()
    found = [("plain.png", first)]
    for number, (size, form) in enumerate(
        [
            ((48, 48), "PNG"),
            ((90, 33), "JPEG"),
            ((20, 140), "BMP"),
            ((31, 47), "PNG"),
            ((1, 1), "PNG"),
        ]
    ):
        file = io.BytesIO()
        picture = Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1]))
        picture.resize(size).save(file, form)
        found.append((f"{number}.{form.lower()}", file.getvalue()))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images as files."""
    place = tmp_path_factory.mktemp("images")
    for name, data in pictures():
        (place / name).write_bytes(data)
    return place


@pytest.mark.parametrize("kind", QUICK)
def test_answers_are_those_of_predict_in_every_batch(talk: Talk, folder: Path, kind: str) -> None:
    compare_batches(talk, folder, kind, 6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "pose"])
def test_answers_are_those_of_predict_in_many_batches(folder: Path, kind: str) -> None:
    talk = Talk(source(kind))
    compare_batches(talk, folder, kind, 60)
    talk.end()


def compare_batches(talk: Talk, folder: Path, kind: str, count: int) -> None:
    """Send images alone, and in random batches with a broken one; compare with `predict`."""
    files = sorted(path for path in folder.iterdir())
    wanted = [predict_one(path, kind) for path in files]
    items = [WorkItem(name=path.name, data=path.read_bytes()) for path in files]
    options = BatchOptions(model=kind)
    alone = [talk.ask(options, item)[0] for item in items]
    assert ["".join(list_json([answer.text])) for answer in alone] == wanted
    assert not any(answer.fault for answer in alone)
    rng = random.Random(kind)
    broken = WorkItem(name="broken", data=BROKEN)
    for _ in range(count):
        places = rng.choices(range(len(items)), k=rng.randint(2, 8))
        batch = [items[place] for place in places]
        at = rng.randrange(len(batch) + 1)
        answers = list(talk.ask(options, *batch[:at], broken, *batch[at:]))
        assert answers.pop(at).fault == "image"
        assert answers == [alone[place] for place in places]


def predict_one(path: Path, kind: str, *more: str) -> str:
    """What `muntin predict` prints for one image."""
    printed = io.StringIO()
    words = ["predict", str(RUNS / kind), str(path), "--json", "--device", "cpu", *more]
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as end:
        main(words)
    assert not end.value.code
    return printed.getvalue().replace(f'"path": "{path}"', f'"path": "{path.name}"')


def test_batches_of_different_models_do_not_mix(talk: Talk) -> None:
    items = [WorkItem(name=name, data=data) for name, data in pictures()]
    alone = {(k, i.name): talk.ask(BatchOptions(model=k), i)[0] for k in QUICK for i in items}
    rng = random.Random(2)
    sent: dict[int, tuple[str, list[str]]] = {}
    for _ in range(30):
        kind, batch = rng.choice(QUICK), rng.choices(items, k=rng.randint(1, 4))
        number = talk.send(BatchOptions(model=kind), batch)
        sent[number] = (kind, [item.name for item in batch])
    for number, (kind, names) in sent.items():
        what, found, report = talk.receive()
        assert (what, found) == (DONE, number)
        assert list(report.answers) == [alone[kind, name] for name in names]


def test_thresholds_are_of_each_image_and_options_of_the_batch(talk: Talk) -> None:
    name, data = pictures()[0]
    options = BatchOptions(model="detect")
    every, some, none = talk.ask(
        options, *(WorkItem(name=name, data=data, threshold=score) for score in (0.0, 0.4, 1.0))
    )
    scores = [box["score"] for box in json.loads(every.text)["boxes"]]
    assert [box["score"] for box in json.loads(some.text)["boxes"]] == [
        s for s in scores if s >= 0.4
    ]
    assert json.loads(none.text)["boxes"] == []
    mirrored = talk.ask(BatchOptions(model="classify", tta=True), WorkItem(name=name, data=data))[0]
    assert not mirrored.fault
    assert (
        mirrored.text
        != talk.ask(BatchOptions(model="classify"), WorkItem(name=name, data=data))[0].text
    )


def test_pixels_are_an_image_too(talk: Talk) -> None:
    name, data = pictures()[0]
    image = Image.open(io.BytesIO(data)).convert("RGB")
    options = BatchOptions(model="detect")
    shape = (image.height, image.width, 3)
    plain = talk.ask(options, WorkItem(name=name, data=data))
    assert talk.ask(options, WorkItem(name=name, data=image.tobytes(), shape=shape)) == plain


@pytest.mark.parametrize(
    ("kind", "options", "fault", "word"),
    [
        ("classify", {"tile": 600}, "request", "tile"), ("detect", {"tile": 8}, "image", "tile"),
        ("detect", {"tile": 32}, "image", "400"),
    ],
)  # fmt: skip
def test_options_that_do_not_suit_are_told(
    talk: Talk, kind: str, options: dict[str, Any], fault: str, word: str
) -> None:
    file = io.BytesIO()
    Image.new("L", (20_000, 300)).save(file, "PNG")
    answer = talk.ask(
        BatchOptions(model=kind, **options), WorkItem(name="a", data=file.getvalue())
    )[0]
    assert (answer.fault, word in answer.text) == (fault, True), answer


def test_a_model_is_loaded_beside_the_one_that_answers(tmp_path: Path) -> None:
    place = tmp_path / "run"
    shutil.copytree(RUNS / "detect", place)
    talk = Talk(ModelSource(name="m", path=str(place)))
    (kind, name, first), item = talk.loaded[0], WorkItem(name="a", data=pictures()[0][1])
    assert (kind, name) == (LOADED, "m")
    before = talk.ask(BatchOptions(model="m"), item)
    (place / "weights.safetensors").write_bytes(b"broken")
    talk.pipe.send(("load", ModelSource(name="m", path=str(place))))
    kind, name, text = talk.receive()
    assert (kind, name) == (FAILED, "m")
    assert "weights" in text
    assert talk.ask(BatchOptions(model="m"), item) == before
    shutil.rmtree(place)
    shutil.copytree(RUNS / "classify", place)
    talk.pipe.send(("load", ModelSource(name="m", path=str(place))))
    kind, name, second = talk.receive()
    assert (kind, second["task"]) == (LOADED, "classify")
    assert second["version"] != first["version"]
    assert "classes" in talk.ask(BatchOptions(model="m"), item)[0].text
    talk.end()


@pytest.mark.parametrize("name", ["", "a.png"])
def test_an_image_that_is_cut_off_is_told_to_whom_sent_it(talk: Talk, name: str) -> None:
    data = pictures()[1][1]
    item = WorkItem(name=name, data=data[: len(data) // 2])
    (answer,) = talk.ask(BatchOptions(model="classify"), item)
    assert answer.fault == "image"
    assert answer.text.startswith("the image 'a.png' must" if name else "the image must")
    assert "Send it again" in answer.text
    assert "remove" not in answer.text


def test_a_model_keeps_its_task(tmp_path: Path) -> None:
    shutil.copytree(RUNS / "detect", tmp_path / "m")
    talk = Talk(ModelSource(name="m", path=str(tmp_path / "m")))
    item, first = WorkItem(name="a", data=pictures()[0][1]), talk.loaded[0][2]["version"]
    shutil.rmtree(tmp_path / "m")
    shutil.copytree(RUNS / "classify", tmp_path / "m")
    talk.pipe.send(("load", ModelSource(name="m", path=str(tmp_path / "m"), task="detect")))
    kind, _, text = talk.receive()
    assert kind == FAILED
    assert "must stay a detect run, got a classify run" in text
    assert "boxes" in talk.ask(BatchOptions(model="m"), item)[0].text
    assert first
    talk.end()


def test_a_detector_that_no_model_uses_is_refused() -> None:
    talk = Talk(source("classify"), detector=str(RUNS / "detect"))
    kind, _, text = talk.loaded[0]
    assert kind == FAILED
    assert "needs a top-down pose run among the models, got runs of classify" in text
    talk.end()


@pytest.mark.parametrize("threshold", [None, 0.0, 0.4, 0.999])
def test_the_threshold_beside_a_detector_is_that_of_predict(
    folder: Path, threshold: float | None
) -> None:
    path, beside = folder / "plain.png", ("--detector", str(RUNS / "detect"))
    talk = Talk(source("pose"), detector=beside[1])
    model = talk.loaded[0][2]
    upload = Upload(name=path.name, data=path.read_bytes(), pixels=0)
    options, items = to_batch(model, PredictRequest(uploads=(upload,), threshold=threshold))
    (answer,) = talk.ask(options, *items)
    words = () if threshold is None else ("--threshold", str(threshold))
    assert "".join(list_json([answer.text])) == predict_one(path, "pose", *beside, *words)
    talk.end()


@pytest.mark.slow
def test_what_the_engine_auto_chooses_is_said(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said: list[str] = []
    options = LoadOptions(engine="auto", device="cpu")
    _, model = load_model(source("classify"), options, said.append)
    assert model["engine_notes"] == said
    assert any(line.startswith("engine auto: ") for line in said)


def test_a_batch_that_nobody_waits_for_stops_before_its_next_window() -> None:
    talk = Talk(source("semantic"))
    begun, calls = threading.Event(), []

    def slow(*_: object) -> None:
        calls.append(1)
        begun.set()
        time.sleep(0.05)

    talk.worker.predictors["semantic"].network.register_forward_pre_hook(slow, prepend=True)
    file = io.BytesIO()
    Image.new("RGB", (1600, 1600)).save(file, "PNG")
    item, options = WorkItem(name="a", data=file.getvalue()), BatchOptions(model="semantic")
    unwanted = talk.send(options, [item])
    assert begun.wait(60)
    waiting = talk.send(options, [item])  # is cancelled before its network
    talk.pipe.send(("cancel", unwanted))
    talk.pipe.send(("cancel", waiting))
    talk.pipe.send(("cancel", 1000))  # is answered already
    for number in (unwanted, waiting):
        kind, found, report = talk.receive()
        assert (kind, found) == (DONE, number)
        assert {answer.fault for answer in report.answers} <= {"server"}
    assert len(calls) <= 2
    small = WorkItem(name="b", data=pictures()[0][1])
    assert not talk.ask(options, small)[0].fault
    talk.end()


class SlowPipe:
    """A pipe that takes a while for each message, and stands in for the process behind it."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def send(self, message: tuple[str]) -> None:
        self.sent.append(f"{message[0]} begins")
        time.sleep(0.1)
        self.sent.append(f"{message[0]} ends")

    def join(self, seconds: float) -> None:
        time.sleep(0.3)

    def kill(self) -> None:
        self.sent.append("killed")


def test_a_worker_is_told_to_stop_after_what_is_on_its_way() -> None:
    async def stop() -> list[str]:
        process: Any = WorkerProcess(ServeSettings(models=(source("classify"),)), Metrics())
        process._process = process._pipe = pipe = SlowPipe()
        process._tasks = [asyncio.create_task(process._write())]
        process._send("batch")
        await asyncio.sleep(0.05)
        await process.stop()
        await process.stop()  # has nothing left to do
        return pipe.sent

    wanted = ["batch begins", "batch ends", "stop begins", "stop ends", "killed"]
    assert asyncio.run(stop()) == wanted


def test_the_server_side_imports_no_framework() -> None:
    code = "import sys, muntin.serving.server; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
