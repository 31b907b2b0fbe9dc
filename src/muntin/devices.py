# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Which device and which precision suit the machine at hand."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from muntin.errors import ConfigError

__all__ = [
    "choose_device",
    "choose_precision",
    "find_shortage",
    "free_bytes",
    "give_back_memory",
    "has_compiler",
    "memory_mib",
    "multiply_rate",
    "peak_mib",
    "reset_peak",
    "resident_mib",
]


def choose_device(name: str) -> torch.device:
    """Give the device for a name; "auto" takes a GPU when there is one.

    Raises:
        ConfigError: This machine, or this build of PyTorch, has no such device.
    """
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if there[kind]))
    if not there.get(name.partition(":")[0], False):
        known = [kind for kind, has in there.items() if has]
        message = f"device must be one that this machine has ({', '.join(known)}), got {name!r}."
        if name in ("gpu", "nvidia"):
            message += " Did you mean 'cuda'?"
        raise ConfigError(message)
    return torch.device(name)


def multiply_rate(
    dtype: torch.dtype,
    *,
    seconds: float = 0.05,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Measure matrix products on the CPU, in operations a second of a clock."""
    rows, inner, columns = 4096, 256, 256
    left = torch.ones(rows, inner, dtype=dtype)
    right = torch.ones(columns, inner, dtype=dtype)
    with torch.inference_mode():
        torch.nn.functional.linear(left, right)
        begun, count = clock(), 0
        while clock() - begun < seconds:
            torch.nn.functional.linear(left, right)
            count += 1
        return 2 * rows * inner * columns * count / (clock() - begun)


def choose_precision(device: torch.device) -> Literal["fp32", "bf16"]:
    """Give "bf16" or "fp32", whichever multiplies faster here without losing accuracy."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    if device.type != "cpu":
        return "fp32"
    # One thread by the clock of its own work, the best of several turns: whatever else runs on
    # the machine must not decide.
    threads = torch.get_num_threads()
    rates = {torch.float32: 0.0, torch.bfloat16: 0.0}
    try:
        torch.set_num_threads(1)
        for _ in range(5):
            for dtype in rates:
                rate = multiply_rate(dtype, seconds=0.02, clock=time.thread_time)
                rates[dtype] = max(rates[dtype], rate)
    finally:
        torch.set_num_threads(threads)
    # Autocast has a price of its own, so a small lead is none.
    return "bf16" if rates[torch.bfloat16] > 1.3 * rates[torch.float32] else "fp32"


def memory_mib() -> float:
    """Peak memory in MiB: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return _own_peak_mib()


def _own_peak_mib() -> float:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def resident_mib() -> float:
    """Resident memory of this process now; its peak so far where the system does not say."""
    give_back_memory()
    return _read_status("VmRSS") or _own_peak_mib()


def peak_mib() -> float:
    """Peak resident memory of this process since `reset_peak`."""
    return _read_status("VmHWM") or _own_peak_mib()


def reset_peak() -> None:
    """Forget the peak so far, where the system can."""
    give_back_memory()
    place = Path("/proc/self/clear_refs")
    if os.access(place, os.W_OK):
        place.write_text("5", encoding="utf-8")


def _read_status(key: str) -> float:
    """A line of what Linux says of this process, in MiB; 0 elsewhere."""
    place = Path("/proc/self/status")
    if not place.exists():
        return 0.0
    return int(place.read_text(encoding="utf-8").split(f"{key}:")[1].split()[0]) / 1024


def give_back_memory() -> None:
    """Return freed memory to the system, where the C library can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def free_bytes(device: str) -> int:
    """Memory that nobody uses: of the GPU, or of the machine."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    place = Path("/proc/meminfo")
    if place.exists():
        return 1024 * int(place.read_text(encoding="utf-8").split("MemAvailable:")[1].split()[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # not every system says
        return 8 * 2**30


def has_compiler() -> bool:
    """Whether torch.compile finds a C++ compiler for the CPU."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError):
        return False
    return True


# How libraries say that memory ran out, on a CPU and on a GPU.
_OUT_OF_MEMORY = (
    "not enough memory",
    "out of memory",
    "can't allocate memory",
    "Unable to allocate",
)


def find_shortage(error: BaseException) -> str | None:
    """Say how much memory was asked for by what ran out of it.

    Args:
        error: Whatever was raised.

    Returns:
        Such as "2.5 GiB"; empty where it does not say; None where the error is another.

    Example:
        >>> find_shortage(RuntimeError("can't allocate memory: you tried to allocate 8589934592"))
        '8.0 GiB'
    """
    said = str(error)
    if not isinstance(error, MemoryError) and not any(words in said for words in _OUT_OF_MEMORY):
        return None
    found = re.search(r"allocate (\d+(?:\.\d+)?)(?: ([KMGTP]iB))?", said)
    if found is None:
        return ""
    return f"{found[1]} {found[2]}" if found[2] else f"{int(float(found[1])) / 2**30:.1f} GiB"
