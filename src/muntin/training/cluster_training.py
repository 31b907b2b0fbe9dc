# SPDX-License-Identifier: Apache-2.0
"""Training in processes that a cluster starts: each arranges the run as under torchrun."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from muntin.clusters.ray_cluster import check_address
from muntin.clusters.ray_processes import Processes, run_processes
from muntin.errors import quote
from muntin.train_config import MachineConfig
from muntin.training.arguments import TrainArguments
from muntin.training.checkpoint import FOLDER
from muntin.training.processes import ProcessError

Arrange = Callable[[TrainArguments], Any]


def arrange_on(given: TrainArguments, out: Path, arrange: Arrange) -> Any:  # noqa: ANN401
    """Arrange a run in `devices` times `nodes` processes of the cluster `on`.

    A limit of time counts from the start of the processes. Where one dies, all start again, from
    the last checkpoint.

    Raises:
        ConfigError, ClusterError, MissingExtra: The cluster cannot be used.
        MuntinError: What `arrange` raises.
    """
    check_address(given.on)
    settled = replace(given, on="", out=out, started=0.0, devices=0, nodes=0)
    # Ray joins the processes, before they know the settings of the run.
    timeout_s = MachineConfig().timeout_s
    with contextlib.suppress(ValueError):  # which the processes refuse
        timeout_s = float(str((given.settings or {}).get("machine.timeout_s", timeout_s)))
    read = (given.data, given.val, given.teacher, given.extend, given.weights, given.config)
    places = (str(place) for place in read if place and isinstance(place, str | Path))
    processes = Processes(
        partial(_arrange_there, given=settled, arrange=arrange),
        max(given.devices, 1) * max(given.nodes, 1),
        out,
        device=given.device,
        lost=ProcessError,
        timeout_s=timeout_s,
        paths=tuple(place for place in places if os.path.exists(place)),
    )
    try:
        return run_processes(given.on, processes)
    except KeyboardInterrupt:
        text = f"stopped; go on from the last checkpoint: the same with --resume --out {quote(out)}"
        sys.stderr.write(f"{text}\n")
        raise


def _arrange_there(begun: bool, given: TrainArguments, arrange: Arrange) -> Any:  # noqa: ANN401
    """Arrange in a process that knows the others; one that is started again goes on."""
    # Without a checkpoint it begins again: nothing was done that could be kept.
    if begun and (Path(given.out) / FOLDER).exists():
        given = replace(given, resume=True)
    return arrange(given)
