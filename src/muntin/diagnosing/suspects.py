# SPDX-License-Identifier: Apache-2.0
"""Labels that are probably wrong, by a run's own answers, and images that are in several parts.

Source:
    Northcutt et al. 2021 (arXiv 1911.00068): a label is suspect where another class scores as high
    as that class does on average where it is the label. Differs: 0.8 of that is enough; objects are
    compared by overlap, masks and keypoints by how far the error lies beyond the usual one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muntin.data.duplicates import hash_files
from muntin.data.grouping import ALIKE, IDENTICAL, find_relations
from muntin.diagnosing.run_faults import overlaps_of
from muntin.metrics.class_metrics import ClassificationMetric, SemanticMetric
from muntin.metrics.detection_metric import DetectionMetric
from muntin.metrics.pose_metric import PoseMetric
from muntin.results import Detections
from muntin.samples import Listing, Objects
from muntin.scoring.evaluator import Scored

_SURE, _HARDLY = 0.7, 0.1  # scores
_CERTAIN = 0.8  # of the usual score of a class where it is the label
_SAME, _TOUCHES = 0.5, 0.1  # overlaps
_RARELY = 0.2  # of the objects of a class
_OUTLIER = 5.0  # median absolute deviations

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Suspect:
    """One image or object to look at: what is odd about it, and how sure that is, in [0, 1].

    `path` is relative to `source`; `box` has edges in pixels, None for the whole image; `other` is
    the file of a copy.
    """

    kind: str
    part: str
    source: str
    path: str
    what: str
    score: float
    box: Box | None = None
    other: str = ""
    other_source: str = ""


def find_label_errors(part: str, scored: Scored) -> list[Suspect]:
    """Find labels that the answers contradict, most certain first; none for multi-label sets."""
    metric = scored.metric
    find = {
        ClassificationMetric: _find_other_classes,
        DetectionMetric: _find_objects,
        SemanticMetric: _find_low_agreement,
        PoseMetric: _find_far_keypoints,
    }.get(type(metric))
    found = find(scored) if find is not None and len(scored.outputs.indices) else ()
    return sorted((replace(one, part=part) for one in found), key=lambda one: -one.score)


def _make(
    scored: Scored, row: int, kind: str, what: str, score: float, box: Box | None = None
) -> Suspect:
    path = scored.listing.entries[int(scored.outputs.indices[row])].path
    source = scored.listing.source
    return Suspect(
        kind=kind, part="", source=source, path=path, what=what, score=score, box=box
    )  # fmt: skip


def _find_other_classes(scored: Scored) -> Iterator[Suspect]:
    if scored.listing.multi_label:
        return
    scores = scored.outputs.answers.softmax(dim=1).numpy()
    truth = scored.outputs.truth.numpy()
    names = scored.listing.class_names
    rows = [scores[truth == n, n] for n in range(len(names))]
    usual = np.array([row.mean() if len(row) else 1.0 for row in rows])
    best = scores.argmax(axis=1)
    for row in np.flatnonzero(best != truth).tolist():
        found, score = int(best[row]), float(scores[row, best[row]])
        if score >= _CERTAIN * usual[found]:
            what = f"labelled {names[truth[row]]!r}, looks like {names[found]!r}"
            yield _make(scored, row, "class", what, score)


def _find_objects(scored: Scored) -> Iterator[Suspect]:
    names = scored.listing.class_names
    every = [
        (row, kind, number, one)
        for row, pair in enumerate(zip(scored.outputs.answers, scored.outputs.truth, strict=True))
        for kind, number, one in _compare(*pair, names)
    ]
    # Of a class that is hardly ever found, that says nothing of its labels.
    unfound = Counter(number for _, kind, number, _ in every if kind == "unfound")
    total = Counter(n for truth in scored.outputs.truth for n in truth.class_ids.tolist())
    for row, kind, number, (what, score, box) in every:
        if kind != "unfound" or unfound[number] <= max(2, _RARELY * total[number]):
            left, top, right, bottom = box.tolist()
            yield _make(scored, row, kind, what, score, (left, top, right, bottom))


_Look = tuple[str, float, NDArray[np.floating[Any]]]
"""What is odd, how sure that is, and the box."""


def _compare(
    found: Detections, truth: Objects, names: Sequence[str]
) -> Iterator[tuple[str, int, _Look]]:
    """Objects of one image that only one side has, or to which the sides give other classes.

    With the number of their class.
    """
    overlaps = overlaps_of(found.boxes, truth.boxes)
    for n in np.flatnonzero(found.scores >= _SURE).tolist():
        best = int(overlaps[n].argmax()) if len(truth) else 0
        overlap = float(overlaps[n, best]) if len(truth) else 0.0
        score, number = float(found.scores[n]), int(found.class_ids[n])
        if overlap < _TOUCHES:
            what = f"not labelled: {names[number]!r}"
            yield "missing", number, (what, score, found.boxes[n])
        elif overlap > _SAME and truth.class_ids[best] not in (-1, number):
            what = f"labelled {names[truth.class_ids[best]]!r}, looks like {names[number]!r}"
            yield "class", number, (what, score, truth.boxes[best])
    seen = found.scores >= _HARDLY
    for n in np.flatnonzero(~truth.crowd).tolist():
        if not (overlaps[seen, n] > _TOUCHES).any():
            number, near = int(truth.class_ids[n]), overlaps[:, n] > _TOUCHES
            score = 1 - float(found.scores[near].max(initial=0))
            yield "unfound", number, (f"not found: {names[number]!r}", score, truth.boxes[n])


def _find_low_agreement(scored: Scored) -> Iterator[Suspect]:
    pairs = zip(scored.outputs.answers, scored.outputs.truth, strict=True)
    shares = [
        float((found.labels == truth)[truth >= 0].mean()) if (truth >= 0).any() else 1.0
        for found, truth in pairs
    ]
    for row in _low(np.array(shares)):
        what = f"only {shares[row]:.0%} of the pixels agree with the mask"
        yield _make(scored, row, "mask", what, 1 - shares[row])


def _find_far_keypoints(scored: Scored) -> Iterator[Suspect]:
    metric = scored.metric
    assert isinstance(metric, PoseMetric), "asked before"
    distances = np.where(np.isfinite(metric.distances), metric.distances, np.nan)
    known = np.isfinite(distances).any(axis=1)
    far = np.full(len(distances), 0.0)
    far[known] = np.nanmax(distances[known], axis=1)
    for row in _low(-far):
        name = metric.skeleton.names[int(np.nanargmax(distances[row]))]
        what = f"{name} is found {far[row]:.0f} pixels from its label"
        yield _make(scored, metric.owners[row], "keypoint", what, 1 - 1 / (1 + far[row]))


def _low(values: NDArray[np.float64]) -> list[int]:
    """Places of values that lie far below the usual ones."""
    middle = np.median(values)
    spread = max(float(np.median(np.abs(values - middle))), 0.01 * abs(float(middle)), 1e-6)
    return np.flatnonzero(values < middle - _OUTLIER * spread).tolist()


def find_copies(sets: Mapping[str, Listing]) -> list[Suspect]:
    """Find images of one part that are in another one too, equal or alike."""
    keys = [
        (part, listing.source, path)
        for part, listing in sets.items()
        for path in sorted({entry.path for entry in listing.entries})
    ]
    hashes = [
        one
        for part, listing in sets.items()
        for one in hash_files(listing.source, [path for name, _, path in keys if name == part])
    ]
    relations = find_relations([path for _, _, path in keys], hashes)
    found: dict[tuple[str, str], Suspect] = {}
    for kind in (IDENTICAL, ALIKE):
        groups: dict[Hashable, list[tuple[str, str, str]]] = defaultdict(list)
        for place, key in zip(keys, relations[kind], strict=True):
            if key is not None:
                groups[key].append(place)
        for group in groups.values():
            part, source, path = group[0]
            for other, other_source, copy in group[1:]:
                if other != part and (source, path) != (other_source, copy):
                    suspect = Suspect(
                        kind="copy", part=part, source=source, path=path,
                        what=f"also in {other}, {kind}", score=1.0 if kind == IDENTICAL else 0.9,
                        other=copy, other_source=other_source,
                    )  # fmt: skip
                    found.setdefault((path, copy), suspect)
    return list(found.values())
