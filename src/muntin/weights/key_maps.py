# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""One engine that renames tensors between a dialect and ours, in both directions.

A key map is data: rows of (their names, our name, transform). A name is a template in which
``{i}`` stands for a number, ``{2i+1}`` for a number computed from it, and ``{p}`` for ``weight``
or ``bias``. Our names are those of a bare backbone, and ``head.fc`` for the classifier. Every row
works both ways; of several rows for one of our names, the first is the one that is written.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from muntin.errors import WeightError

__all__ = [
    "AS_IS",
    "STACKED",
    "HeadMap",
    "KeyMap",
    "KeyMaps",
    "Reading",
    "Row",
    "Transform",
    "flat_index",
    "square_index",
]


@dataclass(frozen=True, slots=True)
class Transform:
    """How several tensors of theirs become one of ours, and back; each undoes the other exactly."""

    join: Callable[[Sequence[Tensor]], Tensor]
    split: Callable[[Tensor, int], Sequence[Tensor]]


AS_IS = Transform(join=lambda parts: parts[0], split=lambda whole, _: (whole,))
STACKED = Transform(
    join=lambda parts: torch.cat(list(parts)), split=lambda whole, n: whole.chunk(n)
)
"""Their parts, query, key and value, are ours one below the other."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a key map.

    Attributes:
        theirs: Their names; several when one tensor of ours is several of theirs.
        ours: Our name; empty when we have no use for theirs.
        transform: From their tensors to ours and back.
        derive: Their tensor is no weight but follows from ours: it is ignored when read, and
            made by this function when written.
    """

    theirs: tuple[str, ...]
    ours: str
    transform: Transform = AS_IS
    derive: Callable[[Tensor], Tensor] | None = None


@dataclass(slots=True)
class Reading:
    """What came of reading a state dict through a key map.

    Attributes:
        tensors: Our name to its tensor.
        pairs: (their name, our name) of every tensor taken.
        ignored: Their names of what is derived or of no use.
        unclaimed: Their names that no row knows.
        missing: Their names that belong to a group of which another part is there.
        twice: Our names that two of theirs claim.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    pairs: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    unclaimed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class KeyMap:
    """The names of one family in one dialect.

    Attributes:
        rows: The lines, first match wins.
        prefix: What stands before the backbone's names in a file that also has a classifier, and
            is absent from a file that has none.
        wrappers: Other beginnings that are passed over when reading.
        unused: Pattern of their names that no row needs: heads and necks of other tasks.
    """

    rows: tuple[Row, ...]
    prefix: str = ""
    wrappers: tuple[str, ...] = ()
    unused: str = ""

    def read(self, state: Mapping[str, Tensor]) -> Reading:
        """Rename a state dict of theirs to ours; nothing is copied unless parts are joined."""
        reading = Reading()
        groups: dict[tuple[str, int], dict[int, str]] = {}
        for key in state:
            found = self._find_theirs(key)
            if found is None:
                reading.unclaimed.append(key)
            elif found[0] == "":
                reading.ignored.append(key)
            else:
                ours, row, part = found
                groups.setdefault((ours, row), {})[part] = key
        for (ours, row), parts in groups.items():
            names = self.rows[row].theirs
            if len(parts) < len(names):
                there = next(iter(parts.values()))
                reading.missing += [
                    name for name in self._siblings(there, row) if name not in parts.values()
                ]
                continue
            if ours in reading.tensors:
                reading.twice.append(ours)
            tensors = [state[parts[part]] for part in range(len(names))]
            reading.tensors[ours] = self.rows[row].transform.join(tensors)
            reading.pairs += [(parts[part], ours) for part in range(len(names))]
        return reading

    def write(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Rename ours to theirs.

        Returns:
            Their state dict, and our names that the dialect has no place for.
        """
        has_head = any(name.startswith("head.") for name in tensors)
        written: dict[str, Tensor] = {}
        homeless = []
        for name, tensor in tensors.items():
            rows = [(row, match(row.ours, name)) for row in self.rows if row.ours]
            fits = [(row, fields) for row, fields in rows if fields is not None]
            weights = [(row, fields) for row, fields in fits if row.derive is None]
            if not weights:
                homeless.append(name)
                continue
            prefix = self.prefix if has_head and not name.startswith("head.") else ""
            row, fields = weights[0]
            parts = row.transform.split(tensor, len(row.theirs))
            for theirs, part in zip(row.theirs, parts, strict=True):
                written[prefix + fill(theirs, fields)] = part
            for row, fields in fits:
                if row.derive is not None:
                    written[prefix + fill(row.theirs[0], fields)] = row.derive(tensor)
        return written, homeless

    def _find_theirs(self, key: str) -> tuple[str, int, int] | None:
        """(our name or "", row, which part of it) of one of their names."""
        bare = self._bare(key)
        for index, row in enumerate(self.rows):
            for part, theirs in enumerate(row.theirs):
                fields = match(theirs, bare)
                if fields is not None:
                    used = row.ours and row.derive is None
                    return (fill(row.ours, fields) if used else "", index, part)
        return ("", -1, 0) if self.unused and re.search(self.unused, key) else None

    def _bare(self, key: str) -> str:
        for prefix in (self.prefix, *self.wrappers):
            if prefix and key.startswith(prefix):
                return key.removeprefix(prefix)
        return key

    def _siblings(self, key: str, row: int) -> list[str]:
        bare = self._bare(key)
        prefix = key[: len(key) - len(bare)]
        fields = next(
            f for theirs in self.rows[row].theirs if (f := match(theirs, bare)) is not None
        )
        return [prefix + fill(theirs, fields) for theirs in self.rows[row].theirs]


@dataclass(frozen=True, slots=True)
class HeadMap(KeyMap):
    """Names of a backbone with neck and heads; the rows are those of neck and heads.

    Attributes:
        body: Names of the backbone.
        before: As in `DetectorNames`.
        zone: The same.
        refusal: Why weights of this ecosystem cannot be read by the detector's heads, if so.
    """

    body: KeyMap = field(default_factory=lambda: KeyMap(()))
    before: str = ""
    zone: str = ""
    refusal: str = ""

    def read(self, state: Mapping[str, Tensor]) -> Reading:
        """Rename theirs to ours; a file without any of our heads is read as that of a backbone."""
        outside = {key: tensor for key, tensor in state.items() if re.search(self.zone, key)}
        heads = KeyMap.read(self, outside)
        if not heads.pairs and not heads.missing:
            return self.body.read(state)
        if self.refusal:
            raise WeightError(self.refusal)
        body = self.body.read({key: state[key] for key in state if key not in outside})
        return Reading(
            tensors=body.tensors | heads.tensors,
            pairs=body.pairs + heads.pairs,
            ignored=body.ignored + heads.ignored,
            unclaimed=body.unclaimed + heads.unclaimed,
            missing=body.missing + heads.missing,
            twice=body.twice + heads.twice,
        )

    def write(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Rename ours to theirs."""
        if self.refusal:
            raise WeightError(self.refusal)
        heads = {name: tensor for name, tensor in tensors.items() if name.startswith("head.")}
        bare = {name: tensor for name, tensor in tensors.items() if name not in heads}
        body, homeless = self.body.write(bare)
        written, more = KeyMap.write(self, heads)
        return {self.before + key: body[key] for key in body} | written, homeless + more


KeyMaps = Mapping[type, KeyMap | Callable[[Any], KeyMap]]
"""By the config class of a family: its names, or a function that gives them for a config."""


_FIELD = re.compile(r"\{(\d*)([a-z])([+-]\d+)?\}")


@functools.cache
def _compile(template: str) -> tuple[re.Pattern[str], tuple[tuple[str, int, int], ...]]:
    """The pattern of a template, and for each group its letter, factor and offset."""
    pattern, place, groups = "", 0, []
    for found in _FIELD.finditer(template):
        factor, letter, offset = found.groups()
        group = "(weight|bias)" if letter == "p" else r"(\d+)"
        pattern += re.escape(template[place : found.start()]) + group
        groups.append((letter, int(factor or 1), int(offset or 0)))
        place = found.end()
    return re.compile(pattern + re.escape(template[place:])), tuple(groups)


def match(template: str, key: str) -> dict[str, str] | None:
    """Values of the template's letters when the key fits it, else None.

    Example:
        >>> match("features.{2i+1}.{j}.norm1.{p}", "features.3.0.norm1.bias")
        {'i': '1', 'j': '0', 'p': 'bias'}
    """
    pattern, groups = _compile(template)
    found = pattern.fullmatch(key)
    if found is None:
        return None
    fields = {}
    for (letter, factor, offset), text in zip(groups, found.groups(), strict=True):
        if letter == "p":
            fields[letter] = text
            continue
        value, rest = divmod(int(text) - offset, factor)
        if rest or value < 0:
            return None
        fields[letter] = str(value)
    return fields


def fill(template: str, fields: Mapping[str, str]) -> str:
    """The key that a template gives for these values.

    Example:
        >>> fill("features.{2i+2}.norm.{p}", {"i": "1", "p": "bias"})
        'features.4.norm.bias'
    """

    def value(found: re.Match[str]) -> str:
        factor, letter, offset = found.groups()
        text = fields[letter]
        return text if letter == "p" else str(int(factor or 1) * int(text) + int(offset or 0))

    return _FIELD.sub(value, template)


def first_key(keys: Iterable[str], pattern: str) -> str:
    """The first key in which the pattern is found, or an empty string."""
    search = re.compile(pattern).search
    return next((key for key in keys if search(key)), "")


def square_index(table: Tensor) -> Tensor:
    """Row of a relative-position table for each pair of tokens of its (square) window, N x N."""
    span = round(table.shape[0] ** 0.5)
    side = (span + 1) // 2
    place = torch.arange(side, device=table.device)
    apart = place[:, None] - place[None, :] + side - 1  # M, M
    index = apart[:, None, :, None] * span + apart[None, :, None, :]  # My, Mx, My', Mx'
    return index.reshape(side * side, side * side)


def flat_index(table: Tensor) -> Tensor:
    """The same as one long row."""
    return square_index(table).flatten()
