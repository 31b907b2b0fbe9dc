# SPDX-License-Identifier: Apache-2.0
"""Objects in mask files: one number or colour an object, or one file an object.

With masks of classes beside those of objects (`SegmentationClass` and `SegmentationObject` of VOC,
CVAT, Datumaro and labelme), an object has the class of most of its pixels. Otherwise all objects
have one class. Value 0 and black are no object, nor is the border that VOC draws.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from muntin.data.archives import read_bytes
from muntin.data.mask_folders import BACKGROUND, MASK_FOLDERS
from muntin.data.mask_layouts import Key, MaskRequest, find_keys, pair_masks
from muntin.data.mask_tables import find_table
from muntin.data.mask_values import read_mask, read_values
from muntin.data.objects import AnnotationReport, ObjectRequest
from muntin.data.readers import Reader, Source
from muntin.data.shape_records import ImageShapes, Shape, list_shapes
from muntin.data.trees import Tree, fold, read_size
from muntin.errors import DataError
from muntin.run_lengths import encode_mask
from muntin.samples import Entry, Listing
from muntin.shapes import Size
from muntin.targets import IGNORED

_OBJECTS = re.compile(r"(?:.*/)?segmentationobject(?:png)?/(?P<stem>[^/]*)\.[a-z]+")
_CLASSES = re.compile(r"(?:.*/)?(?:segmentationclass(?:png)?|[^/]*semantic[^/]*)/[^/]*")
_NUMBER_END = re.compile(r"[_\-. ]\d+$")
_OBJECT = "object"
_BORDER = {"index": 255, "color": 0xE0E0C0}


class _Files(NamedTuple):
    """The files that hold the objects of each image, and files that are no images.

    `classes` tells that masks of classes lie beside them, `numbered` that a file has several.
    """

    masks: Mapping[str, list[str]]
    others: Set[str]
    classes: bool = False
    numbered: bool = True


def _recognise(source: Source) -> _Files | None:
    if source.is_file:
        return None
    tree = source.tree
    images, masks, _ = find_keys(tree)
    found = {one["stem"]: path for path in tree.images if (one := _OBJECTS.match(fold(path)))}
    pairs = pair_masks(tree).every
    others = {*tree.images} - {*images.values()} - {pair.image for pair in pairs}
    if found:
        stems = {one.image: fold(one.image).rpartition("/")[2].rpartition(".")[0] for one in pairs}
        objects = {path: [found[stem]] for path, stem in stems.items() if stem in found}
        return _Files(objects, others, classes=True) if objects else None
    if pairs:
        objects = {one.image: [one.mask] for one in pairs if not _CLASSES.match(fold(one.mask))}
        return _Files(objects, others) if objects else None
    objects = _group(images, masks)
    return _Files(objects, others, numbered=False) if objects else None


def _group(images: Mapping[Key, str], masks: Mapping[Key, list[str]]) -> dict[str, list[str]]:
    """Give the masks of each image where every object has a file of its own.

    They lie beside the only image of a folder (7/images/7.png, 7/masks/a.png), in a folder of its
    name (masks/7/1.png), or have its name and a number (masks/7_1.png).
    """
    folders: dict[str, list[Key]] = defaultdict(list)
    for key in images:
        folders[key[0]].append(key)
    grouped: dict[str, list[str]] = defaultdict(list)
    for (folder, stem), paths in masks.items():
        above, _, last = folder.rpartition("/")
        beside = folders[folder][0] if folder and len(folders[folder]) == 1 else ("", "")
        keys = (beside, (above, last), (folder, _NUMBER_END.sub("", stem)))
        image = next((images[key] for key in keys if key in images), None)
        if image is not None:
            grouped[image] += paths
    return dict(grouped)


def _read(source: Source, files: _Files, request: ObjectRequest) -> dict[str, Listing]:
    tree, findings = source.tree, request.findings
    classes: dict[str, tuple[str, Listing, Entry]] = {}
    if files.classes:
        data = MASK_FOLDERS.read(source, pair_masks(tree), MaskRequest())
        findings.notes.append(f"classes of objects by {data.note}")
        for part, listing in data.parts.items():
            classes |= {entry.path: (part, listing, entry) for entry in listing.entries}
    name = "" if files.classes else _name_objects(tree, files, request)

    def read_image(path: str) -> ImageShapes:
        record = ImageShapes(file=files.masks[path][0], names=[path])
        labels, names = None, [name]
        try:
            record.size = read_size(tree.source, path)
            if path in classes:
                record.part, listing, entry = classes[path]
                names = [*listing.class_names]
                labels = read_mask(listing, entry).labels
                assert listing.encoding is not None, "masks have an encoding"
                if 0 in listing.encoding.values:  # 0 and black are no object
                    labels[labels == listing.encoding.values.index(0)] = IGNORED
            for mask in sorted(files.masks[path]):
                record.shapes += _read_objects(tree, mask, record.size, files.numbered, labels)
        except DataError as error:
            fault = ("of a mask that cannot be read", str(error))
            record.shapes = [Shape(where="objects", label="0", fault=fault)]
        for shape in record.shapes:
            shape.label = names[int(shape.label)]
        return record

    paths = [path for path in sorted(files.masks) if not files.classes or path in classes]
    with ThreadPoolExecutor(max_workers=2) as pool:
        records = list(pool.map(read_image, paths))
    if files.numbered and not files.classes:
        _judge_numbers(records, tree.source, findings)
    files_of_images = tuple(path for path in tree.images if path not in files.others)
    return list_shapes(replace(tree, images=files_of_images), records, request)


def _judge_numbers(records: Sequence[ImageShapes], source: str, findings: AnnotationReport) -> None:
    """Refuse masks of one foreground, and name those whose values may be classes."""
    found = [{shape.where for shape in record.shapes if not shape.fault} for record in records]
    if set().union(*found) <= {"value 255"}:
        message = (
            f"Masks of objects must give each object a number or a file of its own, got 0 and 255 "
            f"alone in {source!r}: objects are not told apart. Use the task semantic."
        )
        raise DataError(message)
    gaps = sum(not names <= {f"value {n}" for n in range(1, len(names) + 1)} for names in found)
    if gaps > len(found) / 2:
        what = f"{gaps} of {len(found)} masks do not number objects 1, 2, ...: are these classes?"
        findings.warn(source, f"{what} Then use the task semantic")


def _name_objects(tree: Tree, files: _Files, request: ObjectRequest) -> str:
    """Give the name of the only class: that of a table or of a trained run, if there is one."""
    table = find_table(tree, [mask for masks in files.masks.values() for mask in masks])
    names = [name for name in table.names if name.strip("_") != BACKGROUND] if table else []
    if len(names) > 1 and table is not None:
        message = (
            f"Masks of objects must have one class or masks of classes beside them "
            f"(SegmentationClass, SegmentationObject), got {len(names)} classes in "
            f"{table.origin!r}: do the values of masks mean classes? Use the task semantic."
        )
        raise DataError(message)
    wanted = request.class_names or ()
    return next(iter(names), wanted[0] if len(wanted) == 1 else _OBJECT)


def _read_objects(
    tree: Tree, mask: str, size: Size, numbered: bool, labels: NDArray[np.int16] | None
) -> Iterator[Shape]:
    """Read the objects of one mask file; with `labels`, (H, W), their label is that of a class."""
    data, kind = read_bytes(tree.source, mask), "index"
    try:
        values = read_values(data, where=mask, kind="index")
    except DataError:
        values, kind = read_values(data, where=mask, kind="color"), "color"
    if values.shape != size or (labels is not None and labels.shape != size):
        message = f"{mask!r} must have the size of its image, {size}, got {values.shape}"
        raise DataError(message)
    if not numbered:
        values = (values > values.max() / 2).astype(np.int32)  # whatever is smoothed or lossy
    flat = values.ravel()
    order = np.argsort(flat, kind="stable")
    found, starts = np.unique(flat[order], return_index=True)
    several = {1, 255} <= {*found.tolist()} and 254 not in found  # of 255 objects it is the last
    border = _BORDER[kind] if labels is not None or several or kind == "color" else 0
    for value, places in zip(found.tolist(), np.split(order, starts[1:]), strict=True):
        if value in (0, border):
            continue
        label = 0
        if labels is not None:
            counts = Counter(labels.ravel()[places].tolist())
            label = next((one for one, _ in counts.most_common() if one != IGNORED), -1)
            if label < 0:
                continue
        rows, columns = np.divmod(places, size[1])
        top, left = int(rows.min()), int(columns.min())
        bitmap = np.zeros((int(rows.max()) - top + 1, int(columns.max()) - left + 1), np.bool_)
        bitmap[rows - top, columns - left] = True
        yield Shape(
            where=f"value {value}" if numbered else mask,
            label=str(label),
            kind="area",
            outline=encode_mask(bitmap, size=size, top=top, left=left),
        )


INSTANCE_MASKS: Reader[ObjectRequest, dict[str, Listing]] = Reader(
    name="instance masks",
    recognise=_recognise,
    read=_read,
    looks_for="masks with a number or a file for each object",
)
