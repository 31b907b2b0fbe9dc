# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Files of weights: read without executing anything, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from muntin.errors import WeightError, shorten
from muntin.system_errors import cannot_write
from muntin.weights.safe_unpickling import load_listed, read_numpy_pickle

__all__ = [
    "SUFFIXES",
    "WeightFile",
    "find_file",
    "read_weights",
    "unwrap",
    "write_weights",
    "write_whole",
]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".npz", ".pkl")
_IN_FOLDER = ("model.safetensors", "weights.safetensors", "pytorch_model.bin")
# How files of torch.save begin: a zip archive, or a pickle (before PyTorch 1.6).
_TORCH_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")
# Which part of a training checkpoint is the model, best first.
_NESTS = ("model_state", "state_dict_ema", "model", "state_dict")
_PREFIXES = ("module.", "_orig_mod.", "model.")


@dataclass(frozen=True, slots=True)
class WeightFile:
    """What a file of weights holds.

    Attributes:
        path: The file.
        tensors: Its content, as nested as it was stored.
        metadata: Texts stored beside the tensors (safetensors only).
    """

    path: Path
    tensors: Mapping[str, Any]
    metadata: Mapping[str, str] = field(default_factory=dict)


def find_file(path: Path) -> Path:
    """Give the file of weights that a path means: itself, or the one in that folder.

    Raises:
        WeightError: There is nothing at the path, the folder holds no weights, or the file has
            a suffix that no format of weights has.
    """
    if path.is_dir():
        for name in _IN_FOLDER:
            if (path / name).is_file():
                return path / name
        message = (
            f"A folder of weights must hold one of {', '.join(_IN_FOLDER)}; {str(path)!r} has "
            f"none. Name the file itself."
        )
        raise WeightError(message)
    if not path.is_file():
        message = f"There is no file or folder {str(path)!r}. Check the path of the weights."
        raise WeightError(message)
    if path.suffix.lower() not in SUFFIXES:
        message = (
            f"A file of weights must end in {', '.join(SUFFIXES)}, got {str(path)!r}. "
            f"Check that it is the right file."
        )
        raise WeightError(message)
    return path


def read_weights(path: str | Path) -> WeightFile:
    """Read a file of weights, or the one in a folder. Nothing in it is executed.

    Args:
        path: A file that ends in one of `SUFFIXES`, or a folder that holds one.

    Returns:
        The tensors, on the CPU, and the metadata.

    Raises:
        WeightError: There is no such file, or it is empty, cut off, of another format, or
            holds Python objects besides tensors.
    """
    file = find_file(Path(path).expanduser())
    try:
        with file.open("rb") as stream:
            start = stream.read(9)
    except OSError as error:
        message = f"{str(file)!r} cannot be read: {error.strerror}. Check its permissions."
        raise WeightError(message) from error
    if not start:
        message = f"{str(file)!r} has 0 bytes. Copy or download it again."
        raise WeightError(message)
    if file.suffix.lower() in (".npz", ".pkl"):
        return _read_arrays(file)
    is_torch = start.startswith(_TORCH_STARTS)
    if is_torch == (file.suffix.lower() == ".safetensors") or not (is_torch or start[8:] == b"{"):
        found = "a PyTorch file" if is_torch else "something else"
        wanted = "safetensors" if file.suffix.lower() == ".safetensors" else "PyTorch"
        message = (
            f"{str(file)!r} must hold weights in {wanted} format, got {found} by its first bytes. "
            f"Check that it is the right file and has the right suffix."
        )
        raise WeightError(message)
    return _read_torch(file) if is_torch else _read_safetensors(file)


def _read_safetensors(file: Path) -> WeightFile:
    try:
        with safetensors.safe_open(file, framework="pt") as content:
            tensors = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118
            return WeightFile(file, tensors, dict(content.metadata() or {}))
    except safetensors.SafetensorError as error:
        message = f"{_damaged(file)} ({error}). Copy or download it again."
        raise WeightError(message) from error


def _read_torch(file: Path) -> WeightFile:
    try:
        content = load_listed(file)
    except pickle.UnpicklingError as error:
        raise WeightError(_suspicious(file)) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        message = f"{_damaged(file)}. Copy or download it again."
        raise WeightError(message) from error
    if not isinstance(content, Mapping):
        message = (
            f"{str(file)!r} must hold a state dict, got {type(content).__name__}. "
            f"Save model.state_dict()."
        )
        raise WeightError(message)
    return WeightFile(file, content)


def _read_arrays(file: Path) -> WeightFile:
    """Read numpy's own archive, or a pickle of numpy arrays."""
    try:
        if file.suffix.lower() == ".pkl":
            return WeightFile(file, read_numpy_pickle(file))
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return WeightFile(file, {name: _as_tensor(archive[name]) for name in archive.files})
    except pickle.UnpicklingError as error:
        raise WeightError(_suspicious(file)) from error
    except (OSError, ValueError, EOFError, KeyError, IndexError, zipfile.BadZipFile) as error:
        message = f"{_damaged(file)}, or no file of arrays. Copy or download it again."
        raise WeightError(message) from error


def _as_tensor(array: NDArray[Any]) -> Tensor:
    # numpy has no bfloat16: JAX stores it as two bytes without a meaning.
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array))


def _suspicious(file: Path) -> str:
    return (
        f"{str(file)!r} holds Python objects besides tensors, or is damaged; such a file could "
        f"run any code when opened, so it is refused. Save only the state dict, or use "
        f"safetensors."
    )


def _damaged(file: Path) -> str:
    return f"{str(file)!r} ({file.stat().st_size} bytes) is damaged or cut off"


def unwrap(content: Mapping[str, Any], *, where: str) -> tuple[dict[str, Tensor], str]:
    """Find the state dict in a training checkpoint and strip what wrappers put before its names.

    Args:
        content: What a file holds, or a state dict.
        where: Where it came from, for messages.

    Returns:
        The flat state dict, and the path of keys that led to it (empty when it was flat).

    Raises:
        WeightError: There are no tensors.
    """
    way = []
    while nest := next((key for key in _NESTS if isinstance(content.get(key), Mapping)), ""):
        content = content[nest]
        way.append(nest)
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        message = (
            f"{where} must hold named tensors, got {shorten(map(str, content)) or 'nothing'}. "
            f"Give a state dict."
        )
        raise WeightError(message)
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), ""):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state, ".".join(way)


def write_weights(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors: the file is whole or, after any failure, as it was before.

    Args:
        path: The file; must end in ``.safetensors``. Its folder is made when missing.
        tensors: What to store.
        metadata: Texts to store beside them.

    Raises:
        WeightError: The suffix is another one, or the disk is full or cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        message = f"Weights are written as .safetensors, got {str(path)!r}. Change the suffix."
        raise WeightError(message)
    whole = {key: value.detach().contiguous() for key, value in tensors.items()}
    # Other readers of safetensors refuse a file that does not say "pt" here.
    texts = {"format": "pt", **(metadata or {})}
    write_whole(path, lambda place: safetensors.torch.save_file(whole, place, metadata=texts))


def write_whole(path: Path, write: Callable[[str], None]) -> None:
    """Let a function write a file beside its place, and move it there when it is whole.

    Raises:
        WeightError: The disk is full or cannot be written; nothing there was changed.
    """
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=path.name, suffix=f".partial{path.suffix}"
        )
        os.close(handle)
        write(temporary)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        message = f"{cannot_write(path, error)} Nothing there was changed."
        raise WeightError(message) from error
    finally:
        if temporary:
            with contextlib.suppress(FileNotFoundError):
                Path(temporary).unlink()
