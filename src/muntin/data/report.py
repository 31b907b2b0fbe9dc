# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The report of a check of a data set."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from muntin.samples import Problem

__all__ = ["Report"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a check found.

    Attributes:
        task: The task that the data set was read for.
        source: The path that was given.
        lines: The data set in a few lines, for the terminal.
        counts: The same as numbers, (name, count) each.
        problems: Errors first, then warnings.
    """

    task: str
    source: str
    lines: tuple[str, ...] = ()
    counts: tuple[tuple[str, int], ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether training can use the data set as it is."""
        return not any(problem.severity == "error" for problem in self.problems)

    def to_dict(self) -> dict[str, object]:
        """Give plain values for JSON."""
        return {
            "task": self.task,
            "source": self.source,
            "ok": self.ok,
            "lines": list(self.lines),
            "counts": dict(self.counts),
            "problems": [asdict(problem) for problem in self.problems],
        }
