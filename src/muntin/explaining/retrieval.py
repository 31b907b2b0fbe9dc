# SPDX-License-Identifier: Apache-2.0
"""Image retrieval in a folder: nearest neighbours of an image, and a 2D map of embeddings."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from numpy.typing import NDArray
from PIL import Image

from muntin.data.archives import read_bytes
from muntin.data.decoding import decode
from muntin.data.listing import list_classify
from muntin.data.transforms import to_shown
from muntin.data.value_ranges import ValueRange
from muntin.drawing.style import INK, clean_label, colour_of
from muntin.errors import DataError, MuntinWarning
from muntin.explaining.context import Context
from muntin.explaining.feature_maps import project_rows
from muntin.explaining.figures import Result, Results, make_figure, make_missing
from muntin.explaining.plotting import panels, set_panel, spread, start_plots
from muntin.prediction.batch import find_images
from muntin.prediction.embedding_cache import EmbeddingCache
from muntin.prediction.similarity_search import nearest, normalised
from muntin.shapes import Float

MAX_IMAGES = 300
"""Of a folder, to be embedded."""

BATCH_SIZE = 16
THUMBNAIL = 96  # pixels of the longer side
NUM_NEIGHBOURS = 9
MAX_THUMBNAILS = 40
MAX_COLOURS = 10  # classes with a colour of their own
GREY = "#999999"
MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Gallery:
    """Embeddings and thumbnails of the images of a folder.

    Vectors are `muntin.features.Backbone.embed`, normalised to length 1; class ids are -1 where
    unknown. At most `MAX_IMAGES` of the `num_total` images are embedded. The query is the explained
    image, which is not one of the others.
    """

    paths: tuple[str, ...]
    vectors: Float[np.ndarray, "N C"]
    class_ids: NDArray[np.int64]
    class_names: tuple[str, ...]
    thumbnails: tuple[NDArray[np.uint8], ...]
    num_total: int
    query: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def similarities(self) -> Float[np.ndarray, " N"]:
        """Cosine of each image with the query."""
        return self.vectors @ self.query

    def name(self, place: int) -> str:
        """Class of an image; empty if unknown."""
        class_id = int(self.class_ids[place])
        return self.class_names[class_id] if class_id >= 0 else ""


def query_gallery(context: Context, gallery: Gallery) -> Gallery:
    """Embed the explained image as the query of a gallery, and remove it if it is in there."""
    own = os.path.realpath(context.path) if context.path else None
    kept = [i for i, path in enumerate(gallery.paths) if os.path.realpath(path) != own]
    if not kept:
        message = "folder must contain an image other than the explained one, got none."
        raise DataError(message)
    return replace(
        gallery,
        paths=tuple(gallery.paths[i] for i in kept),
        vectors=gallery.vectors[kept],
        query=_embed_query(context),
        class_ids=gallery.class_ids[kept],
        thumbnails=tuple(gallery.thumbnails[i] for i in kept),
        num_total=gallery.num_total - (len(gallery) - len(kept)),
    )


def _embed_query(context: Context) -> NDArray[np.float32]:
    backbone: Any = context.backbone
    with torch.inference_mode():
        return normalised(backbone.embed(context.images).float().numpy())[0]


def embed_folder(context: Context, folder: Path | str, *, limit: int = MAX_IMAGES) -> Gallery:
    """Embed the images of a folder, or so many evenly spaced ones, with the backbone of a context.

    The folder is any dataset that `muntin train classify` reads (class folders, with or without
    splits, an archive, a CSV file), or any folder of images.
    """
    rows, class_names = _list(folder)
    chosen = (rows[place] for place in spread(len(rows), limit))
    images = _read(chosen, context.pre.value_range)
    cache = EmbeddingCache(context.predictor)
    found: list[tuple[str, int, NDArray[np.uint8]]] = []
    vectors: list[NDArray[np.float32]] = []
    while batch := list(islice(images, BATCH_SIZE)):
        vectors.append(cache.embed([pixels for _, _, pixels in batch]))
        found += [(path, class_id, _shrink(pixels)) for path, class_id, pixels in batch]
    if not found:
        message = f"folder must contain a readable image, got none in {str(folder)!r}."
        raise DataError(message)
    cache.save()
    paths, class_ids, thumbnails = zip(*found, strict=True)
    return Gallery(
        paths=paths,
        vectors=normalised(np.concatenate(vectors)),
        class_ids=np.array(class_ids, np.int64),
        class_names=class_names,
        thumbnails=thumbnails,
        num_total=len(rows),
    )


def _list(folder: Path | str) -> tuple[list[tuple[str, str, int]], tuple[str, ...]]:
    """(source, path in it, class) of every image, and the class names."""
    try:
        sets = list_classify(folder)
    except DataError:
        found = [(str(path.parent), path.name, -1) for path in find_images([folder])]
        return found, ()
    listings = list(sets.parts.values())
    rows = [
        (one.source, entry.path, entry.class_ids[0] if entry.class_ids else -1)
        for one in listings
        for entry in one.entries
    ]
    return sorted(rows), listings[0].class_names


def _read(
    rows: Iterable[tuple[str, str, int]], value_range: ValueRange
) -> Iterator[tuple[str, int, NDArray[np.uint8]]]:
    """(path, class, pixels) of every image that can be read."""
    for source, path, class_id in rows:
        try:
            pixels = decode(read_bytes(source, path), where=path, value_range=value_range)
        except DataError as error:
            warnings.warn(f"skipped: {error}", MuntinWarning, stacklevel=3)
            continue
        yield str(Path(source) / path), class_id, pixels


def _shrink(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return np.asarray(image)


def show_retrieval(context: Context, folder: Gallery | None) -> Results:
    """Show the images of a folder that are most similar to the explained one, and a map of all.

    The folder is None for an exported file, which gives no embeddings.
    """
    if folder is None:
        return [make_missing("features-no-neighbours"), make_missing("features-no-embeddings")]
    gallery = query_gallery(context, folder)
    return [show_neighbours(context, gallery), *show_embeddings(context, gallery)]


def show_neighbours(context: Context, gallery: Gallery) -> Result:
    """Show the images of a folder that are most similar to the explained one."""
    similarities = gallery.similarities
    places = nearest(similarities, NUM_NEIGHBOURS)
    classes = [gallery.name(place) for place in places]
    return make_figure(
        "features-neighbours",
        _draw_neighbours(context, gallery, places),
        ("text", gallery.num_total > len(gallery) and "sampled"),
        arrays={"similarities": similarities},
        facts={
            "nearest": [
                {"path": gallery.paths[i], "similarity": float(similarities[i]), "class": name}
                for i, name in zip(places, classes, strict=True)
            ],
            "num_images": len(gallery),
        },
        nearest=len(places),
        count=len(gallery),
        total=gallery.num_total,
    )


def show_embeddings(context: Context, gallery: Gallery) -> Results:
    """Show a 2D map of a folder by two principal components and, with scikit-learn, t-SNE."""
    if len(gallery) < 3:
        return [make_missing("features-few", count=len(gallery))]
    vectors = np.concatenate([gallery.vectors, gallery.query[None]])
    flat, shares = project_rows(torch.from_numpy(vectors), 2)
    places = {"components": flat}
    has_tsne = importlib.util.find_spec("sklearn") is not None
    if has_tsne:
        places["neighbours"] = project_by_tsne(vectors)
    figure = make_figure(
        "features-folder",
        _draw_maps(gallery, places, to_shown(context.shown)),
        ("text", has_tsne and "neighbours", gallery.num_total > len(gallery) and "sampled"),
        arrays={**places, "class_ids": gallery.class_ids},
        facts={
            "paths": list(gallery.paths),
            "class_names": list(gallery.class_names),
            "explained": [round(float(share), 4) for share in shares],
        },
        share=100 * shares.sum(),
        count=len(gallery),
        total=gallery.num_total,
    )
    return [figure] if has_tsne else [figure, make_missing("features-sklearn")]


def project_by_tsne(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Project to (N, 2) by t-SNE, deterministically; requires scikit-learn."""
    from sklearn.manifold import TSNE

    project = TSNE(perplexity=min(30.0, (len(vectors) - 1) / 3), init="pca", random_state=0)
    return np.asarray(project.fit_transform(vectors), np.float64)


def _draw_neighbours(context: Context, gallery: Gallery, places: Sequence[int]) -> Figure:
    count = 1 + len(places)
    columns = (count + 1) // 2 if count > 5 else count
    figure, axes = panels(-(-count // columns), columns, width=1.75 * columns, extra=0.4)
    first, *others = axes.flat
    set_panel(first, to_shown(context.shown), "explained image")
    first.title.set_fontweight("bold")
    for panel, place in zip(others, places, strict=False):
        name = gallery.name(place) or Path(gallery.paths[place]).name
        label = clean_label(name, int(gallery.class_ids[place]), max_length=18)
        words = f"{gallery.similarities[place]:.2f}  {label}"
        set_panel(panel, gallery.thumbnails[place], words)
    return figure


def _draw_maps(
    gallery: Gallery, places: dict[str, NDArray[np.float64]], own: NDArray[np.uint8]
) -> Figure:
    titles = {"components": "principal components", "neighbours": "t-SNE"}
    figure, axes = start_plots(len(places), 4.9, width=4.4 * len(places) + 0.2)
    for panel, (kind, flat) in zip(axes, places.items(), strict=True):
        _draw_dots(panel, gallery, flat)
        panel.set_title(titles[kind], fontsize=10, color=INK)
        panel.set(xticks=[], yticks=[])
        panel.margins(0.09)
        panel.spines[:].set_color("#cccccc")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False,
        fontsize=8,
    )  # fmt: skip
    return figure


def _draw_dots(axes: Axes, gallery: Gallery, flat: NDArray[np.float64]) -> None:
    dots = flat[:-1]
    counts = np.bincount(gallery.class_ids[gallery.class_ids >= 0], minlength=1)
    named = np.argsort(-counts, kind="stable")[:MAX_COLOURS]
    named = np.sort(named[counts[named] > 0])
    others = ~np.isin(gallery.class_ids, named)
    for number, class_id in enumerate(named.tolist()):
        here = gallery.class_ids == class_id
        axes.scatter(
            dots[here, 0], dots[here, 1], s=26,
            color=_colour(number), marker=MARKS[number % len(MARKS)],
            linewidths=0.4, edgecolors="white",
            label=clean_label(gallery.class_names[class_id], class_id),
        )  # fmt: skip
    if others.any():
        label = "other classes" if len(named) else "images of the folder"
        axes.scatter(dots[others, 0], dots[others, 1], s=20, color=GREY, linewidths=0, label=label)
    colours = {class_id: _colour(number) for number, class_id in enumerate(named.tolist())}
    for place in _non_overlapping(flat, MAX_THUMBNAILS):
        pixels, edge = gallery.thumbnails[place], colours.get(int(gallery.class_ids[place]), GREY)
        axes.add_artist(
            AnnotationBbox(
                OffsetImage(pixels, zoom=26 / max(pixels.shape[:2])), tuple(dots[place]), pad=0.1,
                bboxprops={"edgecolor": edge, "linewidth": 1.6},
            )
        )  # fmt: skip
    axes.scatter(
        flat[-1, 0], flat[-1, 1], s=230,
        marker="*", color="black", edgecolors="white", linewidths=1.2, zorder=9,
        label="explained image",
    )  # fmt: skip


def _non_overlapping(flat: NDArray[np.float64], limit: int) -> Sequence[int]:
    """Pick dots whose thumbnails overlap neither each other nor the last dot, the query."""
    scaled = flat / np.maximum(np.ptp(flat, axis=0), 1e-12)
    chosen: list[int] = []
    for place in range(len(flat) - 1):
        taken = scaled[[*chosen, len(flat) - 1]]
        if (np.abs(taken - scaled[place]).max(axis=1) > 0.11).all():
            chosen.append(place)
        if len(chosen) == limit:
            break
    return chosen


def _colour(number: int) -> tuple[float, ...]:
    return tuple(part / 255 for part in colour_of(number))
