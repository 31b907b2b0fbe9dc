# SPDX-License-Identifier: Apache-2.0
"""The process that holds the models: batches of encoded images in, JSON of their results out.

Three threads work at once: one decodes and resizes the next batch while the network runs the
present one, and a third writes the results of the last. What is sent through the pipe is tuples of
names, numbers and bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from muntin.errors import ConfigError, MuntinError, first_line
from muntin.serving.batch_steps import BatchTask, CancelledError, predict, prepare, take_step, write
from muntin.serving.messages import DONE, FAILED, LOADED, SAID, BatchReport
from muntin.serving.serve_settings import LoadOptions, ModelSource
from muntin.staging import checksum


def work(pipe: Connection, options: LoadOptions, models: tuple[ModelSource, ...]) -> None:
    """Run the worker until the pipe is closed; the target of its process."""
    # Ctrl-C reaches all processes of a terminal: the one that serves decides when work ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    worker = Worker(pipe, options)
    worker.run(models)
    if worker.busy:  # a thread in the middle of a network would abort the exit
        os._exit(0)


class Worker:
    """Models by name, and the threads that answer batches."""

    def __init__(self, pipe: Connection, options: LoadOptions) -> None:
        self.options = options
        self.predictors: dict[str, Any] = {}
        self._tasks: dict[int, BatchTask] = {}
        self._stepping = threading.local()  # the task that a thread works on
        self._pipe = pipe
        self._sending = threading.Lock()

    @property
    def busy(self) -> bool:
        """Whether there are batches without an answer."""
        return bool(self._tasks)

    def run(self, models: tuple[ModelSource, ...]) -> None:
        """Load models, then answer messages until the pipe ends."""
        self._load_all(models)
        # Each text of a warning about a stranger's file would be remembered.
        warnings.simplefilter("ignore")
        sys.setswitchinterval(0.0005)  # its threads hand over after each call of a library
        prepared: queue.Queue[BatchTask] = queue.Queue(1)
        decoded: queue.Queue[BatchTask] = queue.Queue(1)
        arrived: queue.Queue[BatchTask] = queue.Queue()
        steps = (
            (arrived, prepare, prepared.put),
            (prepared, predict, decoded.put),
            (decoded, write, self._report),
        )
        for source, step, sink in steps:
            threading.Thread(target=self._pass_on, args=(source, step, sink), daemon=True).start()
        while True:
            try:
                kind, *content = self._pipe.recv()
            except (EOFError, OSError):
                return
            if kind == "stop":
                return
            if kind == "load":
                threading.Thread(target=self.load, args=content, daemon=True).start()
            elif kind == "cancel":
                self._cancel(content[0])
            else:
                task = BatchTask(number=content[0], options=content[1], items=content[2])
                self._tasks[task.number] = task
                arrived.put(task)

    def _load_all(self, models: tuple[ModelSource, ...]) -> None:
        try:
            refuse_unused_detector(models, self.options)
        except ConfigError as error:
            for model in models:
                self._send(FAILED, model.name, str(error))
        else:
            for model in models:
                self.load(model)

    def _cancel(self, number: int) -> None:
        if (task := self._tasks.get(number)) is not None:  # otherwise it is answered
            task.cancelled = True

    def load(self, model: ModelSource) -> None:
        """Load a model and run it once; only then it takes the place of one of its name."""
        try:
            predictor, description = load_model(
                model, self.options, partial(self._send, SAID, model.name)
            )
        except MuntinError as error:
            self._send(FAILED, model.name, str(error))
        except Exception as error:
            text = f"{model.path} cannot be loaded: {type(error).__name__}: {first_line(error)}"
            self._send(FAILED, model.name, text)
        else:
            self._watch(predictor)
            self.predictors[model.name] = predictor
            self._send(LOADED, model.name, description)

    def _watch(self, predictor: Any) -> None:  # noqa: ANN401 (of `load_model`)
        """Let the networks of a predictor stop before their next part, when nobody waits for it.

        Each window, tile and batch of crops is a call of the network; each block of one that is
        not compiled is looked at too, as a call on large inputs takes seconds.
        """
        from torch.nn import ModuleList

        from muntin.heads.network import Network

        detector = getattr(predictor, "detector", None)
        for one in (predictor, getattr(detector, "predict", None)):
            network = getattr(one, "network", None)
            if network is None:
                continue
            parts = [network]
            if isinstance(network, Network):
                lists = (each for each in network.modules() if isinstance(each, ModuleList))
                parts += (part for each in lists for part in each)
            for part in dict.fromkeys(parts):
                part.register_forward_pre_hook(self._stop_cancelled)

    def _stop_cancelled(self, *_: object) -> None:
        task = getattr(self._stepping, "task", None)
        if task is not None and task.cancelled:
            raise CancelledError

    def _pass_on(
        self,
        source: queue.Queue[BatchTask],
        step: Callable[[BatchTask], None],
        sink: Callable[..., None],
    ) -> None:
        """Take tasks through one step; one that failed goes on to the end with its error."""
        while True:
            task = source.get()
            if task.predictor is None:
                task.predictor = self.predictors[task.options.model]
            begun = time.perf_counter()
            self._stepping.task = task
            take_step(task, step)
            task.seconds.append(time.perf_counter() - begun)
            sink(task)

    def _report(self, task: BatchTask) -> None:
        answers = tuple(each for each in task.answers if each is not None)
        decode, network, encode = task.seconds
        report = BatchReport(answers=answers, decode=decode, network=network, encode=encode)
        del self._tasks[task.number]
        self._send(DONE, task.number, report)

    def _send(self, *message: object) -> None:
        with self._sending, contextlib.suppress(OSError):  # nobody is there any more
            self._pipe.send(message)


def refuse_unused_detector(models: Sequence[ModelSource], options: LoadOptions) -> None:
    """Refuse a detector that no model uses: it belongs to top-down poses alone."""
    from muntin.published import open_run

    if not options.detector:
        return
    try:
        tasks = [open_run(model.path).task for model in models]
    except MuntinError:  # is told when it is loaded
        return
    if not any(task.top_down for task in tasks):
        names = ", ".join(dict.fromkeys(task.name for task in tasks))
        message = (
            f"--detector needs a top-down pose run among the models, got runs of {names}. "
            f"Leave it out."
        )
        raise ConfigError(message)


def load_model(
    model: ModelSource, options: LoadOptions, say: Callable[[str], None] = lambda line: None
) -> tuple[Any, dict[str, Any]]:
    """Load a predictor, run it once on an empty image, and describe it for `GET /models`.

    `say` is told what the engine "auto" measures and chooses.
    """
    from muntin.configs import to_dict
    from muntin.prediction.from_run import find_threshold, load
    from muntin.published import open_run
    from muntin.runs import ExportedRun

    run = open_run(model.path)
    if model.task not in ("", run.task.name):
        message = (
            f"model {model.name!r} must stay a {model.task} run, got a {run.task.name} run in "
            f"{model.path}. Put a {model.task} run there, or start the server again."
        )
        raise ConfigError(message)
    engine, precision = options.engine, options.precision
    chosen: Any = {}
    if isinstance(run, ExportedRun):
        engine, precision = "file", run.note.precision
    else:
        chosen = {"engine": engine, "precision": precision}
    told: list[str] = []

    def note(line: str) -> None:
        told.append(line)
        say(line)

    detector = options.detector if run.task.top_down else ""
    predictor = load(run, device=options.device, detector=detector, say=note, **chosen)
    _warm_up(predictor)
    beside: dict[str, Any] = {"engine_notes": told} if told else {}
    if predictor.detector is not None:
        beside["detector_threshold"] = predictor.detector.threshold
    threshold, why = find_threshold(run) if run.task.detects else (0.0, "")
    classes = to_dict(run.classes)
    description = {
        "name": model.name,
        "task": run.task.name,
        "kind": run.task.kind,
        "model": run.config.model_name,
        "class_names": classes.pop("names"),
        **classes,
        "img_size": list(run.preprocessing.img_size),
        "threshold": threshold,
        "threshold_from": why,
        **beside,
        "engine": engine,
        "precision": precision,
        "device": str(predictor.device),
        "batch": predictor.batch_size,
        "version": _version_of(Path(model.path)),
    }
    return predictor, description


def _warm_up(predictor: Any) -> None:  # noqa: ANN401 (PyTorch is not imported here)
    """Predict empty images in each size and number that an engine may have a graph for."""
    pre = predictor.preprocessing
    height, width = pre.img_size
    groups = getattr(predictor.network, "groups", None) or (1,)
    for size in {(height, width), (width, height)}:
        for count in groups:
            predictor([np.zeros((*size, pre.reading.bands), np.uint8)] * count)


def _version_of(path: Path) -> str:
    """A short name of the content of a run folder or file, which changes when it does."""
    from muntin.run_files import CLASSES, CONFIG, PREPROCESSING, RESULTS, WEIGHTS

    names = (WEIGHTS, RESULTS, CONFIG, CLASSES, PREPROCESSING)
    files = [path] if path.is_file() else [path / name for name in names]
    sums = [checksum(file) for file in files if file.is_file()]
    return hashlib.sha256("".join(sums).encode()).hexdigest()[:12]
