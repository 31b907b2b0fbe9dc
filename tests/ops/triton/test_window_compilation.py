# SPDX-License-Identifier: Apache-2.0
"""The kernels of window attention compile for an H100, and fit it, where no GPU is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[3]
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
LARGE = (
    "attend_tiled",
    "attend_tiled_backward_queries",
    "attend_tiled_backward_keys",
    "attend_tiled_backward_bias",
)
WHOLE = ("attend_whole", "attend_whole_backward")
PADDED = {"filled": True, "pad_first": False}
# A launch of each kind, and then everything else that may come.
USUAL = [
    {"name": "attend_whole_backward"},
    {"name": "attend_tiled_backward_keys", "window": (12, 12)},  # holds the most
]
OTHERS = [
    {"name": "attend_whole"},
    *({"name": name, "window": (8, 8), "cosine": True} for name in WHOLE),
    *({"name": name, "window": (12, 12)} for name in LARGE),
    *({"name": name, "shift_h": 0, "shift_w": 0} for name in WHOLE),
    *({"name": name, **PADDED} for name in WHOLE),
    *({"name": name, "dtype": "fp16"} for name in WHOLE),
    *({"name": name, "window": (4, 4), "head_dim": 16} for name in WHOLE),
    *({"name": name, "window": (5, 5), "head_dim": 16} for name in WHOLE),
    *({"name": name, "head_dim": 64} for name in WHOLE),
    *({"name": name, "dtype": "fp32"} for name in WHOLE),
    *({"name": name, "dtype": "fp32", "precision": "tf32x3"} for name in WHOLE),
    *({"name": name, "window": (16, 16), "cosine": True, **PADDED} for name in LARGE),
    *({"name": name, "window": (24, 24), "head_dim": 64} for name in LARGE),
    *({"name": name, "window": (12, 12), "dtype": "fp32"} for name in LARGE),
]

needs_tools = pytest.mark.skipif(
    not (TOOLS / "ptxas").is_file() or not (TOOLS / "cuobjdump").is_file(),
    reason="this Triton comes without ptxas",
)


def build(cases, folder):
    """Compile in a process of its own: here the kernels may be those of the interpreter."""
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment["TRITON_CACHE_DIR"] = str(folder)
    command = [sys.executable, "-m", "tests.ops.triton.window_compilation"]
    done = subprocess.run(
        [*command, *(json.dumps(case) for case in cases)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@needs_tools
@pytest.mark.parametrize(
    "cases", [pytest.param(USUAL, id="usual"), pytest.param(OTHERS, marks=pytest.mark.slow)]
)
def test_kernels_fit_an_h100(cases, tmp_path):
    taken = build(cases, tmp_path)
    assert len(taken) == len(cases)
    for case, found in zip(cases, taken, strict=True):
        assert found["shared"] < 227 * 1024, (case, found)
        # Two programs a multiprocessor at the least, and next to nothing kept outside registers.
        assert 2 * found["shared"] < 227 * 1024, (case, found)
        if case.get("dtype") != "fp32":
            assert found["stack"] <= 256, (case, found)
