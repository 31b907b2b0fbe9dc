# SPDX-License-Identifier: Apache-2.0
"""What can be read frame by frame: video files, folders of frames, cameras and network streams."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from muntin.data.decoding import open_image
from muntin.data.shard_addresses import names_shards
from muntin.data.trees import by_numbers
from muntin.errors import DataError, MuntinWarning, plural
from muntin.prediction.batch import find_images
from muntin.prediction.video import VIDEO_SUFFIXES, import_av, open_video, timed_frames

_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "udp", "rtp", "srt", "tcp")
# How FFmpeg opens a camera by its number.
_CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}")}
# A playlist from outside must not lead to files of this machine.
_PROTOCOLS = "http,https,tcp,tls,udp,rtp,rtsp,rtmp,rtmps,srt,crypto"
_TIMEOUT_S = 10.0
_MAX_TRIES = 5  # in a row
_LATE_S = 0.2
_FOLDER_RATE = Fraction(25)


class Frame(NamedTuple):
    """One frame: (H, W, 3) uint8 RGB, and seconds since the first one."""

    pixels: NDArray[np.uint8]
    time: float


@dataclass(frozen=True, slots=True)
class VideoSource:
    """A video, as a user gave it in `place`."""

    place: str
    kind: Literal["file", "folder", "camera", "stream"]

    @property
    def live(self) -> bool:
        """Whether it has no end of its own, so that frames are wanted one by one."""
        return self.kind in ("camera", "stream")

    @property
    def name(self) -> str:
        """What results and messages call it: an address has no password and no query."""
        if self.kind == "camera":
            return f"camera{self.place}"
        if self.kind != "stream":
            return self.place
        parts = urlsplit(self.place)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def split_videos(
    places: Sequence[str], *, folders: bool = False
) -> tuple[list[VideoSource], list[str]]:
    """Separate videos from other inputs; with `folders` a folder is the frames of one.

    Examples:
        >>> split_videos(["a.jpg", "b.mp4", "rtsp://me:secret@host/live?x=1"])[0][1].name
        'rtsp://host/live'
    """
    videos, others = [], []
    for place in places:
        scheme = place.partition("://")[0].lower() if "://" in place else ""
        if scheme in _SCHEMES and not names_shards(place):
            videos.append(VideoSource(place, "stream"))
        elif place.isdecimal() and len(place) < 3 and not Path(place).exists():
            videos.append(VideoSource(place, "camera"))
        elif place.lower().endswith(VIDEO_SUFFIXES) and not scheme:
            videos.append(VideoSource(place, "file"))
        elif folders and Path(place).is_dir():
            videos.append(VideoSource(place, "folder"))
        else:
            others.append(place)
    return videos, others


class VideoReader:
    """Reads the frames of a video, in order, once.

    A live one whose connection breaks is connected to again, after ever longer pauses; it ends when
    that fails five times in a row. Its frames are left out while whoever takes them is late, so
    that answers are about what happens now.

    Args:
        source: The video.
        max_time_s: Seconds after which it ends; 0 = no limit.
        pause: Waits for some seconds before a live one is connected to again.
        clock: Seconds since any moment.

    Attributes:
        rate: Frames a second; known with the first frame, 25 where nothing says it.
        num_unreadable: Frames of a folder that were left out, each with a warning.
        num_late: Frames of a live one that were left out, as they waited too long.
    """

    def __init__(
        self,
        source: VideoSource,
        *,
        max_time_s: float = 0.0,
        pause: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self._max_time_s = source, max_time_s
        self._pause, self._clock = pause, clock
        self.rate = _FOLDER_RATE
        self.num_unreadable = self.num_late = 0

    def __iter__(self) -> Iterator[Frame]:
        """Give the frames.

        Raises:
            DataError: It cannot be read, or a live one not for the first time.
        """
        read = {"file": self._read_file, "folder": self._read_folder}
        start = self._clock()
        for frame in read.get(self._source.kind, self._read_live)():
            yield frame
            if 0 < self._max_time_s <= self._clock() - start:
                return

    def _read_file(self) -> Iterator[Frame]:
        with open_video(self._source.place) as container:
            yield from self._decode(container)

    def _decode(self, container: Any) -> Iterator[Frame]:  # noqa: ANN401 (of PyAV)
        stream = container.streams.video[0] if container.streams.video else None
        self.rate = Fraction((stream and stream.average_rate) or _FOLDER_RATE)
        start = None
        for number, (pixels, seconds) in enumerate(timed_frames(container, self._source.name)):
            seconds = float(number / self.rate) if seconds is None else seconds
            start = seconds if start is None else start
            yield Frame(pixels, seconds - start)

    def _read_folder(self) -> Iterator[Frame]:
        paths = sorted(find_images([self._source.place]), key=lambda path: by_numbers(str(path)))
        for number, path in enumerate(paths):
            try:
                pixels = open_image(path)
            except DataError as error:
                self.num_unreadable += 1
                if self.num_unreadable == len(paths):  # not one frame
                    raise
                warnings.warn(f"skipped: {error}", MuntinWarning, stacklevel=3)
                continue
            yield Frame(pixels, float(number / self.rate))

    def _read_live(self) -> Iterator[Frame]:
        seen, failures, start = 0, 0, self._clock()
        while True:
            failures, reason = failures + 1, "it ended"
            try:
                with _connect(self._source) as container:
                    # A file behind an address has an end, as an image has.
                    ends = container.duration or container.format.name.endswith("_pipe")
                    frames = self._decode(container)
                    for frame in frames if ends else self._without_late(frames):
                        now = self._clock()
                        start, failures, seen = start if seen else now, 0, seen + 1
                        yield frame if ends else Frame(frame.pixels, now - start)
                    if ends:
                        return
            except DataError as error:
                if not seen:
                    raise
                reason = str(error) if error.__cause__ is None else _reason(error.__cause__)
            if failures == _MAX_TRIES:
                self._warn(f"{plural(seen, 'frame')} read, then gone: {reason}")
                return
            self._warn(f"{plural(seen, 'frame')} read, then: {reason}; connecting again")
            self._pause(2.0**failures)

    def _without_late(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """Leave out frames while they lag behind; one that had to be waited for is not late.

        Clocks of cameras drift and jump, so only the lag since such a frame counts.
        """
        late_s, before, stamp = 0.0, self._clock(), 0.0
        asked = before
        for frame in frames:
            now = self._clock()
            late_s = max(0.0, late_s + (now - before) - (frame.time - stamp))
            if now - asked > (frame.time - stamp) / 2:
                late_s = 0.0
            before, stamp = now, frame.time
            if late_s <= _LATE_S:
                yield frame
            else:
                self.num_late += 1
            asked = self._clock()

    def _warn(self, text: str) -> None:
        warnings.warn(f"{self._source.name}: {text}", MuntinWarning, stacklevel=3)


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or type(error).__name__


@contextmanager
def _connect(source: VideoSource) -> Iterator[Any]:
    """Open a live video; what fails while it is open is a `DataError`."""
    av = import_av()
    options: dict[str, Any] = {"options": {"protocol_whitelist": _PROTOCOLS}}
    place = source.place
    if source.kind == "camera":
        if sys.platform not in _CAMERAS:
            message = (
                f"{source.name} must be on Linux or macOS to be read by its number. Give the "
                f"address of a stream, or a video."
            )
            raise DataError(message)
        kind, pattern = _CAMERAS[sys.platform]
        place, options = pattern.format(place), {"format": kind}
    elif place.lower().startswith("rtsp"):
        options["options"]["rtsp_transport"] = "tcp"  # UDP loses parts of frames
    try:
        with av.open(place, timeout=_TIMEOUT_S, **options) as container:
            yield container
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = _reason(error)
        message = (
            f"{source.name} must be a camera or stream that can be read, got: {reason}. Check that "
            f"it is there, and that nothing else uses it."
        )
        raise DataError(message) from error
