# SPDX-License-Identifier: Apache-2.0
"""Which calls the fused window attention supports, and whether this machine can run it."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os

import torch

from muntin.errors import ConfigError

_MAX_TOKENS = 576
_OLDEST = (8, 0)


def find_obstacle(
    device: tuple[str, int | None],
    dtype: torch.dtype,
    head_dim: int,
    num_tokens: int,
    dropout: float,
) -> str:
    """Return why the fused kernels cannot run a call; empty, and they are registered, if they can.

    `device` is type and index, such as ("cuda", 0); "cpu" works with TRITON_INTERPRET=1, slowly.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"queries, keys and values must be float32, bfloat16 or float16, got {dtype}"
    # tl.dot needs powers of two, at least 16; wider heads do not fit into registers.
    if head_dim not in (16, 32, 64):
        return f"a head must be 16, 32 or 64 wide, got {head_dim}"
    # 24 x 24, the largest window of published models.
    if num_tokens > _MAX_TOKENS:
        return f"a window must have at most {_MAX_TOKENS} tokens, got {num_tokens}"
    if dropout:
        return f"attention dropout must be 0, got {dropout}"
    return find_missing(*device)


# What torch.compiler.assume_constant_result does, without importing the compiler.
find_obstacle._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def find_missing(kind: str, index: int | None = None) -> str:
    """Return why no fused kernel can run on a device; empty if they can.

    The machine is asked once; later changes of the environment are ignored.

    Raises:
        ConfigError: MUNTIN_FUSED is neither 0 nor 1.
    """
    if is_forbidden():
        return "the environment variable MUNTIN_FUSED must not be 0"
    if importlib.util.find_spec("triton") is None:
        return "Triton must be installed (it comes with PyTorch for CUDA on Linux)"
    missing = _find_unavailable(kind, index)
    if not missing:
        importlib.import_module("muntin.ops.triton.window_calls").register()
    return missing


def is_forbidden() -> bool:
    """Whether the environment variable MUNTIN_FUSED forbids fused kernels.

    Raises:
        ConfigError: It is neither 0, 1 nor empty.
    """
    text = os.environ.get("MUNTIN_FUSED", "")
    if text not in ("", "0", "1"):
        message = (
            f"the environment variable MUNTIN_FUSED must be 0 (no fused kernels) or 1, got "
            f"{text!r}. Set it to one of these, or unset it."
        )
        raise ConfigError(message)
    return text == "0"


def _find_unavailable(kind: str, index: int | None) -> str:
    if kind == "cpu":
        # In the interpreter, triton.jit returns another class.
        compiled = importlib.import_module("triton.runtime.jit").JITFunction
        forward = importlib.import_module("muntin.ops.triton.window_forward")
        runs = not isinstance(forward.attend_whole, compiled)
        return "" if runs else "the device must be an NVIDIA GPU, got cpu"
    if kind != "cuda":
        return f"the device must be an NVIDIA GPU, got {kind}"
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "PyTorch must find an NVIDIA GPU"
    capability = torch.cuda.get_device_capability(index)
    if capability < _OLDEST:
        return f"the GPU must have compute capability {_OLDEST} or higher, got {capability}"
    return ""
