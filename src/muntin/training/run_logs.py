# SPDX-License-Identifier: Apache-2.0
"""What is written of each epoch: journal and table, and what `machine.log` adds to them."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from muntin.configs import to_dict
from muntin.errors import MuntinWarning, RunError, first_line, missing_extra
from muntin.run_files import read_json, write_json, write_text
from muntin.runs import Run, append_journal, append_text, drop_epochs_from, read_journal
from muntin.staging import part_of, writing
from muntin.train_config import LogName, MachineConfig

TABLE = "results.csv"
"""The lines of the journal as a table, a row an epoch."""

_IDS = "trackers.json"
"""By tracker the id of the run there, with which a resumed run goes on."""

Values = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Tracker:
    """A library that shows runs: `add` takes an epoch and its numbers, `end` the best and a state.

    The state is "finished", "interrupted" or "failed"; `id` is that of the run there.
    """

    add: Callable[[int, Values], None]
    end: Callable[[Values, str], None] = lambda figures, state: None
    id: str = ""


def start_tensorboard(run: Run, known: str) -> Tracker:
    """Write events into the run folder."""
    # Local, so that only runs that write events import TensorBoard.
    from torch.utils.tensorboard import SummaryWriter

    def add(epoch: int, values: Values) -> None:
        place = part_of(run.path, "events")
        with writing(place), SummaryWriter(str(place)) as writer:
            for name, value in values.items():
                writer.add_scalar(name, value, epoch)

    return Tracker(add)


def start_mlflow(run: Run, known: str) -> Tracker:
    """Write to the server or folder of ``MLFLOW_TRACKING_URI``, as ``MLFLOW_EXPERIMENT_NAME``."""
    import mlflow
    from mlflow.entities import Metric, Param

    # The client, not the functions of the module: these keep one global run, perhaps of the user.
    client = mlflow.MlflowClient()
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "muntin")
    if known:
        client.update_run(known, status="RUNNING")
    else:
        found = client.get_experiment_by_name(name)
        group = found.experiment_id if found else client.create_experiment(name)
        known = client.create_run(group, run_name=run.path.name).info.run_id
        settings = [Param(key, str(value)) for key, value in _settings(run).items()]
        for start in range(0, len(settings), 100):  # as many as a server takes at once
            client.log_batch(known, params=settings[start : start + 100])

    def add(epoch: int, values: Values) -> None:
        now = int(1000 * time.time())
        client.log_batch(known, [Metric(key, value, now, epoch) for key, value in values.items()])

    def end(figures: Values, state: str) -> None:
        states = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
        client.set_terminated(known, states[state])

    return Tracker(add, end, known)


def start_wandb(run: Run, known: str) -> Tracker:
    """Write to Weights & Biases, or as ``WANDB_MODE`` says, offline into the run folder."""
    import wandb

    started = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "muntin"),
        name=run.path.name,
        id=known or None,
        resume="allow" if known else None,
        dir=str(run.path),
        config=_settings(run),
        settings=wandb.Settings(console="off"),  # it would take the place of the progress bar
    )

    def add(epoch: int, values: Values) -> None:
        started.log(dict(values), step=epoch)

    def end(figures: Values, state: str) -> None:
        started.summary.update({f"best_{name}": value for name, value in figures.items()})
        started.finish(exit_code=int(state == "failed"))

    return Tracker(add, end, str(started.id))


LOGS: Mapping[LogName, tuple[str, Callable[[Run, str], Tracker]]] = {
    "tensorboard": ("log", start_tensorboard),
    "mlflow": ("mlflow", start_mlflow),
    "wandb": ("wandb", start_wandb),
}
"""Trackers by the name of their library: the extra that installs it, and what starts it."""


def choose_logs(machine: MachineConfig) -> tuple[LogName, ...]:
    """Trackers of a run; those asked for but not installed are one `MissingExtra`."""
    asked = {*machine.log, *(("tensorboard",) if machine.tensorboard == "on" else ())}
    gone = [name for name in LOGS if name in asked and importlib.util.find_spec(name) is None]
    if gone:
        extras = ",".join(LOGS[name][0] for name in gone)
        option = f"machine.log={','.join(gone)}"
        raise missing_extra(" and ".join(gone), extras, option)
    if machine.tensorboard == "auto" and importlib.util.find_spec("tensorboard") is not None:
        asked.add("tensorboard")
    return tuple(name for name in LOGS if name in asked)


def _settings(run: Run) -> dict[str, Any]:
    """The config of a run in one level, but for what only concerns the machine."""
    # Trackers sort and compare by single values, and show nested ones as text.
    found: dict[str, Any] = {}
    waiting = [("", to_dict(run.config))]
    while waiting:
        before, values = waiting.pop()
        for name, value in values.items():
            if isinstance(value, dict):
                waiting.append((f"{before}{name}.", value))
            elif not before.startswith("machine."):
                found[f"{before}{name}"] = value
    return found


class Table:
    """``results.csv``, whose columns are all that the journal has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.columns: Sequence[str] = ()

    def add(self, line: Mapping[str, Any]) -> None:
        """Append a line that the journal already has; one with new columns is written anew."""
        if self.columns and line.keys() <= {*self.columns}:
            text = _format_rows([line], self.columns)
            append_text(self.folder, TABLE, text, durable=False)  # the journal can give it again
        else:
            self.write()  # such as the figures of the first validation

    def write(self) -> None:
        """Write what is in the journal."""
        lines = read_journal(self.folder)
        self.columns = [*dict.fromkeys(name for line in lines for name in line)]
        if lines:
            head = dict(zip(self.columns, self.columns, strict=True))
            text = _format_rows([head, *lines], self.columns)
            write_text(part_of(self.folder, TABLE), text)


def _format_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writerows(rows)
    return file.getvalue()


class Records:
    """Journal, table and trackers of a run; a context, at whose start and end these are told.

    A wrong tracker is met before the first step; one that fails later is left out with a warning,
    for the journal has all that it lacks.

    Args:
        run: Its `machine.log` names the trackers.
        active: Whether this process writes; in all others nothing is.
    """

    def __init__(self, run: Run, *, active: bool) -> None:
        self.run, self.active, self._ended = run, active, False
        self.table = Table(run.path)
        self.trackers: dict[LogName, Tracker] = {}

    def _start(self) -> None:
        folder = self.run.path
        ids = read_json(folder / _IDS) if (folder / _IDS).is_file() else {}
        for name in choose_logs(self.run.config.machine):
            try:
                self.trackers[name] = LOGS[name][1](self.run, str(ids.get(name, "")))
            except Exception as error:  # of a foreign library and its network
                self.end({}, "failed")
                message = (
                    f"machine.log={name} must be ready before training, but {name} says: "
                    f"{first_line(error)}. Set it up, or leave it out."
                )
                raise RunError(message) from error
        known: dict[str, str] = {
            name: tracker.id for name, tracker in self.trackers.items() if tracker.id
        }
        if known:
            write_json(part_of(folder, _IDS), {**ids, **known})

    def __enter__(self) -> Records:
        """Start the trackers, and give itself."""
        if self.active:
            self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tell the trackers of a failure."""
        if not self._ended:
            self.end({}, "failed" if kind else "finished")

    def add(self, line: Mapping[str, Any]) -> None:
        """Write the line of an epoch."""
        if not self.active:
            return
        # The journal first: all others can be written again from it.
        append_journal(self.run.path, line)
        self.table.add(line)
        numbers = {k: float(v) for k, v in line.items() if isinstance(v, (int, float))}
        epoch = int(numbers.pop("epoch"))
        self._tell(lambda tracker: tracker.add(epoch, numbers))

    def drop_from(self, epoch: int) -> None:
        """Remove the epochs from `epoch` (from 1) on, which a resumed run writes again."""
        if self.active:
            drop_epochs_from(self.run.path, epoch)
            self.table.write()

    def end(self, figures: Mapping[str, Any], state: str) -> None:
        """Tell the trackers the figures of the best epoch and how the run ended."""
        self._ended = True
        numbers = {k: float(v) for k, v in figures.items() if isinstance(v, (int, float))}
        self._tell(lambda tracker: tracker.end(numbers, state))

    def _tell(self, say: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                say(tracker)
            except Exception as error:
                if isinstance(error, RunError):  # a full disk, where the run itself cannot go on
                    raise
                del self.trackers[name]
                text = f"{name} is left out from here on, as it says: {first_line(error)}"
                warnings.warn(text, MuntinWarning, stacklevel=4)
