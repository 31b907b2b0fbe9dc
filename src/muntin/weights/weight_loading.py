# SPDX-License-Identifier: Apache-2.0
"""Load weights of any ecosystem into a model: every key accounted for, all or nothing."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

import torch
from torch import Tensor, nn

from muntin.errors import MuntinWarning, WeightError, shorten, unknown_name
from muntin.heads.network import Network, PretrainingHead
from muntin.models.swin_v2 import SwinV2, SwinV2Config
from muntin.models.timm_backbone import TimmBackbone, TimmConfig
from muntin.ops.positions import SizeRuleName, TableInterpolation
from muntin.untrusted import reading
from muntin.weights.classifier_search import is_classifier
from muntin.weights.dialects import DIALECTS, NATIVE, backbone_of, family_name, head_of, inner_model
from muntin.weights.head_keys import adopt_conventions
from muntin.weights.head_rows import read_head_rows, select_names, select_rows
from muntin.weights.key_maps import RenamedState
from muntin.weights.mismatch_hints import Mismatch, reject_mismatches
from muntin.weights.opened_weights import OpenedWeights, open_weights, rename_state
from muntin.weights.source_geometry import find_source, read_as_timm, scale_offsets
from muntin.weights.source_info import adopt, build_adopted, check_decoder, set_config
from muntin.weights.state_matching import (
    MatchResult,
    copy_values,
    match_state,
    model_key,
    reject_values,
)
from muntin.weights.transformers_weights import is_whole_model, load_whole_model
from muntin.weights.window_buffers import fit_windows, read_windows

_ADVICE = "Copy or download it again."


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """Result of `load_weights`.

    Attributes:
        renamed: (their name, our name) of every tensor whose name differs.
        resized: Our names of tensors resized to another window, image or patch size.
        reset: Our names of parameters that were not loaded, such as a head for other classes.
        ignored: Their names of unused tensors: derived buffers, a head or stages that are not here.
        size_rule: Size rule (padding policy) adopted from the source; empty if unchanged.
        size_evidence: Their name of the tensor that tells that rule; empty if it is the rule of
            all models of the dialect.
        conventions: Fields of a detector head's config adopted from it; empty if unchanged.
        adopted: Values of other fields of the config adopted from it, or from files beside it, as
            the windows of a Swin V2.
        stated_in: File beside the weights that describes the model; empty if there is none.
        class_names: Those in the file or beside it, if any, as for `license`.
        part: Where in the file the weights lie; empty if they are all of it.
        others: Where further weights for the model lie, which `part` of `load_weights` selects.
        beside: Their names of tensors next to the weights that are no part of the model.
        dropped: Their names of a classifier that was not loaded although the model's is random.
        assumed: What was assumed about the source, since nothing says it; empty if nothing.
    """

    dialect: str
    source: str
    renamed: tuple[tuple[str, str], ...]
    resized: tuple[str, ...]
    reset: tuple[str, ...]
    ignored: tuple[str, ...]
    size_rule: str
    size_evidence: str = ""
    conventions: str = ""
    adopted: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stated_in: str = ""
    class_names: tuple[str, ...] = ()
    license: str = ""
    part: str = ""
    others: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    assumed: str = ""

    def summary(self) -> str:
        """Summarize the report in one line."""
        told = f" ({self.size_evidence})" if self.size_evidence else ""
        sentences = (
            (self.resized, f"{len(self.resized)} resized ({shorten(self.resized, limit=2)})"),
            (self.reset, f"not loaded: {shorten(self.reset, limit=2)}"),
            (self.ignored, f"{len(self.ignored)} ignored"),
            (self.others, f"part {self.part!r} (others: {shorten(self.others)})"),
            (self.dropped, f"no classifier made of {shorten(self.dropped, limit=2)}"),
            (self.beside, f"{len(self.beside)} beside it ({shorten(self.beside, limit=2)})"),
            (self.size_rule, f"size rule set to {self.size_rule!r}{told}"),
            *((name, f"{name} set to {value!r}") for name, value in self.adopted.items()),
            (self.stated_in, f"described by {Path(self.stated_in).name} beside them"),
            (self.conventions, f"head conventions set to {self.conventions}"),
            (self.assumed, f"assumed: {self.assumed}"),
            (self.license, f"license {self.license}"),
        )
        start = f"{self.dialect} weights from {self.source}: {len(self.renamed)} renamed"
        return ", ".join([start, *(sentence for given, sentence in sentences if given)])


def load_weights(
    model: nn.Module,
    source: str | Path | Mapping[str, Any] | OpenedWeights,
    dialect: str = "auto",
    *,
    part: str = "",
    resampling: TableInterpolation | None = None,
    head_rows: Sequence[int] | str | Path | None = None,
    made_with: Mapping[str, Any] | None = None,
) -> LoadReport:
    """Load weights from any supported ecosystem into a model.

    The model adopts the ecosystem's size rule (padding policy), so that outputs equal theirs at
    every size that they accept; a detector also adopts its conventions for anchors and RoI
    pooling. After an error, the model is unchanged.

    Args:
        model: A network or a backbone.
        source: A file, a folder with one, a state dict, a training checkpoint that contains one
            under any names, or a hub id such as "timm/swin_tiny_patch4_window7_224.ms_in1k". The
            network is not used if the path exists.
        part: Which of several sets of weights in the file: names in its location, such as
            "teacher". Default: the most complete; of equal ones averaged weights before teachers,
            and these before others.
        dialect: "auto", or one of "muntin", "microsoft", "timm", "torchvision", "transformers",
            "openmmlab", "detectron2", "google".
        resampling: How relative position bias tables of another window are resized: "bicubic", or
            "geometric", which keeps small offsets in place; default: as the size rule says.
        head_rows: For a head with fewer classes than the source's (22k to 1k): the source's class
            id for each class of the model, or a text file with one id per line.
        made_with: Fields of the config that the weights were made with, if no file says them:
            "img_size", where positions are no square; for Swin V2, those of windows.

    Raises:
        WeightError: The weights cannot be read, contain NaN, or do not match: an unexpected key,
            or a missing parameter (except in the class head).

    Examples:
        >>> from muntin.models.swin import SWIN_NANO_32, Swin
        >>> body = Swin(SWIN_NANO_32)
        >>> load_weights(body, {"backbone." + k: v for k, v in body.state_dict().items()}).dialect
        'muntin'
    """
    _check(resampling, dialect=dialect, part=part, head_rows=head_rows, made_with=made_with)
    backbone: Any = backbone_of(model := inner_model(model))
    if isinstance(model, Network) and is_whole_model(model):
        return LoadReport(**load_whole_model(model, source))
    with reading(_name(source), _ADVICE, WeightError):
        opened = open_weights(source, dialect, model, part)
        raw = opened.state
        if isinstance(backbone, TimmBackbone) and opened.dialect in ("timm", NATIVE):
            opened = _convert_as_timm(opened, backbone, made_with)
        renamed = rename_state(opened, model)
        rows = None if head_rows is None else read_head_rows(head_rows)
        select_rows(renamed.tensors, rows, model, opened.where)
        rule, evidence = _find_rule(opened, backbone)
        theirs = find_source(backbone.config, opened.texts, made_with, renamed.tensors)
        matched = match_state(model, renamed, opened.dialect, rule, resampling, theirs)
        _note_conversion(matched, renamed, model, raw, opened.state)
        reject_mismatches(Mismatch(matched, renamed, opened, backbone, theirs, made_with or {}))
        reject_values(matched.values, model.state_dict(), opened.where)
        check_decoder(opened.stated if matched.has_head else None, head_of(model))
        other = build_adopted(backbone, opened.stated_fields, opened.where)
        recorded = read_windows(renamed, opened.state)
        windows = _find_windows(other or backbone, matched, recorded, theirs, rule)
    copy_values(matched.values, model)
    adopted = {} if other is None else adopt(backbone, other)
    adopts = rule != getattr(backbone.config, "size_rule", rule)
    changed = {**windows, **({"size_rule": rule} if adopts else {})}
    if changed:
        set_config(backbone, dataclasses.replace(backbone.config, **changed))
    report = _report(opened, renamed, matched, model)
    return dataclasses.replace(
        report,
        size_rule=rule if adopts else "",
        size_evidence=evidence if adopts else "",
        adopted=adopted | windows,
        class_names=select_names(report.class_names, rows),
    )


def _check(resampling: str | None, **arguments: object) -> None:
    """Raise for an argument that cannot be meant."""
    if resampling not in (None, "bicubic", "geometric"):
        raise WeightError(unknown_name("resampling", resampling, ["bicubic", "geometric"]))
    for name, value in arguments.items():
        if not isinstance(value, _TYPES[name]):
            message = f"{name} must be {_TYPES[name]}, got {value!r}."
            raise WeightError(message)


_TYPES: dict[str, UnionType | type] = {
    "dialect": str,
    "part": str,
    "head_rows": Sequence | Path | None,
    "made_with": Mapping | None,
}


def _convert_as_timm(
    opened: OpenedWeights, backbone: TimmBackbone, made_with: Mapping[str, Any] | None
) -> OpenedWeights:
    known = find_source(backbone.config, opened.texts, made_with, {})
    state = read_as_timm(backbone, opened.state, known)
    return dataclasses.replace(opened, found=dataclasses.replace(opened.found, state=state))


def _note_conversion(
    matched: MatchResult,
    reading: RenamedState,
    model: nn.Module,
    raw: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
) -> None:
    """Note what timm's own conversion, if any, resized and dropped of a file, by its objects."""
    ours = dict(reading.pairs)
    there = {id(tensor) for tensor in state.values()}
    matched.ignored += [k for k, one in raw.items() if k not in state and id(one) not in there]
    changed = [k for k in state if k in raw and k in ours and raw[k].shape != state[k].shape]
    matched.resized += [model_key(ours[key], model) for key in changed]


def _name(source: object) -> str:
    return str(source) if isinstance(source, str | Path) else "the state dict"


def _find_rule(opened: OpenedWeights, backbone: nn.Module) -> tuple[SizeRuleName, str]:
    """The size rule of the source, and what tells it."""
    if opened.dialect == NATIVE:
        return getattr(backbone.config, "size_rule", "muntin"), ""
    family = family_name(type(backbone.config))
    nesting = f"{family} under {'.'.join(map(str, opened.found.path))!r}"
    return DIALECTS[opened.dialect].find_size_rule([*opened.found.state, nesting])


def _report(
    opened: OpenedWeights, reading: RenamedState, matched: MatchResult, model: nn.Module
) -> LoadReport:
    taken = [(theirs, model_key(ours, model)) for theirs, ours in reading.pairs]
    heads = [
        theirs
        for theirs, ours in reading.pairs
        if ours.startswith("head.fc") or (ours[:5] == "head." and theirs not in matched.ignored)
    ]
    classifies = not isinstance(head_of(model), PretrainingHead)
    fresh = [key for key in matched.reset if key.startswith("head.") and classifies]
    dropped = reading.dropped or heads or [key for key in reading.beside if is_classifier(key)]
    if reading.dropped and fresh:
        message = (
            f"the classifier is random: that of {opened.where} was not taken, since it may read "
            f"something else than the model's does ({shorten(dropped, limit=4)})."
        )
        warnings.warn(message, MuntinWarning, stacklevel=3)
    return LoadReport(
        dialect=opened.dialect,
        source=opened.where,
        renamed=tuple(pair for pair in taken if pair[0] != pair[1] and pair[1] in matched.values),
        resized=tuple(matched.resized),
        reset=tuple(matched.reset),
        ignored=tuple(matched.ignored),
        size_rule="",
        stated_in=opened.stated.where if opened.stated else "",
        conventions=adopt_conventions(head_of(model), opened.dialect) if matched.has_head else "",
        class_names=opened.class_names,
        license=opened.texts.get("license", ""),
        part=opened.found.location,
        others=opened.others,
        beside=tuple(reading.beside),
        dropped=tuple(dropped) if fresh else (),
        assumed="; ".join(filter(None, (matched.assumed, reading.assumed))),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightInfo:
    """What a model must have for these weights.

    `num_classes` is 0 without a classifier on the backbone's vector, `dtype` float32 if mixed.
    `norms_tokens` tells a ViT whose last norm is that of all tokens, not that of their mean.
    """

    num_classes: int
    norms_tokens: bool
    in_chans: int
    dtype: torch.dtype


def inspect_weights(opened: OpenedWeights, model: nn.Module) -> WeightInfo:
    """Infer what model must be built to load weights without resizing; `model` is a backbone."""
    config: Any = backbone_of(model).config
    with reading(opened.where, _ADVICE, WeightError):
        tensors = rename_state(opened, model).tensors
        # The first convolution of a timm model is its stem.
        patches = [
            tensor
            for key, tensor in tensors.items()
            if key.endswith("patch_embed.proj.weight")
            or (isinstance(config, TimmConfig) and tensor.ndim == 4)
        ]
        first = tensors.get("tokens_to_token.attention1.norm1.weight")
        head = tensors.get("head.fc.weight")
        if not patches and first is None and not isinstance(config, TimmConfig):
            message = (
                f"weights from {opened.where} ({opened.dialect}) must be those of a "
                f"{family_name(type(config))}, but contain no patch embedding. Check model and "
                f"dialect."
            )
            raise WeightError(message)
        dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
        return WeightInfo(
            dtype=dtypes.pop() if len(dtypes) == 1 else torch.float32,
            num_classes=0 if head is None else head.shape[0],
            norms_tokens="norm.weight" in tensors and "fc_norm.weight" not in tensors,
            # A T2T-ViT has none; its first norm has a channel for each of 7 x 7 pixels.
            in_chans=patches[0].shape[1] if patches else len(first) // 49,  # type: ignore[arg-type]
        )


def _find_windows(
    backbone: nn.Module,
    matched: MatchResult,
    recorded: Mapping[int, tuple[int, int]],
    source: object,
    rule: SizeRuleName,
) -> dict[str, Any]:
    """Windows that a Swin V2 takes from its source: of its buffers, or else of its config."""
    if not isinstance(backbone, SwinV2):
        return {}
    old: Any = backbone.config
    new, others = fit_windows(old, recorded, rule)
    if isinstance(source, SwinV2Config) and not recorded:
        new = scale_offsets(new, source, rule)
    resized = tuple(f"layers.{stage}." for stage in others)
    matched.resized += [
        key
        for key in matched.values
        if ".cpb_mlp." in key and key.removeprefix("backbone.").startswith(resized)
    ]
    names = ("window_size", "pretrained_windows")
    return {name: getattr(new, name) for name in names if getattr(new, name) != getattr(old, name)}
