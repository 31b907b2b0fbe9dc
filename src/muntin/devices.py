# SPDX-License-Identifier: Apache-2.0
"""Choice of device and precision, and memory of this machine."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch

from muntin.errors import ConfigError

Autocast = Callable[[], AbstractContextManager[Any]]
"""Makes the context that sets the precision of a forward pass."""

_MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of malloc.h: larger blocks are mapped, each by itself."""


def choose_device(name: str) -> torch.device:
    """Return the device of a name; "auto" prefers a GPU."""
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    if not available.get(name.partition(":")[0], False):
        known = [kind for kind, has in available.items() if has]
        message = f"device must be available on this machine ({', '.join(known)}), got {name!r}."
        if name in ("gpu", "nvidia"):
            message += " Did you mean 'cuda'?"
        raise ConfigError(message)
    return torch.device(name)


def granted_cores() -> int:
    """Cores for this process: containers and job schedulers often grant fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def measure_matmul_rate(
    dtype: torch.dtype,
    *,
    seconds: float = 0.05,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Measure matrix multiplication on the CPU, in FLOP per second of `clock`."""
    rows, inner, columns = 4096, 256, 256
    left = torch.ones(rows, inner, dtype=dtype)
    right = torch.ones(columns, inner, dtype=dtype)
    with torch.inference_mode():
        torch.nn.functional.linear(left, right)
        start, count = clock(), 0
        while clock() - start < seconds:
            torch.nn.functional.linear(left, right)
            count += 1
        return 2 * rows * inner * columns * count / (clock() - start)


@functools.cache
def choose_precision(device: torch.device) -> Literal["fp32", "bf16"]:
    """Return "bf16" if this device multiplies it faster than fp32, else "fp32"."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    if device.type != "cpu":
        return "fp32"
    # One thread, its own CPU time, and the best of several rounds, so that other processes on
    # the machine do not influence the choice.
    threads = torch.get_num_threads()
    rates = {torch.float32: 0.0, torch.bfloat16: 0.0}
    try:
        torch.set_num_threads(1)
        for _ in range(5):
            for dtype in rates:
                rate = measure_matmul_rate(dtype, seconds=0.02, clock=time.thread_time)
                rates[dtype] = max(rates[dtype], rate)
    finally:
        torch.set_num_threads(threads)
    # Autocast has an overhead, so bf16 must win by a margin.
    return "bf16" if rates[torch.bfloat16] > 1.3 * rates[torch.float32] else "fp32"


def memory_mib() -> float:
    """Peak memory in MiB: of the GPU if available, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return _own_peak_mib()


def _own_peak_mib() -> float:
    if sys.platform == "win32":  # has no such module
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def resident_mib() -> float:
    """Current resident memory of this process in MiB; its peak on macOS, 0 on Windows."""
    release_memory()
    return _read_mib("self/status", "VmRSS") or _own_peak_mib()


def peak_mib() -> float:
    """Peak resident memory of this process in MiB since `reset_peak`."""
    return _read_mib("self/status", "VmHWM") or _own_peak_mib()


def reset_peak() -> None:
    """Reset the peak of resident memory, where the system supports it."""
    release_memory()
    place = Path("/proc/self/clear_refs")
    if os.access(place, os.W_OK):
        place.write_text("5", encoding="utf-8")


def _read_mib(file: str, key: str) -> float | None:
    """A line of a file of /proc, in MiB; None on systems without it."""
    place = Path("/proc") / file
    if not place.exists():
        return None
    return int(place.read_text(encoding="utf-8").split(f"{key}:")[1].split()[0]) / 1024


def release_memory() -> None:
    """Return freed memory to the system, where the C library supports it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def return_freed_memory() -> None:
    """Return large tensors to the system as soon as they are freed, where the C library is glibc.

    By default glibc keeps freed blocks of up to 32 MiB, whose holes add half of a step's memory.
    It holds for the rest of the process: glibc cannot go back to choosing the limit itself.
    """
    adjust = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if adjust is not None:
        adjust(_MMAP_THRESHOLD, 4 * 2**20)


def free_bytes(device: str) -> int:
    """Available memory in bytes, of the GPU or of the machine."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    if (available := _read_mib("meminfo", "MemAvailable")) is not None:
        return round(available * 2**20)
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # not supported on every system
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


# Texts of out-of-memory errors, on CPU and GPU.
_OUT_OF_MEMORY = "not enough memory|out of memory|can't allocate memory|Unable to allocate"


def parse_out_of_memory(error: BaseException) -> str | None:
    """Find the size of the allocation that failed, such as "2.5 GiB"; empty if unknown.

    None if the error has another cause than a lack of memory.

    Examples:
        >>> error = RuntimeError("can't allocate memory: you tried to allocate 8589934592")
        >>> parse_out_of_memory(error)
        '8.0 GiB'
    """
    text = str(error)
    if not isinstance(error, MemoryError) and not re.search(_OUT_OF_MEMORY, text):
        return None
    found = re.search(r"allocate (\d+(?:\.\d+)?)(?: ([KMGTP]iB))?", text)
    if found is None:
        return ""
    return f"{found[1]} {found[2]}" if found[2] else f"{int(float(found[1])) / 2**30:.1f} GiB"
