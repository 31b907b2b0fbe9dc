# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Figures as files: PNG and SVG, with their data as npz and JSON."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from muntin.drawing.saving import save_bytes
from muntin.errors import RunError
from muntin.explaining.explanation_figure import ExplanationFigure
from muntin.system_errors import cannot_write

__all__ = [
    "DPI",
    "SavedFigure",
    "clean_stem",
    "require_writable",
    "save_figure",
    "staged",
    "to_plain",
]

DPI = 120
"""Pixels per inch of a figure."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SavedFigure:
    """A figure and its files.

    Attributes:
        files: PNG, SVG and JSON, and npz if the figure has arrays.
        png: Content of the PNG, to embed in the page.
        width: Width of the PNG in pixels.
        height: Height of the PNG in pixels.
    """

    files: tuple[Path, ...]
    png: bytes
    width: int
    height: int


def save_figure(result: ExplanationFigure, folder: Path) -> SavedFigure:
    """Write the files of a figure to a folder, each atomically.

    Raises:
        RunError: The folder is not writable.
    """
    stem = folder / result.name
    png, size = _draw_png(result.figure)
    files = [save_bytes(png, stem.with_suffix(".png"))]
    files.append(save_bytes(_draw_svg(result.figure), stem.with_suffix(".svg")))
    if result.arrays:
        packed = io.BytesIO()
        arrays: dict[str, Any] = dict(result.arrays)
        np.savez_compressed(packed, **arrays)
        files.append(save_bytes(packed.getvalue(), stem.with_suffix(".npz")))
    record = {
        "name": result.name,
        "section": result.section,
        "title": result.title,
        "text": result.text,
        "formula": result.formula,
        "source": result.source,
        "facts": to_plain(result.facts),
    }
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    files.append(save_bytes(text.encode(), stem.with_suffix(".json")))
    return SavedFigure(files=tuple(files), png=png, width=size[0], height=size[1])


def _draw_png(figure: Figure) -> tuple[bytes, tuple[int, int]]:
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(DPI)
    figure.patch.set_facecolor("white")
    with _ignore_missing_characters():
        canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    data = io.BytesIO()
    image.save(data, "png")
    return data.getvalue(), image.size


def _draw_svg(figure: Figure) -> bytes:
    """Render as SVG without a date, so that equal figures give equal files."""
    figure.set_layout_engine("none")  # the layout of the PNG is kept
    data = io.BytesIO()
    with _ignore_missing_characters(), mpl.rc_context({"svg.hashsalt": "muntin"}):
        figure.savefig(data, format="svg", facecolor="white", metadata={"Date": None})
    return data.getvalue()


class _ignore_missing_characters(warnings.catch_warnings):  # noqa: N801 (a context, used like a function)
    """Ignore warnings about missing glyphs: the figure shows a box for each."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")


def to_plain(value: Any) -> Any:  # noqa: ANN401 (whatever facts hold)
    """Convert facts to JSON types: numpy to numbers and lists, NaN and infinity to null.

    Example:
        >>> to_plain({"a": np.float32(0.5), "b": (1, math.nan)})
        {'a': 0.5, 'b': [1, None]}
    """
    if isinstance(value, Mapping):
        return {str(key): to_plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return to_plain(value.tolist())
    if isinstance(value, list | tuple):
        return [to_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def clean_stem(name: str, taken: frozenset[str] | set[str] = frozenset()) -> str:
    """Turn a name into a folder name that is valid on every file system and in URLs.

    Example:
        >>> clean_stem("a photo #1"), clean_stem("cat", {"cat"}), clean_stem("..")
        ('a_photo_1', 'cat-2', 'image')
    """
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[:80] or "image"
    names = [stem, *(f"{stem}-{number}" for number in range(2, len(taken) + 3))]
    return next(one for one in names if one.lower() not in {other.lower() for other in taken})


def require_writable(folder: Path) -> None:
    """Create a folder and check that it is writable, before the work begins.

    Raises:
        RunError: The folder is not writable.
    """
    trial = folder / ".muntin-trial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.write_bytes(b"")
        trial.unlink()
    except OSError as error:
        raise RunError(cannot_write(folder, error)) from error


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files move to their destination if the block succeeds.

    After any error, Ctrl-C included, nothing is left behind and existing files are unchanged.

    Args:
        folder: The destination; created if missing.

    Raises:
        RunError: The folder is not writable.
    """
    fresh = not folder.exists()
    require_writable(folder)
    stage = Path(tempfile.mkdtemp(prefix=".muntin-", dir=folder))
    try:
        yield stage
        _move_files(stage, folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if fresh:
            with contextlib.suppress(OSError):  # keep it if it is not empty
                folder.rmdir()


def _move_files(stage: Path, folder: Path) -> None:
    """Move all files, the page last: it links to all others."""
    paths = [path for path in stage.rglob("*") if path.is_file()]
    for path in sorted(paths, key=lambda path: (path.suffix == ".html", path)):
        place = folder / path.relative_to(stage)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
        except OSError as error:
            raise RunError(cannot_write(place, error)) from error
