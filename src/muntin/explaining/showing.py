# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Every kind of explanation, and the function that puts them all on one page."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from muntin.drawing.results import draw_result
from muntin.drawing.saving import save_bytes
from muntin.errors import DataError, MuntinError, MuntinWarning
from muntin.explaining.arguments import (
    check_point,
    check_sections,
    check_target,
    list_images,
    name_images,
)
from muntin.explaining.attending import show_attention
from muntin.explaining.comparing import show_comparison
from muntin.explaining.costing import show_cost
from muntin.explaining.cutting import show_cut
from muntin.explaining.deciding import show_decision
from muntin.explaining.exhibits import SECTIONS, Exhibit, Missing, Section
from muntin.explaining.gathering import Library, embed_folder, gather
from muntin.explaining.inputs import (
    OpenedModel,
    Source,
    evaluating,
    open_model,
    open_subject,
    tell_facts,
    tell_notes,
    try_look,
)
from muntin.explaining.mapping import show_features
from muntin.explaining.neighbours import show_embeddings, show_neighbours
from muntin.explaining.page import Chapter, PageMaker
from muntin.explaining.placing import show_positions
from muntin.explaining.pointing import find_point
from muntin.explaining.saving import clean_stem, save_exhibit, staged
from muntin.explaining.subject import Subject
from muntin.explaining.targeting import NotThere
from muntin.prediction.sources import ImageLike
from muntin.results import SURE, Detections, Poses
from muntin.shapes import Size

__all__ = ["MAKERS", "Asked", "Maker", "Page", "explain"]

Shown = Sequence[Exhibit | Missing]

Needs = Literal["", "folder", "other"]
"""Images in a folder, or another model; empty for nothing."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Asked:
    """What is asked for beside a model and an image.

    Attributes:
        folder: Images among which neighbours are looked for; empty for none.
        other: A second model; None for none.
        libraries: The embedded folder, once it has been read: it is the same for every image.
    """

    folder: str = ""
    other: OpenedModel | None = None
    libraries: dict[str, Library] = field(default_factory=dict)

    def covers(self, needs: Needs) -> bool:
        """Whether what an explanation needs is there."""
        return bool(self.folder if needs == "folder" else self.other if needs else True)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Maker:
    """One kind of explanation.

    Attributes:
        section: Where it stands.
        title: What is missing where it fails.
        show: Makes it, of one image, or of as many as it is for.
        sees: Whether the network must be able to see the image.
        asks: Whether it is about the target.
        inside: Whether it looks at the modules of a network, which an exported file has not.
        of: "image": each image has its own; "model": the same for every image; "images":
            one for all of them.
        needs: What must be asked for.
    """

    section: Section
    title: str
    show: Callable[[Asked, Sequence[Subject]], Shown]
    sees: bool = True
    asks: bool = False
    inside: bool = True
    of: Literal["picture", "model", "pictures"] = "picture"
    needs: Needs = ""


def _one(show: Callable[[Subject], Shown]) -> Callable[[Asked, Sequence[Subject]], Shown]:
    return lambda asked, subjects: show(subjects[0])


def _show_folder(asked: Asked, subjects: Sequence[Subject]) -> Shown:
    (subject,) = subjects
    found = None
    if subject.backbone is not None:
        if not asked.libraries:
            asked.libraries[asked.folder] = embed_folder(subject, asked.folder)
        found = gather(subject, asked.libraries[asked.folder])
    return [*show_neighbours(subject, found), *show_embeddings(subject, found)]


def _show_other(asked: Asked, subjects: Sequence[Subject]) -> Shown:
    """The other model sees the same pixels: the same part of a large image."""
    assert asked.other is not None, "nothing is compared without another model"
    others = [open_subject(asked.other, subject.pixels) for subject in subjects]
    return show_comparison(
        subjects,
        [replace(one, path=subject.path) for one, subject in zip(others, subjects, strict=True)],
    )


MAKERS: tuple[Maker, ...] = (
    Maker(section="cut", title="How the image is cut", show=_one(show_cut), sees=False),
    Maker(
        section="positions", title="Positions", show=_one(show_positions), sees=False, of="model",
    ),
    Maker(section="attention", title="Attention", show=_one(show_attention)),
    Maker(
        section="decision", title="What decided", show=_one(show_decision), asks=True, inside=False,
    ),
    Maker(section="features", title="The maps", show=_one(show_features)),
    Maker(
        section="features", title="Images that are alike", show=_show_folder, needs="folder",
    ),
    Maker(
        section="cost", title="What it costs", show=_one(show_cost), sees=False, inside=False,
        of="model",
    ),
    Maker(
        section="comparison", title="Two models beside each other", show=_show_other,
        inside=False, of="pictures", needs="other",
    ),
)  # fmt: skip
"""In the order of the page."""

_OFFERS = {
    "folder": "Give a folder of images (--folder DIR) to see this.",
    "other": "Give another model or run (--compare RUN) to see this.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """What was written.

    Attributes:
        path: The page.
        files: Every other file: figures and the data behind them.
        missing: What could not be shown, and why.
        left_out: Images that could not be read.
    """

    path: Path
    files: tuple[Path, ...]
    missing: tuple[Missing, ...]
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
    """Show what a model sees: a page of images with a few plain words and a formula beside each.

    The page, ``page.html``, holds everything and opens from disk with the network off. Each figure
    also lies beside it as PNG and SVG, the data behind it as npz and JSON, in a folder an image.
    The model is left as it is, to the bit.

    Args:
        model: A run folder, an exported file, the name of a classifier in the zoo, or what
            `muntin.load` or `muntin.create_model` gave. Files that were exported have no modules
            inside; the page says what cannot be shown of them.
        images: A path, a PIL image, an (H, W, 3) uint8 RGB array, or a list of them.
        out: A folder; files of the same names in it are replaced, all at the end: where something
            goes wrong it is left as it was.
        point: (x, y) from 0 to 1 in the image that is looked from; the middle when left out.
        target: Name or number of the class or keypoint, or number of the box, that is asked about;
            what the model is surest of when left out.
        compare: Another model, or another checkpoint, shown beside it on the same images.
        folder: A folder of images, best of class folders, among which neighbours are found.
        sections: One or some of `muntin.explaining.exhibits.SECTIONS`; all when empty.
        weights: For a name of the zoo: a file, folder or hub id; fresh ones when left out.
        img_size: (height, width) in pixels at which images are seen; the model's own when left
            out.
        say: Told what goes on.

    Returns:
        Where everything is, and what could not be shown. Of several images those that cannot be
        read are left out with a warning.

    Raises:
        ConfigError: A model, section, class or keypoint is unknown, or the point is outside.
        DataError: No image can be read.
        RunError: The run is incomplete, or the folder cannot be written.
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
        message = f"folder must be one of images, got {str(folder)!r}, which is not there."
        raise DataError(message)
    to = Path(out)
    # What is made in inference mode can never take part in gradients.
    with staged(to) as stage, torch.inference_mode(False):
        opened = open_model(model, weights=weights, img_size=img_size)
        other = None if compare is None else open_model(compare, img_size=img_size)
        asked = Asked(folder=str(folder), other=other)
        wanted = [maker for maker in MAKERS if not names or maker.section in names]
        writer = _Writer(opened, asked, wanted, stage, say)
        with evaluating(opened.network), evaluating((other or opened).network):
            left_out = writer.show_all(batch_images, point, target)
        page = save_bytes(writer.page.finish().encode(), stage / "page.html")
    return Page(
        path=to / page.name,
        files=tuple(to / path.relative_to(stage) for path in writer.files),
        missing=tuple(dict.fromkeys(writer.missing)),
        left_out=tuple(left_out),
    )


class _Writer:
    """Shows image after image; keeps of each what the page needs."""

    def __init__(
        self,
        model: OpenedModel,
        asked: Asked,
        makers: Sequence[Maker],
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self.model, self.asked, self.makers = model, asked, makers
        self.folder, self.say = folder, say
        self.page = PageMaker(folder=folder, title=f"What {model.name} sees", facts={})
        self.files: list[Path] = []
        self.missing: list[Missing] = []
        self.stems: set[str] = set()
        self.subjects: list[Subject] = []
        self.first: Chapter | None = None

    def show_all(
        self,
        images: Sequence[ImageLike],
        point: tuple[float, float] | None,
        target: str | int | None,
    ) -> list[str]:
        """Show every image; give those that could not be read."""
        left_out = []
        absent: list[NotThere] = []
        for image, title in zip(images, name_images(images), strict=True):
            try:
                subject, reason = self.open(image, point, target, absent)
            except DataError as error:
                if len(images) == 1:
                    raise
                warnings.warn(f"left out: {error}", MuntinWarning, stacklevel=3)
                left_out.append(str(image))
                continue
            self.show_one(subject, title, reason)
        if absent and len(absent) == len(images) - len(left_out):
            raise absent[0]
        if self.first is None:
            message = f"there must be an image that can be read, got none among {len(images)}."
            raise DataError(message)
        for maker in self.makers:
            if maker.of == "pictures":
                self.run(maker, self.subjects, self.first)
        return left_out

    def open(
        self,
        image: ImageLike,
        point: tuple[float, float] | None,
        target: str | int | None,
        absent: list[NotThere],
    ) -> tuple[Subject, str]:
        """Open an image; without the target, and with the reason, where that is not in it."""
        try:
            return open_subject(self.model, image, point=point, target=target), ""
        except NotThere as error:
            absent.append(error)
            return open_subject(self.model, image, point=point), str(error)

    def show_one(self, subject: Subject, title: str, absent: str) -> None:
        """Show one image.

        Args:
            subject: The image.
            title: Its name.
            absent: Why the target cannot be asked about.
        """
        first = not self.stems
        stem = clean_stem(str(Path(title).with_suffix("")), self.stems)
        self.stems.add(stem)
        chapter = Chapter(name=stem, title=title, size=subject.shown_size, at=find_point(subject))
        found, blind = try_look(self.model, subject)
        if first:
            self.page.facts = tell_facts(self.model, subject, self.asked.other)
            self.page.notes = tell_notes(self.model)
            self.first = chapter
        answer = None if blind else draw_result(subject.pixels, _sure(found))
        self.page.add_image(chapter, subject, answer)
        for maker in self.makers:
            if maker.of == "picture" or (maker.of == "model" and first):
                self.run(maker, [subject], chapter, _find_reason(maker, blind, absent))
        if self.asked.other is not None:
            self.subjects.append(subject)

    def run(
        self, maker: Maker, subjects: Sequence[Subject], chapter: Chapter, reason: str = ""
    ) -> None:
        """Put what a maker makes on the page and into files; or the reason why it cannot."""
        if self.asked.covers(maker.needs):
            has_modules = subjects[0].backbone is not None
            if not reason and (has_modules or not maker.inside):
                self.say(f"{chapter.title}: {maker.title}")
        else:
            reason = _OFFERS[maker.needs]
        for shown in _make(maker, subjects, self.asked, reason):
            saved = None
            if isinstance(shown, Missing):
                self.missing += [shown] * self.asked.covers(maker.needs)
            else:
                saved = save_exhibit(shown, self.folder / chapter.name)
                self.files += saved.files
            self.page.add(shown, saved, chapter, always=maker.of != "picture")


def _find_reason(maker: Maker, blind: str, absent: str) -> str:
    """Why an explanation of this image cannot be made; empty where it can be tried."""
    if maker.sees and blind:
        can = dict.fromkeys(SECTIONS[row.section] for row in MAKERS if not row.sees)
        return f"{blind} What can still be shown: {', '.join(can)}."
    return absent if maker.asks else ""


def _make(
    maker: Maker, subjects: Sequence[Subject], asked: Asked, reason: str
) -> Iterator[Exhibit | Missing]:
    """What a maker makes, or why it cannot."""
    if not reason:
        try:
            yield from maker.show(asked, subjects)
        except MuntinError as error:
            reason = str(error)
    if reason:
        yield Missing(section=maker.section, title=maker.title, reason=reason)


def _sure(result: Any) -> Any:  # noqa: ANN401 (one of muntin.results)
    return result.above(SURE) if isinstance(result, Detections | Poses) else result
