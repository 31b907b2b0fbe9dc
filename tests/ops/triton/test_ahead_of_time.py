# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Every kernel compiles for an H100 without one, and stays within its registers and memory."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MOST_SHARED = 227 * 1024
MOST_SPILLED = 64  # bytes a thread


def _tools() -> bool:
    found = importlib.util.find_spec("triton")
    if found is None or not found.submodule_search_locations:
        return False
    tools = Path(found.submodule_search_locations[0]) / "backends" / "nvidia" / "bin"
    return (tools / "ptxas").exists() and (tools / "cuobjdump").exists()


pytestmark = pytest.mark.skipif(not _tools(), reason="triton has no assembler here")


def compile_all(*arguments: str) -> dict[str, dict[str, int]]:
    """In a process of its own: this one interprets kernels."""
    program = Path(__file__).with_name("ahead_of_time.py")
    root = Path(__file__).parents[3]
    paths = os.pathsep.join(
        [str(root / "src"), str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": paths}
    told = subprocess.run(
        [sys.executable, program, *arguments],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr[-3000:]
    found: dict[str, dict[str, int]] = json.loads(told.stdout)
    return found


def look_at(found: dict[str, dict[str, int]]) -> None:
    wrong = {
        name: numbers
        for name, numbers in found.items()
        if numbers["shared"] > MOST_SHARED or numbers["stack"] > MOST_SPILLED
    }
    assert not wrong


def test_one_launch_of_each():
    found = compile_all()
    look_at(found)
    for name in ("qkv", "merge", "norm behind", "mlp"):
        assert found[name]["group_products"] > 0, f"{name}: no products of warp groups"
        assert found[name]["copies"] > 0, f"{name}: nothing is loaded in the background"
    assert found["patches"]["group_products"] > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_launch():
    look_at(compile_all("--many"))
