# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""An image among those of a folder: what the model finds most like it, and a map of all."""

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

__all__ = ["place_by_components", "place_by_neighbours", "show_embeddings", "show_neighbours"]

NEAREST = 9
MOST_THUMBNAILS = 40
MOST_NAMED = 10
"""Classes that have a colour of their own; the others are grey."""

GREY = "#999999"
MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
_COSINE = (
    "<math display='block'><mrow><mi>s</mi><mo>(</mo><mi>a</mi><mo>,</mo><mi>b</mi><mo>)</mo>"
    "<mo>=</mo><mfrac><mrow><mi>a</mi><mo>&#x22C5;</mo><mi>b</mi></mrow><mrow><mo>&#x2016;</mo>"
    "<mi>a</mi><mo>&#x2016;</mo><mo>&#x2016;</mo><mi>b</mi><mo>&#x2016;</mo></mrow></mfrac></mrow>"
    "</math>"
)


def show_neighbours(
    context: Context, found: QueriedGallery | None
) -> list[ExplanationFigure | MissingFigure]:
    """Show the images of a folder that a model finds most like the explained one.

    Args:
        context: The image and the model.
        found: The folder's other images; None for an exported file, which has no embedding.

    Returns:
        One figure, or why there is none.
    """
    title = "The most similar images"
    if found is None:
        return [_missing(title)]
    similarities = found.similarities
    nearest = np.argsort(-similarities, kind="stable")[:NEAREST]
    text = (
        f"Every image becomes one vector: what the classifier reads. These {len(nearest)} of "
        f"{len(found)} images of the folder have the vectors that point most nearly the same way "
        f"as that of the image (cosine similarity, 1 = the same way). What they have in common "
        f"is what the model goes by, be it what they show or only a background."
    )
    classes = [_name(found, int(place)) for place in nearest]
    return [
        ExplanationFigure(
            name="features-neighbours",
            section="features",
            title=title,
            text=text + _count_left_out(found),
            figure=_draw_neighbours(context, found, nearest),
            formula=_COSINE,
            arrays={"similarities": similarities},
            facts={
                "nearest": [
                    {"path": found.paths[i], "similarity": float(similarities[i]), "class": name}
                    for i, name in zip(nearest.tolist(), classes, strict=True)
                ],
                "num_images": len(found),
            },
        )
    ]


def show_embeddings(
    context: Context, found: QueriedGallery | None
) -> list[ExplanationFigure | MissingFigure]:
    """Show the images of a folder as a map on which similar ones lie together.

    Args:
        context: The image, which is marked, and the model.
        found: The folder's other images; None for an exported file, which has no embedding.

    Returns:
        Their two main components and, with scikit-learn, t-SNE beside it.
    """
    title = "A map of the folder"
    if found is None:
        return [_missing(title)]
    if len(found) < 3:
        reason = (
            f"A map needs at least 3 images beside the explained one, got {len(found)}. The most "
            f"similar ones are shown."
        )
        return [MissingFigure(section="features", title=title, reason=reason)]
    vectors = np.concatenate([found.vectors, found.query[None]])
    flat, shares = place_by_components(vectors)
    places = {"components": flat}
    rest: list[ExplanationFigure | MissingFigure] = []
    if importlib.util.find_spec("sklearn") is None:
        reason = (
            "t-SNE needs scikit-learn, which is not installed. Run: pip install 'muntin[explain]'. "
            "The map by main components is shown."
        )
        rest = [
            MissingFigure(section="features", title="A map of the folder by t-SNE", reason=reason)
        ]
    else:
        places["neighbours"] = place_by_neighbours(vectors)
    text = (
        f"Each dot is an image of the folder, by the vector that the classifier reads; the star "
        f"is the explained image. Main components keep {100 * shares.sum():.0f} % of the "
        f"variance: distances are true as far as that goes. Classes that lie apart are easy to "
        f"tell apart."
    )
    if not rest:
        text += (
            " t-SNE, on the right, keeps who is next to whom, and nothing else: neither the size "
            "of a cluster nor the distance of two clusters means anything."
        )
    return [
        ExplanationFigure(
            name="features-folder",
            section="features",
            title=title,
            text=text + _count_left_out(found),
            figure=_draw_places(found, places, to_rgb(context.shown)),
            source="van der Maaten and Hinton 2008, t-SNE (JMLR 9), by scikit-learn",
            arrays={**places, "class_ids": found.class_ids},
            facts={
                "paths": list(found.paths),
                "class_names": list(found.class_names),
                "explained": [round(float(share), 4) for share in shares],
            },
        ),
        *rest,
    ]


def place_by_components(
    vectors: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give (N, 2) places by the two main components, and the part of the variance of each."""
    rows = vectors.astype(np.float64)
    rows = rows - rows.mean(axis=0)
    _, lengths, directions = np.linalg.svd(rows, full_matrices=False)
    directions = directions[:2]
    largest = np.abs(directions).argmax(axis=1)
    directions = directions * np.sign(directions[np.arange(len(directions)), largest])[:, None]
    total = max(float((lengths**2).sum()), 1e-30)
    return rows @ directions.T, lengths[:2] ** 2 / total


def place_by_neighbours(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Give (N, 2) places by t-SNE, the same for the same vectors; scikit-learn must be there."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    flat = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(vectors)
    return np.asarray(flat, np.float64)


def _missing(title: str) -> MissingFigure:
    reason = (
        "An exported file gives answers and no embedding. It can be seen of the run that the file "
        "was exported from."
    )
    return MissingFigure(section="features", title=title, reason=reason)


def _count_left_out(found: QueriedGallery) -> str:
    if found.num_total <= len(found):
        return ""
    return f" Looked at are {len(found)} of {found.num_total} images, evenly spread."


def _name(found: QueriedGallery, place: int) -> str:
    class_id = int(found.class_ids[place])
    return found.class_names[class_id] if class_id >= 0 else ""


def _draw_neighbours(context: Context, found: QueriedGallery, nearest: NDArray[np.int64]) -> Figure:
    columns = (1 + len(nearest) + 1) // 2 if len(nearest) > 4 else 1 + len(nearest)
    rows = -(-(1 + len(nearest)) // columns)
    figure = Figure(figsize=(1.75 * columns, 2.15 * rows), layout="constrained", facecolor="white")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for panel in axes:
        panel.axis("off")
    axes[0].imshow(to_rgb(context.shown))
    axes[0].set_title("the image", fontsize=9, color=INK, fontweight="bold")
    for panel, place in zip(axes[1:], nearest.tolist(), strict=False):
        panel.imshow(found.thumbnails[place])
        name = _name(found, place) or Path(found.paths[place]).name
        label = clean_label(name, int(found.class_ids[place]), most=18)
        panel.set_title(f"{found.similarities[place]:.2f}  {label}", fontsize=9, color=INK)
    return figure


def _draw_places(
    found: QueriedGallery, places: dict[str, NDArray[np.float64]], own: NDArray[np.uint8]
) -> Figure:
    titles = {"components": "main components", "neighbours": "t-SNE"}
    figure = Figure(figsize=(4.4 * len(places) + 0.2, 4.9), layout="constrained", facecolor="white")
    axes = np.atleast_1d(figure.subplots(1, len(places)))
    for panel, (kind, flat) in zip(axes, places.items(), strict=True):
        _draw_dots(panel, found, flat)
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


def _draw_dots(axes: Axes, found: QueriedGallery, flat: NDArray[np.float64]) -> None:
    dots = flat[:-1]
    counts = np.bincount(found.class_ids[found.class_ids >= 0], minlength=1)
    named = np.argsort(-counts, kind="stable")[:MOST_NAMED]
    named = np.sort(named[counts[named] > 0])
    others = ~np.isin(found.class_ids, named)
    for number, class_id in enumerate(named.tolist()):
        here = found.class_ids == class_id
        axes.scatter(
            dots[here, 0], dots[here, 1], s=26,
            color=_colour(number), marker=MARKS[number % len(MARKS)],
            linewidths=0.4, edgecolors="white",
            label=clean_label(found.class_names[class_id], class_id),
        )  # fmt: skip
    if others.any():
        label = "other classes" if len(named) else "images of the folder"
        axes.scatter(dots[others, 0], dots[others, 1], s=20, color=GREY, linewidths=0, label=label)
    ranks = {class_id: number for number, class_id in enumerate(named.tolist())}
    for place in _apart(flat, MOST_THUMBNAILS):
        rank = ranks.get(int(found.class_ids[place]))
        edge = GREY if rank is None else _colour(rank)
        _draw_thumbnail(axes, found.thumbnails[place], dots[place], edge)
    axes.scatter(
        flat[-1, 0], flat[-1, 1], s=230,
        marker="*", color="black", edgecolors="white", linewidths=1.2, zorder=9,
        label="the image",
    )  # fmt: skip


def _draw_thumbnail(
    axes: Axes, pixels: NDArray[np.uint8], place: NDArray[np.float64], edge: object
) -> None:
    image = OffsetImage(pixels, zoom=26 / max(pixels.shape[:2]))
    box = AnnotationBbox(
        image, (place[0], place[1]), pad=0.1, bboxprops={"edgecolor": edge, "linewidth": 1.6},
    )  # fmt: skip
    axes.add_artist(box)


def _apart(flat: NDArray[np.float64], most: int) -> Sequence[int]:
    """Dots whose thumbnails do not cover each other, nor the last dot, which is the star."""
    spread = np.maximum(flat.max(axis=0) - flat.min(axis=0), 1e-12)
    scaled = flat / spread
    chosen: list[int] = []
    for place in range(len(flat) - 1):
        taken = scaled[[*chosen, len(flat) - 1]]
        if (np.abs(taken - scaled[place]).max(axis=1) > 0.11).all():
            chosen.append(place)
        if len(chosen) == most:
            break
    return chosen


def _colour(number: int) -> tuple[float, ...]:
    return tuple(part / 255 for part in colour_of(number))
