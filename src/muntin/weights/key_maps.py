# SPDX-License-Identifier: Apache-2.0
"""Key maps: rename the tensors of a state dict between a dialect and muntin, in both directions.

A key map is data: rows of (their names, our name, transform). A name is a template in which
``{i}`` matches a number, ``{2i+1}`` a number computed from it, ``{p}`` ``weight`` or ``bias``, and
``{n}`` any text. Our names are those of a bare backbone, with ``head.fc`` for the classifier. Every
row works both ways; if several rows map to one of our names, the first is used for writing.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from muntin.errors import WeightError


@dataclass(frozen=True, slots=True)
class Transform:
    """Join several of their tensors into one of ours, and split it again; exact inverses."""

    join: Callable[[Sequence[Tensor]], Tensor]
    split: Callable[[Tensor, int], Sequence[Tensor]]


AS_IS = Transform(join=lambda parts: parts[0], split=lambda whole, _: (whole,))
STACKED = Transform(
    join=lambda parts: torch.cat(list(parts)), split=lambda whole, n: whole.chunk(n)
)
"""Our tensor is their parts (query, key and value) concatenated along the first dimension."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a key map.

    `theirs` are the parts of one tensor of `ours`; an empty `ours` ignores them. `derive` computes
    their tensor, a buffer, from ours when writing; it is ignored when reading. A row with `beside`
    is written only for models that have this tensor of ours.
    """

    theirs: tuple[str, ...]
    ours: str
    transform: Transform = AS_IS
    derive: Callable[[Tensor], Tensor] | None = None
    beside: str = ""


def same_names(*names: str, theirs: str = "", ours: str = "") -> tuple[Row, ...]:
    """Rows of tensors that the dialect and muntin call by the same name, behind both prefixes."""
    return tuple(Row((theirs + name,), ours + name) for name in names)


_OUR_PARTS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


def block_rows(theirs: str, ours: str, parts: Sequence[str] = _OUR_PARTS) -> tuple[Row, ...]:
    """Rows of a transformer block, given both prefixes.

    `parts` are their names of first norm, query-key-value layer, output projection, second norm and
    the two layers of the MLP. A part is empty if it has rows of its own; three names, separated by
    spaces, if queries, keys and values are separate.
    """
    return tuple(
        Row(
            tuple(
                f"{theirs}{name}{{p}}" if name[-1] == "_" else f"{theirs}{name}.{{p}}"
                for name in part.split()
            ),
            f"{ours}{our_part}.{{p}}",
            STACKED if " " in part else AS_IS,
        )
        for part, our_part in zip(parts, _OUR_PARTS, strict=True)
        if part
    )


@dataclass(slots=True)
class RenamedState:
    """A state dict renamed through a key map.

    `pairs` are (their name, our name) of every tensor used, `duplicates` our names to which two of
    theirs map. Of their names, `ignored` are derived or unused, `unknown` match no row, and
    `missing` are absent although other parts of the same tensor exist; `beside` are no part of the
    model, `dropped` a classifier that was not taken and what it lies on. `assumed` is text.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    pairs: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    assumed: str = ""


@dataclass(frozen=True, slots=True)
class KeyMap:
    """The names of one family in one dialect; of the rows, the first match wins.

    `prefix` is that of the backbone's names in files that also hold a classifier, absent from files
    without one; `wrappers` are other prefixes that are stripped when reading. Names that contain
    the pattern `unused` are ignored: heads and necks of other tasks.
    """

    rows: tuple[Row, ...]
    prefix: str = ""
    wrappers: tuple[str, ...] = ()
    unused: str = ""

    def read(self, state: Mapping[str, Tensor]) -> RenamedState:
        """Rename their state dict to ours; tensors are copied only where parts are joined."""
        reading = RenamedState()
        groups: dict[tuple[str, int], dict[int, str]] = {}
        find = self._finder()
        for key in state:
            found = find(key)
            if found is None:
                reading.unknown.append(key)
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
                reading.duplicates.append(ours)
            tensors = [state[parts[part]] for part in range(len(names))]
            reading.tensors[ours] = self.rows[row].transform.join(tensors)
            reading.pairs += [(parts[part], ours) for part in range(len(names))]
        return reading

    def names_of(self, ours: Iterable[str]) -> Iterator[list[tuple[str, ...]]]:
        """For each of our names those, without prefix, that it may have: all parts, of each row."""
        rows = [row for row in self.rows if row.ours and not row.derive]
        lookup = _Lookup([row.ours for row in rows])
        for name in ours:
            found = lookup.find(name)
            yield [tuple(fill(part, texts) for part in rows[n].theirs) for n, texts in found]

    def unknown(self, keys: Iterable[str]) -> list[str]:
        """Those of their names, prefix included, that are neither used nor deliberately ignored."""
        find = self._finder()
        return [key for key in keys if find(key) is None]

    def write(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Rename ours to theirs; also returns our names that the dialect cannot represent."""
        has_head = any(name.startswith("head.") for name in tensors)
        usable = [row for row in self.rows if row.ours and row.beside in ("", *tensors)]
        written: dict[str, Tensor] = {}
        unmapped = []
        for name, tensor in tensors.items():
            rows = [(row, match(row.ours, name)) for row in usable]
            fits = [(row, fields) for row, fields in rows if fields is not None]
            weights = [(row, fields) for row, fields in fits if row.derive is None]
            if not weights:
                unmapped.append(name)
                continue
            prefix = self.prefix if has_head and not name.startswith("head.") else ""
            row, fields = weights[0]
            parts = row.transform.split(tensor, len(row.theirs))
            for theirs, part in zip(row.theirs, parts, strict=True):
                written[prefix + fill(theirs, fields)] = part
            for row, fields in fits:
                if row.derive is not None:
                    written[prefix + fill(row.theirs[0], fields)] = row.derive(tensor)
        return written, unmapped

    def _finder(self) -> Callable[[str], tuple[str, int, int] | None]:
        """Function from one of their names to (our name or "", index of row, index of part)."""
        places = [(row, part) for row in self.rows for part in range(len(row.theirs))]
        lookup = _Lookup([row.theirs[part] for row, part in places])
        index = {id(row): number for number, row in enumerate(self.rows)}

        def find(key: str) -> tuple[str, int, int] | None:
            for number, fields in lookup.find(self._bare(key)):
                row, part = places[number]
                used = row.ours and row.derive is None
                return (fill(row.ours, fields) if used else "", index[id(row)], part)
            return ("", -1, 0) if self.unused and re.search(self.unused, key) else None

        return find

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
    """Names of a backbone (`body`) with neck and heads; the rows are those of neck and heads.

    `head_pattern` finds keys of neck and heads. `obstacle` says why the heads cannot load weights
    of this ecosystem; empty if they can.
    """

    body: KeyMap = field(default_factory=lambda: KeyMap(()))
    body_prefix: str = ""
    head_pattern: str = ""
    obstacle: str = ""

    def read(self, state: Mapping[str, Tensor]) -> RenamedState:
        """Rename theirs to ours; a file without such heads is read as that of a backbone."""
        outside = {key: state[key] for key in state if re.search(self.head_pattern, key)}
        heads = KeyMap.read(self, outside)
        # A mask token lies in files of encoders too.
        if not heads.missing and all(key.endswith("mask_token") for key, _ in heads.pairs):
            return self.body.read(state)
        if self.obstacle:
            raise WeightError(self.obstacle)
        body = self.body.read({key: state[key] for key in state if key not in outside})
        body.tensors |= heads.tensors
        for name in ("pairs", "ignored", "unknown", "missing", "duplicates"):
            getattr(body, name).extend(getattr(heads, name))
        return body

    def write(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Rename ours to theirs."""
        if self.obstacle:
            raise WeightError(self.obstacle)
        heads = {name: tensor for name, tensor in tensors.items() if name.startswith("head.")}
        bare = {name: tensor for name, tensor in tensors.items() if name not in heads}
        body, unmapped = self.body.write(bare)
        written, more = KeyMap.write(self, heads)
        return {self.body_prefix + key: body[key] for key in body} | written, unmapped + more


KeyMaps = Mapping[type, KeyMap | Callable[[Any], KeyMap]]
"""By config class of the family: a key map, or a function that makes one from the config."""

Limits = Mapping[type, Mapping[str, tuple[Any, ...] | Callable[[Any], tuple[Any, ...]]]]
"""By config class of the family: values of its fields that models of an ecosystem can have.

A key names a field, or several that depend on each other, separated by ", "; the values may be
those for a config.
"""


_FIELD = re.compile(r"\{(\d*)([a-z])([+-]\d+)?\}")
_NUMBER = re.compile(r"\{\d*[a-z][^}]*\}|\d+")
_TEXTS = {"p": "(weight|bias)", "n": "(.+)"}


@functools.cache
def _compile(template: str) -> tuple[re.Pattern[str], tuple[tuple[str, int, int], ...]]:
    """Pattern of a template, and the letter, factor and offset of each group."""
    pattern, place, groups = "", 0, []
    for found in _FIELD.finditer(template):
        factor, letter, offset = found.groups()
        pattern += re.escape(template[place : found.start()]) + _TEXTS.get(letter, r"(\d+)")
        groups.append((letter, int(factor or 1), int(offset or 0)))
        place = found.end()
    return re.compile(pattern + re.escape(template[place:])), tuple(groups)


def match(template: str, key: str) -> dict[str, str] | None:
    """Values of the template's letters if the key matches, else None.

    Examples:
        >>> match("features.{2i+1}.{j}.norm1.{p}", "features.3.0.norm1.bias")
        {'i': '1', 'j': '0', 'p': 'bias'}
    """
    pattern, groups = _compile(template)
    found = pattern.fullmatch(key)
    if found is None:
        return None
    fields = {}
    for (letter, factor, offset), text in zip(groups, found.groups(), strict=True):
        if letter in _TEXTS:
            fields[letter] = text
            continue
        value, rest = divmod(int(text) - offset, factor)
        if rest or value < 0:
            return None
        fields[letter] = str(value)
    return fields


class _Lookup:
    """Finds the templates that a name matches, in their order, without trying all of them."""

    def __init__(self, templates: Sequence[str]) -> None:
        self._templates = templates
        # Templates by their text without fields and numbers.
        self._by_text: dict[str, list[int]] = {}
        for number, template in enumerate(templates):
            for end in dict.fromkeys(template.replace("{p}", part) for part in ("weight", "bias")):
                self._by_text.setdefault(_NUMBER.sub("#", end), []).append(number)
        self._open = [number for number, text in enumerate(templates) if "{n}" in text]

    def find(self, name: str) -> Iterator[tuple[int, dict[str, str]]]:
        """Indices of the templates that match, with the values of their letters."""
        for number in sorted({*self._by_text.get(_NUMBER.sub("#", name), ()), *self._open}):
            fields = match(self._templates[number], name)
            if fields is not None:
                yield number, fields


def fill(template: str, fields: Mapping[str, str]) -> str:
    """Fill a template with values; the inverse of `match`."""

    def value(found: re.Match[str]) -> str:
        factor, letter, offset = found.groups()
        text = fields[letter]
        return text if letter in _TEXTS else str(int(factor or 1) * int(text) + int(offset or 0))

    return _FIELD.sub(value, template)


def first_key(keys: Iterable[str], pattern: str) -> str:
    """Return the first key that contains the pattern, or an empty string."""
    search = re.compile(pattern).search
    return next((key for key in keys if search(key)), "")


def square_index(table: Tensor) -> Tensor:
    """Relative position index (N, N) of a square window: table row for each pair of tokens."""
    span = round(table.shape[0] ** 0.5)
    side = (span + 1) // 2
    place = torch.arange(side, device=table.device)
    apart = place[:, None] - place[None, :] + side - 1  # M, M
    index = apart[:, None, :, None] * span + apart[None, :, None, :]  # My, Mx, My', Mx'
    return index.reshape(side * side, side * side)


def flat_index(table: Tensor) -> Tensor:
    """`square_index`, flattened."""
    return square_index(table).flatten()


DENSE_TASKS = (
    r"^(neck|rpn_head|roi_head|bbox_head|mask_head|decode_head|auxiliary_head|keypoint_head"
    r"|proposal_generator|roi_heads|sem_seg_head|data_preprocessor)\."
)
"""Keys of necks and heads of detectors, segmenters and pose estimators (OpenMMLab, Microsoft)."""

TORCHVISION_DETECTOR = r"^(backbone\.fpn|rpn|roi_heads|head\.(classification|regression)_head)\."
"""Keys of necks and heads of torchvision's detectors."""

DETECTRON2_DETECTOR = (
    r"^backbone\.(fpn|simfp)_|^(proposal_generator|roi_heads|sem_seg_head|pixel_\w+)\b"
)
"""Keys of necks and heads of detectron2's detectors."""


def layer_rows(theirs: str, ours: str) -> tuple[Row, ...]:
    """Rows of weight and bias of a layer."""
    return (Row((theirs + ".{p}",), ours + ".{p}"),)


def norm_rows(theirs: str, ours: str) -> tuple[Row, ...]:
    """Rows of a norm, with the buffers that a batch norm has."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return (
        *layer_rows(theirs, ours),
        *(Row((f"{theirs}.{name}",), f"{ours}.{name}") for name in buffers),
    )


_BLOCK = "layers.{i}.blocks.{j}."


# Microsoft, timm and detectron2 name the parts of a Swin block alike.
SWIN_BLOCK = (
    *block_rows(_BLOCK, _BLOCK),
    *same_names(_BLOCK + "attn.relative_position_bias_table"),
)
SWIN_V2_BLOCK = (
    *block_rows(_BLOCK, _BLOCK),
    *same_names(_BLOCK + "attn.logit_scale", _BLOCK + "attn.cpb_mlp.{k}.{p}"),
    Row((_BLOCK + "attn.q_bias", _BLOCK + "attn.v_bias"), _BLOCK + "attn.qv_bias", STACKED),
    # SimMIM's earliest checkpoints call the bias MLP `rpe_mlp`.
    Row((_BLOCK + "attn.rpe_mlp.{k}.{p}",), _BLOCK + "attn.cpb_mlp.{k}.{p}"),
)
