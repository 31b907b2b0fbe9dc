# SPDX-License-Identifier: Apache-2.0
"""The processes of a run: who starts them, which of them this is, and how they find each other.

A process has a `Place`, from the environment where torchrun, SLURM or another launcher started it.
`take_part` joins the others, builds a `Fabric` and calls the work of a process; whoever starts
processes calls it in each of them. `local_processes.start_processes` starts them on this machine.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from muntin import collectives
from muntin._version import __version__
from muntin.errors import (
    ConfigError,
    MuntinError,
    TrainingError,
    first_line,
    plural,
    quote,
    shorten,
)
from muntin.run_config import RunConfig
from muntin.samples import Listing
from muntin.train_config import MachineConfig
from muntin.training.machine import build_fabric

Value = TypeVar("Value")


class Place(NamedTuple):
    """Which of the processes of a run this is; ranks count from 0.

    Attributes:
        rank: Among all processes.
        world: Number of all processes.
        local_rank: Among those of this machine.
        local_world: Number of those on this machine.
        nodes: Number of machines.
        launcher: "torchrun", "SLURM" or another that started this process; "" if muntin starts
            the processes itself, or there is one.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    nodes: int = 1
    launcher: str = ""

    def describe(self, backend: str) -> str:
        """One line for the notes of a run."""
        where = f" on {plural(self.nodes, 'node')}" if self.nodes > 1 else ""
        return (
            f"{plural(self.world, 'process', 'processes')}{where}, started by "
            f"{self.launcher or 'muntin'}, {backend}"
        )


class ProcessError(TrainingError):
    """Another process of the training ended, or did not answer in time; `place` is where."""

    place = ""


class _Progress:
    """Where this process is in the training, for what is said when another is lost."""

    text = "the start"


def note_progress(text: str) -> None:
    """Note where the training is, such as "epoch 1, step 5", for those that wait in vain."""
    _Progress.text = text
    if collectives.world_size() > 1:  # which does not wait for an answer
        _tell(waits=False)


def _tell(*, waits: bool) -> None:
    note = json.dumps([_HOST, os.getpid(), _Progress.text, waits])
    with contextlib.suppress(RuntimeError):  # the process that keeps the notes has ended
        _notes().set(f"muntin/{dist.get_rank()}", note)


_HOST = socket.gethostname()
_LOST = re.compile(
    r"gloo|nccl|by peer|pair closure|time.?out|timed out|c10d|TCPStore", re.IGNORECASE
)


def _notes() -> Any:  # noqa: ANN401 (a store of PyTorch)
    return dist.distributed_c10d._get_default_store()


def _find_missing(rank: int, world: int) -> list[str]:
    """Processes that have ended, or else those that do not wait for others."""
    gone, late = [], []
    with contextlib.suppress(RuntimeError, ValueError):
        _tell(waits=True)
        # The first one may keep the notes: it leaves last.
        time.sleep(_TELLING_S if rank else 2 * _TELLING_S)
        notes = _notes()
        for each in range(world):
            name = f"muntin/{each}"
            if each == rank or not notes.check([name]):
                continue
            host, pid, text, waits = json.loads(notes.get(name))
            seen = f"rank {each} (last seen at {text})"
            gone += [seen] if not waits and host == _HOST and _ended(pid) else []
            late += [] if waits else [seen]
    return gone or late


_TELLING_S = 1.0
"""Seconds after which all that have noticed the loss of a process have said so."""


def _ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # Whoever started it may not have asked for its exit code yet: it is a zombie then.
        stat = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
        try:
            return os.read(stat, 4096).rpartition(b")")[2].split()[0] == b"Z"
        finally:
            os.close(stat)
    except ProcessLookupError:
        return True
    except OSError:  # of another user, or no Linux
        return False


def here(devices: int) -> Place:
    """The first of processes that are started on this machine."""
    return Place(world=devices, local_world=devices)


def find_place(devices: int = 0, nodes: int = 0) -> Place:
    """Find the place of this process, given what the user asked for; 0 = not given.

    Raises:
        ConfigError: The environment has other processes than those asked for, or none of the nodes.
    """
    by_hand = {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()
    if TorchElasticEnvironment.detect() or (by_hand and os.environ["WORLD_SIZE"] != "1"):
        place = _read_torchrun(os.environ)
    elif "SLURM_STEP_NUM_TASKS" in os.environ and SLURMEnvironment.detect():
        place = _read_slurm(os.environ)
    elif nodes > 1:
        message = (
            f"--nodes {nodes} needs {nodes} machines with a launcher, got neither torchrun nor "
            f"srun. Start on each machine, with a port and the name of the first one: "
            f"torchrun --nnodes={nodes} --nproc-per-node={max(devices, 1)} --rdzv-backend=c10d "
            f"--rdzv-endpoint=FIRST_MACHINE:29400 -m muntin {' '.join(map(quote, sys.argv[1:]))}"
        )
        raise ConfigError(message)
    else:
        return here(max(devices, 1))
    for name, given, found in (
        ("--devices", devices, place.local_world), ("--nodes", nodes, place.nodes),
    ):  # fmt: skip
        if given not in (0, found):
            message = (
                f"{name} must be what {place.launcher} has started, {found}, got {given}. Omit it, "
                f"or start {place.launcher} with others."
            )
            error = ConfigError(message)
            error.told = place.rank > 0
            raise error
    return place


def _read_torchrun(values: Mapping[str, str]) -> Place:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    rank, world, local_rank, local_world = (_number(values, name, "torchrun") for name in names)
    nodes = -(-world // max(local_world, 1))
    if "GROUP_WORLD_SIZE" in values:
        nodes = _number(values, "GROUP_WORLD_SIZE", "torchrun")
    launcher = "Ray" if values.get("TORCHELASTIC_RUN_ID") == "ray" else "torchrun"
    return _check(Place(rank, world, local_rank, local_world, nodes, launcher))


def _read_slurm(values: Mapping[str, str]) -> Place:
    # Of the step that srun has started; SLURM_NTASKS is that of the whole job.
    names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_NUM_NODES")
    rank, world, local_rank, nodes = (_number(values, name, "SLURM") for name in names)
    if "SLURM_JOB_ID" in values:  # which gives the port
        _number(values, "SLURM_JOB_ID", "SLURM")
    return _check(Place(rank, world, local_rank, world // max(nodes, 1), nodes, "SLURM"))


def _number(values: Mapping[str, str], name: str, launcher: str) -> int:
    text = values.get(name, "")
    if not text.isdecimal():
        message = (
            f"{launcher} must set {name} to a number, got {text!r} in the environment. Start the "
            f"processes with {launcher} again, or unset its variables."
        )
        raise ConfigError(message)
    return int(text)


def _check(place: Place) -> Place:
    """Every machine must have as many processes: they share the batch evenly."""
    above = place.rank >= place.world or place.local_rank >= place.local_world
    if above or place.local_world * place.nodes != place.world:
        message = (
            f"every node must have as many processes, got {place.world} on {place.nodes} nodes, "
            f"{place.local_world} on that of rank {place.rank} (local rank {place.local_rank}). "
            f"Start {place.launcher} with equal numbers (srun --ntasks-per-node)."
        )
        raise ConfigError(message)
    return place


_MEETINGS = itertools.count()


@contextlib.contextmanager
def joined(place: Place, machine: MachineConfig) -> Iterator[None]:
    """Context in which the processes of a run know each other; nothing for one process."""
    if place.world == 1 or collectives.has_group():
        yield
        return
    if dist.is_initialized():  # by the launcher
        collectives.open_group()
        note_progress("the start")
        yield
        return
    if place.launcher != "torchrun":
        values = {
            "RANK": place.rank, "WORLD_SIZE": place.world, "LOCAL_RANK": place.local_rank,
            "LOCAL_WORLD_SIZE": place.local_world, "GROUP_RANK": place.rank // place.local_world,
        }  # fmt: skip
        os.environ.update({name: str(value) for name, value in values.items()})
    # Before the group is made, which takes the current device.
    if machine.device == "cuda":
        torch.cuda.set_device(place.local_rank)
    timeout = timedelta(seconds=machine.timeout_s)
    try:
        if place.launcher == "SLURM":
            # Its first node, and a port from the number of the job.
            slurm = SLURMEnvironment()
            os.environ.update(MASTER_ADDR=slurm.main_address, MASTER_PORT=str(slurm.main_port))
        dist.init_process_group(
            collectives.backend_of(machine.device),
            # What an earlier meeting has left would be taken for answers.
            store=PrefixStore(f"meeting {next(_MEETINGS)}", _open_store(place, timeout)),
            rank=place.rank,
            world_size=place.world,
            timeout=timeout,
        )
    except (dist.DistError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        message = (
            f"all {place.world} processes must meet at {where} within {machine.timeout_s:g} s "
            f"(machine.timeout_s), got rank {place.rank} alone: {first_line(error)} Start all of "
            f"them, and give all the same address (MASTER_ADDR, MASTER_PORT)."
        )
        raise ProcessError(message) from error
    try:
        collectives.open_group()
        note_progress("the start")
        yield
    finally:
        collectives.close_group()


@functools.cache
def _open_store(place: Place, timeout: timedelta) -> Any:  # noqa: ANN401 (a store of PyTorch)
    """The store of all processes; it stays open, as those of a script may meet again."""
    store, *_ = next(rendezvous("env://", place.rank, place.world, timeout=timeout))
    return store


def take_part(place: Place, config: RunConfig, work: Callable[[Fabric], Value]) -> Value:
    """Join the other processes, and do the work of this one; called in each of them.

    `config` is that of the run, the same everywhere; its machine has no "auto".
    """
    machine = config.machine
    with _sharing_threads(place), joined(place, machine):
        fabric = build_fabric(machine, place.local_world, nodes=place.nodes)
        if place.world > 1:
            fabric.launch()
        with telling_losses(machine), warnings.catch_warnings():
            # Of tables that are transposed: no error, as it says.
            warnings.filterwarnings("ignore", "Grad strides do not match")
            return work(fabric)


@contextlib.contextmanager
def _sharing_threads(place: Place) -> Iterator[None]:
    """Context in which the processes of a machine together use no more threads than cores."""
    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, before // place.local_world))
    try:
        yield
    finally:  # a process may take part again
        torch.set_num_threads(before)


@contextlib.contextmanager
def telling_losses(machine: MachineConfig) -> Iterator[None]:
    """Context in which the failure of what processes do together is a `ProcessError`."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or _LOST.search(str(error))
        if collectives.world_size() == 1 or isinstance(error, MuntinError) or not lost:
            raise
        rank, world = dist.get_rank(), dist.get_world_size()
        what = "the end"
        if re.search("timed out|timeout", str(error), re.IGNORECASE):
            what = f"no answer in {machine.timeout_s:g} s (machine.timeout_s)"
        missing = shorten(_find_missing(rank, world)) or "another process"
        told = ProcessError(
            f"all {world} processes of a training must go on, got {what} of {missing}, for which "
            f"rank {rank} waited (at {_Progress.text}). Go on with --resume."
        )
        told.place = _Progress.text
        raise told from error


def check_versions() -> None:
    """Refuse processes that have other versions of muntin or PyTorch than the first one."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    versions = {"muntin": __version__, "torch": torch.__version__, "python": python}
    _compare("versions", versions, "Install the same on all machines.")


def check_data(listings: Sequence[Listing]) -> None:
    """Refuse processes that find other files than the first one under the same names.

    Sizes of at most `_FILES` files of each listing are compared, spread evenly over it.
    """
    sizes: dict[str, object] = {}
    for listing in listings:
        source = Path(listing.source)
        for entry in listing.entries[:: max(1, -(-len(listing) // _FILES))]:
            place = source / entry.path if source.is_dir() else source
            sizes[str(place)] = place.stat().st_size if place.is_file() else None
    _compare("data", sizes, "Give all machines the same files (see muntin check).")


_FILES = 512


def _compare(what: str, mine: Mapping[str, object], advice: str) -> None:
    first, *others = collectives.gather_objects(dict(mine))
    for rank, theirs in enumerate(others, start=1):
        for name, value in first.items():
            if theirs.get(name) != value:
                message = (
                    f"all processes must have the same {what}, got {name}: {theirs.get(name)} at "
                    f"rank {rank} and {value} at rank 0. {advice}"
                )
                error = TrainingError(message)
                error.told = dist.get_rank() > 0
                raise error


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
