# SPDX-License-Identifier: Apache-2.0
"""Open an exported file in a process of its own first: an engine that crashes would end this one.

There, the memory and time of files that were not written here and now is limited.

`python -m muntin.engines.isolation FILE` is that process. It imports the engine only, not PyTorch.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from muntin.errors import RunError
from muntin.untrusted import BUDGET_VARIABLE, memory_budget

COMMAND = (sys.executable, "-m", "muntin.engines.isolation")

_TOO_MUCH, _TOO_LONG = 71, 72
"""Exit codes of the process."""

_ENGINES = {".xml": "OpenVINO", ".onnx": "ONNX Runtime"}


def try_file(
    path: Path,
    precision: str = "fp32",
    *,
    strange: bool = False,
    command: Sequence[str] = COMMAND,
    seconds: float = 600,
) -> None:
    """Compile and run a file once, by the command; other suffixes than .xml and .onnx pass.

    A `strange` file may take twice the budget of memory, and four times its own size.

    Raises:
        RunError: The engine crashed, or took too much memory or time. Its other exceptions are met
            again, and reported, by who opens the file.
    """
    engine = _ENGINES.get(path.suffix.lower())
    if engine is None:
        return
    package = str(Path(__file__).resolve().parents[2])
    places = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    files = [file for file in (path, path.with_suffix(".bin")) if file.is_file()]
    limit = 2 * memory_budget() + 4 * sum(file.stat().st_size for file in files)
    try:
        code = subprocess.run(
            [*command, str(path), precision, *([str(limit)] if strange else [])],
            env={**os.environ, "PYTHONPATH": places},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=seconds,
        ).returncode
    except subprocess.TimeoutExpired:
        code = _TOO_LONG
    if code in (_TOO_MUCH, _TOO_LONG):
        most = f"{limit / 2**30:.3g} GiB of memory" if code == _TOO_MUCH else f"{seconds:g} seconds"
        message = (
            f"{path} must run within {most} for one image, but needs more. If you trust the file, "
            f"raise the limit of memory: {BUDGET_VARIABLE}=8G"
        )
        raise RunError(message)
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


def _run_openvino(path: str, precision: str, count: int) -> None:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    hint = "bf16" if precision == "bf16" else "f32"
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    inputs = [_ones(each.partial_shape, each, count) for each in compiled.inputs]
    compiled.infer_new_request(inputs)


def _ones(shape: Any, place: Any, count: int) -> Any:  # noqa: ANN401 (of OpenVINO; NumPy is not loaded before)
    import numpy as np

    sides = [count if side.is_dynamic else side.get_length() for side in shape]
    return np.ones(sides, place.element_type.to_dtype())


def _run_onnx(path: str, precision: str, count: int) -> None:
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    kinds = {"tensor(uint8)": np.uint8, "tensor(int64)": np.int64, "tensor(int32)": np.int32}
    session.run(
        None,
        {
            each.name: np.ones(
                [side if isinstance(side, int) else count for side in each.shape],
                kinds.get(each.type, np.float32),
            )
            for each in session.get_inputs()
        },
    )


def _limit_memory(num_bytes: int) -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no limits
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, num_bytes))


def _run(path: str, precision: str, limit: str = "") -> int:
    """Exit code of this process; a file with a limit is run with one image, others with two."""
    if limit:
        _limit_memory(int(limit))
    run = _run_openvino if path.lower().endswith(".xml") else _run_onnx
    try:
        run(path, precision, 1 if limit else 2)
    except Exception as error:
        return _TOO_MUCH if limit and re.search("(?i)alloc|memory", repr(error)) else 0
    return 0


if __name__ == "__main__":
    os._exit(_run(*sys.argv[1:4]))  # what engines do when a process ends is not of interest
