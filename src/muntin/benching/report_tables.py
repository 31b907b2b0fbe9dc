# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Benchmark results as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["format_rows"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Column:
    """One field of the rows.

    Attributes:
        key: Key in a row.
        title: Header of the column.
        write: Formats a value.
    """

    key: str
    title: str
    write: Callable[[Any], str] = str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measure:
    """The measured quantity.

    Attributes:
        key: Key in a row, whose value is a result of `summarize`.
        title: Header of the column, with the unit.
        sign: 1 if smaller is better, -1 if larger is.
        digits: Decimals; one more for values below 10.
    """

    key: str
    title: str
    sign: int
    digits: int


MEASURES = (
    _Measure(key="images_per_s", title="images/s", sign=-1, digits=1),
    _Measure(key="peak_mib", title="peak MiB", sign=1, digits=0),
    _Measure(key="ms", title="ms", sign=1, digits=2),
    _Measure(key="ms_per_mp", title="ms/Mpixel", sign=1, digits=0),
)

BEFORE = (
    _Column(key="stage", title="stage"),
    _Column(key="map", title="map", write=lambda sides: "x".join(map(str, sides))),
    _Column(key="pictures", title="images"),
    _Column(key="work", title="work"),
    _Column(key="workers", title="workers"),
    _Column(key="name", title="name"),
    _Column(key="precision", title="precision"),
)
AFTER = (
    _Column(key="against_best_rival", title="vs best peer", write=lambda ratio: f"{ratio:.2f}x"),
    _Column(key="of_ceiling", title="of peak", write=lambda part: f"{100 * part:.0f} %"),
    _Column(key="mib_per_mp", title="MiB/Mpixel", write=lambda mib: f"{mib:.0f}"),
    _Column(
        key="activation_mib",
        title="activations MiB",
        write=lambda values: f"{values['median']:.0f}",
    ),
    _Column(key="weights_mib", title="weights MiB", write=lambda mib: f"{mib:.0f}"),
    _Column(key="max_error", title="error", write=lambda error: f"{error:.1e}"),
    _Column(key="second_error", title="error, step 2", write=lambda error: f"{error:.1e}"),
    _Column(key="mean_error", title="mean error", write=lambda error: f"{error:.1e}"),
    _Column(key="missing", title="missing"),
    _Column(key="agreement", title="top-1 agreement", write=lambda part: f"{100 * part:.0f} %"),
)
ALIKE = ("stage", "map", "work", "workers")
"""Rows that agree in these form a group; groups keep their order, the best row comes first."""


def format_rows(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Format results as headers and cells.

    Args:
        found: Result of a function in `muntin.benching.bench_request.KINDS`. Columns without any
            value are omitted.

    Returns:
        The headers, and the cells of each row, the best first within each group of equal work.
    """
    rows = found["contestants"]
    measure = next(
        one for one in MEASURES if all(isinstance(row.get(one.key), Mapping) for row in rows)
    )
    before, after = (
        [column for column in columns if any(row.get(column.key) is not None for row in rows)]
        for columns in (BEFORE, AFTER)
    )
    titles = [
        *(column.title for column in before),
        measure.title,
        "min to max",
        *(column.title for column in after),
    ]
    groups = [tuple(row.get(key) for key in ALIKE) for row in rows]
    order = sorted(
        range(len(rows)),
        key=lambda i: (groups.index(groups[i]), measure.sign * rows[i][measure.key]["median"]),
    )
    return titles, [
        [
            *(_cell(column, rows[i]) for column in before),
            *_format_measure(measure, rows[i][measure.key]),
            *(_cell(column, rows[i]) for column in after),
        ]
        for i in order
    ]


def _cell(column: _Column, row: Mapping[str, Any]) -> str:
    value = row.get(column.key)
    return "" if value is None else column.write(value)


def _format_measure(measure: _Measure, values: Mapping[str, float]) -> tuple[str, str]:
    digits = measure.digits + (values["median"] < 10)
    median, low, high = (f"{values[key]:.{digits}f}" for key in ("median", "min", "max"))
    return median, f"{low} to {high}"
