# SPDX-License-Identifier: Apache-2.0
"""From annotations as a file holds them to the objects of an image.

An annotation is kept, cut at the edge of the image, or left out with a line that names it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muntin.data.trees import read_size
from muntin.errors import DataError, plural, shorten
from muntin.run_lengths import Edges, clean_segmentation, mask_area, to_run_lengths
from muntin.samples import Entry, Listing, Objects, Problem, Skeleton, warning
from muntin.shapes import Size
from muntin.untrusted import MAX_PIXELS

BAD_KEYPOINTS = "with keypoints that are no numbers"
NO_BOX = "without a box of four numbers"
OUTSIDE = "outside the image"
UNKNOWN_CLASS = "of an unknown class"
BEYOND = f"{UNKNOWN_CLASS} beyond the names"
"""An error: a name was forgotten, or numbers are shifted, and then every class may be wrong."""

WRONG_KEYPOINTS = "with a wrong number of keypoints"
NOWHERE: Edges = (math.nan, math.nan, math.nan, math.nan)
"""The box of an annotation that does not tell where its object is."""

_TOLERANCE = 1.0  # pixels that a box may reach over the edge before it is reported

Fault = tuple[str, str]
"""The kind, as `AnnotationReport.leave_out` takes it, and what came."""


@dataclass(kw_only=True, slots=True)
class Annotation:
    """One object as a file holds it.

    `where` finds it there: "annotation 17", "line 3". The box is in pixels; segmentation and
    keypoints (three numbers each) are as they came, and are read only where they are wanted.
    With a `fault`, it teaches nothing; nor does the image where it is, `box` or all of it.
    """

    where: str
    class_id: int = -1
    box: Edges = NOWHERE
    crowd: bool = False
    area: float | None = None
    segmentation: Any = None
    keypoints: Any = None
    fault: Fault | None = None
    broken: bool = False  # its mask was, and has been named


class AnnotationReport:
    """What was found wrong while a data set was read."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.num_masks = 0
        self.num_bare = 0  # objects without a mask where masks are wanted
        self._bare: list[Problem] = []
        self.num_hidden = 0  # images left out with an annotation that may be anywhere
        self.num_emptied = 0  # images of whose annotations none is left
        self.num_apart = 0  # boxes that hold none of their keypoints
        self.num_unread = 0  # images whose size is unknown, as they cannot be read
        self.named: set[str] = set()  # images that have an entry, readable or not
        self._found: list[tuple[str, Problem]] = []

    def leave_out(self, file: str, where: str, kind: str, detail: str = "") -> None:
        """Record an annotation that is left out; `kind` is a phrase for several: "of zero area"."""
        what = f"{where} left out, {kind}: {detail}" if detail else f"{where} left out, {kind}"
        problem = Problem(file=file, what=what, severity="error" if kind == BEYOND else "warning")
        self._found.append((kind, problem))

    def warn(self, file: str, what: str) -> None:
        """Record a problem that training can live with."""
        self._found.append(("", warning(file, what)))

    def size_of(self, source: str, image: str, *, file: str = "", why: str = "") -> Size | None:
        """Read the size of an image; if that fails, count it, name it for `file`, and give None."""
        try:
            return read_size(source, image)
        except DataError as error:
            self.num_unread += 1
            self.warn(file or image, f"left out: {why}{error}")
            return None

    def note_others(self, images: Iterable[str], used: Collection[str], lack: str) -> None:
        """Count the images in the folders of used ones that have no annotations."""
        folders = {path.rpartition("/")[0] for path in used}
        rest = [one for one in images if one.rpartition("/")[0] in folders and one not in used]
        if rest:
            first = shorten(map(repr, rest), limit=2)
            self.notes.append(f"{plural(len(rest), 'image')} without {lack} left out ({first})")

    def count_masks(self, objects: Sequence[Annotation], file: str) -> None:
        """Count the objects of an image that have a mask, and name those that never had one."""
        bare = sum(one.segmentation is None for one in objects)
        self.num_masks += len(objects) - bare
        self.num_bare += bare
        if bare := bare - sum(one.broken for one in objects):
            whole = plural(len(objects), "object")
            what = f"{bare} of {whole} without a mask: box and class are learnt"
            self._bare.append(warning(file, what))

    def problems(self) -> list[Problem]:
        """Give all problems; masks are missing only where there are some."""
        found = [problem for _, problem in self._found] + (self._bare if self.num_masks else [])
        return list(dict.fromkeys(found))  # an image may be in two sets

    def summary(self) -> str:
        """Summarise in one line how many annotations are left out and why; "" if none is."""
        counts = Counter(kind for kind, _ in self._found if kind)
        kinds = ", ".join(f"{number} {kind}" for kind, number in counts.most_common())
        lines = [f"{plural(counts.total(), 'annotation')} left out: {kinds}"] if counts else []
        if self.num_unread:
            lines.append(f"{plural(self.num_unread, 'image')} left out that cannot be read")
        if self.num_hidden:
            images = plural(self.num_hidden, "image")
            lines.append(f"{images} left out with annotations that do not tell where they are")
        if self.num_emptied:
            images = plural(self.num_emptied, "image now looks", "images now look")
            lines.append(f"{images} empty: none of the annotations is left")
        return "; ".join(lines)


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectRequest:
    """What a reader of annotated objects is asked for.

    Class numbers follow `class_names`, those of a trained run. With `masks`, masks are kept; an
    object without one has its box and class. With `keypoints`, classes without any are left out,
    and the skeletons of the listings have names and edges only.
    """

    class_names: Sequence[str] | None = None
    masks: bool = False
    keypoints: bool = False
    findings: AnnotationReport = field(default_factory=AnnotationReport)


def make_listing(
    source: str,
    entries: Iterable[Entry | None],
    class_names: tuple[str, ...],
    skeleton: Skeleton | None = None,
) -> Listing:
    """List images with objects in the order of their names, without those left out (None)."""
    kept = [entry for entry in entries if entry is not None]
    return Listing(
        source=source,
        entries=tuple(sorted(kept, key=lambda entry: entry.path)),
        class_names=class_names,
        multi_label=True,
        skeleton=skeleton,
    )


def make_entry(
    path: str,
    size: Size,
    annotations: Sequence[Annotation],
    request: ObjectRequest,
    *,
    file: str = "",
    keypoint_names: Sequence[str] = (),
) -> Entry | None:
    """Look at the annotations of an image and keep what can be learnt from, in the same order.

    A faulty annotation becomes an ignored region, so that its object is not taken for background;
    None, the image is left out, where one does not tell where its object is. Boxes end at the edge
    of the image. An area that the file does not say is that of the mask, or of the box where masks
    are not wanted. Groups of objects do not give an image their class. Problems are reported for
    `file`, or the image; `keypoint_names` are empty where they are not wanted.

    Raises:
        DataError: The size is that of no image, so nothing that is said of it can be right.
    """
    findings, masks = request.findings, request.masks
    if math.prod(size) > MAX_PIXELS:
        message = (
            f"An image must have at most {MAX_PIXELS // 10**6} million pixels, got {size[0]} x "
            f"{size[1]} (height x width) for {path!r} in its annotations. Correct them."
        )
        raise DataError(message)
    kept, points = _keep(annotations, size, file or path, request, keypoint_names)
    if any(one.box is NOWHERE for one in kept):
        findings.num_hidden += 1
        findings.warn(path, "left out: an annotation that cannot be read may be anywhere in it")
        return None
    findings.num_emptied += bool(annotations) and not kept
    areas = [0.0 if keypoint_names and not one.area else _area_of(one, size, masks) for one in kept]
    objects = Objects(
        boxes=np.array([one.box for one in kept], np.float64).reshape(-1, 4),
        class_ids=np.array([one.class_id for one in kept], np.int64),
        crowd=np.array([one.crowd for one in kept], np.bool_),
        areas=np.array(areas, np.float64),
        masks=tuple(one.segmentation for one in kept) if masks else (),
        keypoints=np.array(points).reshape(-1, len(keypoint_names), 3) if keypoint_names else None,
    )
    class_ids = sorted(set(objects.class_ids[~objects.crowd].tolist()))
    return Entry(path=path, class_ids=tuple(class_ids), size=size, objects=objects)


def _keep(
    annotations: Sequence[Annotation],
    size: Size,
    file: str,
    request: ObjectRequest,
    keypoint_names: Sequence[str],
) -> tuple[list[Annotation], list[NDArray[np.float64]]]:
    findings, masks = request.findings, request.masks
    kept: list[Annotation] = []
    seen: dict[tuple[int, bool, Edges], Annotation] = {}
    beyond: list[tuple[str, float]] = []
    points: list[NDArray[np.float64]] = []
    for one in annotations:
        known, wrong = _clean_keypoints(one.keypoints, len(keypoint_names))
        one.fault = one.fault or _fault_of(one, size) or (wrong if keypoint_names else None)
        if not _settle(one, size, file, request):
            continue
        twin = one if one.fault else seen.setdefault((one.class_id, one.crowd, one.box), one)
        if twin is not one and (not masks or twin.segmentation == one.segmentation):
            findings.leave_out(file, one.where, "duplicate", f"the same as {twin.where}")
            continue
        excess = _cut(one, size)
        if excess > _TOLERANCE:
            beyond.append((one.where, excess))
        kept.append(one)
        if keypoint_names and not one.fault:
            _look_at_points(known, one, size, file, findings, keypoint_names)
        points.append(known)
    if beyond:
        most = max(excess for _, excess in beyond)
        names = shorten((where for where, _ in beyond), limit=3)
        what = f"boxes reach up to {most:.4g} pixels over the edge of the image, cut ({names})"
        findings.warn(file, what)
    if masks:
        findings.count_masks([one for one in kept if not one.crowd], file)
    return kept, points


def _settle(one: Annotation, size: Size, file: str, request: ObjectRequest) -> bool:
    """Make a faulty annotation an ignored region, and look at masks; False: nothing is left."""
    findings = request.findings
    if one.fault:
        findings.leave_out(file, one.where, *one.fault)
        region = _region_of(one.box, size)
        if region is None:
            return False
        one.class_id, one.crowd, one.box, one.segmentation = -1, True, region, None
    elif request.masks:
        one.segmentation, broken = clean_segmentation(one.segmentation, size)
        one.broken = bool(broken)
        if broken:
            what = f"{one.where}: its mask is broken, {broken}; box and class are learnt"
            findings.warn(file, what)
    return True


def _region_of(box: Edges, size: Size) -> Edges | None:
    """Where in its image a faulty annotation is, `NOWHERE` if unknown, None if not in it."""
    if not all(map(math.isfinite, box)):
        return NOWHERE
    height, width = size
    left, right = sorted(min(max(x, 0.0), width) for x in box[::2])
    top, bottom = sorted(min(max(y, 0.0), height) for y in box[1::2])
    return (left, top, right, bottom) if right > left and bottom > top else None


def _clean_keypoints(values: object, count: int) -> tuple[NDArray[np.float64], Fault | None]:
    """(count, 3) x, y and visibility, zeros where there is nothing; and what is wrong."""
    nothing = np.zeros((count, 3))
    if values is None or (isinstance(values, Sequence) and not len(values)):
        return nothing, None
    if not isinstance(values, Sequence) or isinstance(values, str):
        return nothing, (BAD_KEYPOINTS, f"{values!r}"[:60])
    if len(values) != 3 * count:
        return nothing, (WRONG_KEYPOINTS, f"{len(values)} numbers, 3 x {count} needed")
    odd = [v for v in values if isinstance(v, bool) or not isinstance(v, int | float)]
    odd = odd or [v for v in values if not math.isfinite(v)]
    if odd:
        return nothing, (BAD_KEYPOINTS, f"{odd[0]!r}")
    points = np.array(values, np.float64).reshape(count, 3)
    strange = points[~np.isin(points[:, 2], (0, 1, 2)), 2]
    if len(strange):
        return nothing, ("with a visibility that is not 0, 1 or 2", f"{strange[0]:g}")
    points[points[:, 2] == 0] = 0
    return points, None


def _look_at_points(
    points: NDArray[np.float64],
    one: Annotation,
    size: Size,
    file: str,
    findings: AnnotationReport,
    names: Sequence[str],
) -> None:
    """Forget points outside the image; name those, and an instance that has none in its box."""
    limits = np.array([size[1], size[0]])
    outside = ((points[:, :2] < -1) | (points[:, :2] > limits)).any(axis=1) & (points[:, 2] > 0)
    points[outside] = 0
    if outside.any():
        there = shorten((names[number] for number in np.flatnonzero(outside).tolist()), limit=5)
        what = (
            f"{one.where}: {there} outside the image of {size[0]} x {size[1]} pixels (height x "
            f"width), not used"
        )
        findings.warn(file, what)
    if one.crowd:
        return
    known = points[:, 2] > 0
    if not known.any():
        findings.leave_out(file, one.where, "without a visible keypoint")
        return
    left, top, right, bottom = one.box
    x, y = points[known, :2].T + 0.5  # boxes are made of edges
    near = (x > left - 1) & (x < right + 1) & (y > top - 1) & (y < bottom + 1)
    if not near.any():
        what = f"{one.where}: none of its keypoints lies in its box, {_describe_box(one.box)}"
        findings.warn(file, what)
        findings.num_apart += 1


def _describe_box(box: Edges) -> str:
    left, top, right, bottom = (f"{edge:.6g}" for edge in box)
    return f"x from {left} to {right}, y from {top} to {bottom}"


def _fault_of(one: Annotation, size: Size) -> Fault | None:
    """What is wrong with the box of an annotation, if anything."""
    left, top, right, bottom = one.box
    height, width = size
    kind = ""
    if not all(map(math.isfinite, one.box)):
        kind = "not finite"
    elif right < left or bottom < top:
        kind = "of negative size"
    elif right == left or bottom == top:
        kind = "of zero area"
    elif right <= 0 or bottom <= 0 or left >= width or top >= height:
        detail = f"{_describe_box(one.box)}; the image is {height} x {width} (height x width)"
        return OUTSIDE, detail
    return (kind, _describe_box(one.box)) if kind else None


def _cut(one: Annotation, size: Size) -> float:
    """End the box at the edge of the image; by how many pixels it reached over it."""
    left, top, right, bottom = one.box
    height, width = size
    excess = max(-left, -top, right - width, bottom - height)
    if excess > 0:
        one.box = max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height)
    return excess


def _area_of(one: Annotation, size: Size, masks: bool) -> float:
    """As the file says, else of the mask, else of the box."""
    if one.area is not None and math.isfinite(one.area) and one.area > 0:
        return one.area
    if masks and one.segmentation is not None:
        return mask_area(to_run_lengths(one.segmentation, size))
    left, top, right, bottom = one.box
    return (right - left) * (bottom - top)
