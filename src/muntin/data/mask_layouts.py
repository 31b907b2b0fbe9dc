# SPDX-License-Identifier: Apache-2.0
"""Pair images and masks by the names of folders and files.

An image and its mask have the same name except for words that mark which of the two a file is: in a
folder (`images` and `masks`, `leftImg8bit` and `gtFine`, `train` and `trainannot`, nnU-Net's
`imagesTr` and `labelsTr`), or at the end of a name (`7_mask.png`). Where no two files have the same
folders but for these words, the names of files alone decide; then lists of two names a line.

Sets are those that lists name (`ImageSets/Segmentation/train.txt`, `train.txt`), else folders.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeVar

from muntin.data.image_formats import is_image
from muntin.data.trees import (
    PARTS,
    Tree,
    clean_name,
    fold,
    part_in,
    part_of,
    read_text,
    sort_into_parts,
)
from muntin.samples import Classes

Key = tuple[str, str]
"""What an image and its masks have in common: folders, and the stem of the name."""

PathsT = TypeVar("PathsT", str, list[str])

# Words of folders, in lower case, without anything but letters.
_IMAGE_FOLDERS = frozenset((
    "image", "images", "img", "imgs", "imgdir", "picture", "pictures", "photo", "photos", "rgb",
    "input", "inputs", "jpegimages", "pngimages", "leftimgbit", "original", "originals",
    "jpg", "jpgs",
))  # fmt: skip
_MASK_FOLDERS = frozenset((
    "mask", "masks", "label", "labels", "labelmap", "labelmaps", "annotation", "annotations",
    "anndir", "ann", "annot", "annots", "gt", "gts", "gtfine", "gtcoarse", "groundtruth",
    "groundtruths", "segmentation", "segmentations", "segmentationclass", "segmentationclasspng",
    "seg", "segs", "segmask", "segmasks", "semantic", "target", "targets", "png", "pngs",
))  # fmt: skip
_MASK_END = re.compile(
    r"[_\-. ](?:gtfine_|gtcoarse_)?(?P<kind>masks?|labels?|labelids|labeltrainids|seg|"
    r"segmentation|gt|groundtruth|annotation|ann|l|m)$"
)
# Such short ones are so only where the folder says the same.
_SHORT_END = re.compile(r"[_\-. ]p$")
_IMAGE_END = re.compile(r"[_\-. ](?:leftimg8bit|image|img|rgb|sat)$")
# Beside the class numbers, Cityscapes has the same as colours, and numbers of objects.
_NO_CLASSES = re.compile(r"_(?:gtfine|gtcoarse)_(?:color|instanceids|polygons)$")
# What other tools draw beside the masks, and numbers of objects.
_NO_MASKS = re.compile(r"visuali[sz]ation|segmentationobject|^overlays?$|^vi[sz]$")
_DRAWN = re.compile(r"^predict|^preds?$|^outputs?$|^results?$|^heatmaps?$")
_PART_FIRST = re.compile(r"(?P<part>train(?:ing)?|val(?:id|idation)?|test)(?P<word>.+)")
_NNUNET = {
    "imagestr": (False, "train"), "labelstr": (True, "train"),
    "imagests": (False, "test"), "labelsts": (True, "test"),
}  # fmt: skip
_CHANNEL = re.compile(r"_(?P<number>\d{4})$")
_LISTS = re.compile(r"(?:.*/)?(?:imagesets/segmentation/[^/]+|[^/]*(?:train|val|test)[^/]*)\.txt")
_BETTER = ("labeltrainids", "labelids")


class Pair(NamedTuple):
    """An image, its mask, and what they share of their folders, for telling groups apart."""

    image: str
    mask: str
    folder: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """The pairs of each set, in the order of the images' names, and images and masks left alone."""

    parts: Mapping[str, tuple[Pair, ...]]
    without_mask: tuple[str, ...]
    without_image: tuple[str, ...]
    notes: tuple[str, ...] = ()
    num_channels: int = 0  # files of further channels, left out

    @property
    def every(self) -> list[Pair]:
        """The pairs of all sets."""
        return [pair for pairs in self.parts.values() for pair in pairs]


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskRequest:
    """What a reader of masks is asked for: `DataConfig` holds the same colors and ignored."""

    classes: Classes | None = None
    colors: Sequence[str] = ()
    ignored: Sequence[str] = ()


def find_keys(tree: Tree) -> tuple[dict[Key, str], dict[Key, list[str]], int]:
    """Give images and masks by what they have in common, and the number of channels left out."""
    images: dict[Key, str] = {}
    masks: dict[Key, list[str]] = defaultdict(list)
    channels = 0
    for path in tree.images:
        key, is_mask = _key_of(path)
        if is_mask:
            masks[key].append(path)
        elif is_mask is not None:
            channels += images.setdefault(key, path) != path and _channel_of(path) > 0
    return images, masks, channels


def pair_masks(tree: Tree) -> Pairs:
    """Pair every image with its mask, and sort the pairs into sets."""
    images, masks, channels = find_keys(tree)
    lists = _read_lists(tree)
    pairs = (
        _join(images, masks)
        or _join(_by_stem(images), _by_stem(masks))
        or _listed_pairs(tree, lists)
    )
    paired = {path for pair in pairs for path in (pair.image, pair.mask)}
    parts, listed, notes = _sort(pairs, lists)
    bare = [path for path in images.values() if path not in paired]
    alone = [paths for paths in masks.values() if not any(path in paired for path in paths)]
    return Pairs(
        parts={part: tuple(found) for part, found in parts.items() if found},
        without_mask=tuple(sorted(p for p in bare if not listed or _stem(p) in listed)),
        without_image=tuple(sorted(path for paths in alone for path in paths)),
        notes=tuple(notes),
        num_channels=channels,
    )


def _join(images: Mapping[Key, str], masks: Mapping[Key, list[str]]) -> list[Pair]:
    return [
        Pair(image, min(masks[key], key=_rank), key[0])
        for key, image in sorted(images.items(), key=lambda row: row[1])
        if key in masks
    ]


def _by_stem(files: Mapping[Key, PathsT]) -> dict[Key, PathsT]:
    """Give files by their set and stem alone, where these are unique."""
    counts = Counter((part_of(key[0].split("/")), key[1]) for key in files)
    named = {(part_of(key[0].split("/")), key[1]): paths for key, paths in files.items()}
    return {key: paths for key, paths in named.items() if counts[key] == 1}


def _sort(
    pairs: Sequence[Pair], lists: Mapping[str, Sequence[str]]
) -> tuple[Mapping[str, Sequence[Pair]], set[str], list[str]]:
    """Sort pairs into sets, by folders or else by lists; and give the stems that lists name."""
    # What files share of their folders has "train" for nnU-Net's Tr.
    parts, _ = sort_into_parts(pairs, lambda pair: f"{pair.folder}/{pair.image}")
    by_stem: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_stem[_stem(pair.image)].append(pair)
    sets: dict[str, dict[Pair, None]] = {part: {} for part in PARTS}
    for part, line in ((part, line) for part, lines in lists.items() for line in lines):
        found = by_stem.get(_stem(line)) or by_stem.get(_stem(line.split()[0]), [])
        if found:
            sets[part][max(found, key=lambda pair: _same_end(pair.image, line))] = None
    sets["train"] = {pair: None for pair in sets["train"] if pair not in sets["val"]}
    if len(parts) > 1 or not sets["train"]:
        return parts, set(), []
    left = len(pairs) - len({pair for found in sets.values() for pair in found})
    listed = {_stem(line) for lines in lists.values() for line in lines}
    notes = [f"{left} images with masks in no list left out"] * (left > 0)
    return {part: [*sets[part]] for part in PARTS}, listed, notes


def _read_lists(tree: Tree) -> dict[str, list[str]]:
    """Give the lines of the lists of each set; `trainval` counts where there is no `train`."""
    lists: dict[str, list[str]] = defaultdict(list)
    for path in tree.with_suffix(".txt"):
        stem = fold(path).rpartition("/")[2].removesuffix(".txt")
        part = part_in(stem)
        if part and _LISTS.fullmatch(fold(path)):
            lines = [line.strip() for line in read_text(tree.source, path).splitlines()]
            key = "trainval" if "trainval" in stem else part
            lists[key] += [line for line in lines if line]
    joined = lists.pop("trainval", [])
    return {"train": joined, **lists} if joined and "train" not in lists else dict(lists)


def _listed_pairs(tree: Tree, lists: Mapping[str, Sequence[str]]) -> list[Pair]:
    """Pair what a list names in one line."""

    def find(name: str) -> str:
        found = tree.by_name.get(fold(clean_name(name)).rpartition("/")[2], ())
        return max(found, default="", key=lambda path: _same_end(path, name))

    rows = (line.split() for lines in lists.values() for line in lines)
    found = [(find(row[0]), find(row[1])) for row in rows if len(row) == 2]
    return [Pair(image, mask, "") for image, mask in found if image and mask]


def _same_end(path: str, name: str) -> int:
    """How many folders and names two paths share from their end."""
    first, second = (reversed(fold(one).split("/")) for one in (path, clean_name(name)))
    pairs = list(zip(first, second, strict=False))[1:]
    return next((place for place, (a, b) in enumerate(pairs) if a != b), len(pairs))


def _stem(path: str) -> str:
    name = fold(clean_name(path)).rpartition("/")[2]
    return name.rpartition(".")[0] if is_image(name) else name


def _channel_of(path: str) -> int:
    folders, _, name = fold(path).rpartition("/")
    found = _CHANNEL.search(name.rpartition(".")[0])
    return int(found["number"]) if found and folders.rpartition("/")[2] in _NNUNET else 0


def _key_of(path: str) -> tuple[Key, bool | None]:
    """What image and mask have in common, and which of both it is; None for neither."""
    *folders, name = path.split("/")
    stem = fold(name).rpartition(".")[0]
    if _NO_CLASSES.search(stem):
        return ("", stem), None
    kinds = [kind_of_folder(folder) for folder in folders]
    ended = _MASK_END.search(stem)
    # The innermost folder with a known name counts; then the end of the name.
    by_folder = next((kind for kind, _ in reversed(kinds) if kind is not None), None)
    is_mask = bool(ended) if by_folder is None else by_folder
    ended = ended or _SHORT_END.search(stem)
    if folders and _NO_MASKS.search(re.sub(r"[^a-z]", "", fold(folders[-1]))):
        return ("", stem), None
    if is_mask and ended:
        stem = stem[: ended.start()]
    elif not is_mask:
        stem = _IMAGE_END.sub("", stem)
        if folders and fold(folders[-1]) in _NNUNET:
            stem = _CHANNEL.sub("", stem)
    rest = [rest for _, rest in kinds if rest]
    return ("/".join(rest), stem), is_mask


@lru_cache(maxsize=4096)
def kind_of_folder(name: str) -> tuple[bool | None, str]:
    """Whether a folder is one of masks, None if its name is unknown; and the rest of the name."""
    folder = fold(name)
    plain = re.sub(r"[^a-z]", "", folder)
    if plain in _NNUNET:
        return _NNUNET[plain]
    first = _PART_FIRST.fullmatch(plain)
    words = [word for word in re.split(r"[^a-z0-9]+", folder) if word]
    if len(words) == 1:  # PedMasks
        words = [fold(word) for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", name)]
    for names, kind in ((_MASK_FOLDERS, True), (_IMAGE_FOLDERS, False)):
        if plain in names:
            return kind, ""
        if first and first["word"] in names:
            return kind, first["part"]
    for names, kind in ((_MASK_FOLDERS, True), (_IMAGE_FOLDERS, False)):
        for place in (-1, 0):
            if len(words) > 1 and words[place] in names:
                return kind, "_".join(words[:-1] if place else words[1:])
    return None, folder


def rank_of_images(folder: str) -> int:
    """1 where the names of folders are those of images, -1 of masks or drawings, 0 of neither."""
    for name in reversed(folder.split("/")):
        plain = re.sub(r"[^a-z]", "", fold(name))
        kind = kind_of_folder(name)[0]
        if kind or _DRAWN.search(plain) or _NO_MASKS.search(plain):
            return -1
        if kind is not None:
            return 1
    return 0


def _rank(path: str) -> tuple[int, bool, str]:
    """Of several masks the first is the one with class numbers, losslessly stored."""
    stem = fold(path).rpartition(".")[0]
    better = next((i for i, word in enumerate(_BETTER) if stem.endswith(word)), len(_BETTER))
    return better, not fold(path).endswith((".png", ".tif", ".tiff")), path
