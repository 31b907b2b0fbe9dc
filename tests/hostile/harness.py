# SPDX-License-Identifier: Apache-2.0
"""Runs the command line on hostile input, one forked child a case, and judges what came.

    python -m tests.hostile.harness --only 'coco' [--show]     cases whose name matches
    python -m tests.hostile.harness --serve                    for the tests: names in, verdicts out

The process imports everything once and starts no threads, so a fork costs tens of milliseconds,
and a crash, a hang or a bomb stays in its child.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MOST_S = float(os.environ.get("MUNTIN_HOSTILE_SECONDS", "60"))
MOST_BYTES = 3 * 2**30
LONGEST = 2100  # characters of a line
CANARY = "canary"
"""A file of this name appears where code of a stranger ran."""

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MPLBACKEND": "Agg",
    "COLUMNS": "200", "TORCH_CPP_LOG_LEVEL": "ERROR", "LANG": "C.UTF-8",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Folders of one case: what is read, what may be written, what nothing may touch."""

    root: Path

    @property
    def source(self) -> Path:
        return self.root / "in"

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def outside(self) -> Path:
        return self.root / "outside"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One hostile input.

    Attributes:
        name: Readable and unique: "coco/instances.json/images.0.width=nan".
        kind: The format, by which results are counted.
        build: Writes the files and gives the arguments of the command.
        expect: "refuse" where the input is plainly wrong, "accept" where it is right.
        slow: It takes more than a moment: something is trained or exported first.
        inspect: Looks at what lies there in the end, and gives its faults.
    """

    name: str
    kind: str
    build: Callable[[Place], list[str]]
    expect: str = "either"
    slow: bool = False
    inspect: Callable[[Place], list[str]] | None = None


@dataclass(kw_only=True)
class Outcome:
    """What a command did."""

    code: int | None = None
    seconds: float = 0.0
    memory: int = 0
    out: str = ""
    err: str = ""
    faults: list[str] = field(default_factory=list)


def warm_up(work: Path) -> None:
    """Import what the verbs import, with home, caches and temporary files below `work`."""
    for name in ("home", "tmp"):
        (work / name).mkdir(parents=True, exist_ok=True)
    os.environ.update(_ENVIRONMENT, HOME=f"{work}/home", TMPDIR=f"{work}/tmp", TERM="dumb")
    os.environ.update(XDG_CACHE_HOME=f"{work}/home/cache", MPLCONFIGDIR=f"{work}/home/mpl")
    tempfile.tempdir = None
    import torch

    torch.set_num_threads(1)
    import torchvision  # noqa: F401

    import muntin.commands
    import muntin.commands.search
    import muntin.explaining.explanation
    import muntin.prediction.formats.format_table
    import muntin.prediction.from_run
    import muntin.scoring.evaluation
    import muntin.training.session
    import muntin.zoo.weight_conversion

    muntin.commands.get_command(muntin.commands.app)


def run_command(arguments: Sequence[str], folder: Path) -> Outcome:
    """Run `muntin ARGUMENTS` in a forked child whose working folder is `folder`."""
    return await_command(start_command(arguments, folder), folder)


def start_command(
    arguments: Sequence[str], folder: Path, prepare: Callable[[], object] = lambda: None
) -> int:
    """Start a command, and give the number of its process, which calls `prepare` first."""
    child = os.fork()
    if not child:
        _be_the_child(arguments, folder, _outputs(folder), prepare)
    return child


def _outputs(folder: Path) -> list[Path]:
    return [Path(f"{folder}.{name}") for name in ("stdout", "stderr")]


def await_command(child: int, folder: Path) -> Outcome:
    """Wait for a command that was started in `folder`, and tell what it did."""
    outcome = Outcome()
    begun = time.monotonic()
    status, outcome.memory = _watch(child, begun, outcome)
    with contextlib.suppress(OSError):
        os.killpg(child, signal.SIGKILL)  # what it started, and did not end
    outcome.seconds = time.monotonic() - begun
    if os.WIFSIGNALED(status) and not outcome.faults:
        outcome.faults.append(f"signal {os.WTERMSIG(status)}")
    outcome.code = None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    outcome.out, outcome.err = (
        path.read_text("utf-8", "backslashreplace") for path in _outputs(folder)
    )
    return outcome


def _be_the_child(
    arguments: Sequence[str], folder: Path, files: Sequence[Path], prepare: Callable[[], object]
) -> None:
    code = 97
    try:
        os.setsid()
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in enumerate(files, 1):
            os.dup2(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), number)
        from muntin.commands import main

        prepare()
        sys.stdout.reconfigure(errors="strict")  # as outside the locale C
        sys.argv = ["muntin", *arguments]
        main(list(arguments))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code & 255)


def _watch(child: int, begun: float, outcome: Outcome) -> tuple[int, int]:
    """Wait for a child; end it where it takes too long or too much memory."""
    pause = 0.002
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            memory = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            if memory > MOST_BYTES and not outcome.faults:
                outcome.faults.append(f"memory: {memory >> 20} MiB")
            return status, memory
        with contextlib.suppress(OSError, ValueError, IndexError):
            resident = int(Path(f"/proc/{child}/statm").read_text().split()[1]) * 4096
            if resident > MOST_BYTES and not outcome.faults:
                outcome.faults.append(f"memory: over {MOST_BYTES >> 20} MiB")
                os.killpg(child, signal.SIGKILL)
        if time.monotonic() - begun > MOST_S and not outcome.faults:
            outcome.faults.append(f"hang: more than {MOST_S:.0f} s")
            os.killpg(child, signal.SIGKILL)
        time.sleep(pause)
        pause = min(0.05, pause * 1.3)


def judge(outcome: Outcome, arguments: Sequence[str], expect: str) -> None:
    """Add the faults of what a command answered."""
    faults, code = outcome.faults, outcome.code
    if faults:
        return
    if "Traceback (most recent call last)" in outcome.err + outcome.out or code not in (0, 1, 2):
        last = [line for line in outcome.err.splitlines() if re.match(r"[\w.]+(:|$)", line)]
        last = [line for line in last if not line.startswith("muntin:")]
        faults.append(f"traceback, exit code {code}: {(last or [''])[-1][:200]}")
        return
    # Progress, and what compiled libraries print, are no complaints.
    lines = [line for line in outcome.err.splitlines() if line.startswith("muntin: ")]
    said = [line for line in lines if not line.startswith("muntin: warning: ")]
    if len(said) > (code != 0):
        faults.append(f"{len(said)} complaints with exit code {code}: {said[:3]}")
    if any(len(line) > LONGEST or not line.isprintable() for line in lines):
        faults.append("a line that a terminal cannot show")
    if code and not lines and not outcome.out.strip():
        faults.append(f"exit code {code} without a word")
    if "--json" in arguments and code in (0, 1) and outcome.out.strip():
        try:
            json.loads(outcome.out, parse_constant=_refuse_constant)
        except ValueError as error:
            faults.append(f"stdout is no JSON: {error}")
    if code == 0 and expect == "refuse":
        faults.append("accepted, although it is wrong")
    if code != 0 and expect == "accept":
        faults.append(f"refused, although it is right: {outcome.err[:300]}")


def _refuse_constant(name: str) -> None:
    message = f"{name} is no JSON"
    raise ValueError(message)


def run_case(case: Case, work: Path) -> Outcome:
    """Build one case below `work`, run it and judge it."""
    place = Place(work / "case")
    clear(place.root)
    for folder in (place.source, place.out, place.outside):
        folder.mkdir(parents=True)
    os.mkfifo(place.outside / "pipe")
    arguments = case.build(place)
    before = _snapshot(place)
    outcome = run_command(arguments, place.out)
    judge(outcome, arguments, case.expect)
    if case.inspect is not None:
        outcome.faults += case.inspect(place)
    if (place.outside / CANARY).exists():
        outcome.faults.append("code of the file ran")
    changed = sorted(path for path, _ in before ^ _snapshot(place))
    if changed:
        outcome.faults.append(f"{len(changed)} files changed outside the target: {changed[0]}")
    return outcome


def clear(folder: Path) -> None:
    """Remove a folder, whatever rights its parts have."""
    for here, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):
            os.chmod(here, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


def _snapshot(place: Place) -> set[tuple[str, tuple[int, ...]]]:
    found = set()
    for top in (place.source, place.outside):
        for here, _, names in os.walk(top):
            for name in names:
                path = os.path.join(here, name)
                with contextlib.suppress(OSError):
                    info = os.lstat(path)
                    if not stat.S_ISFIFO(info.st_mode):
                        found.add((path, (info.st_size, info.st_mtime_ns, info.st_ino)))
    return found


def tabulate(results: Iterable[dict[str, Any]]) -> str:
    """A line for each failure, and a table of what was tried and what failed by format."""
    counts: dict[str, list[int]] = {}
    lines = []
    for result in results:
        row = counts.setdefault(result["kind"], [0, 0])
        row[0] += 1
        row[1] += bool(result["faults"])
        if result["faults"]:
            lines.append(f"{result['name']}: {'; '.join(result['faults'])}")
    lines.append(f"{'format':24} tried failed")
    lines += [f"{kind:24} {tried:5} {failed:6}" for kind, (tried, failed) in counts.items()]
    total = [sum(column) for column in zip(*counts.values(), strict=True)] or [0, 0]
    return "\n".join([*lines, f"{'all':24} {total[0]:5} {total[1]:6}"])


def _answer(case: Case, work: Path) -> dict[str, Any]:
    outcome = run_case(case, work)
    answer = {"name": case.name, "kind": case.kind, "faults": outcome.faults}
    return {**answer, "code": outcome.code, "seconds": round(outcome.seconds, 3),
            "mib": outcome.memory >> 20, "err": outcome.err[-3000:]}  # fmt: skip


def main() -> None:
    """Serve names, or run the cases that match."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="regular expression of names")
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--sample", action="store_true", help="only those of the default tests")
    parser.add_argument("--every", action="store_true", help="also those left out of the tests")
    parser.add_argument("--show", action="store_true", help="what every case wrote to stderr")
    asked = parser.parse_args()
    say = os.fdopen(os.dup(1), "w", buffering=1)  # children have a stdout of their own
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        warm_up(work)
        from tests.hostile.catalogue import choose, every_case, sample

        every = list(every_case(work))
        cases = {case.name: case for case in (every if asked.every else choose(every))}
        if asked.serve:
            kinds = {case.name: case.kind for case in cases.values()}
            say.write(json.dumps([kinds, [case.name for case in sample(cases.values())]]) + "\n")
            for line in sys.stdin:
                say.write(json.dumps(_answer(cases[json.loads(line)], work)) + "\n")
            return
        chosen = sample(cases.values()) if asked.sample else cases.values()
        results = []
        for case in chosen:
            if re.search(asked.only, case.name):
                results.append(_answer(case, work))
                if asked.show or results[-1]["faults"]:
                    say.write(json.dumps(results[-1]) + "\n")
        say.write(tabulate(results) + "\n")


if __name__ == "__main__":
    main()
