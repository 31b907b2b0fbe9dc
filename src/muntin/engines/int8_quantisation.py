# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Quantisation of a model of OpenVINO or ONNX, through NNCF."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from muntin.engines.graphs import quiet

__all__ = ["quantise_int8"]


def quantise_int8(
    model: Any,  # noqa: ANN401 (openvino.Model or onnx.ModelProto)
    rows: Sequence[Mapping[str, NDArray[Any]]],
    *,
    kept: Sequence[str] = (),
    smooth: bool = False,
) -> Any:  # noqa: ANN401 (as the model)
    """Give a model that multiplies in 8 bits.

    Args:
        model: It may be changed.
        rows: Its inputs, by which ranges are chosen.
        kept: Names of operators that stay as they are.
        smooth: Whether NNCF moves scale from inputs to weights, as it does for transformers by
            itself. Where norms are folded nothing is left that could take it up.
    """
    import nncf

    advanced = None if smooth else nncf.AdvancedQuantizationParameters(smooth_quant_alpha=-1)
    with quiet(), _kept_signal_stack():
        return nncf.quantize(
            model,
            nncf.Dataset(list(rows)),
            subset_size=len(rows),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=list(kept), validate=False),
            advanced_parameters=advanced,
        )


@contextlib.contextmanager
def _kept_signal_stack() -> Iterator[None]:
    """Give the thread its stack for signals back: the library makes cores and drops them."""
    if os.name != "posix":
        yield
        return
    system = ctypes.CDLL(None)
    place = (ctypes.c_void_p * 3)()  # stack_t: where, flags, size
    system.sigaltstack(None, place)
    try:
        yield
    finally:
        gc.collect()  # cores that are still to be dropped
        system.sigaltstack(place, None)
