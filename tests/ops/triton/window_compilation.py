# SPDX-License-Identifier: Apache-2.0
"""Compile kernels of window attention for an H100 where none is, and say what they take.

A program that runs without TRITON_INTERPRET: its arguments are cases in JSON, and it prints a line
of JSON for each.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from muntin.ops.triton import window_backward, window_forward
from muntin.ops.triton.window_launches import WindowSpec, find_launch, find_tile

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
KERNELS = {
    name: getattr(module, name)
    for module in (window_forward, window_backward)
    for name in vars(module)
    if name.startswith("attend_")
}
INTEGERS = {"windows", "slots", "height", "width"}
OF_THE_MAP = {"qkv", "out", "grad", "grad_qkv"}


def compile_kernel(name, *, dtype="bf16", window=(7, 7), head_dim=32, **changes):
    """Compile one kernel as `window_calls` launches it."""
    kernel = KERNELS[name]
    tile = find_tile(window[0] * window[1])
    launch = find_launch(name, tile, head_dim, wide=dtype == "fp32")
    usual = WindowSpec(
        heads=3,
        head_dim=head_dim,
        window_h=window[0],
        window_w=window[1],
        shift_h=window[0] // 2,
        shift_w=window[1] // 2,
        pad_first=True,
        filled=False,
        cosine=False,
        precision="ieee",
        block=tile,
        queries=launch.queries,
        keys=launch.keys,
        stages=launch.stages,
        learns_bias=True,
        learns_fill=changes.get("filled", False),
    )
    signature = {name: _find_type(name, dtype) for name in kernel.arg_names}
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={"SPEC": replace(usual, **changes)},
        attrs={
            (place,): [["tt.divisibility", 16]]
            for place, kind in enumerate(signature.values())
            if kind.startswith("*")
        },
    )
    built = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": launch.num_warps}
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(built.asm["cubin"])
        command = [TOOLS / "cuobjdump", "-res-usage", path]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", said).groups()
    return {"registers": int(registers), "stack": int(stack), "shared": built.metadata.shared}


def _find_type(name, dtype):
    if name == "SPEC":
        return "constexpr"
    if name in INTEGERS:
        return "i32"
    if name == "scale":
        return "fp32"
    return f"*{dtype}" if name in OF_THE_MAP else "*fp32"


if __name__ == "__main__":
    for line in sys.argv[1:]:
        case = json.loads(line)
        sys.stdout.write(json.dumps(compile_kernel(**case)) + "\n")
        sys.stdout.flush()
