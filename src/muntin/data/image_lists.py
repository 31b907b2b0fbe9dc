# SPDX-License-Identifier: Apache-2.0
"""Images without labels: of a folder, an archive, a list of paths, or a data set of any task."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from muntin.data.archives import is_archive
from muntin.data.checking import Report, Summary, check
from muntin.data.data_config import DEFAULTS, DataConfig
from muntin.data.mask_layouts import find_keys, pair_masks
from muntin.data.readers import Reader, Source, find_reader, read_layout
from muntin.data.shards import Shards
from muntin.data.trees import Tree, part_named, read_text, sort_into_parts
from muntin.errors import DataError, plural, shorten
from muntin.samples import Classes, DataSets, Entry, Listing

_PATH_COLUMNS = ("path", "filename", "file", "image")


Lister = Callable[[str | Path, Classes | None, DataConfig], DataSets]
"""Lists the data set of a task."""


def list_images(path: str | os.PathLike[str], listers: Sequence[Lister] = ()) -> DataSets:
    """List images whose labels, if there are any, are not used; all of them are in `train`.

    `path` is a folder or an archive, searched through; a .txt with a path in each line or a .csv
    with a column path, absolute or seen from the folder of the list; or an annotation file that one
    of `listers` reads. Images of folders called test or val, beside one called train, are left
    out, and so are masks; the note says so.

    Raises:
        DataError: There is no image, or a listed one is missing.
    """
    advice = "Give the folder, the archive or the list of the images."
    readers = (_PACKED, _LIST, _read_with(listers), _FOLDER)
    reader, source, found = find_reader(path, readers, what="images", advice=advice)
    return read_layout(reader, source, found, None)


def check_images(
    path: str | os.PathLike[str], reading: DataConfig, listers: Sequence[Lister] = ()
) -> Report:
    """Read every image that `list_images` gives."""
    nothing = Summary(problems=(), lines=(), counts=())
    return check("pretrain", path, lambda: list_images(path, listers), lambda *_: nothing, reading)


def _gather(source: str, paths: Iterable[str], notes: Iterable[str]) -> DataSets:
    """A data set of these images, each once."""
    entries = tuple(Entry(path=path) for path in dict.fromkeys(paths))
    # Multi-label: of any number of classes, here none.
    listing = Listing(source=source, entries=entries, class_names=(), multi_label=True)
    note = "; ".join([f"{plural(len(entries), 'image')}, labels are not used", *notes])
    return DataSets(train=listing, note=note)


def _read_folder(source: Source, tree: Tree, _: None) -> DataSets:
    kept, notes = tree.images, []
    if pairs := pair_masks(tree).every:
        images = {*find_keys(tree)[0].values()} - {pair.mask for pair in pairs}
        kept, masks = tuple(sorted(images)), sorted({*tree.images} - images)
        notes.append(f"{plural(len(masks), 'mask')} left out ({shorten(masks, limit=2)})")
    parts, others = sort_into_parts(kept, lambda path: path)
    if "train" in parts and len(parts) > 1:
        counts = [f"{part} {len(parts[part])}" for part in parts if part != "train"]
        notes.append(f"left out, as they are for measuring: {', '.join(counts)}")
        kept = tuple(sorted([*parts["train"], *others]))
    if left := len(tree.files) - len(tree.images):
        notes.append(f"{plural(left, 'file')} other than images left out")
    return _gather(tree.source, kept, notes)


def _read_packed(source: Source, shards: Shards, _: None) -> DataSets:
    parts = shards.index.listings(shards.source)
    kept = parts.get("train") or next(iter(parts.values()))
    left = [f"{part} {len(one)}" for part, one in parts.items() if one is not kept]
    notes = [f"left out, as they are for measuring: {', '.join(left)}"] if left else []
    return _gather(shards.source, (entry.path for entry in kept.entries), notes)


def _find_folder(source: Source) -> Tree | None:
    return None if source.is_file or not source.tree.images else source.tree


def _name_archives(source: Source) -> Sequence[str]:
    packed = [name for name in source.tree.files if is_archive(name)]
    return [f"archives, each of which can be given itself: {shorten(packed)}"] if packed else []


def _find_list(source: Source) -> list[tuple[str, str]] | None:
    """The path and the set ("" for none) of each row of a list."""
    folder, name = str(source.path.parent), source.path.name
    if source.suffix == ".txt":
        lines = (line.strip() for line in read_text(folder, name).splitlines())
        return [(line, "") for line in lines if line and not line.startswith("#")]
    if source.suffix != ".csv":
        return None
    rows = csv.DictReader(io.StringIO(read_text(folder, name), newline=""))
    columns = {(each or "").strip().lower(): each for each in rows.fieldnames or ()}
    column = next((columns[each] for each in _PATH_COLUMNS if each in columns), None)
    if column is None:
        return None
    split = columns.get("split", "")
    cells = ((row[column], row.get(split)) for row in rows)
    return [((path or "").strip(), (part or "").strip()) for path, part in cells]


def _read_list(source: Source, rows: Sequence[tuple[str, str]], _: None) -> DataSets:
    folder = source.path.parent
    paths = [path.replace("\\", "/") for path, part in rows if part_named(part) in ("", "train")]
    missing = [repr(path) for path in paths if not path or not (folder / path).is_file()]
    if missing or not paths:
        message = (
            f"{str(source.path)!r} must name a file in each line, seen from its folder, got "
            f"{len(missing)} of {len(paths)} that are not there: {shorten(missing, limit=3)}. "
            f"Correct the paths."
        )
        raise DataError(message)
    left = len(rows) - len(paths)
    return _gather(str(folder), paths, [f"val and test left out: {left}"] if left else [])


def _read_annotations(source: Source, sets: DataSets, _: None) -> DataSets:
    part, listing = next(iter(sets.parts.items()))
    notes = [f"of {part} in {source.path.name}"] if len(sets.parts) > 1 else []
    return _gather(listing.source, (entry.path for entry in listing.entries), notes)


def _read_with(listers: Sequence[Lister]) -> Reader[None, DataSets]:
    def recognise(source: Source) -> DataSets | None:
        for read in listers if source.is_file else ():
            with suppress(DataError):
                return read(source.path, None, DEFAULTS)
        return None

    return Reader(
        name="annotations",
        recognise=recognise,
        read=_read_annotations,
        looks_for="annotations that name images",
        file="the annotation file of a data set",
    )


_PACKED: Reader[None, DataSets] = Reader(
    name="packed",
    recognise=lambda source: source.shards,
    read=_read_packed,
    looks_for="",
    file="an address of shards",
)

_LIST: Reader[None, DataSets] = Reader(
    name="list of images",
    recognise=_find_list,
    read=_read_list,
    looks_for="a list of images",
    file="a .txt or .csv of paths",
)

_FOLDER: Reader[None, DataSets] = Reader(
    name="folder of images",
    recognise=_find_folder,
    read=_read_folder,
    looks_for="image files",
    reject=_name_archives,
)
