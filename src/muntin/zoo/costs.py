# SPDX-License-Identifier: Apache-2.0
"""Multiply-accumulates (MACs) of a model, counted on the meta device."""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from muntin.configs import check_range
from muntin.errors import ConfigError, unknown_name
from muntin.features import count_stages
from muntin.heads.classification_head import build_classifier
from muntin.heads.network import Network
from muntin.shapes import Size
from muntin.weights.dialects import backbone_of
from muntin.weights.weight_files import is_here
from muntin.zoo.model_building import find_model, list_models, model_config
from muntin.zoo.model_zoo import ALIASES, MODELS, BackboneConfig, build_backbone, family_of

Part = Literal["patches", "projections", "attention", "position bias", "mlp", "head", "other"]

# The first pattern found in a module's name decides to which part its MACs belong.
_PARTS: tuple[tuple[str, Part], ...] = (
    (r"\.(patch_embed|tokens_to_token|downsample)\b", "patches"),
    (r"\.cpb_mlp\b", "position bias"),
    (r"\.mlp\b", "mlp"),
    (r"\.(qkv|proj)\b", "projections"),
    (r"\.attn\b", "attention"),
    (r"\.head\b", "head"),
)


@dataclass(frozen=True, slots=True)
class Cost:
    """Multiply-accumulates of one part of a stage (-1: of no stage) for one image."""

    stage: int
    part: Part
    macs: int


@dataclass(frozen=True, slots=True)
class Costs:
    """Multiply-accumulates of a model at an image size in pixels, by stage, then by part."""

    img_size: Size
    rows: tuple[Cost, ...]

    @property
    def macs(self) -> int:
        """Total MACs per image."""
        return sum(row.macs for row in self.rows)

    def of(self, part: Part) -> int:
        """MACs of one part, summed over stages."""
        return sum(row.macs for row in self.rows if row.part == part)


@torch.no_grad()
def count_costs(model: nn.Module | BackboneConfig, img_size: Size | int | None = None) -> Costs:
    """Count the multiply-accumulates of a forward pass of one image.

    Matrix products and convolutions are counted, those of attention and of Swin V2's position
    bias included; additions, norms and activations are not. A config is built with a classifier of
    1000 classes; a model is not modified.

    Examples:
        >>> from muntin.models.swin import SWIN_TINY
        >>> round(count_costs(SWIN_TINY).macs / 1e9, 1)
        4.5
    """
    if isinstance(model, nn.Module):
        network = copy.deepcopy(model).to("meta").eval()
    else:
        network = _build_empty(model, 1000)
    config: Any = backbone_of(network).config
    size = config.img_size if img_size is None else img_size
    height, width = (size, size) if isinstance(size, int) else size
    check_range("img_size", min(height, width), 1, 100_000)
    network.requires_grad_(False)  # the counter hangs hooks on gradients, and fails without them
    counter = FlopCounterMode(display=False)
    with counter:
        network(torch.empty(1, config.in_chans, height, width, device="meta"))
    rows: dict[tuple[int, Part], int] = {}
    for name, macs in _own_counts(counter).items():
        part: Part = next((part for pattern, part in _PARTS if re.search(pattern, name)), "other")
        key = (_stage_of(name, network), part)
        rows[key] = rows.get(key, 0) + macs
    costs = tuple(Cost(stage, part, macs) for (stage, part), macs in sorted(rows.items()) if macs)
    return Costs(img_size=(height, width), rows=costs)


def _stage_of(name: str, network: nn.Module) -> int:
    """Stage of a module, from 0; all blocks of a plain ViT form one stage."""
    backbone: Any = backbone_of(network)
    _, _, inner = name.partition(".")  # the class name of the root module
    if backbone is not network:
        above, _, inner = inner.partition(".")
        if above != "backbone":
            return -1
    stage: int = backbone.stage_of(inner)
    if not 0 < stage <= count_stages(backbone):
        return -1
    return stage - 1 if backbone.stage_unit == "stage" else 0


def _own_counts(counter: FlopCounterMode) -> dict[str, int]:
    """Multiply-accumulates of each module without those of its submodules."""
    whole = {name: sum(kinds.values()) // 2 for name, kinds in counter.get_flop_counts().items()}
    # FlopCounterMode reports inclusive counts: subtract each module's from its nearest parent.
    parts = {name: macs for name, macs in whole.items() if name.count(".") >= 2}
    own = dict(parts)
    for name, macs in parts.items():
        parents = [other for other in parts if name.startswith(f"{other}.")]
        if parents:
            own[max(parents, key=len)] -= macs
    return own | {"Global": whole["Global"] - sum(own.values())}


def count_parameters(config: BackboneConfig, num_classes: int) -> int:
    """Count the parameters of a classifier without allocating them."""
    return sum(p.numel() for p in _build_empty(config, num_classes).parameters())


def _build_empty(config: BackboneConfig, num_classes: int) -> Network:
    with torch.device("meta"):
        backbone = build_backbone(config)
        head = build_classifier(backbone, num_classes)
    return Network(backbone, head).eval()


MAX_COUNTED = 20
"""Models of timm that are counted at a time; each has to be built."""

# Counting takes seconds, so `facts.json` stores what ``benchmarks/count_models.py`` counted.
FACTS = Path(__file__).with_name("facts.json")


def describe_models(pattern: str = "*", img_size: int = 0) -> list[dict[str, Any]]:
    """Describe the models whose name or alias matches a shell pattern.

    `img_size` is the side in pixels at which MACs are counted; 0 uses each model's own. `params`
    are those with 1000 classes, `macs` those of an image; of more than `MAX_COUNTED` models of timm
    both are None. `here` tells whether published weights are on this machine.
    """
    check_range("img_size", img_size, 0, 10_000)
    names = sorted({ALIASES.get(name, name) for name in list_models(pattern)})
    if not names:
        raise ConfigError(unknown_name("model", pattern, [*MODELS, *ALIASES]))
    alias_of = {name: alias for alias, name in ALIASES.items()}
    counted = sum(name not in MODELS for name in names) <= MAX_COUNTED
    return [_describe(name, alias_of.get(name, ""), img_size, counted) for name in names]


def _describe(name: str, alias: str, img_size: int, counted: bool) -> dict[str, Any]:
    entry = find_model(name)
    config = entry.config
    facts: Mapping[str, int] = known_facts().get(name) or (count_facts(name) if counted else {})
    size, macs = config.img_size, facts.get("macs")
    if img_size and macs is not None:
        size = (img_size, img_size)
        macs = count_costs(model_config(name, {"img_size": size})).macs
    window = getattr(config, "window_size", None)
    return {
        "name": name,
        "alias": alias,
        "family": family_of(config),
        "params": facts.get("params"),
        "macs": macs,
        "gmacs": None if macs is None else round(macs / 1e9, 3),
        "img_size": list(size),
        "window": "-" if window is None else str(window).strip("()"),
        "accuracy": entry.accuracy or None,
        "source": entry.source,
        "weights": entry.weights,
        "license": entry.license,
        "here": bool(entry.weights) and is_here(entry.weights),
    }


@functools.cache
def known_facts() -> dict[str, dict[str, int]]:
    """Stored parameters and MACs of every model at its own image size."""
    facts: dict[str, dict[str, int]] = json.loads(FACTS.read_text(encoding="utf-8"))
    return facts


def count_facts(name: str) -> dict[str, int]:
    """Count the parameters (1000 classes) and MACs of a model."""
    config = find_model(name).config
    return {"params": count_parameters(config, 1000), "macs": count_costs(config).macs}
