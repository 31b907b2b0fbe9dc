# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and what resuming needs: the checkpoint folder ``last.ckpt/``, as safetensors and JSON.

Tensors are stored in ``state.safetensors`` under the path of their keys, everything else in
``state.json`` with the same nesting; ``checksums.json``, written last, tells that both are whole.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import safetensors.torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor
from torch.distributed.tensor import DTensor

from muntin.errors import RunError, cannot_write, first_line
from muntin.staging import checksum, sync
from muntin.training.sharding import save_rows
from muntin.untrusted import parse_json, read_regular, reading
from muntin.weights.weight_files import separate

FOLDER = "last.ckpt"


def write_checkpoint(run: Path, parts: Mapping[str, Any], together: bool = False) -> None:
    """Write nested dictionaries and lists of tensors and plain values.

    All processes call it `together` if tensors are sharded; the first one does the rest.
    The old checkpoint is removed when the new one is whole and on the disk: a full disk, a power
    failure or the end of the process at any moment leaves one of them.
    """
    final, fresh, old = _places(run)
    tensors: dict[str, Tensor] = {}
    first = not together or dist.get_rank() == 0
    rest = _take_tensors(parts, "", tensors)
    try:
        if not first:
            save_rows(tensors, fresh / "state.safetensors")
            return
        if any(map(os.path.lexists, (fresh, old))):
            _settle(run)
        fresh.mkdir(parents=True)
        (fresh / "state.json").write_text(json.dumps(rest), encoding="utf-8")
        if together:
            save_rows(tensors, fresh / "state.safetensors")
        else:
            safetensors.torch.save_file(separate(tensors), fresh / "state.safetensors")
        (fresh / "state.safetensors").chmod(0o644)  # like the other files of the run
        sums = {name: checksum(fresh / name) for name in _FILES}
        (fresh / _SUMS).write_text(json.dumps(sums), encoding="utf-8")
        for each in (*fresh.iterdir(), fresh):
            sync(each)
        # A folder cannot be replaced atomically: between the two renames both are whole.
        if os.path.lexists(final):
            final.rename(old)
        fresh.rename(final)
        sync(run)
        _remove(old)
    except (OSError, safetensors.SafetensorError) as error:
        if first:
            _remove(fresh)
        # The second rename failed: the previous checkpoint takes its place again.
        if first and old.exists() and not final.exists():
            old.rename(final)
        rest = (
            "The previous one is kept; --resume uses it."
            if final.is_dir()
            else "It was the first: nothing can be resumed. Start the run again."
        )
        message = f"{cannot_write(final, error)} {rest}"
        raise RunError(message) from error


def read_checkpoint(run: Path) -> dict[str, Any]:
    """Read the checkpoint of a run; of several, which an interruption leaves, the newest whole one.

    Raises:
        RunError: There is none, or it is damaged or was edited.
    """
    final, fresh, old = _places(run)
    # A new one without checksums is not complete, and counts as none.
    there = (final, fresh, old) if (fresh / _SUMS).exists() else (final, old)
    faults = {place: _find_fault(place) for place in there if place.is_dir()}
    if not faults:
        message = (
            f"{run} must contain {FOLDER} to be resumed, got none. Start a new run in another "
            f"folder."
        )
        raise RunError(message)
    advice = "Restore it, or start a new run in another folder."
    folder = next((place for place, fault in faults.items() if not fault), None)
    if folder is None:
        place, fault = next(iter(faults.items()))
        message = f"{place} is damaged or was edited: {fault}. {advice}"
        raise RunError(message)
    with reading(f"{folder}", advice, RunError):
        rest = parse_json(read_regular(folder / "state.json"))
        tensors = safetensors.torch.load_file(folder / "state.safetensors")
        parts: dict[str, Any] = _put_tensors(rest, tensors)
        if not isinstance(rest, dict) or not isinstance(rest.get("position"), dict):
            message = "state.json has no training state"
            raise ValueError(message)
    return parts


_FILES = ("state.json", "state.safetensors")
_SUMS = "checksums.json"


def _places(run: Path) -> tuple[Path, Path, Path]:
    """Where a checkpoint may be, the newest whole one first."""
    return run / FOLDER, run / (FOLDER + ".new"), run / (FOLDER + ".old")


def _find_fault(folder: Path) -> str:
    """What is wrong with the files of a checkpoint; empty if they are whole."""
    try:
        if missing := [name for name in _FILES if not (folder / name).is_file()]:
            return f"{missing[0]} is missing"
        if (folder / _SUMS).exists():
            sums = parse_json(read_regular(folder / _SUMS))
            changed = (name for name in _FILES if sums[name] != checksum(folder / name))
            return next((f"{name} differs from its checksum" for name in changed), "")
    except (OSError, ValueError, LookupError, TypeError) as error:
        return f"{_SUMS} does not fit its files ({first_line(error)})"
    # Those of earlier versions have none; one that is being written has none yet.
    return f"{_SUMS} is missing" if folder.name == FOLDER + ".new" else ""


def _settle(run: Path) -> None:
    """Make the newest whole checkpoint the only one, after an interruption."""
    places = _places(run)
    whole = next((place for place in places if place.is_dir() and not _find_fault(place)), None)
    if whole is None:
        whole = places[0]
    elif whole != places[0]:
        _remove(places[0])
        whole.rename(places[0])
        sync(run)
    for place in places[1:]:
        _remove(place)


def _remove(place: Path) -> None:
    """Remove a folder; of a link, only the link."""
    if place.is_symlink():
        place.unlink()
    shutil.rmtree(place, ignore_errors=True)


_TENSOR = "@tensor"
_NUMBERED = "@numbered"


def _take_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401
    """Replace tensors by their names, and mark dictionaries with integer keys, which JSON lacks."""
    if isinstance(value, DTensor):
        tensors[path] = value  # every process has its rows
        return {_TENSOR: path}
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous()
        return {_TENSOR: path}
    if isinstance(value, Mapping):
        numbered = any(isinstance(key, int) for key in value)
        inner = {str(k): _take_tensors(v, f"{path}/{k}", tensors) for k, v in value.items()}
        return {_NUMBERED: inner} if numbered else inner
    if isinstance(value, (list, tuple)):
        return [_take_tensors(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    return value


def _put_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:  # noqa: ANN401
    if isinstance(value, list):
        return [_put_tensors(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _NUMBERED in value:
        return {int(k): _put_tensors(v, tensors) for k, v in value[_NUMBERED].items()}
    return {key: _put_tensors(item, tensors) for key, item in value.items()}


@contextmanager
def _handle(handler: Callable[[int, FrameType | None], object], *numbers: int) -> Iterator[None]:
    """Handle signals, in the main thread only: Python allows it nowhere else."""
    previous = {}
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextmanager
def pass_signals(processes: Callable[[], Iterable[int | None]]) -> Iterator[list[int]]:
    """Pass Ctrl-C and SIGTERM on to started processes; yield the signals received so far.

    A terminal has sent Ctrl-C to them already: they take both for the same request.
    """
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in processes():
            if process is not None:
                with suppress(ProcessLookupError):
                    os.kill(process, number)

    with _handle(forward, signal.SIGINT, signal.SIGTERM):
        yield received


_SAME_REQUEST_S = 1.0


class Stopped(Exception):
    """Raised by a signal while the training only waits."""


class Interruption(ExitStack):
    """Context in which the first Ctrl-C requests a stop, and a later one acts as usual.

    Those within a second of the first are the same request. It also requests a stop after
    `stop_after` steps; 0 = never.
    """

    def __init__(self, stop_after: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._left, self._requested, self._waits = stop_after, False, False
        self._clock = clock
        self._signalled_at: float | None = None
        self.enter_context(_handle(self._request, signal.SIGINT, signal.SIGTERM))

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self._signalled_at is None:
            self._requested, self._signalled_at = True, self._clock()
            if self._waits:
                self._waits = False
                raise Stopped
        elif self._clock() - self._signalled_at >= _SAME_REQUEST_S:
            self.close()  # restores the handlers: this one ends a step that hangs
            signal.raise_signal(number)

    @contextmanager
    def waiting(self, fabric: Fabric) -> Iterator[None]:
        """Context that changes no weights, which a signal leaves at once by `Stopped`.

        Reading may hang, and a validation takes longer than a scheduler waits. One of several
        processes never leaves alone: the others would wait for it.
        """
        self._waits = fabric.world_size == 1
        try:
            yield
        finally:
            self._waits = False

    def requested(self, fabric: Fabric) -> bool:
        """Whether to stop after the current step; the same answer in all processes."""
        if self._left:
            self._left -= 1
            self._requested = self._requested or self._left == 0
        if fabric.world_size == 1:
            return self._requested
        # Signals arrive at different times: if one process stops, all stop at that step.
        return bool(fabric.strategy.reduce_boolean_decision(self._requested, all=False))
