# SPDX-License-Identifier: Apache-2.0
"""A cluster of Ray: one that is there, or one of this machine for the time of a command."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from muntin._version import __version__
from muntin.devices import granted_cores
from muntin.errors import ClusterError, ConfigError, MuntinWarning, first_line, missing_extra

CONNECT_S = 10.0
"""Longest wait in seconds for a connection."""
START_S = 180.0
"""Longest wait in seconds for the first answer of a node, which starts a process and imports."""
_ADDRESS = re.compile(r"ray(://[^\s/:]+:\d{1,5})?", re.ASCII)
_LONGEST_FOLDER = 30
"""Sockets of Ray have names of up to 107 characters, most of which it takes itself."""


def check_address(on: str) -> str:
    """Check what `--on` is told: ``ray``, or ``ray://HOST:PORT`` of a cluster that is there.

    Raises:
        ConfigError: It is neither.
    """
    if not _ADDRESS.fullmatch(on):
        message = (
            f"on (--on) must be ray, or the address of a cluster such as ray://head:10001, got "
            f"{on!r}."
        )
        raise ConfigError(message)
    return on


@contextmanager
def connected(on: str, *, paths: Sequence[str] = (), cpus: int = 1) -> Iterator[Any]:
    """Connect to a cluster, and yield the library; what was started ends with the context.

    Without an address that is the cluster of the environment variable RAY_ADDRESS, or else one of
    this machine alone, behind a secret, which ends with the context. A connection that the program
    has already is used, and kept.

    Args:
        on: As for `check_address`.
        paths: Files and folders that every node must see, beside the current folder.
        cpus: CPUs that the cluster must have.

    Raises:
        ConfigError: `on` is no address.
        ClusterError: The cluster cannot be reached, is too small, or a node lacks what is needed.
        MissingExtra: Ray is not installed.
    """
    check_address(on)
    with ExitStack() as stack:
        address = on if "://" in on else os.environ.get("RAY_ADDRESS", "")
        if not address:
            stack.enter_context(_closed_to_others())
        ray = _import_ray()
        if not ray.is_initialized():
            stack.enter_context(_initialized(ray, address, cpus))
        have = int(ray.cluster_resources().get("CPU", 0))
        if have < cpus:
            message = (
                f"the cluster must have {cpus} CPUs for this, got {have}. Add nodes, or leave "
                f"--on out."
            )
            raise ClusterError(message)
        if (free := ray.available_resources().get("CPU", 0)) < cpus:
            text = f"the cluster is busy, {free:g} of {have} CPUs are free: this waits for {cpus}"
            warnings.warn(text, MuntinWarning, stacklevel=3)
        _check_nodes(ray, paths)
        yield ray


def _import_ray() -> Any:  # noqa: ANN401 (a module)
    try:
        import ray
    except ImportError as error:
        missing = missing_extra("ray", "ray", "--on ray")
        raise missing from error
    return ray


@contextmanager
def _closed_to_others() -> Iterator[None]:
    """Give a cluster of this machine a secret, so that others of the machine cannot use it."""
    if "ray" in sys.modules:  # which has read its settings
        yield
        return
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    new = {} if "RAY_AUTH_MODE" in os.environ else secret
    new |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    added = {name: value for name, value in new.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _initialized(ray: Any, address: str, cpus: int) -> Iterator[None]:  # noqa: ANN401
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with ExitStack() as stack:
        if address:
            _reach(address)
            quiet["address"] = address
        else:
            long = len(tempfile.gettempdir()) > _LONGEST_FOLDER
            folder = tempfile.mkdtemp(prefix="muntin-", dir="/tmp" if long else None)
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            quiet |= {"_temp_dir": folder, "include_dashboard": False}
            # It is this machine, however busy: no answer for some seconds is no lost node.
            quiet["_system_config"] = {"health_check_timeout_ms": 60_000}
            quiet |= {"num_cpus": max(granted_cores(), cpus), "_node_ip_address": "127.0.0.1"}
        stack.callback(ray.shutdown)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what matters of them is said below, in one line
                ray.init(**quiet)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = address or "of this machine"
            message = (
                f"the cluster {where} could not be used: {first_line(error)} Check its address, "
                f"its version of Ray ({ray.__version__} here), and RAY_AUTH_MODE if it has one."
            )
            raise ClusterError(message) from error
        yield


def _reach(address: str) -> None:
    """Refuse an address that nobody answers at: the library would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():  # such as "auto"
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        message = (
            f"the cluster at {address} could not be reached ({error}). Check the address, and that "
            f"the cluster runs: ray status."
        )
        raise ClusterError(message) from error


@contextmanager
def actors(ray: Any, must: str, *kinds: type) -> Iterator[list[Any]]:  # noqa: ANN401
    """Start actors, which end with the context; what stops them is a `ClusterError`.

    `must` is what the cluster must do for them.
    """
    started = [ray.remote(kind).options(num_cpus=0).remote() for kind in kinds]
    try:
        yield started
    except ray.exceptions.RayError as error:
        message = (
            f"the cluster must {must}, but got: {str(error).strip().splitlines()[-1]} Look at its "
            f"nodes and their memory; what is done is kept: go on with --resume."
        )
        raise ClusterError(message) from error
    finally:
        for one in started:
            ray.kill(one)


def live_nodes(ray: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    """The nodes that work; none is a `ClusterError`."""
    found = [one for one in ray.nodes() if one["Alive"] and one["Resources"].get("CPU")]
    if not found:
        message = (
            "the cluster must have nodes with CPUs, got none that answers. Look at its nodes: "
            "ray status."
        )
        raise ClusterError(message)
    return found


def _check_nodes(ray: Any, paths: Sequence[str]) -> None:  # noqa: ANN401
    """Refuse a cluster whose nodes lack this version, or the files that they are to read."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    folder = os.getcwd()
    wanted = [*dict.fromkeys(os.path.abspath(path) for path in (folder, *paths))]

    # Sent by value: the library that it looks for may be absent there.
    def look() -> tuple[str, list[str]]:
        try:
            from muntin._version import __version__ as version
        except ImportError:
            version = "none"
        return version, [path for path in wanted if not os.path.exists(path)]

    asked: dict[Any, str] = {}
    for node in live_nodes(ray):
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        options: Mapping[str, Any] = {"num_cpus": 0, "scheduling_strategy": there}
        asked[ray.remote(look).options(**options).remote()] = node["NodeManagerAddress"]
    done, late = ray.wait([*asked], num_returns=len(asked), timeout=START_S)
    faults = [f"{asked[one]} did not answer in {START_S:.0f} s" for one in late]
    for one in done:
        version, missing = ray.get(one)
        if version != __version__:
            faults.append(f"{asked[one]} has muntin {version}")
        faults += [f"{asked[one]} does not see {path}" for path in missing[:1]]
    if faults:
        message = (
            f"every node of the cluster must have muntin {__version__} and the same folders, but "
            f"{'; '.join(faults[:3])}. Install it there, and use paths on a shared disk."
        )
        raise ClusterError(message)


def enter_folder(folder: str | Path) -> None:
    """Let paths mean in a worker what they mean in the command: relative to its folder."""
    if os.getcwd() != str(folder):
        os.chdir(folder)
