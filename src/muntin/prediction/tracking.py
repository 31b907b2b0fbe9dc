# SPDX-License-Identifier: Apache-2.0
"""Ids of objects and instances that stay the same from frame to frame, and smoothed keypoints.

Source:
    Two rounds of matching, the sure before the unsure: Zhang et al. 2022, "ByteTrack". Enlarged
    boxes, for small and fast objects: Yang et al. 2023, "Hard to Track Objects with Irregular
    Motions and Similar Appearances". Smoothing: Casiez et al. 2012, "1 Euro Filter".
    Differs: of each class by itself; the filter of motion has fixed gains, to which those of a
    Kalman filter of constant speed converge; pairs are taken best first.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import pi

import numpy as np
from numpy.typing import NDArray

from muntin.errors import ConfigError
from muntin.results import DEFAULT_SCORE_THRESHOLD, Detections, Poses
from muntin.samples import TaskKind

Array = NDArray[np.float64]
Tracked = Detections | Poses

_PLACE_GAIN, _SPEED_GAIN = 0.8, 0.4
_UNSURE = 0.5  # of the threshold: from there on a known object is found again
_MARGIN = 0.3  # of the sides of a box, by which it is enlarged all round
_LEAST_OVERLAP = 0.1  # of enlarged boxes (IoU)
_LOST_AFTER_S = 1.0
_LEAST_STEP_S = 1e-3
_CUTOFF_HZ, _CUTOFF_PER_SPEED = 1.0, 1.5  # the latter a second, in sizes of the instance


@dataclass(kw_only=True, slots=True)
class _Track:
    """One object: centre and sides of its box, pixels a second of the centre, seconds unseen."""

    number: int
    class_id: int
    state: Array
    speed: Array = field(default_factory=lambda: np.zeros(2))
    updates: int = 1
    unseen_s: float = 0.0
    smooth: OneEuroFilter | None = None

    def predict(self, step_s: float) -> None:
        self.state[:2] += self.speed * step_s
        self.unseen_s += step_s

    def update(self, measured: Array) -> None:
        error = measured - self.state
        # The second measurement is all that is known of the speed.
        gain = 1.0 if self.updates == 1 else _SPEED_GAIN
        self.speed += gain * error[:2] / self.unseen_s
        self.state += _PLACE_GAIN * error
        self.updates, self.unseen_s = self.updates + 1, 0.0


class OneEuroFilter:
    """A low-pass filter of points that follows fast motion at once.

    The first call sets the state; later ones give smoothed (K, 2) points. Points whose score is too
    low for drawings are handed on, and begin anew when they are sure again.
    """

    def __init__(self) -> None:
        self._points: Array | None = None
        self._speed: Array = np.zeros(0)
        self._known: NDArray[np.bool_] = np.zeros(0, bool)

    def __call__(self, points: Array, scores: Array, step_s: float, size: float) -> Array:
        """Smooth points, `step_s` seconds after the last ones, of an instance of `size` pixels."""
        sure = scores >= DEFAULT_SCORE_THRESHOLD
        if self._points is None:
            self._points, self._speed = points.copy(), np.zeros_like(points)
            self._known = sure
            return points
        old = (self._known & sure)[:, None]
        speed = (points - self._points) / step_s
        share = _share(np.full_like(points, _CUTOFF_HZ), step_s)
        speed = np.where(old, self._speed + share * (speed - self._speed), 0.0)
        share = _share(_CUTOFF_HZ + _CUTOFF_PER_SPEED * np.abs(speed) / max(size, 1.0), step_s)
        smooth = np.where(old, self._points + share * (points - self._points), points)
        self._points, self._speed, self._known = smooth, speed, sure
        return smooth


def _share(cutoff_hz: Array, step_s: float) -> Array:
    """The share of a new value in a low-pass filter of this cutoff."""
    return 1 / (1 + 1 / (2 * pi * cutoff_hz * step_s))


class Tracker:
    """Gives the objects of one video ids; frames come in order.

    Args:
        threshold: Score from which on an object is new; known ones are found again at half of it.
        frame_rate: Frames a second, where frames have no times; an object that is not seen for a
            second is forgotten.
        smooth: Whether keypoints are smoothed.

    Examples:
        >>> found = Detections(
        ...     path="", size=(9, 9), boxes=np.array([[0.0, 0, 4, 4]]), class_ids=np.array([0]),
        ...     scores=np.array([0.9]), class_names=("cat",))
        >>> tracker = Tracker(0.3, 25)
        >>> [tracker.update(found).track_ids.tolist() for _ in range(2)]
        [[1], [1]]
    """

    def __init__(self, threshold: float, frame_rate: float, *, smooth: bool = False) -> None:
        self._threshold, self._smooth = threshold, smooth
        self._usual_step_s = 1 / frame_rate
        self._time_s: float | None = None
        self._tracks: list[_Track] = []
        self._count = 0

    def update(self, found: Tracked, time_s: float | None = None) -> Tracked:
        """Give the objects of the next frame that are tracked, with their ids.

        Args:
            found: Objects of the frame.
            time_s: When the frame was taken, in seconds since any moment; None: at `frame_rate`.
        """
        measured, classes = _measure(found), _classes_of(found)
        step_s = self._usual_step_s
        if time_s is not None and self._time_s is not None:
            step_s = max(time_s - self._time_s, _LEAST_STEP_S)
        self._time_s = time_s
        for track in self._tracks:
            track.predict(step_s)
        numbers = np.zeros(len(found), np.int64)
        owners: dict[int, _Track] = {}
        for least in (self._threshold, self._threshold * _UNSURE):
            rows = np.flatnonzero((found.ranking >= least) & (numbers == 0))
            free = [track for track in self._tracks if track.unseen_s]
            for track, row in _match(free, rows, measured, classes):
                track.update(measured[row])
                numbers[row], owners[row] = track.number, track
        for row in np.flatnonzero((found.ranking >= self._threshold) & (numbers == 0)).tolist():
            self._count += 1
            track = _Track(number=self._count, class_id=classes[row], state=measured[row].copy())
            self._tracks.append(track)
            numbers[row], owners[row] = track.number, track
        lost_s = max(_LOST_AFTER_S, step_s) + step_s / 2
        self._tracks = [track for track in self._tracks if track.unseen_s <= lost_s]
        if self._smooth and isinstance(found, Poses):
            found = self._smoothed(found, owners, step_s)
        rows = np.flatnonzero(numbers)
        return replace(found.select(rows), track_ids=numbers[rows])

    def _smoothed(self, found: Poses, owners: dict[int, _Track], step_s: float) -> Poses:
        points = found.keypoints.copy()
        for row, track in owners.items():
            track.smooth = track.smooth or OneEuroFilter()
            size = float(track.state[2:].max())
            points[row, :, :2] = track.smooth(points[row, :, :2], points[row, :, 2], step_s, size)
        return replace(found, keypoints=points)


def refuse_untracked(kind: TaskKind, *, smooth: bool) -> None:
    """Refuse kinds of tasks without objects to track, or without keypoints to smooth.

    Raises:
        ConfigError: With the kind.
    """
    if kind not in (("keypoints",) if smooth else ("detection", "keypoints")):
        what = "--smooth needs keypoints" if smooth else "--track needs objects or instances"
        message = f"{what}, got a run for {kind}. Leave it out."
        raise ConfigError(message)


def _classes_of(found: Tracked) -> list[int]:
    if isinstance(found, Detections):
        classes: list[int] = found.class_ids.tolist()
        return classes
    return [0] * len(found)


def _measure(found: Tracked) -> Array:
    """(N, 4) centres and sides; of poses without boxes of the whole image, one instance."""
    boxes = found.boxes
    if boxes is None:
        boxes = np.array([[0.0, 0.0, *found.size[::-1]]] * len(found)).reshape(-1, 4)
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)


def _match(
    tracks: list[_Track], rows: NDArray[np.int64], measured: Array, classes: list[int]
) -> list[tuple[_Track, int]]:
    """Pair tracks with rows of their class, those that overlap most first."""
    if not tracks or not len(rows):
        return []
    overlaps = _overlap(np.stack([track.state for track in tracks]), measured[rows])
    own = np.array([classes[row] for row in rows.tolist()])
    overlaps *= np.array([track.class_id for track in tracks])[:, None] == own
    pairs = []
    for _ in range(min(overlaps.shape)):
        place, column = np.unravel_index(int(overlaps.argmax()), overlaps.shape)
        if overlaps[place, column] < _LEAST_OVERLAP:
            break
        pairs.append((tracks[int(place)], int(rows[column])))
        overlaps[place], overlaps[:, column] = 0, 0
    return pairs


def _overlap(first: Array, second: Array) -> Array:
    """IoU of enlarged boxes, (N, M), given as centres and sides."""
    grown = [one * (1, 1, 1 + 2 * _MARGIN, 1 + 2 * _MARGIN) for one in (first, second)]
    lows = [one[:, :2] - one[:, 2:] / 2 for one in grown]
    highs = [one[:, :2] + one[:, 2:] / 2 for one in grown]
    sides = np.minimum(highs[0][:, None], highs[1]) - np.maximum(lows[0][:, None], lows[1])
    shared = sides.clip(0).prod(axis=2)
    areas = [one[:, 2:].prod(axis=1) for one in grown]
    whole = areas[0][:, None] + areas[1] - shared
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)
