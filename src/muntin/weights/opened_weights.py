# SPDX-License-Identifier: Apache-2.0
"""Open weights of any source: find those of a model, and rename them to its names."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from muntin.errors import MuntinWarning, WeightError, unknown_name
from muntin.untrusted import parse_json, reading
from muntin.weights.classifier_search import choose_classifier, find_between, find_linears
from muntin.weights.dialects import DIALECTS, NATIVE, backbone_of, head_of, inner_model, key_map
from muntin.weights.key_maps import HeadMap, RenamedState
from muntin.weights.source_geometry import MADE_WITH
from muntin.weights.source_info import SourceInfo, read_source_info
from muntin.weights.state_search import FoundState, describe_unknown, find_states, is_beside
from muntin.weights.weight_files import fetch, is_hub_id, license_of, read_weights
from muntin.weights.weight_folders import SUFFIXES, reject_url


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedWeights:
    """Weights that were found in a file, with metadata and source, to be loaded once or more.

    `others` are the locations of further sets of weights for the model; `stated` is what files
    beside them say, if these are of the same dialect.
    """

    found: FoundState
    texts: Mapping[str, str]
    where: str
    others: tuple[str, ...] = ()
    stated: SourceInfo | None = None

    @property
    def dialect(self) -> str:
        """The dialect of the names."""
        return self.found.dialect

    @property
    def state(self) -> Mapping[str, Tensor]:
        """The tensors, without the prefixes of wrappers."""
        return self.found.state

    @property
    def stated_fields(self) -> Mapping[str, Any]:
        """Fields of the config that are known from the dialect, or stated beside the weights."""
        always = None if self.dialect == NATIVE else DIALECTS[self.dialect].activation
        fields = {} if always is None else {"activation": always}
        return {**fields, **(self.stated.fields if self.stated else {})}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the file or beside it, if any."""
        try:
            stored = parse_json(self.texts.get("class_names", "[]"))
        except ValueError as error:
            stored = str(error)
        if not isinstance(stored, list) or not all(isinstance(name, str) for name in stored):
            message = f"class_names of {self.where} must be a list of names, got {stored!r:.80}."
            raise WeightError(message)
        return tuple(stored) or (self.stated.class_names if self.stated else ())


def open_weights(
    source: str | Path | Mapping[str, Any] | OpenedWeights,
    dialect: str,
    model: nn.Module,
    part: str = "",
) -> OpenedWeights:
    """Read a file and find the weights of a model in it; arguments as in `load_weights`.

    The model may be on the meta device.
    """
    if isinstance(source, OpenedWeights):
        return source
    if dialect not in ("auto", NATIVE, *DIALECTS):
        raise WeightError(unknown_name("dialect", dialect, ["auto", NATIVE, *DIALECTS]))
    given = source
    with reading(lambda: repr(str(given)), "Check the path and its permissions.", WeightError):
        # "checkpoint.pth#teacher", as commands and records of runs write a part.
        if isinstance(source, str) and "#" in source and not Path(source).exists():
            source, _, named = source.rpartition("#")
            part = part or named
        content, texts, where = resolve_source(source)
    stored = texts.get("dialect", "")
    if dialect == "auto" and stored in (NATIVE, *DIALECTS):
        dialect = stored
    with reading(where, "Save the state dict alone.", WeightError):
        states = find_states(content, inner_model(model), dialect, part)
    if not states:
        raise WeightError(describe_unknown(content, backbone_of(model).config, where))
    found = states[0]
    _reject_hollow(found, where)
    nesting = ".".join(found.path)
    stated = read_source_info(source)
    if stated is not None:
        geometry = {**stated.fields, **parse_json(texts.get(MADE_WITH, "{}"))}
        texts = {**texts, MADE_WITH: json.dumps(geometry)}
        stated = stated if stated.dialect == found.dialect else None
    return OpenedWeights(
        found=found,
        texts=texts,
        where=f"{where} [{nesting}]" if nesting else where,
        others=tuple(state.location for state in states[1:]),
        stated=stated,
    )


def _reject_hollow(found: FoundState, where: str) -> None:
    """Raise for a tensor without memory for each of its values."""
    for key, tensor in found.state.items():
        if tensor.is_meta or tensor.layout is not torch.strided:
            message = (
                f"weights from {where} must be dense tensors with values, got {tensor.layout} on "
                f"the device {tensor.device} for {key}. Write them anew, sparse ones by to_dense()."
            )
            raise WeightError(message)


def resolve_source(
    source: str | Path | Mapping[str, Any],
) -> tuple[Mapping[str, Any], Mapping[str, str], str]:
    """Read a source of weights: its content, its texts, and its name in messages."""
    if not isinstance(source, Mapping | str | Path):
        message = (
            f"weights must be a file, a folder, a hub id or a state dict, got "
            f"{type(source).__name__}."
        )
        raise WeightError(message)
    if isinstance(source, Mapping):
        return source, {}, "a state dict"
    if not str(source).strip():
        message = f"weights must be a file, a folder or a hub id, got {str(source)!r}."
        raise WeightError(message)
    reject_url(str(source))
    path = Path(source).expanduser()
    text = str(source).removeprefix("hf-hub:")
    # "runs/flowers" may be a hub id or a mistyped path: a path if the folder "runs" exists.
    local = isinstance(source, Path) or path.exists() or path.suffix.lower() in SUFFIXES
    texts: dict[str, str] = {}
    if not local and is_hub_id(text) and not Path(text.split("/")[0]).is_dir():
        path = fetch(text)
        texts["license"] = license_of(text)
    file = read_weights(path)
    texts |= {key: value for key, value in file.metadata.items() if value}
    if "NC" in texts.get("license", ""):
        message = f"weights from {source} have the license {texts['license']}: no commercial use."
        warnings.warn(message, MuntinWarning, stacklevel=4)
    return file.tensors, texts, str(source)


def rename_state(opened: OpenedWeights, model: nn.Module) -> RenamedState:
    """Rename the tensors; those that are no part of the backbone or of a head move to `beside`."""
    found, head = opened.found, head_of(model)
    strict = False
    if found.dialect == NATIVE:
        own = {} if found.body_prefix else backbone_of(model).state_dict()
        # Beside a bare backbone in a module of others.
        others = [key for key in found.state if own and key not in own and is_beside(key, found)]
        names = {key: key.removeprefix("backbone.") for key in found.state if key not in others}
        tensors = {ours: found.state[key] for key, ours in names.items()}
        reading = RenamedState(tensors=tensors, pairs=list(names.items()), unknown=others)
    else:
        theirs = key_map(found.dialect, backbone_of(model).config, head)
        reading = theirs.read(found.state)
        # A detector or segmenter of this kind: all of it belongs to the model.
        strict = isinstance(theirs, HeadMap) and any(
            ours[:5] == "head." for ours in reading.tensors
        )
    beside = [key for key in reading.unknown if not strict and is_beside(key, found)]
    reading.unknown = [key for key in reading.unknown if key not in beside]
    reading.beside = [*(found.prefix + key for key in beside), *found.beside]
    distance = 0
    if not any(ours.startswith("head.") for ours in reading.tensors):
        distance = _adopt_classifier(reading, found, model)
    if "head.fc.weight" in reading.tensors:
        _check_classifier(reading, [*reading.ignored, *beside], found, model, distance)
    return reading


def _adopt_classifier(reading: RenamedState, found: FoundState, model: nn.Module) -> int:
    """Take a linear layer beside the backbone as the classifier; return its distance."""
    body: Any = backbone_of(model)
    head = head_of(model)
    own = {} if head is None else head.state_dict()
    weight = own.pop("fc.weight", None)
    known = {"fc.bias", "fc_dist.weight", "fc_dist.bias"}
    if head is not None and (weight is None or not own.keys() <= known):
        return 0
    channels = body.spec.channels[-1] if weight is None else weight.shape[1]
    used = {found.prefix + key for key in found.state} - set(reading.beside)
    linears = find_linears(found.groups, channels)
    free = [layer for layer in linears if not used & layer.tensors.keys()]
    layer = choose_classifier(free, 0 if weight is None else len(weight))
    if layer is None:
        return 0
    reading.beside = [key for key in reading.beside if key not in layer.tensors]
    for key, name in zip(layer.tensors, ("head.fc.weight", "head.fc.bias"), strict=False):
        reading.tensors[name] = layer.tensors[key]
        reading.pairs.append((key, name))
    if len(layer.tensors) == 1 and "fc.bias" in own:
        reading.tensors["head.fc.bias"] = torch.zeros(layer.num_rows)
    return layer.distance


def _check_classifier(
    reading: RenamedState, unused: list[str], found: FoundState, model: nn.Module, distance: int
) -> None:
    """Ignore a classifier that may lie on a layer, or read tokens, that the model's does not."""
    taken = {id(tensor) for tensor in reading.tensors.values()}
    near: dict[str, dict[str, Tensor]] = {}
    for key in unused:
        near.setdefault(key.partition(".")[0], {})[key] = found.state[key]
    groups = [one.tensors for one in found.groups if 0 < one.distance == distance]
    free = [{k: x for k, x in g.items() if id(x) not in taken} for g in (*near.values(), *groups)]
    between = list(find_between(reading.tensors["head.fc.weight"], free))
    heads = [theirs for theirs, ours in reading.pairs if ours.startswith("head.")]
    body: Any = backbone_of(model)
    half = body.spec.embed_parts == 2 and "head.fc_dist.weight" not in reading.tensors
    known = found.dialect == "transformers" and ".classifier." in f".{heads[0]}"
    # DeiTForImageClassification of transformers reads the class token only. The logits here are
    # the mean of two classifiers: twice this one and zeros have the same.
    if half and known and not between:
        for name in [name for name in reading.tensors if name.startswith("head.fc.")]:
            reading.tensors[name] = 2 * (tensor := reading.tensors[name])
            reading.tensors[name.replace("fc", "fc_dist")] = torch.zeros_like(tensor)
        reading.assumed = "the classifier reads the class token only"
    elif between or half:
        reading.dropped = list(dict.fromkeys([*heads, *between]))
        reading.ignored += heads
        reading.pairs = [pair for pair in reading.pairs if pair[0] not in heads]
        reading.tensors = {k: x for k, x in reading.tensors.items() if not k.startswith("head.")}
