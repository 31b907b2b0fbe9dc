# SPDX-License-Identifier: Apache-2.0
"""Items through stages on a cluster, each in processes of its own; in order, in bounded memory.

Ray Data carries the items: it starts processes, hands results on, waits where the next stage is
slower, and repeats what a process that died had not done.
"""

from __future__ import annotations

import os
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from muntin.clusters.ray_cluster import actors, connected, enter_folder, live_nodes
from muntin.errors import MuntinError, MuntinWarning

RETRIES = 3
"""How often an item is tried again whose process died."""
MOST_LOST = 10
"""How many items may be lost so, until the job ends."""
_AHEAD = 2
_MOST_THREADS = 8


class Stage(NamedTuple):
    """What is made of an item; `make` is called once a process, so that it may load a network.

    `network` is whether it runs one: it gets a GPU where the cluster has some, unless `device` says
    otherwise, or else half the CPUs of a node.
    """

    make: Callable[[], Callable[[Any], Any]]
    network: bool = False
    device: str = "auto"


class Failed(NamedTuple):
    """In place of the result of an item each of whose processes died."""

    place: int


class _Message(NamedTuple):
    """What goes from stage to stage: a value, or an error; and warnings of all stages so far."""

    value: Any
    notes: tuple[str, ...] = ()
    error: Exception | None = None


def run_stages(
    on: str, items: Sequence[Any], stages: Sequence[Stage], *, paths: Sequence[str] = ()
) -> Iterator[Any]:
    """Give what the stages make of each item, in order; `Failed` where processes died of it.

    Warnings of muntin, and the first error, are those that the stages would raise here.

    Args:
        on: The cluster, see `ray_cluster.check_address`.
        items: What the first stage is called with; paths rather than contents.
        stages: One behind the other.
        paths: Files and folders that every node must see.

    Raises:
        ConfigError, MissingExtra: As of `ray_cluster.connected`.
        ClusterError: More than `MOST_LOST` items were lost.
    """
    if not items:
        return
    import torch

    with connected(on, paths=paths, cpus=len(stages)) as ray:
        # Pickled: what feeds the stages does not import what they need.
        packed = [(ray.cloudpickle.dumps(one.make), *one[1:]) for one in stages]
        with actors(ray, "work until all is done", _Driver) as (driver,):
            place = os.getcwd(), torch.get_num_threads()
            ray.get(driver.start.remote(place, ray.put([*items]), packed))
            yield from _receive(ray, driver, len(items))


def _receive(ray: Any, driver: Any, total: int) -> Iterator[Any]:  # noqa: ANN401
    from ray import cloudpickle

    asked = deque(driver.take.remote() for _ in range(_AHEAD))
    place = 0
    while (row := ray.get(asked.popleft())) is not None:
        asked.append(driver.take.remote())
        yield from map(Failed, range(place, row[0]))
        place = row[0] + 1
        message: _Message = cloudpickle.loads(row[1])
        for note in message.notes:
            warnings.warn(note, MuntinWarning, stacklevel=2)
        if message.error is not None:
            raise message.error
        yield message.value
    yield from map(Failed, range(place, total))


class _Driver:
    """Feeds the stages on the cluster: Ray Data does not work through its client."""

    def start(
        self, place: tuple[str, int], items: list[Any], stages: list[tuple[Any, ...]]
    ) -> None:
        import ray
        from ray import cloudpickle

        folder, most_threads = place
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        context.max_errored_blocks = MOST_LOST
        packed = [
            {"place": number, "message": cloudpickle.dumps(_Message(item))}
            for number, item in enumerate(items)
        ]
        # A block an item: results come as soon as they are there, and little is done twice.
        data: Any = ray.data.from_items(packed, override_num_blocks=min(len(packed), 10_000))
        for make, network, device in stages:
            options = _share_out(ray, len(stages), device if network else "")
            # Threads of two stages take turns: preparing needs its core for a part of the time.
            threads = min(most_threads, options["num_cpus"] + 1) if network else 1
            given = (folder, make, threads)
            data = data.map(_Worker, fn_constructor_args=given, **options)
        self._rows = iter(data.iter_rows())

    def take(self) -> tuple[int, bytes] | None:
        row = next(self._rows, None)
        return None if row is None else (row["place"], row["message"])


def _share_out(ray: Any, num_stages: int, device: str) -> dict[str, Any]:  # noqa: ANN401
    """What a process takes of a node, and how many there may be; no device: it runs no network."""
    total = ray.cluster_resources()
    cpus, gpus = int(total.get("CPU", 1)), int(total.get("GPU", 0))
    options: dict[str, Any] = {"num_cpus": 1, "max_task_retries": RETRIES}
    most = max(1, cpus - num_stages + 1)
    if gpus and device in ("auto", "cuda"):
        options["num_gpus"], most = 1, gpus
    elif device:
        least = min(int(node["Resources"]["CPU"]) for node in live_nodes(ray))
        options["num_cpus"] = min(max(1, least // 2), _MOST_THREADS)
        most = max(1, (cpus - num_stages + 1) // options["num_cpus"])
    return {**options, "compute": ray.data.ActorPoolStrategy(min_size=1, max_size=most)}


class _Worker:
    """A process of a stage, which is made when its first item comes."""

    def __init__(self, folder: str, make: bytes, threads: int) -> None:
        self._folder, self._make, self._threads = folder, make, threads
        self._work: Callable[[Any], Any] | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        from ray import cloudpickle

        message: _Message = cloudpickle.loads(row["message"])
        if message.error is None:
            message = self._try(message)
        return {"place": row["place"], "message": cloudpickle.dumps(message)}

    def _begin(self) -> Callable[[Any], Any]:
        import torch
        from ray import cloudpickle

        enter_folder(self._folder)
        torch.set_num_threads(self._threads)
        made: Callable[[Any], Any] = cloudpickle.loads(self._make)()
        return made

    def _try(self, message: _Message) -> _Message:
        value: Any = None
        failed: Exception | None = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", MuntinWarning)
            try:
                if self._work is None:
                    self._work = self._begin()
                value = self._work(message.value)
            except MuntinError as error:
                failed = error
            except Exception:
                # Not raised: Ray would take the item for one whose process died.
                failed = RuntimeError(f"in a process of the cluster:\n{traceback.format_exc()}")
        notes = (str(one.message) for one in caught if issubclass(one.category, MuntinWarning))
        return _Message(value, (*message.notes, *notes), failed)
