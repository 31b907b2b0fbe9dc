# SPDX-License-Identifier: Apache-2.0
"""Training processes on a cluster, which find each other as those of torchrun do.

Ray Train places and starts them, joins them, and starts all again when one died.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from muntin.clusters.ray_cluster import actors, connected, enter_folder, live_nodes
from muntin.errors import ClusterError, MuntinError

RESTARTS = 3
"""How often processes start again when one died."""
_LOOK_S = 0.5


class Processes(NamedTuple):
    """What is started: `work` in each of `number` processes.

    `work` is called with whether processes were started for it before. A `lost` error says that
    another process has ended; others end all. `folder` is one that all nodes must share.
    """

    work: Callable[[bool], Any]
    number: int
    folder: Path
    device: str = "auto"
    lost: type[Exception] = ConnectionError
    timeout_s: float = 1800.0
    paths: tuple[str, ...] = ()


class _Result(NamedTuple):
    value: Any = None
    error: Exception | None = None


def run_processes(on: str, processes: Processes) -> Any:  # noqa: ANN401 (what the work returns)
    """Run processes on a cluster, and write here what the first one prints; give its value.

    Raises:
        ClusterError: The cluster cannot be used, or the processes died more than `RESTARTS` times.
        MuntinError: The first error of a process.
    """
    above = next(one for one in (processes.folder, *processes.folder.parents) if one.is_dir())
    # A name that is new: a node that sees it has the same disk, not only a folder of that name.
    common = tempfile.mkdtemp(prefix=".muntin-", dir=above.absolute())
    try:
        needed = [common, *processes.paths]
        with connected(on, paths=needed, cpus=processes.number) as ray:
            return _run(ray, processes, common)
    finally:
        shutil.rmtree(common, ignore_errors=True)


def _run(ray: Any, processes: Processes, common: str) -> Any:  # noqa: ANN401
    work = ray.cloudpickle.dumps(processes.work)
    started = ray.cloudpickle.dumps((os.getcwd(), shutil.get_terminal_size().columns, common))
    scaling = _choose_scaling(ray, processes)
    losing = processes.lost, processes.timeout_s
    outcome: _Result | None = None
    must = f"finish its processes, which it starts again {RESTARTS} times"
    with actors(ray, must, _Driver, _Log) as (driver, heard):
        ended = driver.fit.remote(work, started, heard, losing, scaling)
        done: list[Any] = []
        while not done:
            done, _ = ray.wait([ended], timeout=_LOOK_S)
            texts, outcome = ray.get(heard.take.remote())
            for stream, text in texts:
                getattr(sys, stream).write(text)
                getattr(sys, stream).flush()
        if outcome is None:
            ray.get(ended)
    assert outcome is not None, "Ray reports a process that ended without a word"
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


def _choose_scaling(ray: Any, processes: Processes) -> dict[str, Any]:  # noqa: ANN401
    """What each process takes of a node: a GPU, or its share of the CPUs."""
    number, total = processes.number, ray.cluster_resources()
    gpus = int(total.get("GPU", 0))
    wanted = processes.device == "cuda" or (processes.device == "auto" and gpus > 0)
    if wanted and gpus < number:
        message = (
            f"the cluster must have {number} GPUs for --devices {number}, got {gpus}. Reduce "
            f"--devices, or give --device cpu."
        )
        raise ClusterError(message)
    nodes = [int(node["Resources"]["CPU"]) for node in live_nodes(ray)]
    share = max(1, min(nodes) // -(-number // len(nodes)))
    return {
        "num_workers": number,
        "use_gpu": wanted,
        "resources_per_worker": {"CPU": share, **({"GPU": 1} if wanted else {})},
    }


class _Log:
    """What processes have printed and returned, until the command asks."""

    def __init__(self) -> None:
        self._texts: list[tuple[str, str]] = []
        self._outcome: _Result | None = None

    def put(self, stream: str, text: str) -> None:
        self._texts.append((stream, text))

    def take(self) -> tuple[list[tuple[str, str]], _Result | None]:
        texts, self._texts = self._texts, []
        return texts, self._outcome

    def end(self, outcome: _Result) -> None:
        if self._outcome is None or (self._outcome.error is None and outcome.error is not None):
            self._outcome = outcome


class _Driver:
    """Runs Ray Train on the cluster: a command may be far from it."""

    def fit(
        self,
        work: bytes,
        started: bytes,
        heard: Any,  # noqa: ANN401 (an actor)
        losing: tuple[type[Exception], float],
        scaling: dict[str, Any],
    ) -> None:
        from ray import cloudpickle, train
        from ray.train.torch import TorchConfig, TorchTrainer

        from muntin.collectives import backend_of

        folder, columns, common = cloudpickle.loads(started)
        lost, timeout_s = losing

        def loop() -> None:
            _take_part(work, heard, lost, folder, columns, common)

        backend = backend_of("cuda" if scaling["use_gpu"] else "cpu")
        TorchTrainer(
            loop,
            torch_config=TorchConfig(backend=backend, timeout_s=int(timeout_s)),
            scaling_config=train.ScalingConfig(**scaling),
            run_config=train.RunConfig(
                name="processes",
                storage_path=common,
                failure_config=train.FailureConfig(max_failures=RESTARTS),
            ),
        ).fit()


def _take_part(
    work: bytes,
    heard: Any,  # noqa: ANN401
    lost: type[Exception],
    folder: str,
    columns: int,
    common: str,
) -> None:
    """Do the work in a process that Ray has started, as if torchrun had."""
    import ray
    from ray import cloudpickle
    from ray.train.collective import barrier

    enter_folder(folder)
    os.environ.update(
        TORCHELASTIC_RUN_ID="ray", GROUP_RANK=os.environ["NODE_RANK"], COLUMNS=str(columns)
    )
    first = os.environ["RANK"] == "0"
    mark = Path(common) / "begun"
    begun = mark.exists()
    outcome = None
    streams = (_Stream(heard, name if first else "") for name in ("stdout", "stderr"))
    out, err = streams
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            made = cloudpickle.loads(work)
            barrier()
            mark.touch()
            value = made(begun)
            outcome = _Result(value) if first else None
        except lost:
            raise  # Ray starts all again
        except MuntinError as error:
            outcome = _Result(error=error)
        except Exception:
            text = f"in a process of the cluster:\n{traceback.format_exc()}"
            outcome = _Result(error=RuntimeError(text))
    if outcome is not None:
        ray.get(heard.end.remote(outcome))


class _Stream(io.TextIOBase):
    """What is written goes to the command; of the first process alone."""

    def __init__(self, heard: Any, name: str) -> None:  # noqa: ANN401
        self._heard, self._name = heard, name

    def write(self, text: str) -> int:
        if self._name and text:
            self._heard.put.remote(self._name, text)
        return len(text)
