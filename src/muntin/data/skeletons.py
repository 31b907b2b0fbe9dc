# SPDX-License-Identifier: Apache-2.0
"""Edges, flip pairs and sigmas of the keypoints of a data set.

A ``skeleton.json`` beside the data may define any of them: ``{"edges": [["nose", "tail"]],
"flip_pairs": [["left ear", "right ear"]], "mirrored": true, "sigmas": {"nose": 0.03}}``. If it has
"keypoints", all names in order, they must be those of the data. Edges are also read from the
config.yaml of a DeepLabCut project. Whatever is not defined is guessed from the names, and a note
reports the guess.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from muntin.data.trees import Tree, read_json, read_text
from muntin.errors import DataError, shorten, unknown_name
from muntin.ops.keypoints import DEFAULT_SIGMA
from muntin.samples import Skeleton
from muntin.untrusted import parse_yaml

FILE = "skeleton.json"
_FORMER_KEYS = {"links": "edges", "pairs": "flip_pairs"}

_SIDES = {
    "left": ("right",), "right": ("left",), "l": ("r",), "r": ("l",), "lh": ("rh",), "rh": ("lh",),
    "lf": ("rf",), "rf": ("lf",), "gauche": ("droite", "droit"), "droite": ("gauche",),
    "droit": ("gauche",), "links": ("rechts",), "rechts": ("links",), "linke": ("rechte",),
    "rechte": ("linke",), "izquierda": ("derecha",), "derecha": ("izquierda",),
    "izquierdo": ("derecho",), "derecho": ("izquierdo",), "sinistra": ("destra",),
    "destra": ("sinistra",), "sinistro": ("destro",), "destro": ("sinistro",),
    "esquerda": ("direita",), "direita": ("esquerda",), "\u5de6": ("\u53f3",),
    "\u53f3": ("\u5de6",),
}  # fmt: skip
_INSIDE = re.compile("left|right|\u5de6|\u53f3")  # also written together: earleft
_LETTERS = {"l": "r", "r": "l"}
_NO_SIDES = re.compile("bright|upright|leftover")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^A-Za-z]+")

COCO_PERSON = Skeleton(
    names=(
        "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder",
        "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip",
        "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
    ),
    edges=(
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
        (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
    flip_pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    mirrored=True,
    sigmas=(
        0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107,
        0.087, 0.087, 0.089, 0.089,
    ),
)  # fmt: skip
"""The 17 keypoints of COCO; tolerances as its own evaluation has them."""


def build_skeleton(raw: Skeleton, tree: Tree, notes: list[str]) -> Skeleton:
    """Gather what is known of keypoints; `notes` says what was chosen, and why.

    `raw` is what the annotations say, names at least; a skeleton.json may lie in `tree`.
    """
    names, edges = raw.names, raw.edges
    given = _read_file(tree, names)
    known = COCO_PERSON if names == COCO_PERSON.names else None
    pairs, lonely = (raw.flip_pairs, []) if raw.mirrored else _guess_pairs(names)
    origin = "(the annotations)" if raw.mirrored else "(by their names)"
    if "flip_pairs" in given:
        pairs, lonely = _pairs_from(given["flip_pairs"], names), []
        _refuse_twice(pairs, names)
        origin = f"({FILE})"
    mirrored = given.get("mirrored", raw.mirrored or (bool(pairs) and not lonely))
    if mirrored:
        listed = shorten(f"{names[left]}/{names[right]}" for left, right in pairs)
        notes.append(f"images are flipped, with the flip pairs {listed or 'none'} {origin}")
    elif lonely:
        notes.append(
            f"keypoints without a partner on the other side: {shorten(lonely)}; images are not "
            f'flipped ("flip_pairs" in a {FILE} names partners)'
        )
    elif not pairs and "mirrored" not in given:
        notes.append(
            f"no keypoint is named after a side: images are not flipped (a {FILE} with "
            f'"mirrored": true or "flip_pairs" changes that)'
        )
    chosen, origin = tuple(edges), "the annotations"
    if "edges" in given:
        chosen, origin = _pairs_from(given["edges"], names), FILE
    elif not chosen:
        chosen, origin = _edges_of_project(tree, names, notes), "config.yaml"
        if not chosen and known is not None:
            chosen, origin = known.edges, "COCO"
    notes.append(f"edges: {len(chosen)} from {origin}" if chosen else f"no edges ({FILE})")
    sigmas, origin = _choose_sigmas(given, known, names)
    notes.append(origin)
    return Skeleton(
        names=names, edges=chosen, flip_pairs=pairs, mirrored=bool(mirrored), sigmas=sigmas
    )


def _choose_sigmas(
    given: Mapping[str, Any], known: Skeleton | None, names: tuple[str, ...]
) -> tuple[tuple[float, ...], str]:
    if "sigmas" in given:
        chosen = _sigmas_from(given["sigmas"], names)
        rest = [name for name in names if name not in chosen]
        some = f", {DEFAULT_SIGMA:g} for {shorten(rest)}" if rest else ""
        values = tuple(chosen.get(name, DEFAULT_SIGMA) for name in names)
        return values, f"sigmas for OKS from {FILE}{some}"
    if known is not None:
        return known.sigmas, "sigmas for OKS as COCO has them"
    what = f"OKS takes {DEFAULT_SIGMA:g} for the sigma of every keypoint ({FILE})"
    return (DEFAULT_SIGMA,) * len(names), what


def _read_file(tree: Tree, names: tuple[str, ...]) -> dict[str, Any]:
    """The values of a skeleton.json, after comparing its keypoints with those of the data."""
    path = next((name for name in tree.files if name.rpartition("/")[2].lower() == FILE), None)
    if path is None:
        return {}
    values = read_json(tree.source, path)
    keys = ("edges", "flip_pairs", "mirrored", "sigmas", "keypoints")
    if isinstance(values, dict):
        for former, key in _FORMER_KEYS.items():
            if former in values and key in values:
                message = (
                    f"{path!r} in {tree.source!r} must have {key!r} or its former name {former!r}, "
                    f"got both. Keep {key!r}."
                )
                raise DataError(message)
        values = {_FORMER_KEYS.get(key, key): value for key, value in values.items()}
    if not isinstance(values, dict) or (unknown := [key for key in values if key not in keys]):
        got = f"also {shorten(unknown)}" if isinstance(values, dict) else type(values).__name__
        message = f"{path!r} must be an object with {', '.join(keys)} only, got {got}."
        raise DataError(message)
    got = values.get("keypoints", list(names))
    if got != list(names):
        shown = shorten(map(str, got), limit=20) if isinstance(got, list) else repr(got)
        message = (
            f"the keypoints of {path!r} must be those of the data, {shorten(names, limit=20)}, got "
            f"{shown}."
        )
        raise DataError(message)
    return values


def _edges_of_project(
    tree: Tree, names: tuple[str, ...], notes: list[str]
) -> tuple[tuple[int, int], ...]:
    """Lines that a project of DeepLabCut draws; those that join other things are named."""
    path = tree.find("config.yaml")
    if path is None:
        return ()
    try:
        values = parse_yaml(read_text(tree.source, path))
    except ValueError:
        return ()
    rows = values.get("skeleton") if isinstance(values, dict) else None
    rows = rows if isinstance(rows, list) else []
    if odd := [row for row in rows if not _joins(row, names)]:
        notes.append(f"edges left out of config.yaml: {shorten(odd)}")
    return tuple((names.index(r[0]), names.index(r[1])) for r in rows if _joins(r, names))


def _joins(row: object, names: tuple[str, ...]) -> bool:
    if not isinstance(row, list) or len(row) != 2 or row[0] == row[1]:
        return False
    return all(name in names for name in row)


def _number(name: object, names: tuple[str, ...]) -> int:
    if isinstance(name, int) and not isinstance(name, bool) and 0 <= name < len(names):
        return name
    if name in names:
        return names.index(str(name))
    raise DataError(unknown_name(f"keypoint in {FILE}", str(name), names))


def _pairs_from(rows: object, names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    if not isinstance(rows, list) or any(not isinstance(r, list) or len(r) != 2 for r in rows):
        message = (
            f"edges and flip_pairs in {FILE} must be lists of two keypoints each, got {rows!r}."
        )
        raise DataError(message)
    found = tuple((_number(row[0], names), _number(row[1], names)) for row in rows)
    for first, second in found:
        if first == second:
            message = (
                f"edges and flip_pairs in {FILE} must be of two different keypoints, got "
                f"{names[first]} with itself. Take that line out."
            )
            raise DataError(message)
    return found


def _refuse_twice(pairs: tuple[tuple[int, int], ...], names: tuple[str, ...]) -> None:
    """Refuse a keypoint that would have two partners."""
    counts = Counter(number for pair in {tuple(sorted(pair)) for pair in pairs} for number in pair)
    twice = [number for number, count in counts.items() if count > 1]
    if twice:
        listed = [f"{names[a]}/{names[b]}" for a, b in pairs if twice[0] in (a, b)]
        message = (
            f"a keypoint must be in one of flip_pairs in {FILE} at most, got {names[twice[0]]} in "
            f"{shorten(listed)}. Keep the pair that is swapped in a mirrored image."
        )
        raise DataError(message)


def _sigmas_from(values: object, names: tuple[str, ...]) -> dict[str, float]:
    if isinstance(values, list) and len(values) == len(names):
        values = dict(zip(names, values, strict=True))
    if not isinstance(values, Mapping):
        message = (
            f"sigmas in {FILE} must be {len(names)} numbers, or numbers by keypoint, got "
            f"{values!r}."
        )
        raise DataError(message)
    chosen = {}
    for name, value in values.items():
        if not isinstance(value, int | float) or not 0 < value < 10:
            message = f"a sigma in {FILE} must be a number above 0, got {value!r} for {name!r}."
            raise DataError(message)
        chosen[names[_number(name, names)]] = float(value)
    return chosen


def _guess_pairs(names: tuple[str, ...]) -> tuple[tuple[tuple[int, int], ...], list[str]]:
    """Pairs of names that differ in the side alone, and names of a side without a partner."""
    numbers = {name.lower(): number for number, name in enumerate(names)}
    partners: dict[int, int] = {}
    for swapped in (_swap_words, _swap_inside, _swap_letters):  # the surest first
        found = {}
        for number, name in enumerate(names):
            others = [numbers[other] for other in swapped(name) if other in numbers]
            # Any word may begin with r: such a partner must be the only one.
            if number not in partners and (len(others) == 1 or (others and swapped is _swap_words)):
                found[number] = others[0]
        partners |= {one: other for one, other in found.items() if found.get(other) == one}
    lonely = [
        name
        for number, name in enumerate(names)
        if number not in partners
        and (_swap_words(name) or _swap_inside(_NO_SIDES.sub("", name.lower())))
    ]
    return tuple((one, two) for one, two in sorted(partners.items()) if one < two), lonely


def _swap_words(name: str) -> list[str]:
    """The name on the other side, in small letters: all words swapped that are a side, or one."""
    words = [word.lower() for word in _WORDS.findall(name)]
    places = [place for place, word in enumerate(words) if word in _SIDES]
    # The right corner of a left eye becomes the left corner of a right eye.
    every = ["".join(_SIDES.get(word, (word,))[0] for word in words)] if len(places) > 1 else []
    return every + [
        "".join([*words[:place], other, *words[place + 1 :]])
        for place in places
        for other in _SIDES[words[place]]
    ]


def _swap_inside(name: str) -> list[str]:
    name = name.lower()
    return [
        name[: side.start()] + _SIDES[side.group()][0] + name[side.end() :]
        for side in _INSIDE.finditer(name)
    ]


def _swap_letters(name: str) -> list[str]:
    """With l and r exchanged at the beginning or the end of a word: lear, Rhip, FL."""
    ends = {end for word in _WORDS.finditer(name) for end in (word.start(), word.end() - 1)}
    name = name.lower()
    return [
        name[:place] + _LETTERS[name[place]] + name[place + 1 :]
        for place in sorted(ends)
        if name[place] in _LETTERS
    ]
