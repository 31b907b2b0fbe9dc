# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and what resuming needs: the checkpoint folder ``last.ckpt/``, as safetensors and JSON.

Tensors are stored in ``state.safetensors`` under the path of their keys, everything else in
``state.json`` with the same nesting.
"""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import safetensors.torch
from lightning_fabric import Fabric
from torch import Tensor

from muntin.errors import RunError, cannot_write

FOLDER = "last.ckpt"


def write_checkpoint(run: Path, parts: Mapping[str, Any]) -> None:
    """Write nested dictionaries and lists of tensors and plain values.

    A new checkpoint is written beside the old one and then renamed: a full disk or a power failure
    leaves the old one intact.
    """
    final, fresh, old = run / FOLDER, run / (FOLDER + ".new"), run / (FOLDER + ".old")
    tensors: dict[str, Tensor] = {}
    rest = _take_tensors(parts, "", tensors)
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        (fresh / "state.json").write_text(json.dumps(rest), encoding="utf-8")
        safetensors.torch.save_file(tensors, fresh / "state.safetensors")
        (fresh / "state.safetensors").chmod(0o644)  # like the other files of the run
        # A folder cannot be replaced atomically: between the two renames `old` is the checkpoint.
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            final.rename(old)
        fresh.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        # The second rename failed: the previous checkpoint takes its place again.
        if old.exists() and not final.exists():
            old.rename(final)
        message = f"{cannot_write(final, error)} The previous one is kept; --resume uses it."
        raise RunError(message) from error


def read_checkpoint(run: Path) -> dict[str, Any]:
    """Read the checkpoint of a run."""
    folder = run / FOLDER
    # Interrupted between the two renames of `write_checkpoint`.
    if not folder.is_dir() and (run / (FOLDER + ".old")).is_dir():
        folder = run / (FOLDER + ".old")
    try:
        rest = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        tensors = safetensors.torch.load_file(folder / "state.safetensors")
        parts: dict[str, Any] = _put_tensors(rest, tensors)
        if not isinstance(rest, dict) or "position" not in rest:
            message = "state.json has no training state"
            raise ValueError(message)
    except FileNotFoundError as error:
        message = f"{run} must contain {FOLDER} to be resumed. Start a new run in another folder."
        raise RunError(message) from error
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        message = f"{folder} is corrupt ({error}). Start a new run in another folder."
        raise RunError(message) from error
    return parts


_TENSOR = "@tensor"
_NUMBERED = "@numbered"


def _take_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401
    """Replace tensors by their names, and mark dictionaries with integer keys, which JSON lacks."""
    if isinstance(value, Tensor):
        # Cloned: safetensors refuses tensors that share memory, as tied weights do.
        tensors[path] = value.detach().cpu().contiguous().clone()
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
def defer_interrupts() -> Iterator[list[int]]:
    """Let the launched processes handle Ctrl-C; yield the signals received so far."""
    received: list[int] = []
    with _handle(lambda number, frame: received.append(number), signal.SIGINT):
        yield received


class Stopped(Exception):
    """Raised by a signal while the training only waits."""


class Interruption(ExitStack):
    """Context in which the first Ctrl-C requests a stop, and the second one acts as usual.

    It also requests a stop after `stop_after` steps; 0 = never.
    """

    def __init__(self, stop_after: int = 0) -> None:
        super().__init__()
        self._left, self._requested, self._waits = stop_after, False, False
        self.enter_context(_handle(self._request, signal.SIGINT, signal.SIGTERM))

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        # Restores the handlers, so that a second signal ends a step that hangs.
        self.close()
        if self._waits:
            self._waits = False
            raise Stopped

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
