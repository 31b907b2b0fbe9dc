# SPDX-License-Identifier: Apache-2.0
"""Diagnosis of a finished run: `muntin doctor RUN`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from muntin.data.batches import evaluation_batch
from muntin.data.cache import ImageCache
from muntin.data.data_config import DataConfig
from muntin.data.entry_images import read_pixels
from muntin.data.splitting import hold_out
from muntin.data.value_ranges import OWN
from muntin.diagnosing.data_faults import diagnose_data
from muntin.diagnosing.findings import Finding
from muntin.diagnosing.run_faults import diagnose_result, is_failed
from muntin.diagnosing.suspects import Suspect, find_copies, find_label_errors
from muntin.drawing.layout import Thumbnail, draw_sheet
from muntin.drawing.saving import save_image
from muntin.drawing.style import VERMILION
from muntin.errors import MuntinError, RunError
from muntin.prediction.from_run import load
from muntin.run_files import read_split
from muntin.runs import Run, read_results
from muntin.samples import DataSets, Entry, Listing
from muntin.scoring.evaluator import Scored, score
from muntin.staging import format_json, refuse_existing, write_file

MAX_SCORED = 1000
"""Images of each part that are run for label errors."""

_SHOWN = 48
_SIDE = 220  # pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """What was found of a run: faults, suspects to look at, and notes of what was not done.

    `failed` is whether its figures are those of guessing.
    """

    findings: tuple[Finding, ...]
    suspects: tuple[Suspect, ...] = ()
    notes: tuple[str, ...] = ()
    failed: bool = False

    @property
    def ok(self) -> bool:
        """Whether the run has learnt something, and nothing but warnings was found."""
        return not self.failed and not any(one.is_error for one in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        return {
            "ok": self.ok,
            "findings": [one.to_dict() for one in self.findings],
            "suspects": [asdict(one) for one in self.suspects],
            "notes": list(self.notes),
        }


def diagnose_run(path: Path | str, data: Path | str = "", *, device: str = "auto") -> Diagnosis:
    """Say why a run is bad, if it is, and which of its labels and images to look at.

    Args:
        path: A run folder.
        data: Its data, if they are not where they were.
        device: Where the images are run for label errors.

    Raises:
        RunError: The run cannot be read, or was not trained to its first validation.
    """
    run = Run.open(path)
    if not run.path.is_dir():
        message = f"a run must be the folder of a training to be diagnosed, got {path}."
        raise RunError(message)
    figures = read_results(run).figures
    if not figures:
        message = f"a run must have results to be diagnosed, got none in {path}. Train it on."
        raise RunError(message)
    place, failed = str(data or run.config.data), is_failed(run, figures)
    if not Path(place).exists():
        note = f"the data are not at {place}: only the run was looked at. Give --data"
        found = diagnose_result(run, None, figures)
        return Diagnosis(findings=tuple(found), notes=(note,), failed=failed)
    reading = run.config.data_config
    listed, found = diagnose_data(
        lambda: run.task.list_data(place, run.classes, reading), run.preprocessing
    )
    if listed is None:
        return Diagnosis(findings=tuple(found), failed=failed)
    sets, notes = _parts_of(run, listed)
    scored, more = _score_parts(run, sets, device)
    notes += more
    val = scored.get("val")
    both = (sets["train"], sets["val"]) if len(sets) > 1 else None
    causes = diagnose_result(run, both, figures, val)
    if run.classes.multi_label:
        notes.append("label errors were not looked for: images have several labels")
    known = {(one.code, one.where) for one in found}
    found += [one for one in causes if (one.code, one.where) not in known]
    suspects = [one for part, each in scored.items() for one in find_label_errors(part, each)]
    if failed:
        suspects = []  # of which its answers say nothing
        notes.append("label errors were not looked for: the run finds nothing itself")
    suspects += find_copies(sets)
    return Diagnosis(
        findings=tuple(found), suspects=tuple(suspects), notes=tuple(notes), failed=failed
    )


def _parts_of(run: Run, listed: DataSets) -> tuple[dict[str, Listing], list[str]]:
    """Training and validation images, as the run had them where it split the data itself."""
    sets = {name: one for name, one in listed.parts.items() if one is not None}
    if set(sets) != {"train"}:
        train = sets.get("train") or next(iter(sets.values()))
        val = sets.get("val") or sets.get("test")
        return {"train": train, **({} if val is None else {"val": val})}, []
    try:
        held_out = set(read_split(run.path).held_out)
    except RunError as error:
        return sets, [f"the split of the run is unknown: {error}"]
    rows = [n for n, entry in enumerate(sets["train"].entries) if entry.path in held_out]
    rest = [n for n, entry in enumerate(sets["train"].entries) if entry.path not in held_out]
    if not rows or not rest:
        return sets, ["the validation images of the run are not among these data"]
    return {"train": sets["train"].select(rest), "val": sets["train"].select(rows)}, []


def _score_parts(
    run: Run, sets: Mapping[str, Listing], device: str
) -> tuple[dict[str, Scored], list[str]]:
    """Run the network on each part, or a thousand images of it."""
    scored: dict[str, Scored] = {}
    notes: list[str] = []
    predictor = None
    for part, listing in sets.items():
        few = listing
        if len(listing) > MAX_SCORED:
            _, few = hold_out(listing, count=MAX_SCORED, seed=0)
            notes.append(f"label errors: {MAX_SCORED} of {len(listing)} {listing.unit} of {part}")
        try:
            store = ImageCache(few, run.preprocessing, DataConfig())
            size = evaluation_batch(run.preprocessing)
            predictor = load(run, device=device) if predictor is None else predictor
            scored[part] = score(predictor, store, batch_size=size)
        except MuntinError as error:
            notes.append(f"{part} could not be run: {error}")
    return scored, notes


def write_suspects(suspects: Sequence[Suspect], folder: Path) -> list[Path]:
    """Write suspects.json, suspects.csv and sheets of their images; give the files.

    Raises:
        RunError: One of the files exists.
    """
    names = ("suspects.json", "suspects.csv", "label_errors.png", "copies.png")
    refuse_existing([folder / name for name in names], (), option="--out", force=None)
    rows, table = [asdict(one) for one in suspects], io.StringIO()
    writer = csv.DictWriter(table, [field.name for field in fields(Suspect)])
    writer.writeheader()
    writer.writerows(rows)
    texts = zip(names, (format_json(rows) + "\n", table.getvalue()), strict=False)
    written = [write_file(text.encode(), folder / name) for name, text in texts]
    for name, wanted in ((names[2], False), (names[3], True)):
        chosen = [one for one in suspects if bool(one.other) == wanted]
        if tiles := [tile for one in chosen[:_SHOWN] for tile in _draw(one)]:
            title = f"The first {min(_SHOWN, len(chosen))} of {len(chosen)} to look at"
            sheet = draw_sheet(tiles, title, columns=6, side=_SIDE)
            written.append(save_image(sheet, folder / name))
    return written


def _draw(one: Suspect) -> Iterator[Thumbnail]:
    """The image, or what is around the box, with the box; of copies, both."""
    places = ((one.source, one.path), (one.other_source, one.other))[: 1 + bool(one.other)]
    for source, path in places:
        pixels, _ = read_pixels(source, Entry(path=path), OWN)
        image = Image.fromarray(pixels)
        if one.box is not None:
            left, top, right, bottom = one.box
            width = max(1, max(image.size) // 150)
            ImageDraw.Draw(image).rectangle(one.box, outline=VERMILION, width=width)
            margin = max(right - left, bottom - top)
            edges = (left - margin, top - margin, right + margin, bottom + margin)
            image = image.crop(edges)
        part = one.part if path == one.path else "copy"
        lines = (f"{one.score:.2f} {one.what}", f"{part}: {Path(path).name}")
        yield Thumbnail(pixels=np.asarray(image), lines=lines)
