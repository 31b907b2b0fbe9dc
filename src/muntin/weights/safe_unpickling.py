# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Pickles from known training code, read with a list of what may be in them; nothing else runs.

Training checkpoints often hold more than tensors: a config object of yacs, arguments, a log. What
is on the list below becomes an empty stand-in that ignores what it is given. Everything that is
not on a list makes the whole file refused.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["load_listed", "read_numpy_pickle"]


class Inert:
    """Stands for an object that nobody needs: it takes anything and does nothing."""

    def __new__(cls, *_args: object) -> Inert:
        """Ignore what the object was made from."""
        return super().__new__(cls)

    def __setstate__(self, _state: object) -> None:
        """Ignore what the object held."""


# Module and name of what stands in training checkpoints beside the tensors: first what is a
# dictionary, then what is not.
_DICTIONARIES = (
    "yacs.config.CfgNode",
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict",
)
_NOT_NEEDED = (
    "argparse.Namespace",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmengine.logging.message_hub.HistoryBuffer",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.dtype",
    "numpy.ndarray",
    "_codecs.encode",
    "pathlib.PosixPath",
)


def load_listed(file: Path) -> Any:  # noqa: ANN401 (whatever the file holds)
    """Load a file of ``torch.save`` that holds tensors, plain values, and what is on the list.

    Raises:
        pickle.UnpicklingError: It holds something else; nothing of it was executed.
    """
    listed = [(OrderedDict, name) for name in _DICTIONARIES]
    listed += [(Inert, name) for name in _NOT_NEEDED]  # type: ignore[misc]
    with torch.serialization.safe_globals(listed):  # type: ignore[arg-type]
        return torch.load(file, map_location="cpu", weights_only=True)


# What a pickled array is made of, under the names of numpy 1 and of numpy 2.
_OF_ARRAYS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Makes numpy arrays and plain values, and refuses every other class and function."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 (pickle's signature)
        """Give the class or function of this name, if it is one of the few."""
        if (module, name) in _OF_ARRAYS:
            return super().find_class(module, name)
        message = f"{module}.{name} is not on the list of what a file of arrays may hold"
        raise pickle.UnpicklingError(message)


def read_numpy_pickle(file: Path) -> Mapping[str, Any]:
    """Read a pickle of numpy arrays, as detectron2's model zoo has them (``.pkl``).

    Returns:
        The same nesting with tensors instead of arrays.

    Raises:
        pickle.UnpicklingError: It holds anything besides arrays and plain values.
    """
    with file.open("rb") as stream:
        content = _ArrayUnpickler(stream).load()
    if not isinstance(content, Mapping):
        message = f"a {type(content).__name__} where a dictionary of arrays should be"
        raise pickle.UnpicklingError(message)
    return _to_tensors(content)


def _to_tensors(content: Mapping[str, Any]) -> Mapping[str, Any]:
    changed: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            changed[key] = _to_tensors(value)
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            changed[key] = torch.from_numpy(np.ascontiguousarray(value))
        elif isinstance(value, Tensor | int | float | str):
            changed[key] = value
    return changed
