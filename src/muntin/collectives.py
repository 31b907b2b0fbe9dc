# SPDX-License-Identifier: Apache-2.0
"""What training processes compute together: sums, draws and rows of the batch that they share.

Every process holds consecutive rows of each batch. Within `holding`, random numbers are drawn for
the whole batch, of which a process uses its rows, and sums are over all processes, so that what is
learnt does not depend on their number. With one process, and outside of training steps, every
function here is what its local counterpart is.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from muntin.errors import MuntinError

Value = TypeVar("Value")


class BatchPart(NamedTuple):
    """The rows of a batch of `total` images that a process holds: `rows` from `start` on.

    Rows from `total` on repeat the last image, to fill up the share of a process; they count for
    nothing.
    """

    start: int
    rows: int
    total: int

    @property
    def real(self) -> int:
        """Rows that do not only fill up."""
        return max(0, min(self.rows, self.total - self.start))


class _Shared:
    """What the processes share now; set by `holding` and `open_group`."""

    part: BatchPart | None = None
    group: Any = None
    machine: Any = None


def world_size() -> int:
    """Number of training processes that belong together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextlib.contextmanager
def holding(part: BatchPart) -> Iterator[None]:
    """Context of a training step of which this process holds a part of the batch."""
    _Shared.part = part if world_size() > 1 else None
    try:
        yield
    finally:
        _Shared.part = None


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


def draw_rows(draw: Callable[[int], Tensor], count: int) -> Tensor:
    """Draw for `count` images, or several versions of each: `draw(n)` gives n rows.

    Versions follow each other: all first ones, then all second ones.
    """
    part = _Shared.part
    if part is None or count % part.rows:
        return draw(count)
    drawn = draw(count // part.rows * part.total)
    places = torch.arange(part.start, part.start + part.rows, device=drawn.device)
    return drawn.unflatten(0, (-1, part.total))[:, places.clamp(max=part.total - 1)].flatten(0, 1)


def image_generators(count: int, device: torch.device) -> list[torch.Generator]:
    """A generator for each image, for draws whose number depends on what is in it."""
    first = int(torch.randint(2**62, ()))
    start = 0 if _Shared.part is None else _Shared.part.start
    return [torch.Generator(device).manual_seed(first + start + row) for row in range(count)]


def is_shared() -> bool:
    """Whether this is a step whose batch several processes share."""
    return _Shared.part is not None


def drop_rows(drop: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Apply dropout to the rows here as it would be applied to those of the whole batch."""
    part = _Shared.part
    if part is None or len(values) % part.rows:
        return drop(values)
    return values * draw_rows(
        lambda count: drop(values.new_ones(count, *values.shape[1:])), len(values)
    )


def real_rows(values: Tensor) -> Tensor:
    """The rows, of images or of versions of them, that do not only fill up."""
    part = _Shared.part
    if part is None or part.real == part.rows or len(values) % part.rows:
        return values
    return values.unflatten(0, (-1, part.rows))[:, : part.real].flatten(0, 1)


def count_real(count: int) -> int:
    """How many of the first of `count` rows do not only fill up the share of this process."""
    return count if _Shared.part is None else _Shared.part.real


def sum_all(values: Tensor) -> Tensor:
    """Sum over the processes, through which gradients flow; all must call it in the same order."""
    if _Shared.part is None:
        return values
    from torch.distributed.nn.functional import all_reduce

    summed: Tensor = all_reduce(values, group=_Shared.group)
    return summed


def mean_rows(values: Tensor) -> tuple[Tensor, int]:
    """Mean over the rows of the whole batch, and their number."""
    if _Shared.part is None:
        return values.mean(dim=0), len(values)
    total = _Shared.part.total
    return sum_all(values[: _Shared.part.real].sum(dim=0)) / total, total


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
    if _Shared.part is None:
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
