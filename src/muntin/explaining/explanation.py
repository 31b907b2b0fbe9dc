# SPDX-License-Identifier: Apache-2.0
"""The explainers, in the order of the page, and the function that runs them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from muntin.drawing.notebook import show_facts
from muntin.drawing.result_drawing import draw_result
from muntin.errors import DataError, MuntinError, MuntinWarning
from muntin.explaining import Section, check_sections, figures, inputs
from muntin.explaining.attention_cost import show_cost
from muntin.explaining.attention_maps import show_attention
from muntin.explaining.attribution import show_attribution
from muntin.explaining.comparison import show_comparison
from muntin.explaining.context import Context
from muntin.explaining.feature_maps import show_features
from muntin.explaining.figures import MissingFigure, Results, find_text, save_figure, use_language
from muntin.explaining.inputs import OpenedModel, Source, evaluating, open_context, open_model
from muntin.explaining.output_target import TargetNotFound
from muntin.explaining.page import ImageEntry, PageBuilder, clean_stem
from muntin.explaining.patch_partition import show_patches
from muntin.explaining.position_embedding import show_positions
from muntin.explaining.retrieval import Gallery, embed_folder, show_retrieval
from muntin.prediction.batch import ImageLike
from muntin.shapes import Size
from muntin.staging import refuse_existing, staged, write_file


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Explainer:
    """Produces the figures of one part of a section.

    `needs_forward`: the network must be able to process the image; `needs_modules`: it reads
    modules, which exported files lack. One run covers the `scope`: an image, the model (independent
    of images) or all images. `requires` is the option without which it does not run: a folder,
    whose gallery `show` gets too, or a second model; then `show` gets the contexts of both. The
    `name` is that of its title, if it is not the section's.
    """

    section: Section
    show: Callable[..., Results]
    name: str = ""
    needs_forward: bool = True
    uses_target: bool = False
    needs_modules: bool = True
    scope: Literal["image", "model", "images"] = "image"
    requires: Literal["", "folder", "compare"] = ""

    @property
    def title(self) -> str:
        """By its name, or that of its section."""
        return find_text("explainers", self.name or self.section)


EXPLAINERS: tuple[Explainer, ...] = (
    Explainer(section="cut", show=show_patches, needs_forward=False),
    Explainer(section="positions", show=show_positions, needs_forward=False, scope="model"),
    Explainer(section="attention", show=show_attention),
    Explainer(section="decision", show=show_attribution, uses_target=True, needs_modules=False),
    Explainer(section="features", show=show_features),
    Explainer(section="features", show=show_retrieval, name="retrieval", requires="folder"),
    Explainer(
        section="cost", show=show_cost, needs_forward=False, needs_modules=False, scope="model"
    ),
    Explainer(
        section="comparison", show=show_comparison, needs_modules=False, scope="images",
        requires="compare",
    ),
)  # fmt: skip
"""In the order of the page."""


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
    files: tuple[Path, ...] = field(repr=False)
    missing: tuple[MissingFigure, ...] = field(repr=False)
    left_out: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        figures = [path for path in self.files if path.suffix == ".png"]
        facts = {"page": self.path, "figures": len(figures), "missing figures": len(self.missing)}
        return show_facts("explanation", facts, figures[:1])


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
    language: str = "en",
    weights: str | Path | None = None,
    img_size: Size | None = None,
    force: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Page:
    """Visualise how a model processes images, on one HTML page with captions and formulas.

    ``page.html`` is self-contained and opens offline. Each figure is also saved next to it, in one
    folder per image: PNG and SVG, with its data as npz and JSON. The model is not modified.

    Args:
        model: A run folder, an exported file, the name of a classifier in the zoo, or the result
            of `muntin.load` or `muntin.create_model`. Exported files rule out some figures.
        images: A path, a PIL image, an (H, W, 3) uint8 RGB array, or a list of them.
        out: Output folder; files are replaced at the very end, and unchanged after an error.
        point: (x, y) from 0 to 1: the query whose attention is shown; default: the centre.
        target: Name or number of a class or keypoint, or number of a box; default: the best.
        compare: A second model or checkpoint, compared on the same images.
        folder: Images to retrieve the most similar ones from, preferably in class folders.
        sections: One or several of `muntin.explaining.SECTIONS`; all when empty.
        language: Of the page: "en", or "zh" (Chinese); figures need a font for it (extra `fonts`).
        weights: For a zoo name: a file, folder or hub id; default: published, else random ones.
        img_size: (height, width) in pixels to resize images to. Default: the model's own.
        force: Whether to replace files in `out`; an image of `images` never is.
        say: Called with each progress message.

    Returns:
        Paths of all files, and missing figures. Of several images, unreadable ones are skipped.

    Raises:
        ConfigError: Model, section, language or target are unknown, or the point is outside.
        DataError: No image can be read.
        RunError, WeightError: The run is incomplete, weights do not fit, or nothing can be written.

    Examples:
        >>> import numpy as np
        >>> image = np.zeros((32, 48, 3), np.uint8)
        >>> explain("swin_nano", image, getfixture("tmp_path"), sections="cut").path.name
        'page.html'
    """
    names = check_sections(sections)
    _check_choices(point, target, folder)
    batch_images = inputs.list_images(images)
    # Tensors created in inference mode can never require gradients, and attribution needs them.
    with (
        use_language(language),
        _stage(Path(out), batch_images, force=force) as stage,
        torch.inference_mode(False),
    ):
        opened = open_model(model, weights=weights, img_size=img_size)
        other = None if compare is None else open_model(compare, img_size=img_size)
        session = _Session(
            model=opened,
            other=other,
            folder=str(folder),
            stage=stage,
            say=say,
            explainers=[one for one in EXPLAINERS if not names or one.section in names],
            page=PageBuilder(folder=stage, name=opened.name, facts={}),
        )
        with evaluating(opened.network), evaluating((other or opened).network):
            left_out = session.explain_all(batch_images, point, target)
        write_file(session.page.render().encode(), stage / "page.html")
    return Page(
        path=Path(out, "page.html"),
        files=tuple(Path(out, path.relative_to(stage)) for path in session.files),
        missing=tuple(dict.fromkeys(session.missing)),
        left_out=tuple(left_out),
    )


def _check_choices(
    point: tuple[float, float] | None, target: str | int | None, folder: Path | str
) -> None:
    inputs.check_point(point)
    inputs.check_target(target)
    if folder and not Path(folder).exists():
        message = f"folder must be an existing folder of images, got {str(folder)!r}."
        raise DataError(message)


def _stage(
    folder: Path, images: Sequence[ImageLike], *, force: bool
) -> contextlib.AbstractContextManager[Path]:
    """Stage the files of a page; an existing page is met before any work."""
    refuse_existing([folder / "page.html"], (), option="--out", force=force)
    given = [image for image in images if isinstance(image, str | Path)]
    return staged(folder, inputs=given, force=force)


@dataclass(kw_only=True, slots=True, eq=False)
class _Session:
    """Runs the explainers image by image and collects the page and the list of files."""

    model: OpenedModel
    other: OpenedModel | None
    folder: str
    stage: Path
    say: Callable[[str], None]
    explainers: Sequence[Explainer]
    page: PageBuilder
    files: list[Path] = field(default_factory=list)
    missing: list[MissingFigure] = field(default_factory=list)
    stems: set[str] = field(default_factory=set)
    contexts: list[Context] = field(default_factory=list)
    gallery: Gallery | None = None
    first_entry: ImageEntry | None = None

    def explain_all(
        self,
        images: Sequence[ImageLike],
        point: tuple[float, float] | None,
        target: str | int | None,
    ) -> list[str]:
        """Explain every image; return those that could not be read."""
        left_out = []
        absent: list[TargetNotFound] = []
        for image, title in zip(images, inputs.name_images(images), strict=True):
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
        """Run the explainers on one image; `absent` says why its target cannot be explained."""
        first = not self.stems
        stem = clean_stem(str(Path(title).with_suffix("")), self.stems)
        self.stems.add(stem)
        entry = ImageEntry(name=stem, title=title, size=context.shown_size, at=context.query)
        drawn, unreadable = self.draw_prediction(context)
        if first:
            self.page.facts = model_facts(self.model, context, self.other)
            self.page.notes = model_notes(self.model)
            self.first_entry = entry
        self.page.add_image(entry, context.shown, drawn)
        for explainer in self.explainers:
            if explainer.scope == "image" or (explainer.scope == "model" and first):
                self.run(explainer, [context], entry, _find_reason(explainer, unreadable, absent))
        context.forget()
        if self.other is not None:
            self.contexts.append(context)

    def draw_prediction(self, context: Context) -> tuple[Image.Image | None, str]:
        """Draw the prediction; None and the reason if the model cannot process the image."""
        known = context.pre.in_chans
        if self.model.in_chans != known:
            channels = {"wanted": self.model.in_chans, "got": known}
            return None, find_text("notes", "channels", **channels)
        try:
            result = context.prediction
        except MuntinError as error:
            return None, find_text("notes", "unreadable", problem=error)
        return draw_result(context.pixels, result), ""

    def run(
        self, explainer: Explainer, contexts: Sequence[Context], entry: ImageEntry, reason: str = ""
    ) -> None:
        """Write the results of an explainer to the page and to files, or why it cannot run."""
        asked = bool({"": True, "folder": self.folder, "compare": self.other}[explainer.requires])
        if not asked:
            reason = find_text("notes", explainer.requires)
        elif not reason and (contexts[0].backbone is not None or not explainer.needs_modules):
            self.say(f"{entry.title}: {explainer.title}")
        for result in self.show(explainer, contexts, reason):
            saved = None
            if isinstance(result, MissingFigure):
                self.missing += [result] * asked
            else:
                saved = save_figure(result, self.stage / entry.name)
                self.files += saved.files
            self.page.add(result, saved, entry, always=explainer.scope != "image")

    def show(self, explainer: Explainer, contexts: Sequence[Context], reason: str) -> Results:
        """Make the figures of an explainer, or one `MissingFigure` with the reason."""
        arguments: list[Any] = [*contexts[:1]]
        try:
            if not reason and explainer.requires == "folder":
                if self.gallery is None and contexts[0].backbone is not None:
                    self.gallery = embed_folder(contexts[0], self.folder)
                arguments.append(self.gallery)
            elif not reason and self.other is not None and explainer.requires == "compare":
                # Both models get the same pixels: a large image must not be windowed twice.
                others = [
                    replace(open_context(self.other, one.pixels), path=one.path) for one in contexts
                ]
                arguments = [contexts, others]
            if not reason:
                return explainer.show(*arguments)
        except MuntinError as error:
            reason = str(error)
        return [MissingFigure(section=explainer.section, title=explainer.title, reason=reason)]


def model_facts(model: OpenedModel, context: Context, other: OpenedModel | None) -> dict[str, str]:
    """Collect the facts about a model, and a second one to compare with, for the page header."""
    count = sum(parameter.numel() for parameter in model.network.parameters())
    high, wide = context.shown_size
    exported = find_text("facts", "exported")
    backbone = exported if context.backbone is None else type(context.backbone).__name__
    rows: dict[str, dict[str, object]] = {
        "model": {"name": model.name, "backbone": backbone},
        "weights": {"origin": model.origin},
        "task": {"name": context.task.name},
        "size": {"height": high, "width": wide, "channels": model.in_chans},
    }
    if count:
        rows["parameters"] = {"millions": count / 1e6}
    if other is not None:
        rows["other"] = {"name": other.name, "origin": other.origin}
    if not figures.can_draw():
        rows["figures"] = {}
    lines = (find_text("facts", key, **fields).partition(": ") for key, fields in rows.items())
    return {name: value for name, _, value in lines if name}


def model_notes(model: OpenedModel) -> tuple[str, ...]:
    """Write the notes for the top of the page."""
    return () if model.trained else (find_text("notes", "untrained"),)


def _find_reason(explainer: Explainer, unreadable: str, absent: str) -> str:
    """Why an explainer cannot run on this image; empty if it can."""
    if explainer.needs_forward and unreadable:
        free = dict.fromkeys(row.section for row in EXPLAINERS if not row.needs_forward)
        can = [find_text("sections", section) for section in free]
        return f"{unreadable} {find_text('notes', 'available', sections=', '.join(can))}"
    return absent if explainer.uses_target else ""
