# SPDX-License-Identifier: Apache-2.0
"""The checkpoint folder ``last.ckpt/``: the state that resuming needs, as safetensors and JSON.

Tensors are stored in ``state.safetensors`` under the path of their keys, everything else in
``state.json`` with the same nesting.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
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
