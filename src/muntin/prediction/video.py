# SPDX-License-Identifier: Apache-2.0
"""Videos, frame by frame (PyAV: ``pip install 'muntin[video]'``)."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from muntin.errors import DataError, MuntinError, RunError, cannot_write
from muntin.staging import staged
from muntin.untrusted import open_regular

_TICK = Fraction(1, 1000)  # of a second; MPEG-4 has no finer ones than 1/65535
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


def read_frames(path: str | Path) -> Iterator[NDArray[np.uint8]]:
    """Give the frames of a video, (H, W, 3) uint8 RGB, one at a time."""
    with open_video(path) as container:
        for pixels, _ in timed_frames(container, str(path)):
            yield pixels


def timed_frames(
    container: Any,  # noqa: ANN401 (of PyAV)
    name: str,
) -> Iterator[tuple[NDArray[np.uint8], float | None]]:
    """Give the frames of an open video, and their times in seconds, None where it has none."""
    if not container.streams.video:
        message = f"{name!r} must be a video, got a file without images."
        raise DataError(message)
    for frame in container.decode(video=0):
        yield frame.to_ndarray(format="rgb24"), frame.time


@contextlib.contextmanager
def open_video(path: str | Path) -> Iterator[Any]:
    """Open a video in PyAV; what fails while it is open is a `DataError`."""
    av = import_av()
    try:
        open_regular(path).close()  # FFmpeg would wait for a pipe
        with av.open(str(path)) as container:
            yield container
    except MuntinError:
        raise
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        message = f"{str(path)!r} must be a video that can be read, got: {reason}. Check the file."
        raise DataError(message) from error


FrameT = TypeVar("FrameT")


def with_results(
    stream: Callable[[Iterator[NDArray[np.uint8]]], Iterator[Any]],
    frames: Iterable[FrameT],
    pixels_of: Callable[[FrameT], NDArray[np.uint8]],
) -> Iterator[tuple[FrameT, Any]]:
    """Yield every frame with its result; only a batch of frames is in memory."""
    shown, read = itertools.tee(frames)
    yield from zip(shown, stream(map(pixels_of, read)), strict=True)


def write_video(path: str | Path, images: Iterable[Image.Image], rate: Fraction) -> Path:
    """Write images as a video of `rate` frames per second, as `write_timed_video` does."""
    timed = ((image, float(number / rate)) for number, image in enumerate(images))
    return write_timed_video(path, timed, rate)


def write_timed_video(
    path: str | Path, images: Iterable[tuple[Image.Image, float]], rate: Fraction
) -> Path:
    """Write images as a video of the size of the first: others are cut, or filled with white.

    Each is shown at its time in seconds, to the millisecond, and later than the one before. Odd
    sides lose their last row or column, as encoders require. `rate` is in frames per second, for
    the encoder.
    """
    av = import_av()
    path = Path(path)
    with staged(path.parent, named=path) as stage:
        try:
            with av.open(str(stage / path.name), mode="w") as container:
                stream: Any = None
                shown = -1
                for image, time in images:
                    if stream is None:
                        stream = _add_stream(av, container, image, rate)
                    sheet = Image.new("RGB", (stream.width, stream.height), "white")
                    sheet.paste(image)
                    frame = av.VideoFrame.from_ndarray(np.asarray(sheet), format="rgb24")
                    shown = max(shown + 1, round(1000 * time))
                    frame.pts, frame.time_base = shown, _TICK
                    for packet in stream.encode(frame):
                        container.mux(packet)
                for packet in stream.encode() if stream is not None else ():
                    container.mux(packet)
        except (av.error.FFmpegError, OSError) as error:
            raise RunError(cannot_write(path, error)) from error
    return path


def _add_stream(av: Any, container: Any, first: Image.Image, rate: Fraction) -> Any:  # noqa: ANN401
    """Add an H.264 stream, which most players support; MPEG-4 if PyAV lacks it."""
    name = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    stream = container.add_stream(name, rate=rate)
    stream.width, stream.height = (max(2, side // 2 * 2) for side in first.size)
    stream.pix_fmt = "yuv420p"
    stream.bit_rate = 4_000_000
    stream.codec_context.time_base = _TICK
    return stream


def import_av() -> Any:  # noqa: ANN401 (a module without types)
    """Import PyAV; a `DataError` says how to install it."""
    try:
        import av
    except ImportError as error:
        message = "videos need PyAV, which is not installed. Run: pip install 'muntin[video]'"
        raise DataError(message) from error
    return av
