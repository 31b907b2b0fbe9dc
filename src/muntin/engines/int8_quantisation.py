# SPDX-License-Identifier: Apache-2.0
"""Post-training int8 quantisation of OpenVINO and ONNX models with NNCF."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from muntin.engines.graphs import quiet, silence_telemetry


def quantise_int8(
    model: Any,  # noqa: ANN401 (openvino.Model or onnx.ModelProto)
    rows: Sequence[Mapping[str, NDArray[Any]]],
    *,
    kept: Sequence[str] = (),
    smooth: bool = False,
) -> Any:  # noqa: ANN401 (as the model)
    """Quantise a model, which may be modified, to int8, calibrated on rows of inputs.

    `kept` operators stay in floating point. `smooth` applies SmoothQuant, the default of NNCF for
    transformers; it moves scale into the preceding norm, which is folded away in our graphs.
    """
    silence_telemetry()
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
    """Restore the signal stack of the thread, which NNCF's OpenVINO cores replace."""
    if os.name != "posix":
        yield
        return
    system = ctypes.CDLL(None)
    place = (ctypes.c_void_p * 3)()  # stack_t: where, flags, size
    system.sigaltstack(None, place)
    try:
        yield
    finally:
        gc.collect()  # destroy remaining cores first
        system.sigaltstack(place, None)
