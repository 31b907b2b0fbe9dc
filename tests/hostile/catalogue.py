# SPDX-License-Identifier: Apache-2.0
"""All cases, those of them that the slow tests try, and the few of the default ones."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.hostile.command_cases import command_cases
from tests.hostile.data_cases import archive_cases, data_cases, place_cases
from tests.hostile.harness import Case
from tests.hostile.image_cases import image_cases
from tests.hostile.number_cases import number_cases
from tests.hostile.run_cases import Made, export_cases, run_cases
from tests.hostile.shard_cases import shard_cases
from tests.hostile.weight_cases import folder_cases, weight_cases

LEAST_OF_A_FORMAT = 60


def every_case(work: Path) -> Iterator[Case]:
    """Every case that there is; what some need is made below `work` when they are built."""
    made = Made(work)
    yield from data_cases()
    yield from archive_cases()
    yield from place_cases()
    yield from shard_cases()
    yield from image_cases()
    yield from weight_cases()
    yield from folder_cases()
    yield from run_cases(made)
    yield from export_cases(made)
    yield from command_cases()
    yield from number_cases()


def choose(cases: Iterable[Case]) -> list[Case]:
    """The cases of the slow tests: all of a format that has few, more of one that has many."""
    chosen = []
    for kind, found in by_kind(cases).items():
        count = min(len(found), LEAST_OF_A_FORMAT + len(found) // 10)
        sure = [case for case in found if case.expect != "either"][:count]
        rest = [case for case in found if case not in sure]
        chosen += [*sure, *random.Random(kind).sample(rest, count - len(sure))]
    return chosen


def sample(cases: Iterable[Case]) -> list[Case]:
    """One hostile case of each format; of some, one more that is as it should be.

    A format for which something is trained or exported first is left to the slow tests:
    `tests/engines/test_hostile_files.py` changes exported files, and runs of before are here.
    """
    chosen = []
    for number, (kind, found) in enumerate(by_kind(cases).items()):
        quick = [case for case in found if not case.slow]
        right = [case for case in quick if case.expect == "accept"][:1]
        hostile = [case for case in quick if case.expect != "accept"]
        chosen += random.Random(kind).sample(hostile, min(1, len(hostile)))
        chosen += right if number % 12 == 0 or not hostile else []
    return chosen


def by_kind(cases: Iterable[Case]) -> dict[str, list[Case]]:
    """The cases of each format."""
    found: dict[str, list[Case]] = {}
    for case in cases:
        found.setdefault(case.kind, []).append(case)
    return found
