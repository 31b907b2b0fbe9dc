# SPDX-License-Identifier: Apache-2.0
"""Pair images and masks by the names of folders and files.

An image and its mask have the same name except for words that mark which of the two a file is: in a
folder (`images` and `masks`, `leftImg8bit` and `gtFine`), or at the end of a name (`7_mask.png`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from muntin.data.trees import Tree, fold, sort_into_parts
from muntin.samples import Classes

# Words of folders, in lower case, without anything but letters.
_IMAGE_FOLDERS = frozenset((
    "image", "images", "img", "imgs", "imgdir", "picture", "pictures", "photo", "photos", "rgb",
    "input", "inputs", "jpegimages", "leftimgbit", "original", "originals", "jpg", "jpgs",
))  # fmt: skip
_MASK_FOLDERS = frozenset((
    "mask", "masks", "label", "labels", "labelmap", "labelmaps", "annotation", "annotations",
    "anndir", "ann", "gt", "gts", "gtfine", "gtcoarse", "groundtruth", "groundtruths",
    "segmentation", "segmentations", "segmentationclass", "seg", "segs", "segmask", "segmasks",
    "semantic", "target", "targets", "png", "pngs",
))  # fmt: skip
_MASK_END = re.compile(
    r"[_\-. ](?:gtfine_|gtcoarse_)?(?P<kind>masks?|labels?|labelids|labeltrainids|seg|"
    r"segmentation|gt|groundtruth|annotation|ann|l|m)$"
)
_IMAGE_END = re.compile(r"[_\-. ](?:leftimg8bit|image|img|rgb|sat)$")
# Beside the class numbers, Cityscapes has the same as colours, and numbers of objects.
_NO_CLASSES = re.compile(r"_(?:gtfine|gtcoarse)_(?:color|instanceids|polygons)$")
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


def pair_masks(tree: Tree) -> Pairs:
    """Pair every image with its mask; see `sort_into_parts` for the sets."""
    images: dict[tuple[str, str], str] = {}
    masks: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in tree.images:
        key, is_mask = _key_of(path)
        if is_mask is None:
            continue
        if is_mask:
            masks[key].append(path)
        else:
            images.setdefault(key, path)
    pairs = [
        Pair(image, min(masks[key], key=_rank), key[0])
        for key, image in sorted(images.items(), key=lambda row: row[1])
        if key in masks
    ]
    parts, _ = sort_into_parts(pairs, lambda pair: pair.image)
    return Pairs(
        parts={part: tuple(found) for part, found in parts.items() if found},
        without_mask=tuple(sorted(path for key, path in images.items() if key not in masks)),
        without_image=tuple(
            sorted(path for key, paths in masks.items() if key not in images for path in paths)
        ),
    )


def _key_of(path: str) -> tuple[tuple[str, str], bool | None]:
    """What image and mask have in common, and which of both it is; None for neither."""
    *folders, name = fold(path).split("/")
    stem = name.rpartition(".")[0]
    if _NO_CLASSES.search(stem):
        return ("", stem), None
    kinds = [_kind_of(folder) for folder in folders]
    ended = _MASK_END.search(stem)
    # The innermost folder with a known name counts; then the end of the name.
    by_folder = next((kind for kind, _ in reversed(kinds) if kind is not None), None)
    is_mask = bool(ended) if by_folder is None else by_folder
    if is_mask and ended:
        stem = stem[: ended.start()]
    elif not is_mask:
        stem = _IMAGE_END.sub("", stem)
    rest = [rest for _, rest in kinds if rest]
    return ("/".join(rest), stem), is_mask


def _kind_of(folder: str) -> tuple[bool | None, str]:
    """Whether a folder is one of masks, None if its name is unknown; and the rest of the name."""
    plain = re.sub(r"[^a-z]", "", folder)
    words = [word for word in re.split(r"[^a-z0-9]+", folder) if word]
    for names, kind in ((_MASK_FOLDERS, True), (_IMAGE_FOLDERS, False)):
        if plain in names:
            return kind, ""
        for place in (-1, 0):
            if len(words) > 1 and words[place] in names:
                return kind, "_".join(words[:-1] if place else words[1:])
    return None, folder


def _rank(path: str) -> tuple[int, bool, str]:
    """Of several masks the first is the one with class numbers, losslessly stored."""
    stem = fold(path).rpartition(".")[0]
    better = next((i for i, word in enumerate(_BETTER) if stem.endswith(word)), len(_BETTER))
    return better, not fold(path).endswith((".png", ".tif", ".tiff")), path
