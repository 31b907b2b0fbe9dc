# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What readers of annotations exchange: raw annotations, requests and reports of faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from muntin.errors import plural
from muntin.samples import Problem

__all__ = ["Annotation", "AnnotationReport", "Edges", "ObjectRequest", "warning"]

Edges = tuple[float, float, float, float]


@dataclass(kw_only=True, slots=True)
class Annotation:
    """One object as a file holds it.

    Attributes:
        where: How to find it in its file: "annotation 17", "line 3".
        box: Left, top, right and bottom edge in pixels; anything that came.
        segmentation: As in the file, read only if masks are requested.
        keypoints: The same where keypoints are wanted: three numbers each.
    """

    where: str
    class_id: int
    box: Edges
    crowd: bool = False
    area: float | None = None
    segmentation: Any = None
    keypoints: Any = None


def warning(file: str, what: str) -> Problem:
    """Name a problem that training can live with."""
    return Problem(file=file, what=what, severity="warning")


class AnnotationReport:
    """What was found wrong while a data set was read."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.num_masks = 0
        self.num_apart = 0  # boxes that hold none of their keypoints
        self._found: list[tuple[str, Problem]] = []

    def leave_out(self, file: str, where: str, kind: str, detail: str = "") -> None:
        """Record an annotation that is left out; `kind` is a phrase for several: "of zero area"."""
        what = f"{where} left out, {kind}: {detail}" if detail else f"{where} left out, {kind}"
        self._found.append((kind, warning(file, what)))

    def warn(self, file: str, what: str) -> None:
        """Record a problem that training can live with."""
        self._found.append(("", warning(file, what)))

    def problems(self, *, without: str = "") -> list[Problem]:
        """Give all problems, but for the annotations left out for one kind of reason."""
        return [problem for kind, problem in self._found if not kind or kind != without]

    def count(self, kind: str) -> int:
        """Count the annotations left out for one kind of reason."""
        return sum(found == kind for found, _ in self._found)

    def summary(self) -> str:
        """Summarise in one line how many annotations are left out and why; "" if none is."""
        counts = Counter(kind for kind, _ in self._found if kind)
        kinds = ", ".join(f"{number} {kind}" for kind, number in counts.most_common())
        return f"{plural(counts.total(), 'annotation')} left out: {kinds}" if counts else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectRequest:
    """What a reader of annotated objects is asked for.

    Attributes:
        class_names: Classes of a trained run, which class numbers follow.
        masks: Whether objects without a mask are left out; otherwise masks are not kept.
        keypoints: Whether keypoints are read, of classes that have some. The skeletons of the
            listings have names and edges only.
    """

    findings: AnnotationReport
    class_names: Sequence[str] | None = None
    masks: bool = False
    keypoints: bool = False
