# SPDX-License-Identifier: Apache-2.0
"""Write images and figures as PNG files, atomically."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from muntin.drawing.fonts import use_fonts
from muntin.staging import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG and return the path; errors as of `write_file`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    use_fonts(figure)
    data = io.BytesIO()
    with ignore_missing_characters():
        figure.savefig(data, format="png", dpi=120, facecolor="white", bbox_inches="tight")
    return write_file(data.getvalue(), path)


@contextlib.contextmanager
def ignore_missing_characters() -> Iterator[None]:
    """Ignore warnings about letters that the font lacks: the image shows a box for each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def save_image(image: Image.Image, path: Path) -> Path:
    """Write an image as PNG and return the path; errors as of `write_file`."""
    data = io.BytesIO()
    image.save(data, format="png")
    return write_file(data.getvalue(), path)


def save_labels(labels: NDArray[np.int16], path: Path) -> Path:
    """Write the class number of each pixel as a grey PNG, of 16 bits where 8 are too few."""
    kind = np.uint8 if labels.max(initial=0) < 256 else np.uint16
    return save_image(Image.fromarray(labels.astype(kind)), path)
