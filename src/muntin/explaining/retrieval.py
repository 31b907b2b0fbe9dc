# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Image retrieval in a folder: nearest neighbours of an image, and a 2D map of embeddings."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from numpy.typing import NDArray

from muntin.drawing.colours import colour_of
from muntin.drawing.fonts import clean_label
from muntin.explaining.context import Context
from muntin.explaining.embeddings import QueriedGallery
from muntin.explaining.explanation_figure import ExplanationFigure, MissingFigure
from muntin.explaining.image_overlays import INK, to_rgb

__all__ = ["project_by_pca", "project_by_tsne", "show_embeddings", "show_neighbours"]

NUM_NEIGHBOURS = 9
MAX_THUMBNAILS = 40
MAX_COLOURS = 10
"""Classes with a colour of their own; the others are grey."""

GREY = "#999999"
MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
_COSINE = (
    "<math display='block'><mrow><mi>s</mi><mo>(</mo><mi>a</mi><mo>,</mo><mi>b</mi><mo>)</mo>"
    "<mo>=</mo><mfrac><mrow><mi>a</mi><mo>&#x22C5;</mo><mi>b</mi></mrow><mrow><mo>&#x2016;</mo>"
    "<mi>a</mi><mo>&#x2016;</mo><mo>&#x2016;</mo><mi>b</mi><mo>&#x2016;</mo></mrow></mfrac></mrow>"
    "</math>"
)


def show_neighbours(
    context: Context, gallery: QueriedGallery | None
) -> list[ExplanationFigure | MissingFigure]:
    """Show the images of a folder that are most similar to the explained one.

    Args:
        context: The image and the model.
        gallery: Embeddings of the folder's other images; None for an exported file, which gives
            no embeddings.

    Returns:
        One figure, or the reason why it is missing.
    """
    title = "Nearest neighbours"
    if gallery is None:
        return [_missing(title)]
    similarities = gallery.similarities
    nearest = np.argsort(-similarities, kind="stable")[:NUM_NEIGHBOURS]
    text = (
        f"Nearest neighbours by cosine similarity (1 = same direction) of the pooled feature "
        f"vector, which is the classifier's input: the top {len(nearest)} of {len(gallery)} images "
        f"of the folder. What they share is what the model encodes, which may be the object or "
        f"only its background."
    )
    classes = [_name(gallery, int(place)) for place in nearest]
    return [
        ExplanationFigure(
            name="features-neighbours",
            section="features",
            title=title,
            text=text + _describe_sampling(gallery),
            figure=_draw_neighbours(context, gallery, nearest),
            formula=_COSINE,
            arrays={"similarities": similarities},
            facts={
                "nearest": [
                    {"path": gallery.paths[i], "similarity": float(similarities[i]), "class": name}
                    for i, name in zip(nearest.tolist(), classes, strict=True)
                ],
                "num_images": len(gallery),
            },
        )
    ]


def show_embeddings(
    context: Context, gallery: QueriedGallery | None
) -> list[ExplanationFigure | MissingFigure]:
    """Show a 2D map of the embeddings of a folder.

    Args:
        context: The image, which is marked, and the model.
        gallery: Embeddings of the folder's other images; None for an exported file, which gives
            no embeddings.

    Returns:
        The first two principal components and, with scikit-learn, t-SNE.
    """
    title = "Embedding map of the folder"
    if gallery is None:
        return [_missing(title)]
    if len(gallery) < 3:
        reason = (
            f"An embedding map requires at least 3 images besides the explained one, got "
            f"{len(gallery)}. The nearest neighbours are still available."
        )
        return [MissingFigure(section="features", title=title, reason=reason)]
    vectors = np.concatenate([gallery.vectors, gallery.query[None]])
    flat, shares = project_by_pca(vectors)
    places = {"components": flat}
    rest: list[ExplanationFigure | MissingFigure] = []
    if importlib.util.find_spec("sklearn") is None:
        reason = (
            "t-SNE requires scikit-learn, which is not installed. Run: "
            "pip install 'muntin[explain]'. The map by PCA is still available."
        )
        rest = [MissingFigure(section="features", title="Embedding map by t-SNE", reason=reason)]
    else:
        places["neighbours"] = project_by_tsne(vectors)
    text = _describe_map(shares.sum(), with_tsne=not rest)
    return [
        ExplanationFigure(
            name="features-folder",
            section="features",
            title=title,
            text=text + _describe_sampling(gallery),
            figure=_draw_maps(gallery, places, to_rgb(context.shown)),
            source="van der Maaten and Hinton 2008, t-SNE (JMLR 9), by scikit-learn",
            arrays={**places, "class_ids": gallery.class_ids},
            facts={
                "paths": list(gallery.paths),
                "class_names": list(gallery.class_names),
                "explained": [round(float(share), 4) for share in shares],
            },
        ),
        *rest,
    ]


def _describe_map(share: float, *, with_tsne: bool) -> str:
    text = (
        f"Each dot is the pooled feature vector of an image of the folder; the star is the "
        f"explained image. The first two principal components explain "
        f"{100 * share:.0f} % of the variance, so distances are reliable to that extent. "
        f"Well-separated clusters indicate classes that are easy to distinguish."
    )
    if with_tsne:
        text += (
            " t-SNE (right) preserves local neighbourhoods only: neither the size of a cluster "
            "nor the distance between clusters is meaningful."
        )
    return text


def project_by_pca(
    vectors: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Project to the first two principal components: (N, 2), and their shares of the variance."""
    rows = vectors.astype(np.float64)
    rows = rows - rows.mean(axis=0)
    _, lengths, directions = np.linalg.svd(rows, full_matrices=False)
    directions = directions[:2]
    # The sign of a singular vector is arbitrary: fix it, or the map flips between machines.
    largest = np.abs(directions).argmax(axis=1)
    directions = directions * np.sign(directions[np.arange(len(directions)), largest])[:, None]
    total = max(float((lengths**2).sum()), 1e-30)
    return rows @ directions.T, lengths[:2] ** 2 / total


def project_by_tsne(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Project to (N, 2) by t-SNE, deterministically; requires scikit-learn."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    flat = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(vectors)
    return np.asarray(flat, np.float64)


def _missing(title: str) -> MissingFigure:
    reason = (
        "An exported file gives predictions but no embeddings. Explain the run that it was "
        "exported from instead."
    )
    return MissingFigure(section="features", title=title, reason=reason)


def _describe_sampling(gallery: QueriedGallery) -> str:
    if gallery.num_total <= len(gallery):
        return ""
    return f" Computed from {len(gallery)} of {gallery.num_total} images, sampled evenly."


def _name(gallery: QueriedGallery, place: int) -> str:
    class_id = int(gallery.class_ids[place])
    return gallery.class_names[class_id] if class_id >= 0 else ""


def _draw_neighbours(
    context: Context, gallery: QueriedGallery, nearest: NDArray[np.int64]
) -> Figure:
    columns = (1 + len(nearest) + 1) // 2 if len(nearest) > 4 else 1 + len(nearest)
    rows = -(-(1 + len(nearest)) // columns)
    figure = Figure(figsize=(1.75 * columns, 2.15 * rows), layout="constrained", facecolor="white")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for panel in axes:
        panel.axis("off")
    axes[0].imshow(to_rgb(context.shown))
    axes[0].set_title("explained image", fontsize=9, color=INK, fontweight="bold")
    for panel, place in zip(axes[1:], nearest.tolist(), strict=False):
        panel.imshow(gallery.thumbnails[place])
        name = _name(gallery, place) or Path(gallery.paths[place]).name
        label = clean_label(name, int(gallery.class_ids[place]), max_length=18)
        panel.set_title(f"{gallery.similarities[place]:.2f}  {label}", fontsize=9, color=INK)
    return figure


def _draw_maps(
    gallery: QueriedGallery, places: dict[str, NDArray[np.float64]], own: NDArray[np.uint8]
) -> Figure:
    titles = {"components": "principal components", "neighbours": "t-SNE"}
    figure = Figure(figsize=(4.4 * len(places) + 0.2, 4.9), layout="constrained", facecolor="white")
    axes = np.atleast_1d(figure.subplots(1, len(places)))
    for panel, (kind, flat) in zip(axes, places.items(), strict=True):
        _draw_dots(panel, gallery, flat)
        panel.set_title(titles[kind], fontsize=10, color=INK)
        panel.set_xticks([])
        panel.set_yticks([])
        panel.margins(0.09)
        panel.spines[:].set_color("#cccccc")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False,
        fontsize=8,
    )  # fmt: skip
    return figure


def _draw_dots(axes: Axes, gallery: QueriedGallery, flat: NDArray[np.float64]) -> None:
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
    ranks = {class_id: number for number, class_id in enumerate(named.tolist())}
    for place in _non_overlapping(flat, MAX_THUMBNAILS):
        rank = ranks.get(int(gallery.class_ids[place]))
        edge = GREY if rank is None else _colour(rank)
        _draw_thumbnail(axes, gallery.thumbnails[place], dots[place], edge)
    axes.scatter(
        flat[-1, 0], flat[-1, 1], s=230,
        marker="*", color="black", edgecolors="white", linewidths=1.2, zorder=9,
        label="explained image",
    )  # fmt: skip


def _draw_thumbnail(
    axes: Axes, pixels: NDArray[np.uint8], place: NDArray[np.float64], edge: object
) -> None:
    image = OffsetImage(pixels, zoom=26 / max(pixels.shape[:2]))
    box = AnnotationBbox(
        image, (place[0], place[1]), pad=0.1, bboxprops={"edgecolor": edge, "linewidth": 1.6},
    )  # fmt: skip
    axes.add_artist(box)


def _non_overlapping(flat: NDArray[np.float64], limit: int) -> Sequence[int]:
    """Pick dots whose thumbnails overlap neither each other nor the last dot, the query."""
    spread = np.maximum(flat.max(axis=0) - flat.min(axis=0), 1e-12)
    scaled = flat / spread
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
