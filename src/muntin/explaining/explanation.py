# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The explainers, in the order of the page, and the function that runs them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from muntin.drawing.result_drawing import draw_result
from muntin.drawing.saving import save_bytes
from muntin.errors import DataError, MuntinError, MuntinWarning
from muntin.explaining.arguments import (
    check_point,
    check_sections,
    check_target,
    list_images,
    name_images,
)
from muntin.explaining.attention_cost import show_cost
from muntin.explaining.attention_maps import show_attention
from muntin.explaining.attribution import show_attribution
from muntin.explaining.comparison import show_comparison
from muntin.explaining.context import Context
from muntin.explaining.embeddings import Gallery, embed_folder, query_gallery
from muntin.explaining.explanation_figure import ExplanationFigure, MissingFigure
from muntin.explaining.feature_pca import show_features
from muntin.explaining.figure_files import clean_stem, save_figure, staged
from muntin.explaining.inputs import (
    OpenedModel,
    Source,
    evaluating,
    model_facts,
    model_notes,
    open_context,
    open_model,
    try_predict,
)
from muntin.explaining.page import ImageEntry, PageBuilder
from muntin.explaining.patch_partition import show_patches
from muntin.explaining.position_embedding import show_positions
from muntin.explaining.retrieval import show_embeddings, show_neighbours
from muntin.explaining.sections import SECTIONS, Section
from muntin.explaining.target_selection import TargetNotFound
from muntin.explaining.token_lookup import find_point
from muntin.prediction.sources import ImageLike
from muntin.results import DEFAULT_SCORE_THRESHOLD, Detections, Poses
from muntin.shapes import Size

__all__ = ["EXPLAINERS", "ExplainOptions", "Explainer", "Page", "explain"]

Results = Sequence[ExplanationFigure | MissingFigure]

Requirement = Literal["", "folder", "other"]
"""Option without which an explainer does not run: a folder of images or a second model."""

Scope = Literal["image", "model", "images"]
"""What one run of an explainer covers: one image, the model (image-independent), all images."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ExplainOptions:
    """Options of one call that apply to every image.

    Attributes:
        folder: Images to retrieve neighbours from; empty to skip retrieval.
        other: Second model to compare with.
        galleries: The embedded folder, cached for all images.
    """

    folder: str = ""
    other: OpenedModel | None = None
    galleries: dict[str, Gallery] = field(default_factory=dict)

    def satisfies(self, requires: Requirement) -> bool:
        """Whether the option that an explainer requires was given."""
        return bool(self.folder if requires == "folder" else self.other if requires else True)


Run = Callable[[ExplainOptions, Sequence[Context]], Results]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Explainer:
    """Produces the figures of one part of a section.

    Attributes:
        section: Section of the page that its figures belong to.
        title: Heading when it fails.
        run: Makes the figures from the contexts that its scope covers.
        needs_forward: Whether the network must be able to process the image.
        uses_target: Whether it depends on the target.
        needs_modules: Whether it reads modules of the network; exported files have none.
        scope: How often it runs.
        requires: Option without which it does not run.
    """

    section: Section
    title: str
    run: Run
    needs_forward: bool = True
    uses_target: bool = False
    needs_modules: bool = True
    scope: Scope = "image"
    requires: Requirement = ""


def _per_context(show: Callable[[Context], Results]) -> Run:
    return lambda options, contexts: show(contexts[0])


def _show_retrieval(options: ExplainOptions, contexts: Sequence[Context]) -> Results:
    (context,) = contexts
    gallery = None
    if context.backbone is not None:
        if not options.galleries:
            options.galleries[options.folder] = embed_folder(context, options.folder)
        gallery = query_gallery(context, options.galleries[options.folder])
    return [*show_neighbours(context, gallery), *show_embeddings(context, gallery)]


def _show_comparison(options: ExplainOptions, contexts: Sequence[Context]) -> Results:
    """Both models get the same pixels, so a large image must not be windowed twice."""
    assert options.other is not None, "a comparison requires a second model"
    others = [open_context(options.other, context.pixels) for context in contexts]
    return show_comparison(
        contexts,
        [replace(one, path=context.path) for one, context in zip(others, contexts, strict=True)],
    )


EXPLAINERS: tuple[Explainer, ...] = (
    Explainer(
        section="cut", title="Patches and windows", run=_per_context(show_patches),
        needs_forward=False,
    ),
    Explainer(
        section="positions", title="Position embeddings", run=_per_context(show_positions),
        needs_forward=False, scope="model",
    ),
    Explainer(section="attention", title="Attention", run=_per_context(show_attention)),
    Explainer(
        section="decision", title="Attribution", run=_per_context(show_attribution),
        uses_target=True, needs_modules=False,
    ),
    Explainer(section="features", title="Feature maps", run=_per_context(show_features)),
    Explainer(
        section="features", title="Image retrieval", run=_show_retrieval, requires="folder",
    ),
    Explainer(
        section="cost", title="Cost", run=_per_context(show_cost), needs_forward=False,
        needs_modules=False, scope="model",
    ),
    Explainer(
        section="comparison", title="Model comparison", run=_show_comparison,
        needs_modules=False, scope="images", requires="other",
    ),
)  # fmt: skip
"""In the order of the page."""

_REQUIREMENT_HINTS = {
    "folder": "Requires a folder of images: pass --folder DIR.",
    "other": "Requires a second model or run: pass --compare RUN.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """Files written by `explain`.

    Attributes:
        path: The HTML page.
        files: All other files: figures and their data.
        missing: Figures that could not be made, with the reason.
        left_out: Images that could not be read.
    """

    path: Path
    files: tuple[Path, ...]
    missing: tuple[MissingFigure, ...]
    left_out: tuple[str, ...] = ()


def explain(
    model: Source,
    images: ImageLike | Sequence[ImageLike],
    out: Path | str = "explain/",
    *,
    point: tuple[float, float] | None = None,
    target: str | int | None = None,
    compare: Source | None = None,
    folder: Path | str = "",
    sections: str | Sequence[str] = (),
    weights: str | Path | None = None,
    img_size: Size | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Page:
    """Visualise how a model processes images, on one HTML page with captions and formulas.

    ``page.html`` is self-contained and opens offline. Each figure is also saved next to it, in one
    folder per image: PNG and SVG, with its data as npz and JSON. The model is not modified.

    Args:
        model: A run folder, an exported file, the name of a classifier in the zoo, or the result
            of `muntin.load` or `muntin.create_model`. Exported files have no modules; the page
            lists the figures that this rules out.
        images: A path, a PIL image, an (H, W, 3) uint8 RGB array, or a list of them.
        out: Output folder. Files of the same names are replaced at the very end; after an error
            the folder is unchanged.
        point: (x, y) from 0 to 1 in the image: the query whose attention is shown. Default: the
            centre.
        target: Name or number of a class or keypoint, or number of a box, to explain. Default:
            the prediction with the highest score.
        compare: A second model or checkpoint, compared on the same images.
        folder: A folder of images, preferably one subfolder per class, to retrieve the most
            similar images from.
        sections: One or several of `muntin.explaining.sections.SECTIONS`; all when empty.
        weights: For a zoo name: a file, folder or hub id; random initialisation when omitted.
        img_size: (height, width) in pixels to resize images to. Default: the model's own.
        say: Called with each progress message.

    Returns:
        Paths of all files, and missing figures. Of several images, unreadable ones are skipped.

    Raises:
        ConfigError: The model, section, class or keypoint is unknown, or the point is outside the
            image.
        DataError: No image can be read.
        RunError: The run is incomplete, or the folder is not writable.
        WeightError: The weights cannot be read or do not fit.

    Example:
        >>> import numpy as np
        >>> page = explain(
        ...     "swin_nano", np.zeros((32, 48, 3), np.uint8), getfixture("tmp_path"),
        ...     sections=["cut"],
        ... )
        >>> page.path.name
        'page.html'
    """
    names = check_sections(sections)
    check_point(point)
    check_target(target)
    batch_images = list_images(images)
    if folder and not Path(folder).exists():
        message = f"folder must be an existing folder of images, got {str(folder)!r}."
        raise DataError(message)
    destination = Path(out)
    # Tensors created in inference mode can never require gradients, and attribution needs them.
    with staged(destination) as stage, torch.inference_mode(False):
        opened = open_model(model, weights=weights, img_size=img_size)
        other = None if compare is None else open_model(compare, img_size=img_size)
        options = ExplainOptions(folder=str(folder), other=other)
        selected = [one for one in EXPLAINERS if not names or one.section in names]
        session = _Session(opened, options, selected, stage, say)
        with evaluating(opened.network), evaluating((other or opened).network):
            left_out = session.explain_all(batch_images, point, target)
        page = save_bytes(session.page.render().encode(), stage / "page.html")
    return Page(
        path=destination / page.name,
        files=tuple(destination / path.relative_to(stage) for path in session.files),
        missing=tuple(dict.fromkeys(session.missing)),
        left_out=tuple(left_out),
    )


class _Session:
    """Runs the explainers image by image and collects the page and the list of files."""

    def __init__(
        self,
        model: OpenedModel,
        options: ExplainOptions,
        explainers: Sequence[Explainer],
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self.model, self.options, self.explainers = model, options, explainers
        self.folder, self.say = folder, say
        self.page = PageBuilder(folder=folder, title=f"{model.name} explained", facts={})
        self.files: list[Path] = []
        self.missing: list[MissingFigure] = []
        self.stems: set[str] = set()
        self.contexts: list[Context] = []
        self.first_entry: ImageEntry | None = None

    def explain_all(
        self,
        images: Sequence[ImageLike],
        point: tuple[float, float] | None,
        target: str | int | None,
    ) -> list[str]:
        """Explain every image; return those that could not be read."""
        left_out = []
        absent: list[TargetNotFound] = []
        for image, title in zip(images, name_images(images), strict=True):
            try:
                context, reason = self.open(image, point, target, absent)
            except DataError as error:
                if len(images) == 1:
                    raise
                warnings.warn(f"skipped: {error}", MuntinWarning, stacklevel=3)
                left_out.append(str(image))
                continue
            self.explain_one(context, title, reason)
        if absent and len(absent) == len(images) - len(left_out):
            raise absent[0]
        if self.first_entry is None:
            message = f"images must hold a readable image, got {len(images)} unreadable ones."
            raise DataError(message)
        for explainer in self.explainers:
            if explainer.scope == "images":
                self.run(explainer, self.contexts, self.first_entry)
        return left_out

    def open(
        self,
        image: ImageLike,
        point: tuple[float, float] | None,
        target: str | int | None,
        absent: list[TargetNotFound],
    ) -> tuple[Context, str]:
        """Open an image; if the target is not in it, without target and with the reason."""
        try:
            return open_context(self.model, image, point=point, target=target), ""
        except TargetNotFound as error:
            absent.append(error)
            return open_context(self.model, image, point=point), str(error)

    def explain_one(self, context: Context, title: str, absent: str) -> None:
        """Run the explainers on one image.

        Args:
            context: The image and the model.
            title: Name of the image.
            absent: Why the target cannot be explained; empty if it can.
        """
        first = not self.stems
        stem = clean_stem(str(Path(title).with_suffix("")), self.stems)
        self.stems.add(stem)
        entry = ImageEntry(name=stem, title=title, size=context.shown_size, at=find_point(context))
        result, unreadable = try_predict(self.model, context)
        if first:
            self.page.facts = model_facts(self.model, context, self.options.other)
            self.page.notes = model_notes(self.model)
            self.first_entry = entry
        if isinstance(result, Detections | Poses):
            result = result.above(DEFAULT_SCORE_THRESHOLD)
        prediction = None if unreadable else draw_result(context.pixels, result)
        self.page.add_image(entry, context, prediction)
        for explainer in self.explainers:
            if explainer.scope == "image" or (explainer.scope == "model" and first):
                self.run(explainer, [context], entry, _find_reason(explainer, unreadable, absent))
        if self.options.other is not None:
            self.contexts.append(context)

    def run(
        self, explainer: Explainer, contexts: Sequence[Context], entry: ImageEntry, reason: str = ""
    ) -> None:
        """Write the results of an explainer to the page and to files, or why it cannot run."""
        if self.options.satisfies(explainer.requires):
            has_modules = contexts[0].backbone is not None
            if not reason and (has_modules or not explainer.needs_modules):
                self.say(f"{entry.title}: {explainer.title}")
        else:
            reason = _REQUIREMENT_HINTS[explainer.requires]
        for result in _run(explainer, contexts, self.options, reason):
            saved = None
            if isinstance(result, MissingFigure):
                self.missing += [result] * self.options.satisfies(explainer.requires)
            else:
                saved = save_figure(result, self.folder / entry.name)
                self.files += saved.files
            self.page.add(result, saved, entry, always=explainer.scope != "image")


def _find_reason(explainer: Explainer, unreadable: str, absent: str) -> str:
    """Why an explainer cannot run on this image; empty if it can."""
    if explainer.needs_forward and unreadable:
        can = dict.fromkeys(SECTIONS[row.section] for row in EXPLAINERS if not row.needs_forward)
        return f"{unreadable} Sections that are still available: {', '.join(can)}."
    return absent if explainer.uses_target else ""


def _run(
    explainer: Explainer, contexts: Sequence[Context], options: ExplainOptions, reason: str
) -> Iterator[ExplanationFigure | MissingFigure]:
    """Yield the results of an explainer, or one `MissingFigure` with the reason."""
    if not reason:
        try:
            yield from explainer.run(options, contexts)
        except MuntinError as error:
            reason = str(error)
    if reason:
        yield MissingFigure(section=explainer.section, title=explainer.title, reason=reason)
