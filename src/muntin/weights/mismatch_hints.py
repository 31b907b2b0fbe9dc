# SPDX-License-Identifier: Apache-2.0
"""Why weights do not fit a model: what they differ in, compared and tried before it is advised.

The fields of the config are inferred from the names and shapes of the weights. Where they differ
from the model's, a model with those fields is built without memory and matched again: only fields
that make the weights fit are advised. What the weights have and no field gives is named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from muntin import configs
from muntin.errors import ConfigError, ShapeError, WeightError, shorten
from muntin.models.vit import ViTConfig
from muntin.weights.dialects import family_name
from muntin.weights.inferred_fields import infer_fields
from muntin.weights.key_maps import RenamedState, first_key
from muntin.weights.opened_weights import OpenedWeights, rename_state
from muntin.weights.parameter_resizing import TOKENS
from muntin.weights.state_matching import MatchResult, match_state
from muntin.weights.state_search import name_family, name_stranger

# Parts that no family here has, by their names in files.
_LACKING = {
    r"rope|bias_mask|storage_tokens|(^|\.)layer\.\d+\.attention\.q_": "rotary positions, as DINOv3",
    r"patch_embed\.(backbone|stem|conv|proj\.\d)|(^|\.)(conv_)?stem\.": "a convolutional stem",
    r"(^|\.)patch_embed\.\d|(channel|band)_embed": "an embedding for each group of channels",
    r"temporal|(time|frame)_embed": "positions in time",
    r"attn\.((q|k|qk)_)?norm\.|inner_attn_ln": "norms inside the attention",
    r"mlp\.(norm|ffn_ln)\.": "a norm inside the MLP",
    r"(^|\.)(norm_pre|ln_pre|pre_layrnorm|pre_norm)\.": "a norm before the blocks, as CLIP",
    r"attn_pool|map_head|(^|\.)head\.probe": "pooling by attention",
    r"experts?\.|\bgate\.|_moe_": "a mixture of experts",
    r"lora_|adapter": "adapters, which must be merged first",
    r"_tokens?$|class_embedding$": "learned tokens beside class, distillation and register tokens",
}

_OF_DECODER = re.compile(r"head\.(decoder|fusion|encoder_norm)\.")


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Weights that were matched to a model; `source` is what `find_source` made of `made_with`."""

    result: MatchResult
    reading: RenamedState
    opened: OpenedWeights
    backbone: Any
    source: Any
    made_with: Mapping[str, Any]

    def retry(self, other: nn.Module) -> tuple[RenamedState, MatchResult]:
        """Read and match them for another backbone."""
        again = rename_state(self.opened, other)
        dialect = self.opened.dialect
        return again, match_state(other, again, dialect, "muntin", "bicubic", self.source)


def reject_mismatches(mismatch: Mismatch) -> None:
    """Raise `WeightError` with all mismatches and their likely cause, if there are any."""
    problems = _list_problems(mismatch.reading, mismatch.result)
    if not problems:
        return
    opened, cause = mismatch.opened, _find_cause(mismatch)
    owner = name_stranger(opened.state)
    message = (
        f"weights from {opened.where} ({opened.dialect}) do not match "
        f"{family_name(type(mismatch.backbone.config))}: {problems}. Likely cause: {cause}. "
        f"{f'They may be those of {owner}. ' if owner else ''}The model is unchanged."
    )
    raise WeightError(message)


def _list_problems(reading: RenamedState, result: MatchResult) -> str:
    shapes = [f"{key} {text}" for key, text in result.mismatched.items()]
    return "; ".join(
        f"{what}: {shorten(names)}"
        for what, names in (
            ("unexpected keys", result.unexpected),
            ("missing parameters", result.missing),
            ("missing parts of a joined parameter", reading.missing),
            ("parameters claimed by two keys", reading.duplicates),
            ("size mismatches", shapes),
        )
        if names
    )


def _find_cause(mismatch: Mismatch) -> str:
    config, reading, result = mismatch.backbone.config, mismatch.reading, mismatch.result
    opened, family = mismatch.opened, family_name(type(config))
    if decoder := _find_decoder(mismatch):
        return decoder
    other = name_family(opened.state, len(result.unexpected))
    if other not in ("", f"a {family} in the dialect {opened.dialect!r}"):
        return f"these are weights of {other}"
    if lacking := _find_lacking(mismatch):
        return (
            f"the weights have {' and '.join(lacking)}, which no {family} here has; a model named "
            f"timm:... may (muntin models 'timm:*')"
        )
    fields = infer_fields(config, reading)
    left = _remaining(mismatch, fields) if fields else ""
    if fields and not left:
        return _advise(mismatch, _drop_needless(mismatch, fields))
    if reading.duplicates:
        return "the file mixes two naming schemes, or two models"
    if 2 * len(result.unexpected) > len(opened.state):
        return "these are weights of another kind of model"
    causes = list(dict.fromkeys(cause.rstrip(".") for cause in result.causes))
    if fields:
        causes.append(
            f"the weights are of a model with {_write(fields)}, and then there remain {left}"
        )
    return "; ".join(causes) or _sum_up(result)


def _find_decoder(mismatch: Mismatch) -> str:
    """What the weights say of their decoder of pretraining, if nothing but the head differs."""
    result, ours = mismatch.result, dict(mismatch.reading.pairs)
    names = [*result.mismatched, *result.missing, *(ours.get(k, k) for k in result.unexpected)]
    names = [name for name in names if name != "head.decoder.pos_embed"]
    first = mismatch.reading.tensors.get("head.decoder.embed.weight")
    if first is None or not names or not all(map(_OF_DECODER.match, names)):
        return ""
    blocks, poolings = (
        len({name.split(".")[place] for name in ours.values() if name.startswith(part)})
        for place, part in ((3, "head.decoder.blocks."), (2, "head.fusion."))
    )
    if poolings and poolings != mismatch.backbone.config.pooled_stages:
        return f"the weights were pretrained with pooled_stages={poolings}; build the model with it"
    stated = mismatch.opened.stated
    heads = (
        f"head.num_heads={stated.decoder_heads}, as {stated.where} says"
        if stated is not None and stated.decoder_heads
        else "head.num_heads, which they do not say (published ones have 32 channels each)"
    )
    return (
        f"the decoder of the weights has head.dim={len(first)} and head.depth={blocks}; set these, "
        f"and {heads}"
    )


def _find_lacking(mismatch: Mismatch) -> list[str]:
    found: list[str] = []
    for pattern, words in _LACKING.items():
        key = first_key(mismatch.reading.unknown, pattern)
        if key and not any(f"({key})" in known for known in found):
            found.append(f"{words} ({key})")
    kernel = mismatch.reading.tensors.get("patch_embed.proj.weight")
    if kernel is not None and kernel.ndim == 5:
        found.append(f"patches of {kernel.shape[2]} frames (a kernel of {tuple(kernel.shape)})")
    return found or _find_nameless_tokens(mismatch) or _find_lacking_norms(mismatch)


def _find_nameless_tokens(mismatch: Mismatch) -> list[str]:
    """Positions of tokens that are not in the file."""
    config, tensors = mismatch.backbone.config, mismatch.reading.tensors
    if not (isinstance(config, ViTConfig) and "pos_embed" in tensors and mismatch.result.causes):
        return []
    count = sum(tensors[name].shape[1] for name in TOKENS if name in tensors)
    rest = tensors["pos_embed"].shape[1] - config.grid[0] * config.grid[1]
    if not count < rest <= count + 8:
        return []
    return [f"positions for {rest} tokens before the patches, with {count} such tokens"]


def _find_lacking_norms(mismatch: Mismatch) -> list[str]:
    """What norms of another kind leave out, if nothing else is amiss."""
    result, missing = mismatch.result, [*mismatch.result.missing]
    if result.unexpected or result.mismatched or not missing:
        return []
    if all(re.search(r"norm\w*\.bias$", key) for key in missing):
        return [f"norms without bias, as RMSNorm (no {missing[0]})"]
    last = {key.removeprefix("backbone.") for key in missing} == {"norm.weight", "norm.bias"}
    behind = last and isinstance(mismatch.backbone.config, ViTConfig)
    return [f"a last block without a norm behind it (no {missing[0]})"] if behind else []


def _remaining(mismatch: Mismatch, fields: Mapping[str, Any]) -> str:
    """Problems that a model with these fields has; empty if the weights fit."""
    family: Any = type(mismatch.backbone)
    try:
        with torch.device("meta"):
            other = family(configs.replace(mismatch.backbone.config, fields))
        reading, result = mismatch.retry(other)
    except (ConfigError, ShapeError, WeightError) as error:
        return str(error)
    head = reading.tensors.get("head.fc.weight")
    if head is not None and "head.fc.weight" in mismatch.result.mismatched:
        wide = head.shape[1] * other.spec.embed_parts
        if wide != other.embed_channels:
            return f"a classifier of {wide} channels"
    if result.reset and mismatch.result.has_head:
        return f"no values for {shorten(result.reset)}"
    return _list_problems(reading, result)


def _drop_needless(mismatch: Mismatch, fields: dict[str, Any]) -> dict[str, Any]:
    # What the shapes do not tell cannot be tried either.
    for name in [name for name in fields if name not in ("num_heads", "pool", "out_indices")]:
        fewer = {other: value for other, value in fields.items() if other != name}
        if fewer and not _remaining(mismatch, fewer):
            fields = fewer
    return fields


def _advise(mismatch: Mismatch, fields: Mapping[str, Any]) -> str:
    has = {name: getattr(mismatch.backbone.config, name) for name in fields}
    said = {name: mismatch.made_with.get(name) for name in fields}
    if all((tuple(x) if isinstance(x, list) else x) == fields[name] for name, x in said.items()):
        return (
            f"weights made with {_write(fields)} are not resized to {_write(has)}; keep "
            f"{', '.join(fields)}, or create a model without these weights"
        )
    note = ""
    if fields.get("pool") in ("token", "mean"):
        note = " (they do not say what is pooled; this is usual for their norms)"
    elif isinstance(fields.get("num_heads"), int):
        note = " (they do not say num_heads; this many are as wide as the model's)"
    return (
        f"the model has {_write(has)}; build it with {_write(fields)}, then the weights fit{note}"
    )


def _write(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in fields.items())


def _sum_up(result: MatchResult) -> str:
    if result.unexpected:
        return "this model has no place for these tensors, whatever its fields"
    if result.mismatched:
        return "these shapes are those of another variant"
    return "the file is incomplete: it has no values for these parameters"
