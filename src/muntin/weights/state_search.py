# SPDX-License-Identifier: Apache-2.0
"""Find the weights of a model in whatever a file holds, by the names of its tensors.

A file may hold several sets of weights (student and teacher, raw and averaged), each behind a
prefix of its own, and more beside them: optimizers, losses, projectors. A key map knows the names
of the model's parameters in a dialect. Wherever a name in the file ends with that of the first
weight, what precedes it is a prefix; how many other parameters have this prefix shows how complete
the set is, and which dialect it is in.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from torch import Tensor, nn

from muntin.errors import WeightError, shorten
from muntin.models.swin import SwinConfig
from muntin.weights.classifier_search import TensorGroup, group_tensors
from muntin.weights.dialects import DIALECTS, NATIVE, backbone_of, family_name, find_key_map
from muntin.weights.key_maps import KeyMap, Row, first_key
from muntin.weights.stored_arrays import StoredArray

Path = tuple[str, ...]

_MOST_LEVELS, _MOST_MAPPINGS = 8, 10_000
# Names that PyTorch's wrappers insert at any place in the names of a model.
_INSERTED = re.compile(
    r"(?<![^.])_(orig_mod|forward_module|fsdp_wrapped_module|checkpoint_wrapped_module)\."
)
# Of several complete sets: averaged weights, then teachers, those without such a name, the others.
_PREFERENCE = (
    re.compile(r"(^|[._/])(ema|averaged?|swa)([._/]|$)"),
    re.compile(r"(^|[._/])(teacher|target)([._/]|$)"),
    re.compile(r"(?!)"),
    re.compile(r"(^|[._/])(student|current|momentum|online)([._/]|$)|_k([./]|$)"),
)
_UNNAMED = 2
# If dialects explain a set equally well: a bare Swin is ours, a bare ViT timm's.
_ORDER = ("timm", NATIVE, *(name for name in DIALECTS if name != "timm"))
# Layers of foreign heads that begin as ours do.
_FOREIGN_HEAD = re.compile(r"head\.(weight|bias|\d+|mlp|last_layer|layers|projection)(\.|$)")
# What training code puts beside a backbone, on the same level.
_BESIDE = re.compile(
    r"(\w*heads?|\w*classifier|fc|\w*proj(ector|ection)?s?|\w*predictor\w*|\w*queue\w*|prototypes?"
    r"|\w*decoder\w*|criterion|\w*loss\w*|\w*metrics?|\w*acc(uracy)?|n_averaged|mask_token"
    r"|logit_(scale|bias)|ema_\w+|center|temperature)(\.|$)"
)
# Our names of the first weight of every family.
_FIRST_WEIGHTS = ("patch_embed.proj.weight", "tokens_to_token.attention1.norm1.weight")
_KNOWN_STRANGERS = (
    (r"(^|\.)image_encoder\.", "SAM's image encoder"),
    (r"(^|\.)blocks\.\d+\.attn\.rel_pos_h$", "ViTDet or SAM's image encoder"),
    (r"(^|\.)visual\.(transformer\.resblocks|class_embedding)", "OpenAI's CLIP"),
    (r"(^|\.)vision_model\.(encoder|embeddings)\.", "the image encoder of CLIP or SigLIP"),
    (
        r"(^|\.)(patch_embeddings\.weight|rope_embed\.periods)$",
        "a DINOv3, whose rotary positions models named timm:vit_*_dinov3 have",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundState:
    """One set of weights in a file.

    Attributes:
        path: Keys that lead to its mapping.
        prefix: What precedes the names of the dialect in this mapping.
        body_prefix: What precedes the backbone in the names of the dialect.
        state: The tensors behind the prefix, without it.
        beside: Names of the other tensors of the mapping.
        groups: All tensors of the file, by their place relative to the backbone.
        num_found: Number of the model's parameters that are there.
    """

    path: Path
    prefix: str
    dialect: str
    state: Mapping[str, Tensor]
    body_prefix: str = ""
    beside: tuple[str, ...] = ()
    groups: tuple[TensorGroup, ...] = field(default=(), repr=False)
    num_found: int = 0

    @property
    def location(self) -> str:
        """Path and prefix as one text; empty if the file is this state dict."""
        return _location(self.path, self.prefix)


def find_states(
    content: Mapping[str, Any], model: nn.Module, dialect: str = "auto", part: str = ""
) -> list[FoundState]:
    """Find the sets of weights for a model in a file; the first is the one to take.

    The most complete set comes first; of equal ones averaged weights, then teachers, then those
    without such a name, then students and momentum encoders; then in the order of the file.

    Args:
        content: Mappings of tensors, arrays and further mappings.
        model: A network or a backbone, on any device.
        dialect: The only one considered, unless "auto".
        part: Names in the location of the wanted set, such as "teacher".

    Raises:
        WeightError: No set is in this part; the message names the others.
    """
    mappings = {path: tensors for path, tensors in _mappings(content) if tensors}
    names = _names_by_dialect(model, dialect)
    places = [
        place
        for path, tensors in mappings.items()
        for place in _find_places(path, tensors, names, forced=dialect != "auto")
    ]
    if not places and dialect != "auto" and mappings:
        path = max(mappings, key=lambda path: len(mappings[path]))
        return [FoundState(path=path, prefix="", dialect=dialect, state=mappings[path])]
    fewest = 0.9 * max((place.num_found for place in places), default=0)
    # A set that lacks a tenth of the parameters of another belongs to another model.
    places = [place for place in places if place.num_found >= fewest]
    places.sort(key=lambda place: (-place.num_found, _rank(place.location)))
    if part:
        there = [place.location or "the whole file" for place in places]
        places = [place for place in places if f".{part.strip('.')}." in f".{place.location}."]
        if not places:
            message = (
                f"part must be one of those with weights of the model, got {part!r}. There are: "
                f"{shorten(there) or 'none'}. Choose one of them."
            )
            raise WeightError(message)
    return [_open(place, mappings, places) for place in places]


def _rank(location: str) -> int:
    found = (rank for rank, pattern in enumerate(_PREFERENCE) if pattern.search(location))
    return next(found, _UNNAMED)


def _location(path: Path, prefix: str) -> str:
    return ".".join([*path, prefix]).strip("./")


def _mappings(content: Mapping[str, Any]) -> Iterator[tuple[Path, dict[str, Tensor]]]:
    """Every mapping in the content, outer ones first, with the tensors directly in it."""
    waiting: list[tuple[Path, Mapping[str, Any]]] = [((), content)]
    for path, mapping in waiting:
        tensors = {}
        for key, value in mapping.items():
            found = value.tensor if isinstance(value, StoredArray) else value
            if isinstance(found, Tensor):
                tensors[_INSERTED.sub("", str(key))] = found
            # Keys of the states of an optimizer are numbers.
            elif isinstance(value, Mapping) and isinstance(key, str) and len(path) < _MOST_LEVELS:
                waiting.append(((*path, key), value))
        yield path, tensors
        del waiting[_MOST_MAPPINGS:]


class _Names:
    """The model's backbone in one dialect: for each parameter, the names that may make it up."""

    def __init__(self, dialect: str, key_map: KeyMap, own: list[str]) -> None:
        self.dialect, self.key_map, self.own = dialect, key_map, own
        stems = self._spell(name for name in own if name.endswith(".weight"))
        self.stems = [names[0] for names in next(filter(None, stems), [])]

    def _spell(self, own: Iterable[str]) -> Iterator[list[tuple[str, ...]]]:
        return ([(name,)] for name in own) if self.dialect == NATIVE else self.key_map.names_of(own)

    @functools.cached_property
    def parameters(self) -> list[list[tuple[str, ...]]]:
        return [names for names in self._spell(self.own) if names]


def _names_by_dialect(model: nn.Module, dialect: str) -> list[_Names]:
    backbone = backbone_of(model)
    config: Any = backbone.config
    own = [name for name, _ in backbone.named_parameters()]
    maps = {}
    for name in DIALECTS if dialect in ("auto", NATIVE) else (dialect,):
        key_map = find_key_map(name, config, required=dialect == name)
        if key_map is not None:
            maps[name] = key_map
    # Our own names: those of this backbone, and of parts that it lacks, all that dialects map to.
    templates = [row.ours for key_map in maps.values() for row in key_map.rows if row.ours]
    rows = [Row((name,), name) for name in dict.fromkeys(templates)]
    maps[NATIVE] = KeyMap(tuple(rows), wrappers=("backbone.",))
    wanted = [name for name in _ORDER if name in maps and dialect in ("auto", name)]
    return [_Names(name, maps[name], own) for name in wanted]


@dataclass(frozen=True, slots=True)
class _Place:
    """A set of weights behind `prefix`, of which the dialect does not know the part `outer`.

    `stem` is the key of the first weight.
    """

    path: Path
    stem: str
    prefix: str
    outer: str
    names: _Names
    num_found: int

    @property
    def location(self) -> str:
        return _location(self.path, self.outer)


def _find_places(
    path: Path, tensors: Mapping[str, Tensor], dialects: list[_Names], *, forced: bool
) -> list[_Place]:
    """For each first weight in a mapping, the dialect that explains most of the names."""
    by_stem: dict[str, list[_Place]] = {}
    for names in dialects:
        for place in _places(names, tensors, path):
            if not forced and names.dialect == NATIVE and not _may_be_native(place, tensors):
                place = replace(place, outer=place.prefix)  # a bare backbone in another module
            by_stem.setdefault(place.stem, []).append(place)
    return [_choose(places, tensors) for places in by_stem.values()]


def _places(names: _Names, tensors: Mapping[str, Tensor], path: Path = ()) -> Iterator[_Place]:
    for stem in names.stems:
        for key in tensors:
            if key.endswith(stem) and key[: -len(stem)][-1:] in ("", ".", "/"):
                yield _place(path, key, stem, names, tensors)


def _place(path: Path, key: str, stem: str, names: _Names, tensors: Mapping[str, Tensor]) -> _Place:
    prefix = key.removesuffix(stem)
    known = [name for name in (names.key_map.prefix, *names.key_map.wrappers) if name]
    outers = [prefix.removesuffix(name) for name in known if prefix.endswith(name)]
    outers = [outer for outer in outers if outer[-1:] in ("", ".", "/")]
    found = sum(
        any(all(prefix + part in tensors for part in parts) for parts in ways)
        for ways in names.parameters
    )
    outer = min([prefix, *outers], key=len)
    return _Place(path, key, prefix, outer, names, found)


def _may_be_native(place: _Place, tensors: Mapping[str, Tensor]) -> bool:
    """Whether everything beside a part called "backbone" may be a head of ours."""
    if place.outer == place.prefix:  # a bare backbone
        return True
    rest = [key.removeprefix(place.outer) for key in tensors if key.startswith(place.outer)]
    heads = [key for key in rest if not key.startswith("backbone.")]
    return all(key.startswith("head.") and not _FOREIGN_HEAD.match(key) for key in heads)


def _choose(places: list[_Place], tensors: Mapping[str, Tensor]) -> _Place:
    most = max(place.num_found for place in places)
    best = [place for place in places if place.num_found == most]
    if len(best) == 1:
        return best[0]
    return min(best, key=lambda place: (_count_unknown(place, tensors), len(place.outer)))


def _count_unknown(place: _Place, tensors: Mapping[str, Tensor]) -> int:
    """Number of names in the mapping that the dialect does not explain."""
    known = {
        place.prefix + part for ways in place.names.parameters for parts in ways for part in parts
    }
    others = [key for key in tensors if key not in known]
    behind = [key for key in others if key.startswith(place.outer)]
    unknown = place.names.key_map.unknown(key.removeprefix(place.outer) for key in behind)
    return len(others) - len(behind) + len(unknown)


def _open(
    place: _Place,
    mappings: Mapping[Path, Mapping[str, Tensor]],
    places: list[_Place],
) -> FoundState:
    tensors, outer = mappings[place.path], place.outer
    state = {key.removeprefix(outer): tensors[key] for key in tensors if key.startswith(outer)}
    dialect = place.names.dialect
    inner = [name for name in re.split(r"[./]", outer) if name]
    others = tuple(other.outer for other in places if other.path == place.path and other.outer)
    return FoundState(
        path=place.path,
        prefix=outer,
        body_prefix=place.prefix.removeprefix(outer),
        dialect=dialect,
        state=state if dialect == NATIVE else DIALECTS[dialect].normalise(state),
        beside=tuple(key for key in tensors if not key.startswith((outer, *others))),
        groups=tuple(group_tensors([*place.path, *inner], mappings)),
        num_found=place.num_found,
    )


def is_beside(name: str, found: FoundState) -> bool:
    """Whether an unknown tensor is no part of the model.

    Where the backbone has no prefix of its own, only heads, projectors, losses, counters and the
    like are not: anything else may belong to it, and would change its outputs.
    """
    if not name.startswith(found.body_prefix):
        return True
    counter = not found.state[name].ndim and not found.state[name].is_floating_point()
    return counter or bool(_BESIDE.match(name.removeprefix(found.body_prefix)))


def describe_unknown(content: Mapping[str, Any], config: object, where: str) -> str:
    """Message for a file in which no weights of the model are."""
    mappings = [tensors for _, tensors in _mappings(content) if tensors]
    if not mappings:
        there = shorten(map(str, content)) or "nothing"
        return f"{where} must hold named tensors, got {there}. Pass a state dict."
    keys = [key for tensors in mappings for key in tensors]
    owner = name_stranger(keys) or next(filter(None, map(name_family, mappings)), "")
    if owner:
        return (
            f"weights from {where} must be those of a {family_name(type(config))}, got those of "
            f"{owner}. Choose another model."
        )
    return (
        f"keys of {where} match no known dialect: {shorten(keys)}. Known dialects: "
        f"{', '.join([NATIVE, *DIALECTS])}. Check the file."
    )


def name_family(tensors: Mapping[str, Tensor], below: float = math.inf) -> str:
    """Family and dialect of the tensors in a mapping, if it explains all but less than `below`."""
    fewest, named = min(len(tensors) // 10, below - 1), ""
    for dialect, row in DIALECTS.items():
        for kind in row.key_maps:
            key_map = find_key_map(dialect, _example(kind), required=False)
            names = _Names(dialect, key_map or KeyMap(()), list(_FIRST_WEIGHTS))
            for place in _places(names, tensors):
                count = _count_unknown(place, tensors)
                if count < fewest or (count == fewest and not named):
                    fewest, named = count, f"a {family_name(kind)} in the dialect {dialect!r}"
    return named


def _example(kind: type[Any]) -> object:
    """A config of a family; sizes do not matter. None if it needs more than sizes."""
    many = issubclass(kind, SwinConfig)
    sizes = {
        "embed_dim": 96,
        "depth": 2,
        "depths": (2, 2, 6, 2),
        "num_heads": (3, 6, 12, 24) if many else 3,
        "window_size": 7,
        "img_size": (224, 224),
        "patch_size": 16,
        "global_blocks": (0,),
    }
    required = {entry.name for entry in fields(kind) if entry.default is MISSING}
    if not required <= sizes.keys():
        return None
    return kind(**{name: sizes[name] for name in required})


def name_stranger(keys: Iterable[str]) -> str:
    """Name the kind of model that tensors belong to, if it is known and not of a family here."""
    names = list(keys)
    return next((name for pattern, name in _KNOWN_STRANGERS if first_key(names, pattern)), "")
