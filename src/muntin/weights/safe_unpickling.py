# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Read pickles of known training code through an allowlist, without executing other code.

Checkpoints often hold a config, arguments or a log. Allowlisted classes become empty placeholders.
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

__all__ = ["load_allowlisted", "read_numpy_pickle"]


class Placeholder:
    """Replaces an object that is not needed; accepts any arguments and state."""

    def __new__(cls, *_args: object) -> Placeholder:
        return super().__new__(cls)

    def __setstate__(self, _state: object) -> None: ...


# Classes and functions in a pickled array, under the names of numpy 1 and numpy 2.
_ARRAY_CLASSES = (
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.dtype",
    "numpy.ndarray",
    "_codecs.encode",
)
# Classes in training checkpoints besides tensors: subclasses of dict, then the others.
_DICTIONARY_CLASSES = (
    "yacs.config.CfgNode",
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict",
)
_IGNORED_CLASSES = (
    "argparse.Namespace",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmengine.logging.message_hub.HistoryBuffer",
    "pathlib.PosixPath",
    *_ARRAY_CLASSES,
)


def load_allowlisted(file: Path) -> Any:  # noqa: ANN401 (any content)
    """Load a file of ``torch.save``; unpickling other classes raises, and nothing is executed."""
    listed = [(OrderedDict, name) for name in _DICTIONARY_CLASSES]
    listed += [(Placeholder, name) for name in _IGNORED_CLASSES]  # type: ignore[misc]
    with torch.serialization.safe_globals(listed):  # type: ignore[arg-type]
        return torch.load(file, map_location="cpu", weights_only=True)


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 (pickle's signature)
        """Return the class or function of this name if it is allowlisted."""
        listed = [path.rsplit(".", 1) for path in (*_ARRAY_CLASSES, "collections.OrderedDict")]
        if [module, name] in listed:
            return super().find_class(module, name)
        message = f"{module}.{name} is not allowed in a pickle of numpy arrays"
        raise pickle.UnpicklingError(message)


def read_numpy_pickle(file: Path) -> Mapping[str, Any]:
    """Read a pickle of numpy arrays (``.pkl``), as in detectron2's model zoo, to tensors.

    Anything other than arrays and plain values raises `pickle.UnpicklingError`.
    """
    with file.open("rb") as stream:
        content = _ArrayUnpickler(stream).load()
    if not isinstance(content, Mapping):
        message = f"must hold a dictionary of arrays, got {type(content).__name__}"
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
