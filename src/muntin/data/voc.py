# SPDX-License-Identifier: Apache-2.0
"""Pascal VOC: objects in one XML per image.

The four numbers of a box are taken as edges, as written. The original devkit counted pixels
from 1 and included the last one, so that its boxes are half a pixel off and one pixel short here;
most tools that write this format count from 0 and mean edges. Objects that are marked `difficult`
are taken as crowd: as in the challenge, they are neither right nor wrong.

The sets are those of `ImageSets/Main`; where there are none, folders called train, val and test;
where there are none either, all is one set.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np

from muntin.data.archives import read_bytes
from muntin.data.box_units import require_corners
from muntin.data.mask_layouts import rank_of_images
from muntin.data.objects import (
    NO_BOX,
    NOWHERE,
    Annotation,
    AnnotationReport,
    ObjectRequest,
    make_entry,
    make_listing,
)
from muntin.data.readers import Reader, Source, clean_class_name, count_others, number_classes
from muntin.data.trees import (
    PARTS,
    Tree,
    by_stem,
    clean_name,
    fold,
    read_text,
    sort_into_parts,
    take_best,
)
from muntin.errors import DataError, plural
from muntin.run_lengths import Edges
from muntin.samples import Listing
from muntin.shapes import Size
from muntin.untrusted import parse_xml

_LIST = re.compile(r"(?P<root>.*/)?imagesets/main/(?P<set>train|val|trainval|test)\.txt")
_ROOT = re.compile(rb"<(\w+:)?annotation[\s>]")
_EDGES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(kw_only=True, slots=True)
class _File:
    path: str
    image: str
    size: Size
    objects: list[ElementTree.Element]

    def names(self) -> list[str]:
        return [clean_class_name(node.findtext("name") or "") for node in self.objects]


def _recognise(source: Source) -> list[str] | None:
    """Every XML, if the first begins as VOC does."""
    found = [] if source.is_file else source.tree.with_suffix(".xml")
    known = found and _ROOT.search(read_bytes(source.tree.source, found[0])[:2000])
    return found if known else None


def _read(source: Source, xmls: list[str], request: ObjectRequest) -> dict[str, Listing]:
    tree, findings = source.tree, request.findings
    parts = _find_parts(tree, xmls, findings)
    stems = by_stem(tree.images)
    read = {
        part: [file for path in paths if (file := _read_file(tree, path, stems, findings))]
        for part, paths in parts.items()
    }
    every = [file for files in read.values() for file in files]
    if not every:
        message = (
            f"Every XML must have its image beside it or in JPEGImages or images, got none for "
            f"{len(xmls)} files in {tree.source!r}, the first is {xmls[0]!r}. Give the folder that "
            f"holds both."
        )
        raise DataError(message)
    bare = [path for stem in stems.keys() - by_stem(xmls) for path in stems[stem]]
    findings.note_others(sorted(bare), {file.image for file in every}, "an XML")
    boxes = [box for file in every for node in file.objects if (box := _read_box(node)[0])]
    require_corners(np.array(boxes, np.float64).reshape(-1, 4), where=repr(tree.source))
    used = sorted({name for file in every for name in file.names()} - {""})
    names, ids = number_classes(used, used, request.class_names, repr(tree.source))
    listings = {}
    for part, files in read.items():
        entries = [
            make_entry(file.image, file.size, _annotations(file, ids), request, file=file.path)
            for file in files
        ]
        if entries:
            listings[part] = make_listing(tree.source, entries, names)
    return listings


def _find_parts(
    tree: Tree, xmls: Sequence[str], findings: AnnotationReport
) -> dict[str, list[str]]:
    """The XMLs of each set, by lists or else by folders."""
    lists = [(found, name) for name in tree.files if (found := _LIST.fullmatch(fold(name)))]
    if not lists:
        parts, loose = sort_into_parts(xmls, str)
        if loose:
            what = plural(len(loose), "XML file")
            findings.notes.append(f"{what} in no train, val or test folder left out")
        return parts
    stems = by_stem(xmls)
    sets: dict[str, dict[str, None]] = defaultdict(dict)
    for found, name in lists:
        root = found["root"] or ""
        for line in read_text(tree.source, name).splitlines():
            if not line.strip():
                continue
            known = stems.get(_stem(line), stems.get(_stem(line.split()[0]), []))
            listed = next((path for path in known if fold(path).startswith(root)), None)
            if listed:
                sets[found["set"]][listed] = None
            elif found["set"] != "trainval" or "train" not in sets:
                findings.warn(name, f"{line.strip()!r} has no XML, left out")
    if "train" not in sets and "trainval" in sets:
        rest = sets.get("val", {})
        sets["train"] = {path: None for path in sets["trainval"] if path not in rest}
    parts = {part: list(sets[part]) for part in PARTS if sets.get(part)}
    if unlisted := set(xmls) - {path for paths in parts.values() for path in paths}:
        what = plural(len(unlisted), "XML file")
        findings.notes.append(f"{what} in no list of ImageSets/Main left out")
    return parts


def _stem(path: str) -> str:
    name = fold(clean_name(path)).rpartition("/")[2]
    head, dot, suffix = name.rpartition(".")
    # A list may hold "a.jpg" as well as "a", and a name may hold further points.
    return head if dot and suffix in ("xml", "jpg", "jpeg", "png", "bmp", "tif", "tiff") else name


def _find_image(tree: Tree, stems: Mapping[str, list[str]], xml: str, filename: str) -> str | None:
    """The image of the same name as an XML, else of the name that the XML gives."""
    *home, own = fold(xml).split("/")
    wanted = fold(clean_name(filename)).rpartition("/")[2]
    found = stems.get(own.removesuffix(".xml")) or stems.get(_stem(wanted), [])

    def rank(path: str) -> tuple[int, bool, bool, int]:
        *folders, name = fold(path).split("/")
        # Masks may have the same name but for the suffix, and lie nearer.
        in_images = bool(folders) and folders[-1].endswith("images")
        kind = min(rank_of_images(path.rpartition("/")[0]), 0)
        return kind, name == wanted, in_images, _kinship(home, folders)

    return take_best(xml, [(rank(path), path) for path in found], tree.source)


def _kinship(first: Sequence[str], second: Sequence[str]) -> int:
    """How many names two folders share, from the top and, below what differs, from the end."""
    top = 0
    while top < min(len(first), len(second)) and first[top] == second[top]:
        top += 1
    first, second = first[top:], second[top:]
    same = sum(a == b for a, b in zip(reversed(first), reversed(second), strict=False))
    return 10 * (top + same) - len(second)


def _read_file(
    tree: Tree, path: str, stems: Mapping[str, list[str]], findings: AnnotationReport
) -> _File | None:
    data = read_bytes(tree.source, path)
    try:
        root = parse_xml(data)
    except ValueError as error:
        findings.warn(path, f"not an XML that is whole, left out with its image: {error}")
        return None
    for node in root.iter():  # names as if there were no namespace
        node.tag = str(node.tag).rpartition("}")[2]
    filename = (root.findtext("filename") or "").strip()
    image = _find_image(tree, stems, path, filename)
    if image is None:
        findings.warn(path, f"its image {filename!r} is not there, left out")
        return None
    height, width = (_number(root.findtext(f"size/{side}")) for side in ("height", "width"))
    size = (int(height), int(width)) if min(height, width) >= 1 else None
    why = "it lacks the size of its image, and "
    size = size or findings.size_of(tree.source, image, file=path, why=why)
    if size is None:
        return None
    return _File(path=path, image=image, size=size, objects=root.findall("object"))


def _number(text: str | None) -> float:
    try:
        value = float(text or 0)
    except ValueError:
        return 0.0
    return value if value < float("inf") else 0.0


def _read_box(node: ElementTree.Element) -> tuple[Edges | None, str]:
    """The edges of an object, none where one is missing, and what came instead."""
    if node.find("bndbox") is None:
        return None, "no bndbox"
    edges: list[float] = []
    faults: list[str] = []
    for name in _EDGES:
        text = node.findtext(f"bndbox/{name}")
        try:
            edges.append(float(text))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            faults.append(f"no {name}" if text is None else f"{name} is {text.strip()!r}")
    if faults:
        return None, ", ".join(faults)
    left, top, right, bottom = edges
    return (left, top, right, bottom), ""


def _annotations(file: _File, ids: Mapping[str, int]) -> list[Annotation]:
    rows = []
    for number, (node, name) in enumerate(zip(file.objects, file.names(), strict=True), 1):
        where = f"object {number} ({name or 'no name'})"
        box, fault = _read_box(node)
        rows.append(
            Annotation(
                where=where,
                class_id=ids.get(name, -1),
                box=box or NOWHERE,
                crowd=(node.findtext("difficult") or "").strip() in ("1", "true", "True"),
                fault=(NO_BOX, fault) if fault else None if name else ("without a class name", ""),
            )
        )
    return rows


VOC: Reader[ObjectRequest, dict[str, Listing]] = Reader(
    name="VOC",
    recognise=_recognise,
    read=_read,
    looks_for="Pascal VOC (Annotations/*.xml)",
    reject=count_others(".xml", "none of them VOC"),
)
