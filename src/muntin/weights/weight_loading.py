# SPDX-License-Identifier: Apache-2.0
"""Load weights of any ecosystem into a model: every key accounted for, all or nothing."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from muntin.errors import MuntinWarning, WeightError, shorten, unknown_name
from muntin.models.swin_v2 import SwinV2, SwinV2Config
from muntin.models.timm_backbone import TimmConfig
from muntin.ops.positions import SizeRuleName, TableInterpolation
from muntin.weights.dialects import (
    DIALECTS,
    NATIVE,
    backbone_of,
    family_name,
    head_of,
    inner_model,
    key_map,
)
from muntin.weights.head_keys import adopt_conventions
from muntin.weights.key_maps import RenamedState
from muntin.weights.source_geometry import (
    MADE_WITH,
    find_source,
    read_made_with,
    scale_offsets,
)
from muntin.weights.source_info import (
    SourceInfo,
    adopt,
    build_adopted,
    read_source_info,
    set_config,
)
from muntin.weights.state_matching import (
    MatchResult,
    describe_mismatches,
    match_state,
    model_key,
)
from muntin.weights.state_search import (
    FoundState,
    choose_classifier,
    describe_unknown,
    find_states,
    is_beside,
    is_classifier,
    name_stranger,
)
from muntin.weights.weight_files import (
    SUFFIXES,
    fetch,
    is_hub_id,
    license_of,
    read_weights,
)
from muntin.weights.window_buffers import fit_windows, read_windows


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

    def summary(self) -> str:
        """Summarize the report in one line."""
        told = f" ({self.size_evidence})" if self.size_evidence else ""
        others = f"part {self.part!r} (others: {shorten(self.others)})"
        unused = f"classifier of the file not loaded ({shorten(self.dropped, limit=2)})"
        facts = (
            (True, f"{self.dialect} weights from {self.source}: {len(self.renamed)} renamed"),
            (self.resized, f"{len(self.resized)} resized ({shorten(self.resized, limit=2)})"),
            (self.reset, f"not loaded: {shorten(self.reset, limit=2)}"),
            (self.ignored, f"{len(self.ignored)} ignored"),
            (self.others, others),
            (self.dropped, unused),
            (self.beside, f"{len(self.beside)} beside it ({shorten(self.beside, limit=2)})"),
            (self.size_rule, f"size rule set to {self.size_rule!r}{told}"),
            *((True, f"{name} set to {value!r}") for name, value in self.adopted.items()),
            (self.stated_in, f"described by {Path(self.stated_in).name} beside them"),
            (self.conventions, f"head conventions set to {self.conventions}"),
            (self.license, f"license {self.license}"),
        )
        return ", ".join(text for value, text in facts if value)


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
            "geometric", which keeps small offsets in place; default: as the size rule says. Equal
            windows are copied exactly.
        head_rows: For a head with fewer classes than the source's (22k to 1k): the source's class
            id for each class of the model, or a text file with one id per line.
        made_with: Fields of the config of the model that the weights come from, as far as no
            file says them: ``{"img_size": (256, 128)}`` for positions that are no square;
            "window_size" and "pretrained_windows" for a Swin V2.

    Returns:
        A report.

    Raises:
        WeightError: The weights cannot be read, contain NaN, or do not match: an unexpected key,
            or a missing parameter (except in the class head).

    Example:
        >>> from muntin.models.swin import SWIN_NANO_32, Swin
        >>> body = Swin(SWIN_NANO_32)
        >>> load_weights(body, {"backbone." + k: v for k, v in body.state_dict().items()}).dialect
        'muntin'
    """
    model = inner_model(model)
    backbone: Any = backbone_of(model)
    if resampling not in (None, "bicubic", "geometric"):
        raise WeightError(unknown_name("resampling", resampling, ["bicubic", "geometric"]))
    opened = open_weights(source, dialect, model, part)
    reading = _read(opened, model)
    if head_rows is not None:
        _select_rows(reading.tensors, read_head_rows(head_rows), model, opened.where)
    own_rule: SizeRuleName = getattr(backbone.config, "size_rule", "muntin")
    rule, evidence = own_rule, ""
    if opened.dialect != NATIVE:
        nesting = (
            f"{family_name(type(backbone.config))} under {'.'.join(map(str, opened.found.path))!r}"
        )
        rule, evidence = DIALECTS[opened.dialect].find_size_rule([*opened.found.state, nesting])
    theirs = find_source(backbone.config, opened.texts, made_with, reading.tensors)
    matched = match_state(model, reading, opened.dialect, rule, resampling, theirs)
    _reject_mismatches(matched, reading, opened, backbone.config)
    _reject_nonfinite(matched.values, opened.where)
    where = opened.stated.where if opened.stated else opened.where
    other = build_adopted(backbone, _stated_fields(opened), where)
    own = model.state_dict()
    with torch.no_grad():
        for key, tensor in matched.values.items():
            own[key].copy_(tensor)
    adopted = {} if other is None else adopt(backbone, other)
    if adopts := rule != own_rule and hasattr(backbone.config, "size_rule"):
        set_config(backbone, dataclasses.replace(backbone.config, size_rule=rule))
    recorded = read_windows(reading, opened.found.state)
    adopted |= _adopt_windows(backbone, matched, recorded, theirs, rule)
    report = _report(opened, reading, matched, model)
    return dataclasses.replace(
        report,
        size_rule=rule if adopts else "",
        size_evidence=evidence if adopts else "",
        adopted=adopted,
    )


def _report(
    opened: OpenedWeights, reading: RenamedState, matched: MatchResult, model: nn.Module
) -> LoadReport:
    taken = [(theirs, model_key(ours, model)) for theirs, ours in reading.pairs]
    heads = [theirs for theirs, ours in reading.pairs if ours.startswith("head.")]
    fresh = [key for key in matched.reset if key.startswith("head.")]
    dropped = heads or [key for key in reading.beside if is_classifier(key)]
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
        class_names=_class_names(opened),
        license=opened.texts.get("license", ""),
        part=opened.found.location,
        others=opened.others,
        beside=tuple(reading.beside),
        dropped=tuple(dropped) if fresh else (),
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
    reading = _read(opened, model)
    tensors = reading.tensors
    # The first convolution of a timm model is its stem.
    patches = [
        tensor
        for key, tensor in tensors.items()
        if key.endswith("patch_embed.proj.weight")
        or (isinstance(config, TimmConfig) and tensor.ndim == 4)
    ]
    first = tensors.get("tokens_to_token.attention1.norm1.weight")
    # A classifier on a layer before it, from pre-training, has no counterpart here.
    deeper = any("pre_logits" in name for name in reading.ignored)
    head = None if deeper else tensors.get("head.fc.weight")
    if not patches and first is None and not isinstance(config, TimmConfig):
        message = (
            f"weights from {opened.where} ({opened.dialect}) must be those of a "
            f"{family_name(type(config))}, but contain no patch embedding. Check model and dialect."
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


def read_head_rows(rows: Sequence[int] | str | Path) -> list[int]:
    """Read class ids, one per line, from a file; a list is returned unchanged."""
    if not isinstance(rows, (str, Path)):
        if not all(isinstance(row, int) for row in rows):
            message = f"head_rows must be integers, got {shorten(rows)}."
            raise WeightError(message)
        return list(rows)
    try:
        return [int(line) for line in Path(rows).read_text(encoding="utf-8").split()]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        message = (
            f"head_rows {str(rows)!r} must be a text file with one class id per line: {reason}."
        )
        raise WeightError(message) from error


def _select_rows(tensors: dict[str, Tensor], rows: list[int], model: nn.Module, where: str) -> None:
    own = model.state_dict().get("head.fc.weight")
    if own is not None and len(rows) != len(own):
        message = (
            f"head_rows must have one entry for each of the model's {len(own)} classes, got "
            f"{len(rows)}."
        )
        raise WeightError(message)
    for name in [name for name in tensors if name.startswith("head.fc")]:
        count = tensors[name].shape[0]
        if not rows or min(rows) < 0 or max(rows) >= count:
            message = (
                f"head_rows must be class ids from 0 to {count - 1} of {where}, got "
                f"{f'{min(rows)} to {max(rows)}' if rows else 'none'}. Check head_rows."
            )
            raise WeightError(message)
        tensors[name] = tensors[name][rows]


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
    content, texts, where = _resolve_source(source)
    stored = texts.get("dialect", "")
    if dialect == "auto" and stored in (NATIVE, *DIALECTS):
        dialect = stored
    states = find_states(content, inner_model(model), dialect, part)
    if not states:
        raise WeightError(describe_unknown(content, backbone_of(model).config, where))
    found = states[0]
    nesting = ".".join(found.path)
    stated = read_source_info(source)
    if stated is not None and stated.dialect != found.dialect:
        stated = None
    if stated is not None:
        geometry = {**stated.fields, **json.loads(texts.get(MADE_WITH, "{}"))}
        texts = {**texts, MADE_WITH: json.dumps(geometry)}
    return OpenedWeights(
        found=found,
        texts=texts,
        where=f"{where} [{nesting}]" if nesting else where,
        others=tuple(state.location for state in states[1:]),
        stated=stated,
    )


def _resolve_source(
    source: str | Path | Mapping[str, Any],
) -> tuple[Mapping[str, Any], Mapping[str, str], str]:
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
    texts.setdefault(MADE_WITH, json.dumps(read_made_with(file.path.parent)))
    if "NC" in texts.get("license", ""):
        message = f"weights from {source} have the license {texts['license']}: no commercial use."
        warnings.warn(message, MuntinWarning, stacklevel=4)
    return file.tensors, texts, str(source)


def _read(opened: OpenedWeights, model: nn.Module) -> RenamedState:
    """Rename the tensors; those that are no part of the backbone or of a head move to `beside`."""
    found, head = opened.found, head_of(model)
    if found.dialect == NATIVE:
        names = {key: key.removeprefix("backbone.") for key in found.state}
        tensors = {ours: found.state[key] for key, ours in names.items()}
        reading = RenamedState(tensors=tensors, pairs=list(names.items()))
    else:
        config: Any = backbone_of(model).config
        reading = key_map(found.dialect, config, head).read(found.state)
    beside = [key for key in reading.unknown if is_beside(key, found)]
    reading.unknown = [key for key in reading.unknown if key not in beside]
    reading.beside = [*(found.prefix + key for key in beside), *found.beside]
    if not any(ours.startswith("head.") for ours in reading.tensors):
        _adopt_classifier(reading, found, head)
    return reading


def _adopt_classifier(reading: RenamedState, found: FoundState, head: nn.Module | None) -> None:
    """Take a linear layer beside the backbone as the classifier, whatever its name is."""
    own = {} if head is None else head.state_dict()
    if head is not None and set(own) not in ({"fc.weight"}, {"fc.weight", "fc.bias"}):
        return
    used = {found.prefix + key for key in found.state} - set(reading.beside)
    linears = [layer for layer in found.linears if not used & layer.tensors.keys()]
    layer = choose_classifier(linears, len(own.get("fc.weight", ())))
    if layer is None:
        return
    reading.beside = [key for key in reading.beside if key not in layer.tensors]
    for key, name in zip(layer.tensors, ("head.fc.weight", "head.fc.bias"), strict=False):
        reading.tensors[name] = layer.tensors[key]
        reading.pairs.append((key, name))
    if "fc.bias" in own and len(layer.tensors) == 1:
        reading.tensors["head.fc.bias"] = torch.zeros(layer.num_rows)


def _stated_fields(opened: OpenedWeights) -> Mapping[str, Any]:
    """Fields of the config that are known from the dialect, or stated beside the weights."""
    always = None if opened.dialect == NATIVE else DIALECTS[opened.dialect].activation
    fields = {} if always is None else {"activation": always}
    return {**fields, **(opened.stated.fields if opened.stated else {})}


def _class_names(opened: OpenedWeights) -> tuple[str, ...]:
    stored = tuple(json.loads(opened.texts.get("class_names", "[]")))
    return stored or (opened.stated.class_names if opened.stated else ())


def _adopt_windows(
    backbone: nn.Module,
    matched: MatchResult,
    recorded: Mapping[int, tuple[int, int]],
    source: object,
    rule: SizeRuleName,
) -> dict[str, Any]:
    """Give a Swin V2 the windows of its source: of its buffers, or else of its config."""
    if not isinstance(backbone, SwinV2):
        return {}
    old = backbone.config
    new, others = fit_windows(old, recorded, rule)
    if isinstance(source, SwinV2Config) and not recorded:
        new = scale_offsets(new, source, rule)
    resized = tuple(f"layers.{stage}." for stage in others)
    matched.resized += [
        key
        for key in matched.values
        if ".cpb_mlp." in key and key.removeprefix("backbone.").startswith(resized)
    ]
    if new != old:
        set_config(backbone, new)
    names = ("window_size", "pretrained_windows")
    return {name: getattr(new, name) for name in names if getattr(new, name) != getattr(old, name)}


def _reject_mismatches(
    matched: MatchResult, reading: RenamedState, opened: OpenedWeights, config: object
) -> None:
    state = opened.found.state
    problems = describe_mismatches(matched, reading, state, opened.dialect, config)
    if problems:
        owner = name_stranger(state)
        message = (
            f"weights from {opened.where} ({opened.dialect}) do not match "
            f"{family_name(type(config))}: {problems}. "
            f"{f'They may be those of {owner}. ' if owner else ''}The model is unchanged."
        )
        raise WeightError(message)


def _reject_nonfinite(values: Mapping[str, Tensor], where: str) -> None:
    """Raise for the first tensor that is not floating-point or not finite."""
    for key, tensor in values.items():
        if key.endswith("num_batches_tracked"):  # integer counter of batch norms
            continue
        if not tensor.is_floating_point():
            message = (
                f"weights from {where} must be floating-point, got {tensor.dtype} for {key}. "
                f"Dequantize quantized weights first. The model is unchanged."
            )
            raise WeightError(message)
        # NaN and infinity propagate to the sum, which is one fast pass; as finite values may
        # overflow it too, a non-finite sum is checked elementwise.
        if not tensor.sum(dtype=torch.float32).isfinite() and not tensor.isfinite().all():
            message = (
                f"weights from {where} must be finite, got NaN or infinity in {key}. The training "
                f"run probably diverged; use an earlier checkpoint. The model is unchanged."
            )
            raise WeightError(message)
