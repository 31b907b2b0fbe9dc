# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Compile kernels for sm_90 where there is no GPU, and tell what they take. Run as a program.

On stdout, one JSON object: for each case its registers, bytes on the stack (spilled registers) and
in shared memory, and how many products of warp groups and copies in the background it holds.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from muntin.ops.triton import fused_linear, fused_mlp, fused_norm, fused_patches, launches

TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


def measure(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], launch: launches.Launch
) -> dict[str, int]:
    """Compile as the launcher would: pointers are aligned to 16 bytes."""
    signature = {
        name: "constexpr" if name in constants else types[name] for name in kernel.arg_names
    }
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
    }
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    options = {
        "num_warps": launch.warps,
        "num_stages": launch.stages,
        "enable_fp_fusion": True,
    }
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        told = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    numbers = dict(re.findall(r"(REG|STACK):(\d+)", told))
    return {
        "registers": int(numbers["REG"]),
        "stack": int(numbers["STACK"]),
        "shared": compiled.metadata.shared,
        "group_products": compiled.asm["ptx"].count("wgmma.mma_async"),
        "copies": compiled.asm["ptx"].count("cp.async.c"),
    }


def linear_case(
    rows: int,
    k: int,
    n: int,
    dtype: torch.dtype,
    *,
    merge: bool = False,
    norm: bool = False,
    gelu: bool = False,
    post: bool = False,
    residual: bool = False,
    factor: bool = False,
) -> dict[str, int]:
    launch = launches.linear_launch(
        rows, k // 4 if merge else k, k, n, item_bytes=dtype.itemsize, whole=post
    )
    tokens = TYPES[dtype]
    types = dict.fromkeys(("x", "weight", "residual", "out"), tokens)
    types |= dict.fromkeys(("bias", "sums", "factor", "gamma", "beta"), "*fp32")
    types |= dict.fromkeys(("num_rows", "image_rows", "height", "width"), "i32") | {"eps": "fp32"}
    constants = {
        "K": k, "N": n, "MERGE": merge, "NORM": norm, "BIAS": True, "GELU": gelu, "POST": post,
        "RESIDUAL": residual, "FACTOR": factor, "PRECISION": "ieee",
        "ROWS": launch.rows, "COLUMNS": launch.columns, "DEPTH": launch.depth,
    }  # fmt: skip
    return measure(fused_linear.linear_kernel, types, constants, launch)


def mlp_case(rows: int, c: int, dtype: torch.dtype, *, post: bool = False) -> dict[str, int]:
    launch = launches.mlp_launch(rows, c, 4 * c, item_bytes=dtype.itemsize)
    tokens, parts = TYPES[dtype], launches.parts_of(c)
    types = dict.fromkeys(("x", "weight1", "weight2", "out"), tokens)
    types |= dict.fromkeys(("bias1", "sums", "bias2", "gamma", "beta"), "*fp32")
    types |= {"num_rows": "i32", "eps": "fp32"}
    constants = {
        "C": c, "D": 4 * c, "PARTS": parts, "WIDTH": c // parts, "POST": post,
        "PRECISION": "ieee", "ROWS": launch.rows, "HIDDEN": launch.columns,
    }  # fmt: skip
    return measure(fused_mlp.mlp_kernel, types, constants, launch)


def norm_case(n: int, dtype: torch.dtype) -> dict[str, int]:
    launch = launches.norm_launch(n)
    types = dict.fromkeys(("x", "residual", "out"), TYPES[dtype])
    types |= {"gamma": "*fp32", "beta": "*fp32", "num_rows": "i32", "eps": "fp32"}
    constants = {
        "N": n, "RESIDUAL": True, "PRECISION": "ieee",
        "ROWS": launch.rows, "COLUMNS": launch.columns,
    }  # fmt: skip
    return measure(fused_norm.norm_kernel, types, constants, launch)


def patch_case(
    rows: int,
    k: int,
    n: int,
    patch: int,
    dtype: torch.dtype,
    images: str = "*u8",
    *,
    post: bool = True,
) -> dict[str, int]:
    launch = launches.patch_launch(rows, k, n, item_bytes=dtype.itemsize, whole=post)
    types = {"images": images, "weight": TYPES[dtype], "out": TYPES[dtype], "eps": "fp32"}
    types |= dict.fromkeys(("bias", "fill", "gamma", "beta"), "*fp32")
    types |= dict.fromkeys(("num_rows", "height", "width", "grid_height", "grid_width"), "i32")
    types |= dict.fromkeys(("by_image", "by_channel", "by_row"), "i32")
    constants = {
        "by_column": 1, "K": k, "N": n, "PATCH": patch, "BIAS": True, "POST": post,
        "PRECISION": "ieee",
        "ROWS": launch.rows, "COLUMNS": launch.columns, "DEPTH": launch.depth,
    }  # fmt: skip
    return measure(fused_patches.patch_kernel, types, constants, launch)


def few() -> dict[str, dict[str, int]]:
    """One launch of each kernel."""
    half = torch.bfloat16
    return {
        "qkv": linear_case(802_816, 96, 288, half, norm=True),
        "merge": linear_case(200_704, 384, 192, half, merge=True, norm=True),
        "norm behind": linear_case(200_704, 192, 192, half, post=True, residual=True),
        "mlp": mlp_case(802_816, 96, half),
        "patches": patch_case(802_816, 48, 96, 4, half),
        "norm": norm_case(768, half),
    }


def many() -> dict[str, dict[str, int]]:
    """Launches of Swin-T, Swin-B, Swin-L and ViT-S at batch 1 and 256, and of other types."""
    found = {}
    for dtype in TYPES:
        half = dtype == torch.bfloat16
        for c in (96, 128, 192) if half else (96,):
            for stage in range(4):
                wide = c * 2**stage
                for batch in (1, 256) if half else (256,):
                    rows = batch * 3136 // 4**stage
                    name = f"{dtype} {wide} {batch}"
                    found[f"qkv {name}"] = linear_case(rows, wide, 3 * wide, dtype, norm=True)
                    found[f"proj {name}"] = linear_case(rows, wide, wide, dtype, residual=True)
                    if wide <= 192:
                        for post in (False, True):
                            found[f"mlp {name} {post}"] = mlp_case(rows, wide, dtype, post=post)
                    else:
                        found[f"fc1 {name}"] = linear_case(
                            rows, wide, 4 * wide, dtype, norm=True, gelu=True
                        )
                        found[f"fc2 {name}"] = linear_case(
                            rows, 4 * wide, wide, dtype, residual=True
                        )
                    if wide <= 256:
                        found[f"norm behind {name}"] = linear_case(
                            rows, wide, wide, dtype, post=True, residual=True
                        )
        found[f"patches {dtype}"] = patch_case(802_816, 48, 96, 4, dtype, TYPES[dtype])
        found[f"wide patches {dtype}"] = patch_case(50_176, 768, 384, 16, dtype, post=False)
        found[f"factor {dtype}"] = linear_case(50_176, 384, 384, dtype, residual=True, factor=True)
        found[f"wide norm {dtype}"] = norm_case(1536, dtype)
    return found


if __name__ == "__main__":
    json.dump(many() if "--many" in sys.argv else few(), sys.stdout)
