# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""From pictures as people have them to results in pixels of the original."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from muntin.configs import check_range
from muntin.data.decoding import open_picture
from muntin.data.listing import PICTURE_SUFFIXES
from muntin.data.transforms import Preprocessing, fit_picture, normalise, to_tensor
from muntin.devices import choose_device
from muntin.drawing.results import draw_result
from muntin.errors import DataError, MuntinWarning
from muntin.runs import Run
from muntin.tasks.task import Classes, Task

__all__ = ["Picture", "Predictor", "draw", "find_pictures", "load"]

Picture = str | Path | Image.Image | NDArray[np.uint8]


class Predictor:
    """A network that takes pictures and gives results. It keeps no state between calls.

    Args:
        network: Backbone and head, with their weights.
        task: What raw output means.
        classes: Names of the classes.
        preprocessing: What happens to a picture first.
        device: Where to run; the network is moved there.
        batch_size: Pictures at a time.
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        classes: Classes,
        preprocessing: Preprocessing,
        *,
        device: str | torch.device = "auto",
        batch_size: int = 32,
    ) -> None:
        check_range("batch_size", batch_size, 1, 10**6)
        self.device = choose_device(device) if isinstance(device, str) else device
        self.network = network.to(self.device).eval()
        self.task = task
        self.classes = classes
        self.preprocessing = preprocessing
        self.batch_size = batch_size

    def __call__(
        self, images: Picture | Sequence[Picture], *, tta: bool = False, strict: bool = True
    ) -> list[Any]:
        """Predict.

        Args:
            images: A path, a PIL picture, an (H, W, 3) uint8 RGB array, or a list of them.
            tta: Whether the mirrored picture is seen too and both outputs are averaged.
            strict: Whether a picture that cannot be read is an error; else it is left out of the
                results with a warning that names it.

        Returns:
            One result a picture, in order.

        Raises:
            DataError: A picture cannot be read.
        """
        single = isinstance(images, (str, Path, Image.Image, np.ndarray))
        many: Iterable[Picture] = [images] if single else images  # type: ignore[list-item,assignment]
        results: list[Any] = []
        waiting: list[tuple[Picture, NDArray[np.uint8]]] = []
        for image in many:
            try:
                waiting.append((image, open_picture(image)))
            except DataError as error:
                if strict:
                    raise
                warnings.warn(f"left out: {error}", MuntinWarning, stacklevel=2)
            if len(waiting) == self.batch_size:
                results += self._predict(waiting, tta)
                waiting = []
        return results + (self._predict(waiting, tta) if waiting else [])

    @torch.inference_mode()
    def _predict(self, rows: list[tuple[Picture, NDArray[np.uint8]]], tta: bool) -> list[Any]:
        pre = self.preprocessing
        fitted = [fit_picture(to_tensor(array, pre.in_chans), pre) for _, array in rows]
        batch = normalise(torch.stack(fitted).to(self.device), pre)
        raw = self.network(batch)
        if tta:
            raw = (raw + self.network(batch.flip(-1))) / 2
        facts = [
            (str(image) if isinstance(image, (str, Path)) else "", array.shape[:2])
            for image, array in rows
        ]
        return self.task.decode(raw, facts, self.classes)


def load(run: Run | Path | str, *, device: str = "auto", batch_size: int = 32) -> Predictor:
    """Open a run for prediction; everything it needs is in its folder.

    Args:
        run: A run folder.
        device: "auto" takes a GPU when there is one.
        batch_size: Pictures at a time.

    Returns:
        A predictor, ready to be called.

    Raises:
        RunError: A file of the run is missing or broken.
        WeightError: The weights cannot be read or do not fit.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    return Predictor(
        run.load_network(),
        run.task,
        run.classes,
        run.preprocessing,
        device=device,
        batch_size=batch_size,
    )


def draw(image: Picture, result: Any) -> Image.Image:  # noqa: ANN401 (one of muntin.results)
    """Draw a result on its picture.

    Args:
        image: The picture that was predicted on.
        result: What the predictor gave for it.

    Returns:
        A new picture.

    Raises:
        DataError: The picture cannot be read.
    """
    return draw_result(open_picture(image), result)


def find_pictures(places: Iterable[str | Path]) -> list[Path]:
    """List the pictures behind paths, folders and patterns.

    Args:
        places: Files, folders (searched through and through) and shell patterns.

    Returns:
        Files; those of a folder or a pattern in order of their names.

    Raises:
        DataError: Nothing is there.
    """
    found: list[Path] = []
    for text in places:
        place = Path(text)
        if not str(text).strip():
            message = f"there must be a path to pictures, got {str(text)!r}. Check the command."
            raise DataError(message)
        if place.is_dir():
            here = sorted(p for p in place.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
        elif place.exists():
            here = [place]
        else:
            base = Path(place.anchor) if place.is_absolute() else Path()
            pattern = str(place.relative_to(base)) if place.is_absolute() else str(place)
            magic = any(sign in pattern for sign in "*?[")
            here = sorted(p for p in base.glob(pattern) if p.is_file()) if magic else []
        if not here:
            what = f"none of {', '.join(PICTURE_SUFFIXES)}" if place.is_dir() else "nothing"
            message = f"there must be a picture at {str(place)!r}, got {what}. Check the path."
            raise DataError(message)
        found += here
    return found
