# SPDX-License-Identifier: Apache-2.0
"""`embed` and `search`: features of images into a file, and the images most similar to one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from muntin.configs import check_range
from muntin.errors import ConfigError, DataError, unknown_name
from muntin.prediction.batch import ImageLike, find_images
from muntin.prediction.embedding import Pool, backbone_of, describe_features, embed_images
from muntin.prediction.feature_files import FeatureTable, FeatureWriter, check_out
from muntin.prediction.from_run import load
from muntin.prediction.predictor import Predictor
from muntin.prediction.similarity_search import Match, cosines, nearest, open_vectors
from muntin.prediction.video import VIDEO_SUFFIXES
from muntin.published import open_run
from muntin.runs import Run
from muntin.weights.weight_files import weights_digest


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
        return _collect(predictor, given, names, record)
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
    record: Mapping[str, Any],
) -> FeatureTable:
    batches = list(embed_images(predictor, given, pool=record["pool"]))
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
    many = isinstance(images, Iterable) and not isinstance(images, (str, bytes, np.ndarray))
    given: list[ImageLike] = []
    for each in cast("Iterable[ImageLike]", images if many else [images]):
        given += find_images([each]) if isinstance(each, (str, Path)) else [each]
    for each in given:
        if isinstance(each, Path) and each.suffix.lower() in VIDEO_SUFFIXES:
            message = (
                f"images must be images, got the video {each}. Save its frames, and embed them."
            )
            raise DataError(message)
    if not given:
        message = "images must not be empty, got none. Pass one or more images."
        raise DataError(message)
    paths = dict.fromkeys(each for each in given if isinstance(each, Path))
    return [*paths] if all(map(_is_path, given)) else given


def _open(
    model: Run | Predictor | Path | str, batch_size: int, device: str
) -> tuple[Predictor, str]:
    if isinstance(model, Predictor):
        return model, ""
    source = str(model.path if isinstance(model, Run) else model)
    run = open_run(model, backbone_only=True)
    return load(run, device=device, batch_size=batch_size), source


def search(
    features: FeatureTable | Path | str,
    image: ImageLike,
    *,
    top: int = 10,
    model: Run | Predictor | Path | str = "",
    device: str = "auto",
) -> list[Match]:
    """Find the images of a table that are most similar to one, by the cosine of their vectors.

    Args:
        features: Vectors of images, as `muntin.embed` returns them, or their file.
        image: A path or an image. One of the table is not computed again, and not found itself.
        top: Largest number of images.
        model: Where the model of the features is now; empty = where it was.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        DataError: The file or the image cannot be read, or there are no vectors in it.
        ConfigError: The model has other weights than that of the features.
        RunError: The model is not there any more.
    """
    check_range("top", top, 1, 10**9)
    table = open_vectors(features)
    own = _find_own(table, image)
    if own >= 0:
        query = np.asarray(table.rows[own])
    else:
        ((_, rows),) = embed_images(_load_model(table, model, device), [image])
        query = rows[0]
    found = cosines(table.rows, query)
    places = [place for place in nearest(found, top + 1) if place != own][:top]
    return [Match(table.names[place], float(found[place])) for place in places]


def _find_own(table: FeatureTable, image: ImageLike) -> int:
    """Number of the image in the table; -1 if it is not there."""
    if not isinstance(image, (str, Path)):
        return -1
    path = Path(image)
    alike = (place for place, name in enumerate(table.names) if Path(name).name == path.name)
    real = os.path.realpath(path)
    return next((place for place in alike if os.path.realpath(table.names[place]) == real), -1)


def _load_model(table: FeatureTable, model: Run | Predictor | Path | str, device: str) -> Predictor:
    source = model or str(table.record.get("source", ""))
    if not source:
        message = (
            "the features do not say which model made them, got no model either. Pass it: --model."
        )
        raise ConfigError(message)
    predictor = (
        source
        if isinstance(source, Predictor)
        else load(open_run(source, backbone_only=True), device=device)
    )
    if weights_digest(backbone_of(predictor)) != table.record.get("weights"):
        message = (
            f"the model must have the weights that made the features (SHA-256 "
            f"{str(table.record.get('weights'))[:12]}), got {source} with others. Pass the right "
            f"one with --model, or embed the images again."
        )
        raise ConfigError(message)
    return predictor
