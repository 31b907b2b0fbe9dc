# SPDX-License-Identifier: Apache-2.0
"""Trainings that are killed, stopped, out of room or not alone: resumed, they have the same bits.

    python -m tests.hostile.interruptions kill [--seed 5]

A line for each trial: its name, and what is wrong, nothing if all is right.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from muntin.errors import MuntinError
from muntin.run_files import find_results
from tests.golden.material import DATA
from tests.hostile.harness import Outcome, await_command, judge, start_command, warm_up
from tests.hostile.run_cases import TINY

NUM_KILLS = 30
CHECKPOINTS = ("last.ckpt", "last.ckpt.new", "last.ckpt.old")
MEASURED = {"seconds", "images_per_s", "memory_mib"}
Trial = tuple[str, list[str]]


class Trials:
    """A small training, what it gives when nothing disturbs it, and how long it takes."""

    def __init__(self, work: Path) -> None:
        self.work, self.run = work, work / "run"
        data = ["classify", str(DATA / "classify"), "--out", str(self.run)]
        self.train = ["train", *data, *TINY, "--epochs=6", "--set=train.ema_decay=0.9"]
        self.resume = ["train", *data, "--resume"]
        (work / "place").mkdir()
        self.duration = self.end(self.start(self.train), self.train, "accept").seconds
        self.whole, self.largest = self.facts(), self._largest()

    def _largest(self) -> int:
        return max(path.stat().st_size for path in self.run.rglob("*.safetensors"))

    def start(self, words: list[str], place: str = "place", **options: Any) -> int:
        (self.work / place).mkdir(exist_ok=True)
        return start_command(words, self.work / place, **options)

    def end(
        self, child: int, words: list[str], expect: str = "either", place: str = "place"
    ) -> Outcome:
        outcome = await_command(child, self.work / place)
        judge(outcome, words, expect)
        return outcome

    def clear(self) -> None:
        shutil.rmtree(self.run, ignore_errors=True)

    def facts(self) -> dict[str, Any]:
        """All that must not hang on how a run came about."""
        state = json.loads((self.run / "last.ckpt" / "state.json").read_text())
        del state["position"]["elapsed_s"]
        lines = map(json.loads, (self.run / "journal.jsonl").read_text().splitlines())
        results = find_results(self.run, verify=True)
        del results["checksums"]  # of bytes that may come in another order
        tensors = ("last.ckpt/state.safetensors", "weights.safetensors")
        plain = ("classes.json", "config.json", "preprocessing.json", "split.json")
        return {
            "state": state,
            "journal": [{k: v for k, v in line.items() if k not in MEASURED} for line in lines],
            "results": results,
            **{name: _contents(self.run / name) for name in tensors},
            **{name: (self.run / name).read_bytes() for name in plain},
        }

    def finish(self) -> list[str]:
        """Resume, or start again where nothing was saved; and name what is another way."""
        saved = any((self.run / name).exists() for name in CHECKPOINTS)
        words = self.resume if saved else self.train
        outcome = self.end(self.start(words), words, "accept")
        if outcome.faults:
            return [f"{words[-1]}: {outcome.faults}"]
        try:
            facts = self.facts()
        except (OSError, ValueError, MuntinError) as error:
            return [f"the run cannot be read: {error}"]
        return [f"{name} differs" for name in self.whole if facts[name] != self.whole[name]]


def _contents(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header, whose entries have no order, and bytes of a safetensors file."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:start]), data[start:]


def kill(trials: Trials, rng: random.Random) -> Iterator[Trial]:
    """End the process at random moments."""
    for _ in range(NUM_KILLS):
        trials.clear()
        moment = rng.uniform(0.02, 1) * trials.duration
        child = trials.start(trials.train)
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        yield f"after {moment:.2f} s", trials.finish()


def signals(trials: Trials, rng: random.Random) -> Iterator[Trial]:
    """Ask the process to stop, once or three times."""
    for number in (signal.SIGINT, signal.SIGTERM):
        for times in (1, 1, 1, 3):
            trials.clear()
            moment = rng.uniform(0.1, 0.9) * trials.duration
            child = trials.start(trials.train)
            time.sleep(moment)
            for _ in range(times):
                os.kill(child, number)
            outcome = trials.end(child, trials.train)
            if number == signal.SIGTERM:  # it ends what is not training yet, or no longer
                outcome.faults = [one for one in outcome.faults if one != f"signal {number}"]
            yield f"{number.name} x {times} after {moment:.2f} s", outcome.faults + trials.finish()


def full(trials: Trials, rng: random.Random) -> Iterator[Trial]:
    """No file may become larger than this, as on a disk that is full."""
    for share in (0.001, 0.05, 0.3, 0.6, 0.9, 0.999):
        trials.clear()
        most = int(share * trials.largest)
        limit = (most, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        child = trials.start(
            trials.train,
            prepare=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
        )
        outcome = trials.end(child, trials.train)
        yield f"{most} bytes", outcome.faults + trials.finish()


def two(trials: Trials, rng: random.Random) -> Iterator[Trial]:
    """Start a second training, or a resumed one, while one is running."""
    for delay in (0.0, 0.1, 0.3, 0.5):
        for words in (trials.train, trials.resume):
            if delay < 0.3 and words is trials.resume:
                continue
            trials.clear()
            first = trials.start(trials.train)
            time.sleep(delay * trials.duration)
            second = trials.start(words, "second")
            ends = [trials.end(second, words, "either", "second"), trials.end(first, trials.train)]
            faults = [fault for one in ends for fault in one.faults]
            codes = sorted(one.code or 0 for one in ends)
            faults += [] if codes == [0, 1] else [f"exit codes {codes}, one must be refused"]
            yield f"{words[-1]} after {delay:.1f} of it", faults + trials.finish()


def clock(trials: Trials, rng: random.Random) -> Iterator[Trial]:
    """The time of day jumps, or runs backwards."""
    real, begun = time.time, time.time()
    wrong: dict[str, Callable[[], float]] = {
        "ten years back": lambda: real() - (3e8 if real() > begun + 1 else 0),
        "ten years on": lambda: real() + (3e8 if real() > begun + 1 else 0),
        "zero": lambda: 0.0,
        "backwards": lambda: 2 * begun - real(),
    }
    for name, tell in wrong.items():
        trials.clear()
        child = trials.start(trials.train, prepare=lambda tell=tell: setattr(time, "time", tell))
        outcome = trials.end(child, trials.train, "accept")
        yield name, outcome.faults + trials.finish()


PARTS = {part.__name__: part for part in (kill, signals, full, two, clock)}


def main() -> None:
    """Run a part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--seed", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, os.fdopen(os.dup(1), "w", buffering=1) as say:
        warm_up(Path(folder))
        trials = PARTS[asked.part](Trials(Path(folder)), random.Random(asked.seed))
        for name, faults in trials:
            say.write(json.dumps([name, faults]) + "\n")


if __name__ == "__main__":
    main()
