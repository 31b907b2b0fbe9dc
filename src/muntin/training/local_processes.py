# SPDX-License-Identifier: Apache-2.0
"""Starts the processes of a run on this machine, hears their results, and ends them together."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle  # noqa: TID251 (between these processes, never a file)
import signal
import sys
import threading
import time
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, TypeVar

import torch
from lightning_fabric import Fabric

from muntin.errors import MuntinError, MuntinWarning
from muntin.run_config import RunConfig
from muntin.training.checkpoint import pass_signals
from muntin.training.processes import Place, ProcessError, free_port, here, take_part

Value = TypeVar("Value")

_GRACE_S = 10.0
"""Seconds that the others have to end by themselves when a process has failed."""

_LOOK_S = 0.1


class _Result(NamedTuple):
    """What a process sends at its end: a value, or an error with its traceback."""

    value: Any = None
    error: BaseException | None = None
    trace: str = ""


class _Started:
    """A process, and what it told at its end."""

    def __init__(self, place: Place, payload: bytes, port: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.rank, self.told = place.rank, _Result()
        self.heard = self.ended_here = False
        exact = torch.are_deterministic_algorithms_enabled()
        self.process = context.Process(target=_run, args=(place, port, theirs, exact))
        with _without_main():
            self.process.start()
        theirs.close()
        # It reads when it has imported everything, which all do at a time.
        threading.Thread(target=self._send, args=(payload,), daemon=True).start()

    def _send(self, payload: bytes) -> None:
        with contextlib.suppress(OSError):  # it has ended
            self.pipe.send_bytes(payload)

    def has_ended(self) -> bool:
        """Hear what it has sent; return whether it has ended."""
        ended = self.process.exitcode is not None
        if not self.heard and self.pipe.poll():
            with contextlib.suppress(EOFError, OSError):
                self.told, self.heard = self.pipe.recv(), True
        return ended

    @property
    def died(self) -> bool:
        """Whether it ended without a word, and not because another had failed."""
        return self.process.exitcode is not None and not (self.heard or self.ended_here)

    def end(self) -> None:
        """End it now, if it is still there."""
        if self.process.exitcode is None:
            # So that it is not taken for the one that ended first.
            self.ended_here = True
            self.process.kill()
        self.process.join()
        self.pipe.close()


def start_processes(config: RunConfig, work: Callable[[Fabric], Value]) -> Value:
    """Call `work` in each process of a run on this machine; return what the first one returned.

    `work` is passed by pickling. Scripts need no guard of ``__main__``, which is not imported
    again, and notebooks work too. An error of one process ends all, and is raised here.

    Raises:
        ProcessError: One was ended from outside.
        KeyboardInterrupt: Ctrl-C came before they could answer it themselves.
    """
    devices, port = config.machine.devices, free_port()
    # Plain pickling: PyTorch's own would put the weights into shared memory, which may be small.
    payload = pickle.dumps((config, work), protocol=5)
    started: list[_Started] = []
    with pass_signals(lambda: [one.process.pid for one in started]) as received:
        try:
            for rank in range(devices):
                place = here(devices)._replace(rank=rank, local_rank=rank)
                started.append(_Started(place, payload, port))
            _wait(started)
        finally:
            for one in started:
                one.end()
    error = _first_error(started)
    if error is None:
        value: Value = started[0].told.value
        return value
    if received and isinstance(error, ProcessError):
        raise KeyboardInterrupt from error
    raise error


def _wait(started: list[_Started]) -> None:
    """Wait until all have ended, or for a while after one has failed."""
    failed_at: float | None = None
    while sum(one.has_ended() for one in started) < len(started):
        if any(one.died or one.told.error is not None for one in started):
            failed_at = failed_at or time.monotonic()
            if time.monotonic() - failed_at > _GRACE_S:
                return
        time.sleep(_LOOK_S)
    for one in started:  # of the last moment
        one.has_ended()


def _first_error(started: list[_Started]) -> BaseException | None:
    """The error that made the others fail, or None."""
    told = [one.told for one in started if one.told.error is not None]
    lost = next((each.error for each in told if isinstance(each.error, ProcessError)), None)
    for one in started:
        # What ended from outside is the cause; the others could only notice it.
        if one.died:
            code = one.process.exitcode or 0
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            hint = " A system without free memory does so." if code == -signal.SIGKILL else ""
            place = f" (others were at {lost.place})" if isinstance(lost, ProcessError) else ""
            message = (
                f"all {len(started)} processes of a training must go on, got the end of rank "
                f"{one.rank} by {how}{place}.{hint} Go on with --resume."
            )
            return ProcessError(message)
    for each in told:
        if not isinstance(each.error, ProcessError):
            if each.error is not None and not isinstance(each.error, MuntinError):
                each.error.add_note(f"In a training process:\n{each.trace}")
            return each.error
    return lost


def _run(place: Place, port: int, pipe: Connection, exact: bool) -> None:
    """What a started process does."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.use_deterministic_algorithms(exact)
    if place.rank:  # all would say the same
        warnings.simplefilter("ignore", MuntinWarning)
    threading.Thread(target=_follow_parent, daemon=True).start()
    try:
        config, work = pickle.loads(pipe.recv_bytes())
        told = _Result(value=take_part(place, config, work))
    except BaseException as error:  # also of Ctrl-C: the parent decides what is shown
        told = _Result(error=error, trace=traceback.format_exc())
    # Of the others nobody asks for the value, which may be large.
    value = told.value if not place.rank else None
    try:
        sent = pickle.dumps(told._replace(value=value))
        pickle.loads(sent)
    except Exception:  # an error that cannot be pickled, or not be made again
        sent = pickle.dumps(_Result(error=RuntimeError(told.trace), trace=told.trace))
    with contextlib.suppress(OSError):  # who started this one has ended
        pipe.send_bytes(sent)


def _follow_parent() -> None:
    """Stop as for a signal when the process that started this one has ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Spawned processes import the main module again: a script without a guard would run twice."""
    main = sys.modules["__main__"]
    # Read when PyTorch is imported: its C++ parts warn that all parameters have been used.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
