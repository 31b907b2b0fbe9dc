# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""``last.ckpt/``: everything that resuming needs, as safetensors and JSON.

Tensors of every part go to ``state.safetensors`` under ``part/path/to/it``; everything else to
``state.json`` in the same shape. The folder is written beside the old one and then takes its
place, so a full disk or a pulled plug leaves the old one whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from muntin.errors import RunError
from muntin.outside_errors import cannot_write

__all__ = ["read_checkpoint", "write_checkpoint"]

FOLDER = "last.ckpt"


def write_checkpoint(run: Path, parts: Mapping[str, Any]) -> None:
    """Write the state of a run.

    Args:
        run: The run folder.
        parts: Nested dictionaries and lists of tensors, numbers, strings, booleans and None. Keys
            are strings or whole numbers.

    Raises:
        RunError: The disk refuses; the checkpoint from before is still there.
    """
    final, fresh, old = run / FOLDER, run / (FOLDER + ".new"), run / (FOLDER + ".old")
    tensors: dict[str, Tensor] = {}
    rest = _take_tensors(parts, "", tensors)
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        (fresh / "state.json").write_text(json.dumps(rest), encoding="utf-8")
        safetensors.torch.save_file(tensors, fresh / "state.safetensors")
        (fresh / "state.safetensors").chmod(0o644)  # as every other file of the run
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            final.rename(old)
        fresh.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if old.exists() and not final.exists():
            old.rename(final)
        message = f"{cannot_write(final, error)} The one from before is kept: use --resume then."
        raise RunError(message) from error


def read_checkpoint(run: Path) -> dict[str, Any]:
    """Read what `write_checkpoint` wrote.

    Raises:
        RunError: There is none, or it is broken.
    """
    folder = run / FOLDER
    if not folder.is_dir() and (run / (FOLDER + ".old")).is_dir():
        folder = run / (FOLDER + ".old")
    try:
        rest = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        tensors = safetensors.torch.load_file(folder / "state.safetensors")
        parts: dict[str, Any] = _put_tensors(rest, tensors)
        if not isinstance(rest, dict) or "position" not in rest:
            message = "state.json does not hold the state of a run"
            raise ValueError(message)
    except FileNotFoundError as error:
        message = (
            f"{run} must hold {FOLDER} to be resumed, got none. Train anew into another folder."
        )
        raise RunError(message) from error
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        message = f"{folder} is broken ({error}). Train anew into another folder."
        raise RunError(message) from error
    return parts


_TENSOR = "@tensor"
_NUMBERED = "@numbered"


def _take_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401
    """Move tensors into `tensors`, leaving their names; mark dictionaries with number keys."""
    if isinstance(value, Tensor):
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
