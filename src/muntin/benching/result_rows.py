# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing (A B C A B C ...), so that a drifting clock speed biases no competitor.

Rows of results: the measured quantity, comparison with the best peer, and tables.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

OURS = "muntin"

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkCase:
    """One implementation of the measured work.

    The owner is `OURS` or a peer; the variant, such as the engine, is added to its name in the
    report. A case `aside` is reported, but excluded from comparison with the best peer.
    """

    owner: str
    run: Callable[[], NDArray[np.float32]]
    variant: str = ""
    precision: str = "fp32"
    aside: bool = False


@dataclass(kw_only=True, slots=True)
class Timing:
    """Duration of every round after warm-up, and differences from the reference output.

    The error is the largest absolute one; `agreement` is the share of rows with the same argmax.
    """

    case: BenchmarkCase
    seconds: list[float] = field(default_factory=list)
    error: float = float("nan")
    agreement: float = float("nan")

    def to_row(self, **fields: object) -> dict[str, Any]:
        """Name, precision and owner as a row of a result, with more fields."""
        case = self.case
        return {
            "name": f"{case.owner} {case.variant}".strip(),
            "precision": case.precision,
            "rival": case.owner != OURS,
            **fields,
        }


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum, maximum and count of repeated measurements."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "count": len(values),
    }


def time_interleaved(
    cases: Sequence[BenchmarkCase],
    *,
    rounds: int,
    truth: NDArray[np.float64] | None = None,
    warmups: int = 1,
) -> list[Timing]:
    """Time the cases in interleaved rounds, after `warmups` rounds that do not count.

    The output of the first round is compared with `truth`.
    """
    timings = [Timing(case=case) for case in cases]
    for turn in range(warmups + rounds):
        for timing in timings:
            begun = time.perf_counter()
            answer = timing.case.run()
            seconds = time.perf_counter() - begun
            if turn >= warmups:
                timing.seconds.append(seconds)
            if turn == 0 and truth is not None:
                timing.error = float(np.abs(answer.astype(np.float64) - truth).max())
                same = answer.argmax(axis=-1) == truth.argmax(axis=-1)
                timing.agreement = float(same.mean())
    return timings


@dataclass(frozen=True, slots=True)
class Measure:
    """The measured quantity; `key` in a row holds a result of `summarize`.

    `sign` is 1 if smaller is better, -1 if larger is; values below 10 get one more digit.
    """

    key: str
    title: str
    sign: int
    digits: int


MEASURES = (
    Measure("images_per_s", "images/s", -1, 1),
    Measure("peak_mib", "peak MiB", 1, 0),
    Measure("ms", "ms", 1, 2),
    Measure("ms_per_mp", "ms/Mpixel", 1, 0),
    Measure("seconds", "s an image", 1, 4),
)
ALIKE = ("batch", "part", "stage", "map", "work", "workers")
"""Rows that agree in these form a group; in a table, groups keep their order."""

# Key in a row, title, format.
BEFORE: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("batch", "batch", str),
    ("part", "part", str),
    ("stage", "stage", str),
    ("map", "map", lambda sides: "x".join(map(str, sides))),
    ("pictures", "images", str),
    ("work", "work", str),
    ("workers", "workers", str),
    ("name", "name", str),
    ("precision", "precision", str),
)
AFTER: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("against_best_rival", "vs best peer", "{:.2f}x".format),
    ("share", "of the call", "{:.0%}".format),
    ("found", "found", "{:.1f}".format),
    ("of_ceiling", "of peak", lambda part: f"{100 * part:.0f} %"),
    ("mib_per_mp", "MiB/Mpixel", "{:.0f}".format),
    ("activation_mib", "activations MiB", "{0[median]:.0f}".format),
    ("weights_mib", "weights MiB", "{:.0f}".format),
    ("max_error", "error", "{:.1e}".format),
    ("second_error", "error, step 2", "{:.1e}".format),
    ("mean_error", "mean error", "{:.1e}".format),
    ("missing", "missing", str),
    ("agreement", "top-1 agreement", lambda part: f"{100 * part:.0f} %"),
)


def find_measure(rows: Sequence[Row]) -> Measure:
    """Find the quantity that all rows have measured."""
    return next(one for one in MEASURES if all(isinstance(row.get(one.key), dict) for row in rows))


def group_rows(rows: Sequence[Row], fields: Sequence[str]) -> list[list[Row]]:
    """Group rows that agree in all fields, in order of first appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(repr([row.get(field) for field in fields]), []).append(row)
    return [*groups.values()]


def best_row(rows: Sequence[Row], measure: Measure, *, rival: bool) -> Row | None:
    """Find the best row of muntin or of the peers; None without any. Rows aside do not count."""
    found = [row for row in rows if row["rival"] is rival and not row.get("aside")]
    return min(found, key=lambda row: measure.sign * row[measure.key]["median"], default=None)


def compare_rows(rows: list[Row]) -> list[Row]:
    """Add ``against_best_rival`` to every row and return them; above 1, a row beats all peers.

    Only rows of equal work and precision are compared. The best peer has 1; without a peer, the
    value is None.
    """
    measure = find_measure(rows)
    for group in group_rows(rows, ("precision", *ALIKE)):
        rival = best_row(group, measure, rival=True)
        for row in group:
            row["against_best_rival"] = None
            if rival is not None:
                ratio = row[measure.key]["median"] / rival[measure.key]["median"]
                row["against_best_rival"] = ratio**-measure.sign
    return rows


def format_rows(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Format the result of a benchmark as headers and the cells of each row.

    The best row comes first within each group of equal work; columns without values are omitted.
    """
    rows = found["contestants"]
    measure = find_measure(rows)
    before, after = (
        [column for column in columns if any(row.get(column[0]) is not None for row in rows)]
        for columns in (BEFORE, AFTER)
    )
    titles = [title for _, title, _ in before] + [measure.title, "min to max"]
    cells = []
    for group in group_rows(rows, ALIKE):
        for row in sorted(group, key=lambda row: measure.sign * row[measure.key]["median"]):
            digits = measure.digits + (row[measure.key]["median"] < 10)
            median, low, high = (
                f"{row[measure.key][name]:.{digits}f}" for name in ("median", "min", "max")
            )
            line = [_cell(row, column) for column in before] + [median, f"{low} to {high}"]
            cells.append(line + [_cell(row, column) for column in after])
    return titles + [title for _, title, _ in after], cells


def _cell(row: Row, column: tuple[str, str, Callable[[Any], str]]) -> str:
    key, _, write = column
    return "" if row.get(key) is None else write(row[key])
