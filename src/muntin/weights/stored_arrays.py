# SPDX-License-Identifier: Apache-2.0
"""Content of pickles and of numpy archives: arrays are built here, other objects are left out.

A pickle calls classes with arguments from the file, and numpy's own restore whatever it says, even
beyond their memory. So every name on the list stands for a class or function of this module: arrays
are built from a shape, one of a few plain types, and bytes of exactly that length.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from muntin.untrusted import open_regular, refuse_bomb

# Types by code of numpy, without byte order. Void of 2 bytes is how JAX stores bfloat16.
_PLAIN = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1", "V2")
_BFLOAT16 = "V2"
_MOST_AXES = 16


def build_array(shape: Sequence[int], code: str, order: str, data: bytes) -> Tensor | None:
    """Build a tensor from bytes in C order; None for types that are no weights.

    `code` is kind and item size ("f4"), `order` the byte order ("<", ">", "=" or "|").

    Raises:
        UnpicklingError: Shape, type and length of the data do not agree.
    """
    if code not in _PLAIN:
        return None
    whole = all(type(side) is int and side >= 0 for side in shape) and len(shape) <= _MOST_AXES
    if not whole or order not in tuple("<>=|") or not isinstance(data, bytes | bytearray):
        message = f"an array must have a shape, a byte order and bytes, got {shape} and {order!r}"
        raise pickle.UnpicklingError(message)
    if math.prod(shape) * int(code[1:]) != len(data):
        message = f"an array of shape {tuple(shape)} and type {code} has {len(data)} bytes"
        raise pickle.UnpicklingError(message)
    kind = np.dtype(f"{order}{'i2' if code == _BFLOAT16 else code}")
    array = np.frombuffer(data, dtype=kind).reshape(tuple(shape))
    tensor = torch.from_numpy(array.astype(kind.newbyteorder("=")))
    return tensor.view(torch.bfloat16) if code == _BFLOAT16 else tensor


class LeftOut:
    """Replaces an object that is not needed: it ignores its arguments and its state."""

    def __new__(cls, *_args: object) -> LeftOut:
        """Create the replacement, whatever the arguments are."""
        return super().__new__(cls)

    def __setstate__(self, _state: object) -> None: ...


class _DType:
    """A plain type of numpy; one with fields or parts is refused."""

    def __init__(self, code: object = "", *_flags: object) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *structure = state
        if any(part is not None for part in structure[:3]):
            message = f"numpy.dtype must be a plain number, got {self.code!r} with fields"
            raise pickle.UnpicklingError(message)
        self.order = str(order)


class StoredArray:
    """An array of a pickle; `tensor` is None for texts, objects and other types."""

    tensor: Tensor | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self._fill(shape, dtype, "F" if fortran else "C", data)

    def _fill(self, shape: Sequence[int], dtype: object, axes: object, data: object) -> None:
        if not isinstance(dtype, _DType) or not isinstance(shape, tuple):
            message = "an array must have a shape and a type of numpy"
            raise pickle.UnpicklingError(message)
        if isinstance(data, list):  # of objects
            return
        columns = axes == "F"
        sides = shape[::-1] if columns else shape
        whole = build_array(sides, dtype.code, dtype.order, data)  # type: ignore[arg-type]
        if whole is not None and columns:
            whole = whole.permute(*reversed(range(whole.ndim))).contiguous()
        self.tensor = whole


class _NdArray:
    """Stands for `numpy.ndarray` as an argument; nothing may call it."""

    def __new__(cls, *_args: object) -> _NdArray:
        message = "numpy.ndarray over a buffer of the file"
        raise pickle.UnpicklingError(message)


def _start_array(*_args: object) -> StoredArray:
    return StoredArray()


def _array_of_buffer(data: object, dtype: object, shape: Any, axes: object) -> StoredArray:  # noqa: ANN401 (anything)
    array = StoredArray()
    array._fill(shape, dtype, axes, bytes(data) if isinstance(data, bytearray) else data)
    return array


def _encode(text: object, encoding: object = "") -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        message = f"_codecs.encode with {encoding!r}"
        raise pickle.UnpicklingError(message)
    return text.encode("latin1")


def _empty_bytes(*given: object) -> bytes:
    if given:  # a size: any amount of memory
        message = f"builtins.bytes of {given}"
        raise pickle.UnpicklingError(message)
    return b""


class _Dictionary:
    """Stands for subclasses of dict: their items become those of an ordinary dictionary."""

    def __new__(cls, *_args: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


_NUMPY = ("numpy.core.", "numpy._core.")  # names of numpy 1 and of numpy 2
_ARRAYS: dict[str, Callable[..., Any]] = {
    **{f"{room}multiarray._reconstruct": _start_array for room in _NUMPY},
    **{f"{room}multiarray.scalar": LeftOut for room in _NUMPY},
    **{f"{room}numeric._frombuffer": _array_of_buffer for room in _NUMPY},
    "numpy.dtype": _DType,
    "numpy.ndarray": _NdArray,
    "_codecs.encode": _encode,
    "builtins.bytes": _empty_bytes,
}
# Strangers in training checkpoints; the first are dictionaries.
_DICTIONARIES = (
    "yacs.config.CfgNode",
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict",
    "collections.defaultdict",
)
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
_OTHERS = (
    "argparse.Namespace",
    "functools.partial",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmengine.logging.message_hub.HistoryBuffer",
    "torch.torch_version.TorchVersion",
    *(f"{room}.{name}" for room in ("pathlib", "pathlib._local") for name in _PATHS),
    *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
    # Factories of a defaultdict.
    *(f"builtins.{name}" for name in ("dict", "list", "tuple", "int", "float", "str", "bool")),
)
ALLOWED: dict[str, Callable[..., Any]] = {
    **_ARRAYS,
    **dict.fromkeys(_OTHERS, LeftOut),
    **dict.fromkeys(_DICTIONARIES, _Dictionary),
    "collections.OrderedDict": OrderedDict,
}
"""By name in a file: the class or function that stands for it."""


# Libraries whose objects training code stores beside weights: optimizers, settings, whole modules.
_LIBRARIES = ("torch", "timm", "torchvision", "transformers", "omegaconf", "lightning",
              "pytorch_lightning", "mmengine", "mmcv", "fvcore")  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 (pickle's signature)
        """Return what stands for the class or function of this name, if it is listed."""
        # Protocol 2 has the names of Python 2.
        found = ALLOWED.get(f"{module.replace('__builtin__', 'builtins')}.{name}")
        if found is None:
            message = f"GLOBAL {module}.{name} is not allowed"
            raise pickle.UnpicklingError(message)
        return found


def read_pickle(file: Path) -> Any:  # noqa: ANN401 (any content)
    """Read a pickle of arrays (``.pkl``), as in detectron2's model zoo."""
    with open_regular(file) as stream:
        return _Unpickler(stream).load()


def read_torch(file: Path) -> Any:  # noqa: ANN401 (any content)
    """Load a file of ``torch.save``; unpickling other classes raises, and nothing is executed."""
    if zipfile.is_zipfile(file):
        refuse_bomb(file)
    # StoredArray is not called by a file, but its state is set.
    listed: list[Any] = [*((stand_in, name) for name, stand_in in ALLOWED.items()), StoredArray]
    try:
        return _load(file, listed)
    except pickle.UnpicklingError:
        if not zipfile.is_zipfile(file):
            raise
        with torch.serialization.safe_globals(listed):
            others = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        known = [name for name in others if name.partition(".")[0] in _LIBRARIES]
        if len(known) < len(others):
            raise
    # One class each: its name says what a file holds.
    return _load(file, [*listed, *((type(name, (LeftOut,), {}), name) for name in known)])


def _load(file: Path, listed: list[Any]) -> Any:  # noqa: ANN401 (any content)
    with torch.serialization.safe_globals(listed):
        return torch.load(file, map_location="cpu", weights_only=True)


def read_archive(file: Path) -> dict[str, Tensor]:
    """Read the arrays of numpy's ``.npz``."""
    tensors = {}
    refuse_bomb(file)
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            with archive.open(name) as stream:
                version = np.lib.format.read_magic(stream)
                read = np.lib.format.read_array_header_1_0
                if version != (1, 0):
                    read = np.lib.format.read_array_header_2_0
                shape, fortran, dtype = read(stream)
                array = StoredArray()
                code = _DType(dtype.str[1:])
                code.order = dtype.str[0]
                data = stream.read(max(math.prod(shape), 0) * dtype.itemsize + 1)
                array._fill(shape, code, "F" if fortran else "C", data)
                if array.tensor is not None:
                    tensors[name.removesuffix(".npy")] = array.tensor
    return tensors
