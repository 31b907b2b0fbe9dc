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
from muntin.models.timm_backbone import TimmConfig
from muntin.ops.positions import SizeRuleName
from muntin.weights.dialects import (
    DIALECTS,
    NATIVE,
    backbone_of,
    detect,
    family_name,
    head_of,
    key_map,
)
from muntin.weights.head_keys import adopt_conventions
from muntin.weights.head_rows import read_head_rows, select_rows
from muntin.weights.key_maps import RenamedState
from muntin.weights.parameter_resizing import TableInterpolation
from muntin.weights.source_facts import (
    SIZES,
    SourceFacts,
    adopt,
    build_adopted,
    read_source_facts,
)
from muntin.weights.source_geometry import (
    MADE_WITH,
    find_source,
    read_made_with,
    scale_offsets,
)
from muntin.weights.state_matching import (
    MatchResult,
    describe_mismatches,
    match_state,
    model_key,
)
from muntin.weights.weight_files import (
    SUFFIXES,
    fetch,
    is_hub_id,
    license_of,
    read_weights,
    unwrap,
)
from muntin.weights.window_buffers import read_windows

# Prefixes of muntin's names of a timm model.
_OWN = ("backbone.net.", "net.", "head.")
# Prefix of the backbone in torchvision's detectors.
_BODY = "backbone.body."


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
        adopted: Values of other fields of the config adopted from it, or from files beside it.
        class_names: Those in the file or beside it, if any, as for `license`.
    """

    dialect: str
    source: str
    renamed: tuple[tuple[str, str], ...]
    resized: tuple[str, ...]
    reset: tuple[str, ...]
    ignored: tuple[str, ...]
    size_rule: str
    conventions: str = ""
    adopted: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    license: str = ""
    size_evidence: str = ""

    def summary(self) -> str:
        """Summarize the report in one line."""
        parts = [f"{self.dialect} weights from {self.source}: {len(self.renamed)} renamed"]
        if self.resized:
            parts.append(f"{len(self.resized)} resized ({shorten(self.resized, limit=2)})")
        if self.reset:
            parts.append(f"not loaded: {shorten(self.reset, limit=2)}")
        if self.ignored:
            parts.append(f"{len(self.ignored)} ignored")
        if self.size_rule:
            told = f" ({self.size_evidence})" if self.size_evidence else ""
            parts.append(f"size rule set to {self.size_rule!r}{told}")
        parts += [f"{name} set to {value!r}" for name, value in self.adopted.items()]
        if self.conventions:
            parts.append(f"head conventions set to {self.conventions}")
        if self.license:
            parts.append(f"license {self.license}")
        return ", ".join(parts)


def load_weights(
    model: nn.Module,
    source: str | Path | Mapping[str, Any] | OpenedWeights,
    dialect: str = "auto",
    *,
    resampling: TableInterpolation = "bicubic",
    head_rows: Sequence[int] | str | Path | None = None,
    made_with: Mapping[str, Any] | None = None,
) -> LoadReport:
    """Load weights from any supported ecosystem into a model.

    The model adopts the ecosystem's size rule (padding policy), so that outputs equal theirs at
    every size that they accept; a detector also adopts its conventions for anchors and RoI
    pooling. After an error, the model is unchanged.

    Args:
        model: A network or a backbone.
        source: A file, a folder with one, a state dict, a training checkpoint that contains one, or
            a hub id such as "timm/swin_tiny_patch4_window7_224.ms_in1k". The network is not
            used if the path exists.
        dialect: "auto", or one of "muntin", "microsoft", "timm", "torchvision", "transformers",
            "openmmlab", "detectron2", "google".
        resampling: How relative position bias tables of another window are resized: "bicubic", or
            "geometric", which keeps small offsets in place. Equal windows are copied exactly.
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
    backbone: Any = backbone_of(model)
    if resampling not in ("bicubic", "geometric"):
        raise WeightError(unknown_name("resampling", resampling, ["bicubic", "geometric"]))
    opened = open_weights(source, dialect, backbone.config)
    reading = _read(opened, backbone.config, head_of(model))
    if head_rows is not None:
        select_rows(reading.tensors, read_head_rows(head_rows), model, opened.where)
    own_rule: SizeRuleName = getattr(backbone.config, "size_rule", "muntin")
    rule, evidence, stated = own_rule, "", _stated_fields(opened)
    if opened.dialect != NATIVE:
        rule, evidence = DIALECTS[opened.dialect].find_size_rule(opened.state)
    recorded, stretched = read_windows(backbone.config, reading, opened.state, rule)
    source = find_source(backbone.config, opened.texts, made_with, reading.tensors)
    matched = match_state(model, reading, opened.dialect, rule, resampling, source)
    _reject_mismatches(matched, reading, opened, backbone.config)
    _reject_nonfinite(matched.values, opened.where)
    where = getattr(opened.facts, "where", opened.where)
    other = build_adopted(backbone, {**stated, **(recorded or {})}, where)
    own = model.state_dict()
    with torch.no_grad():
        for key, tensor in matched.values.items():
            own[key].copy_(tensor)
    adopted = {} if other is None else adopt(backbone, other)
    adopts = rule != own_rule and hasattr(backbone.config, "size_rule")
    if adopts:
        backbone.config = dataclasses.replace(backbone.config, size_rule=rule)
    told = recorded is not None or "pretrained_windows" in stated
    windows = () if told else scale_offsets(source, backbone.config)
    if windows:
        backbone.set_pretrained_windows(windows)
        adopted["pretrained_windows"] = windows
    taken = [(theirs, model_key(ours, model)) for theirs, ours in reading.pairs]
    return LoadReport(
        dialect=opened.dialect,
        source=opened.where,
        renamed=tuple(pair for pair in taken if pair[0] != pair[1] and pair[1] in matched.values),
        resized=(*matched.resized, *(model_key(name, model) for name in stretched)),
        reset=tuple(matched.reset),
        ignored=tuple(matched.ignored),
        size_rule=rule if adopts else "",
        size_evidence=evidence if adopts else "",
        adopted=adopted,
        conventions=adopt_conventions(head_of(model), opened.dialect) if matched.has_head else "",
        class_names=_class_names(opened),
        license=opened.texts.get("license", ""),
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


def inspect_weights(opened: OpenedWeights, config: object) -> WeightInfo:
    """Infer what model must be built to load weights without resizing."""
    reading = _read(opened, config)
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


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedWeights:
    """Weights whose dialect is known, with metadata and source, to be loaded once or more.

    `facts` are what files beside them state, if these are of the same dialect.
    """

    state: Mapping[str, Tensor]
    texts: Mapping[str, str]
    where: str
    dialect: str
    facts: SourceFacts | None = None


def open_weights(
    source: str | Path | Mapping[str, Any] | OpenedWeights, dialect: str, config: object
) -> OpenedWeights:
    """Read weights and detect their dialect; arguments as in `load_weights`."""
    if isinstance(source, OpenedWeights):
        return source
    if dialect not in ("auto", NATIVE, *DIALECTS):
        raise WeightError(unknown_name("dialect", dialect, ["auto", NATIVE, *DIALECTS]))
    state, texts, where = _resolve_source(source)
    if dialect == "auto":
        stored = texts.get("dialect", "")
        if stored in (NATIVE, *DIALECTS):
            dialect = stored
        elif isinstance(config, TimmConfig):
            foreign = "torchvision" if any(key.startswith(_BODY) for key in state) else "timm"
            dialect = NATIVE if all(key.startswith(_OWN) for key in state) else foreign
        else:
            dialect = detect(state, where=where)
    if dialect != NATIVE:
        state = dict(DIALECTS[dialect].normalise(state))
    beside = read_source_facts(source)
    return OpenedWeights(
        state=state,
        texts=texts,
        where=where,
        dialect=dialect,
        facts=beside if beside is not None and beside.dialect == dialect else None,
    )


def _resolve_source(
    source: str | Path | Mapping[str, Any],
) -> tuple[dict[str, Tensor], Mapping[str, str], str]:
    if not isinstance(source, Mapping | str | Path):
        message = (
            f"weights must be a file, a folder, a hub id or a state dict, got "
            f"{type(source).__name__}."
        )
        raise WeightError(message)
    if isinstance(source, Mapping):
        state, nesting = unwrap(source, where="the state dict")
        return state, {}, f"a state dict [{nesting}]" if nesting else "a state dict"
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
    state, nesting = unwrap(file.tensors, where=repr(str(file.path)))
    return state, texts, f"{source} [{nesting}]" if nesting else str(source)


def _read(opened: OpenedWeights, config: object, head: nn.Module | None = None) -> RenamedState:
    if opened.dialect != NATIVE:
        return key_map(opened.dialect, config, head).read(opened.state)
    names = {key: key.removeprefix("backbone.") for key in opened.state}
    return RenamedState(
        tensors={ours: opened.state[key] for key, ours in names.items()}, pairs=list(names.items())
    )


def _stated_fields(opened: OpenedWeights) -> Mapping[str, Any]:
    """Fields of the config that are known from the dialect, or stated beside the weights."""
    always = None if opened.dialect == NATIVE else DIALECTS[opened.dialect].activation
    fields = {} if always is None else {"activation": always}
    beside = opened.facts.fields if opened.facts else {}
    return fields | {name: beside[name] for name in beside if name not in SIZES}


def _class_names(opened: OpenedWeights) -> tuple[str, ...]:
    stored = tuple(json.loads(opened.texts.get("class_names", "[]")))
    return stored or (opened.facts.class_names if opened.facts else ())


def _reject_mismatches(
    matched: MatchResult, reading: RenamedState, opened: OpenedWeights, config: object
) -> None:
    problems = describe_mismatches(matched, reading, opened.state, opened.dialect, config)
    if problems:
        message = (
            f"weights from {opened.where} ({opened.dialect}) do not match "
            f"{family_name(type(config))}: {problems}. The model is unchanged."
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
