# SPDX-License-Identifier: Apache-2.0
"""What the backbone of a run computes of images: a vector each, or tokens, or maps.

Letters: N images.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from muntin.configs import to_dict
from muntin.data.transforms import normalise
from muntin.errors import ConfigError, DataError, MuntinWarning, unknown_name
from muntin.features import Backbone
from muntin.prediction.batch import ImageLike, Part, find_images
from muntin.prediction.feature_files import FeatureTable, FeatureWriter, check_out
from muntin.prediction.from_run import load
from muntin.prediction.predictor import Predictor
from muntin.published import open_run
from muntin.runs import Run

Pool = Literal["vector", "tokens", "maps"]
"""What is kept of an image: the pooled vector (channels), the tokens after the last block (tokens,
channels; of a ViT, T2T-ViT or Hiera), or the last map (channels, height, width)."""


def weights_digest(network: nn.Module) -> str:
    """SHA-256 of the names and values of all tensors, in hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def backbone_of(predictor: Predictor) -> Backbone:
    """The backbone of a predictor; one of an exported file, which has none, is a `ConfigError`."""
    body = getattr(predictor.network, "backbone", None)
    if isinstance(body, Backbone):
        return body
    message = (
        "features need a network with a backbone, got an exported file, which gives answers only. "
        "Pass its run folder."
    )
    raise ConfigError(message)


def embed_images(
    predictor: Predictor, images: Iterable[ImageLike], *, pool: Pool = "vector", strict: bool = True
) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    """Compute features of images, in order, prepared as in prediction, in the memory of a batch.

    Of a run of poses each whole image is one instance. Unless `strict`, an image that cannot be
    read is left out, with a warning that names it.

    Yields:
        Places of images, counted from 0, and their features, a row an image.

    Raises:
        DataError: An image cannot be read.
        ConfigError: The backbone has no tokens, or there is none.
    """
    body = backbone_of(predictor)
    if predictor.detector is not None:  # it would find other instances than the whole image
        parts = (predictor.network, predictor.task, predictor.classes, predictor.preprocessing)
        predictor = Predictor(*parts, device=predictor.device, batch_size=predictor.batch_size)
    waiting: list[tuple[int, Part]] = []
    for place, image in enumerate(images):
        try:
            waiting.append((place, predictor.prepare([image]).parts[0]))
        except DataError as error:
            if strict:
                raise
            warnings.warn(f"skipped: {error}", MuntinWarning, stacklevel=2)
        if len(waiting) == predictor.batch_size:
            yield from _run(predictor, body, waiting, pool)
            waiting = []
    yield from _run(predictor, body, waiting, pool)


def _run(
    predictor: Predictor, body: Backbone, waiting: Sequence[tuple[int, Part]], pool: Pool
) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    """Run the backbone on images; those of one size in a row are one batch."""
    start = 0
    while start < len(waiting):
        shape = waiting[start][1].images.shape
        end = start + 1
        while end < len(waiting) and waiting[end][1].images.shape == shape:
            end += 1
        rows = waiting[start:end]
        pixels = torch.cat([part.images for _, part in rows]).to(predictor.device)
        sizes = torch.tensor([part.metas[0].input_size for _, part in rows], device=pixels.device)
        with torch.inference_mode():
            features = body.features(normalise(pixels, predictor.preprocessing, sizes))
            found = {
                "vector": lambda: features.vector,  # noqa: B023 (called at once)
                "tokens": lambda: features.tokens,  # noqa: B023
                "maps": lambda: features.maps[-1],  # noqa: B023
            }[pool]()
        yield [place for place, _ in rows], found.float().cpu().numpy()
        start = end


def describe_features(predictor: Predictor, pool: Pool, source: object = "") -> dict[str, Any]:
    """What features depend on, for their file: features of equal weights and settings are equal."""
    config: Any = getattr(backbone_of(predictor), "config", None)
    return {
        "source": os.path.abspath(str(source)) if Path(str(source)).exists() else str(source),
        "backbone": type(config).__name__,
        "weights": weights_digest(backbone_of(predictor)),
        "pool": pool,
        "preprocessing": to_dict(predictor.preprocessing),
    }


def embed(
    model: Run | Predictor | Path | str,
    images: ImageLike | Iterable[ImageLike],
    out: Path | str = "",
    *,
    pool: str = "vector",
    batch_size: int = 32,
    device: str = "auto",
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> FeatureTable:
    """Compute features of images with the backbone of a run or of a published model.

    Into a file they are written as they come, in the memory of a batch. After an interruption the
    same call goes on where it stopped.

    Args:
        model: A run folder, also of `pretrain`, the name of a model with published weights, or a
            predictor.
        images: A path, a folder, a pattern, an image, or a list of paths or images.
        out: A new .npy file, with names and model in files beside it, or a .parquet file; empty to
            keep the features in memory.
        pool: "vector", "tokens" or "maps" (the last one).
        batch_size: Images in a batch.
        device: "auto", "cpu", "cuda" or "mps".
        force: Whether to replace `out`.
        say: Called with each progress message.

    Raises:
        DataError: No image can be read, or tokens or maps differ in shape.
        ConfigError: The model has no tokens or no backbone, or an argument is wrong.
        RunError: The run cannot be read, or the file cannot be written.
    """
    if pool not in get_args(Pool):
        raise ConfigError(unknown_name("pool", pool, get_args(Pool)))
    kept = cast(Pool, pool)
    if out:
        check_out(Path(out), force=force)
    given = _list(images)
    names = [str(x) if _is_path(x) else f"image {place}" for place, x in enumerate(given, 1)]
    predictor, source = _open(model, batch_size, device)
    record = describe_features(predictor, kept, source)
    if not out:
        return _collect(predictor, given, names, (kept, record))
    writer = FeatureWriter(Path(out), record)
    done = set(writer.names)
    if done:
        say(f"going on after {len(done)} images of {Path(out).name}")
    left = [place for place, name in enumerate(names) if name not in done]
    images = (given[place] for place in left)
    for places, rows in embed_images(predictor, images, pool=kept, strict=False):
        writer.add([names[left[place]] for place in places], rows)
        say(f"{len(writer.names)} of {len(given)} images")
    if not writer.names:
        message = f"images must hold a readable one, got {len(given)} that cannot be read."
        raise DataError(message)
    return writer.finish(sorted({*names}.difference(writer.names)))


def _collect(
    predictor: Predictor,
    given: Sequence[ImageLike],
    names: Sequence[str],
    how: tuple[Pool, dict[str, Any]],
) -> FeatureTable:
    pool, record = how
    batches = list(embed_images(predictor, given, pool=pool))
    shapes = {rows.shape[1:] for _, rows in batches}
    if len(shapes) > 1:
        message = f"features must have one shape, got {sorted(shapes)}. Use pool vector."
        raise DataError(message)
    rows = np.concatenate([rows for _, rows in batches])
    return FeatureTable(rows=rows, names=tuple(names), record=record)


def _is_path(image: ImageLike) -> bool:
    return isinstance(image, (str, Path))


def _list(images: ImageLike | Iterable[ImageLike]) -> list[ImageLike]:
    """All images: those of folders and patterns, too; none is a DataError."""
    if isinstance(images, (str, Path)):
        return [*find_images([images])]
    if isinstance(images, Iterable) and not isinstance(images, np.ndarray):
        given = list(images)
        if given and all(map(_is_path, given)):
            given = [*dict.fromkeys(find_images(given))]
    else:
        given = [images]
    if not given:
        message = "images must not be empty, got none. Pass one or more images."
        raise DataError(message)
    return given


def _open(
    model: Run | Predictor | Path | str, batch_size: int, device: str
) -> tuple[Predictor, object]:
    if isinstance(model, Predictor):
        return model, ""
    run = open_run(model, backbone_only=True)
    return load(run, device=device, batch_size=batch_size), run.path
