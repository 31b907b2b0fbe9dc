# SPDX-License-Identifier: Apache-2.0
"""Training processes as torchrun starts them, forked from the test: nothing is imported again."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from muntin.training.processes import free_port


class Outcome(NamedTuple):
    """What a process ended with: the value of its work, or an error; neither if it was killed."""

    value: Any = None
    error: str = ""
    text: str = ""
    code: int | None = 0


class Forked:
    """Processes that call `work`; `values` are further variables of the environment, by rank."""

    def __init__(
        self,
        world: int,
        work: Callable[[], Any],
        values: Mapping[int, Any] | None = None,
    ) -> None:
        context = multiprocessing.get_context("fork")
        port, self.pipes, self.processes = free_port(), [], []
        for rank in range(world):
            mine, theirs = context.Pipe(duplex=False)
            variables = {
                "TORCHELASTIC_RUN_ID": "test", "RANK": rank, "WORLD_SIZE": world,
                "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0,
                "GROUP_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                "OMP_NUM_THREADS": 1, **((values or {}).get(rank) or {}),
            }  # fmt: skip
            process = context.Process(target=_call, args=(work, variables, theirs), daemon=False)
            process.start()
            theirs.close()
            self.pipes.append(mine)
            self.processes.append(process)

    def end(self, timeout_s: float = 240) -> list[Outcome]:
        """Wait for all and give their outcomes by rank; those that take too long are killed."""
        until = time.monotonic() + timeout_s
        outcomes = []
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            told = Outcome()
            try:
                if pipe.poll(max(0.0, until - time.monotonic())):
                    told = pipe.recv()
            except EOFError:
                pass
            process.join(max(1.0, until - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join()
            outcomes.append(told._replace(code=process.exitcode))
        return outcomes


def _call(work: Callable[[], Any], variables: Mapping[str, object], pipe: Any) -> None:
    os.environ.update({name: str(value) for name, value in variables.items()})
    torch.set_num_threads(1)
    try:
        pipe.send(Outcome(work()))
    except BaseException as error:
        pipe.send(Outcome(None, type(error).__name__, str(error)))
    os._exit(0)


def train_forked(world: int, work: Callable[[], Any], **options: Any) -> list[Outcome]:
    """Call `work` in as many processes, all of which must end well."""
    outcomes = Forked(world, work, **options).end()
    assert all(one.value is not None for one in outcomes), outcomes
    return outcomes
