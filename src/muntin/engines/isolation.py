# SPDX-License-Identifier: Apache-2.0
"""Open an exported file in a process of its own first: an engine that crashes would end this one.

`python -m muntin.engines.isolation FILE` is that process. It imports the engine only, not PyTorch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from muntin.errors import RunError

COMMAND = (sys.executable, "-m", "muntin.engines.isolation")

_ENGINES = {".xml": "OpenVINO", ".onnx": "ONNX Runtime"}


def try_file(path: Path, precision: str = "fp32", *, command: Sequence[str] = COMMAND) -> None:
    """Compile and run a file once, by the command; other suffixes than .xml and .onnx pass.

    Raises:
        RunError: The engine crashed. Its exceptions are no crash: they are met again, and
            reported, by who opens the file.
    """
    engine = _ENGINES.get(path.suffix.lower())
    if engine is None:
        return
    package = str(Path(__file__).resolve().parents[2])
    places = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    code = subprocess.run(
        [*command, str(path), precision],
        env={**os.environ, "PYTHONPATH": places},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    ).returncode
    if code:
        message = (
            f"{engine} must run the model, but it crashed when it was tried in a process of its "
            f"own ({_name_end(code)}). Use another format (onnx, openvino, torch) or precision."
        )
        raise RunError(message)


def _name_end(code: int) -> str:
    """How a process ended, in words."""
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"exit code {code}"


def _run_openvino(path: str, precision: str) -> None:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    hint = "bf16" if precision == "bf16" else "f32"
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    compiled.infer_new_request([_ones(each.partial_shape, each) for each in compiled.inputs])


def _ones(shape: Any, place: Any) -> Any:  # noqa: ANN401 (of OpenVINO; NumPy is not loaded before)
    import numpy as np

    sides = [2 if side.is_dynamic else side.get_length() for side in shape]
    return np.ones(sides, place.element_type.to_dtype())


def _run_onnx(path: str, precision: str) -> None:
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    kinds = {"tensor(uint8)": np.uint8, "tensor(int64)": np.int64, "tensor(int32)": np.int32}
    session.run(
        None,
        {
            each.name: np.ones(
                [side if isinstance(side, int) else 2 for side in each.shape],
                kinds.get(each.type, np.float32),
            )
            for each in session.get_inputs()
        },
    )


if __name__ == "__main__":
    with contextlib.suppress(Exception):
        (_run_openvino if sys.argv[1].lower().endswith(".xml") else _run_onnx)(*sys.argv[1:3])
    os._exit(0)  # what engines do when a process ends is not of interest
