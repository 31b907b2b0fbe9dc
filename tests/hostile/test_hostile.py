# SPDX-License-Identifier: Apache-2.0
"""Nothing that a file or a command line holds makes muntin crash, hang, or write elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import muntin
from tests.hostile.harness import tabulate

ROOT = Path(__file__).resolve().parents[2]
LEAST = 2500
TO_BE_MADE = {"run of now", "openvino"}
"""Formats whose cases train or export something first; the slow tests try them."""


def environment_of_package() -> dict[str, str]:
    """What a process needs that imports the package and its tests."""
    package = str(Path(muntin.__file__).parents[1])
    paths = [str(ROOT), package, os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


class Worker:
    """A process that imported everything once and forks for each case.

    It is no fork of this process, whose threads would be missing in a child.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.harness", "--serve"], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment_of_package(),
        )  # fmt: skip
        self.kinds, self.sample = json.loads(self._ask(None))

    def run(self, names: list[str]) -> list[dict[str, Any]]:
        return [json.loads(self._ask(name)) for name in names]

    def _ask(self, name: str | None) -> str:
        asked, answers = self._process.stdin, self._process.stdout
        if name is not None:
            print(json.dumps(name), file=asked, flush=True)
        return answers.readline()

    def close(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def _check(results: list[dict[str, Any]]) -> None:
    assert not any(result["faults"] for result in results), "\n" + tabulate(results)


def test_a_sample(worker):
    results = worker.run(worker.sample)
    assert {result["kind"] for result in results} == set(worker.kinds.values()) - TO_BE_MADE
    _check(results)


def test_there_are_many(worker):
    assert len(worker.kinds) >= LEAST


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    "part",
    [
        "data",
        "archive",
        "place",
        "image",
        "weights",
        "folder",
        "run",
        "exported",
        "command",
        "numbers",
    ],
)
def test_all(worker, part):
    names = [name for name in worker.kinds if name.startswith(f"{part}/")]
    assert names
    _check(worker.run(names))
