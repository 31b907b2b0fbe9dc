# SPDX-License-Identifier: Apache-2.0
"""What every test stands on: executed shapes, no network, fixed seeds, few threads, real data."""

from __future__ import annotations

import gc
import ipaddress
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Set before anything imports a library that reads them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

if not os.environ.get("MUNTIN_NO_HOOK"):
    # Shapes in signatures are executed. torch.compile(fullgraph=True) cannot trace the checks, so
    # tests of compiled code run a subprocess with MUNTIN_NO_HOOK=1.
    from tests import executed_shapes

    executed_shapes.install()

import numpy as np
import torch

if not torch.cuda.is_available():
    # Before Triton is imported: kernels then run in its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parents[1]


class NetworkBlocked(RuntimeError):
    """Not an OSError, so that code which survives a missing network does not hide the mistake."""


class _Gate:
    """Stands in for `socket.socket.connect`: lets through what stays on this machine."""

    open = False

    @classmethod
    def guard(cls, method: str) -> None:
        original = getattr(socket.socket, method)

        def connect(self: socket.socket, address: Any) -> Any:
            if not cls.open and not _is_local(self, address):
                message = f"a test tried to reach {address}. Mark it with pytest.mark.network."
                raise NetworkBlocked(message)
            return original(self, address)

        setattr(socket.socket, method, connect)


def _is_local(sock: socket.socket, address: Any) -> bool:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return True
    host = str(address[0])
    try:
        return host in ("", "localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def pytest_configure() -> None:
    """Block the network for the whole run, doctests and session fixtures included."""
    # What is made until the tests begin stays: looking through it again and again is in vain.
    gc.disable()
    # Files of tests need not outlive a power cut; a small training waits for the disk 40 times.
    os.fsync = lambda _: None
    # Of two processes of two threads each waits for the other's on two cores.
    usual = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", usual)))
    for method in ("connect", "connect_ex"):
        _Gate.guard(method)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give a file to one worker, and all of tests/serving, which share a server and its models."""
    from xdist.scheduler import LoadFileScheduling

    class ByServer(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            scope = super()._split_scope(nodeid)
            return "tests/serving" if scope.startswith("tests/serving/") else scope

    return ByServer(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_finish() -> None:
    """Collect garbage again, but not among modules and tests."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs an accelerator where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Start every test from the same random state."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (libraries under test may draw from it)
    if torch.cuda.is_available():
        torch.manual_seed(0)
    else:  # `torch.manual_seed` stores a traceback for each device that is not there
        torch.default_generator.manual_seed(0)


@pytest.fixture(autouse=True)
def _network(request: pytest.FixtureRequest) -> Iterator[None]:
    """Open the gate for a test that is marked."""
    _Gate.open = request.node.get_closest_marker("network") is not None
    yield
    _Gate.open = False


@pytest.fixture
def no_fused_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine that forbids fused kernels; it is asked once, so what was said is forgotten."""
    from muntin.ops.triton.window_support import find_missing

    monkeypatch.setenv("MUNTIN_FUSED", "0")
    find_missing.cache_clear()
    yield
    find_missing.cache_clear()


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without a C++ compiler, as PyTorch sees it."""
    from torch._inductor import config, cpp_builder

    ask = cpp_builder.get_cpp_compiler
    forget = getattr(ask, "cache_clear", lambda: None)
    monkeypatch.setenv("PATH", "")
    forget()
    with config.patch({"cpp.cxx": ("no-such-compiler",)}):
        yield
    forget()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and the accelerator where there is one."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets, which licences keep out of the repository."""
    named = os.environ.get("MUNTIN_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real data: set MUNTIN_DATA to a folder of data sets, or leave it out")
    return folder
