# SPDX-License-Identifier: Apache-2.0
"""What training processes compute together: sums, rows of neighbours, and values they exchange.

Sums within a training step are those over the whole batch (`batch_rows`). With one process, every
function here is what its local counterpart is.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from muntin.batch_rows import held_part
from muntin.errors import MuntinError

Value = TypeVar("Value")


class _Shared:
    """Groups besides the default one; set by `open_group`."""

    group: Any = None
    machine: Any = None


def world_size() -> int:
    """Number of training processes that belong together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def backend_of(device: str) -> str:
    """What moves tensors between processes; objects always move through the CPU."""
    return "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"


def open_group() -> None:
    """Make the group of the sums within steps, and forget it with the default group.

    Their order must not mix with that of the gradients, which DDP starts when they are ready.
    """
    _Shared.group = dist.new_group()
    hosts = gather_objects(socket.gethostname())
    for host in dict.fromkeys(hosts):  # all processes take part in making each group
        group = dist.new_group([rank for rank, other in enumerate(hosts) if other == host])
        if host == socket.gethostname():
            _Shared.machine = group


def has_group() -> bool:
    """Whether the processes have found each other."""
    return _Shared.group is not None


def close_group() -> None:
    """Leave all groups."""
    _Shared.group = _Shared.machine = None
    dist.destroy_process_group()


def sum_all(values: Tensor) -> Tensor:
    """Sum over the processes, through which gradients flow; all must call it in the same order."""
    if held_part() is None:
        return values
    summed: Tensor = _Sum.apply(values)
    return summed


class _Sum(torch.autograd.Function):
    """The functions of PyTorch that do this are deprecated, or private."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:  # noqa: ANN401 (autograd's own)
        summed = values.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed, group=_Shared.group)
        return summed

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401 (autograd's own)
        return _Sum.forward(_, gradient)


def mean_rows(values: Tensor) -> tuple[Tensor, int]:
    """Mean over the rows of the whole batch, and their number."""
    part = held_part()
    if part is None:
        return values.mean(dim=0), len(values)
    return sum_all(values[: part.real].sum(dim=0)) / part.total, part.total


def add_numbers(*numbers: float) -> list[float]:
    """Sum each number over all processes, at any time."""
    sums = torch.tensor(numbers, dtype=torch.float64)
    if world_size() > 1:
        dist.all_reduce(sums)
    return sums.tolist()


def largest(*numbers: int) -> list[int]:
    """The largest value of each number over all processes, at any time."""
    most = torch.tensor(numbers)
    if world_size() > 1:
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return most.tolist()


def previous_row(rows: Tensor) -> Tensor:
    """The row of the whole batch before the first one here, (1, ...); before its first, the last.

    Only for tensors of one shape in all processes.
    """
    if held_part() is None:
        return rows[-1:]
    rank, world = dist.get_rank(), dist.get_world_size()
    sent, got = rows[-1:].contiguous(), torch.empty_like(rows[-1:])
    sending = dist.P2POp(dist.isend, sent, (rank + 1) % world, group=_Shared.group)
    getting = dist.P2POp(dist.irecv, got, (rank - 1) % world, group=_Shared.group)
    for work in dist.batch_isend_irecv([sending, getting]):
        work.wait()
    return got


def first_object(value: Value) -> Value:
    """The value of the first process, in all."""
    values: list[Any] = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values)
    first: Value = values[0]
    return first


def send_to_first(value: Value) -> list[Value]:
    """The values of all processes by rank, in the first one; nothing in others."""
    if world_size() == 1:
        return [value]
    first = dist.get_rank() == 0
    parts: list[Any] = [None] * world_size()
    dist.gather_object(value, parts if first else None)
    return parts if first else []


def gather_objects(value: Value) -> list[Value]:
    """The values of all processes, by rank."""
    parts: list[Any] = [value] * world_size()
    if len(parts) > 1:
        dist.all_gather_object(parts, value)
    return parts


def machine_rank() -> tuple[int, int]:
    """Which of the training processes of this machine this is, and their number."""
    if world_size() == 1:
        return 0, 1
    return dist.get_rank(_Shared.machine), dist.get_world_size(_Shared.machine)


def gather_machine(value: Value) -> list[Value]:
    """The values of the processes of this machine, in the order of `machine_rank`."""
    parts: list[Any] = [value] * machine_rank()[1]
    if len(parts) > 1:
        dist.all_gather_object(parts, value, group=_Shared.machine)
    return parts


def from_first(make: Callable[[], Value]) -> Value:
    """What the first process makes, in all; what it raises, all raise."""
    made: Any = None
    if world_size() == 1:
        return make()
    if dist.get_rank() == 0:
        try:
            made = make()
        except Exception as error:
            first_object(error)
            raise
    first: Any = first_object(made)
    if isinstance(first, Exception):
        raise _tell_elsewhere(first)
    return made if dist.get_rank() == 0 else first


def _tell_elsewhere(error: Exception) -> Exception:
    if isinstance(error, MuntinError):
        error.told = True
    return error


def agree(make: Callable[[], Value]) -> list[Value]:
    """Compute a value in each process and gather them; what one raises, all raise.

    A process that failed alone would let the others wait for it.
    """
    made: Value | Exception
    try:
        made = make()
    except Exception as error:
        if world_size() == 1:
            raise
        made = error
    parts = gather_objects(made)
    for rank, part in enumerate(parts):
        if isinstance(part, Exception):
            if rank == dist.get_rank() and isinstance(made, Exception):
                raise made
            raise _tell_elsewhere(part)
    values: Any = parts
    return list(values)
