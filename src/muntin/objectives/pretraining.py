# SPDX-License-Identifier: Apache-2.0
"""The table of ways to learn from images without labels, and the choice between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from muntin.configs import replace
from muntin.data.transforms import Preprocessing
from muntin.errors import ConfigError, unknown_name
from muntin.features import Backbone
from muntin.heads.head_table import PretrainingConfig
from muntin.heads.mae_head import MAEConfig
from muntin.heads.simmim_head import SimMIMConfig
from muntin.heads.views_head import ViewsConfig
from muntin.objectives.objective import LossObjective
from muntin.objectives.reconstruction_objective import MaskedReconstruction
from muntin.objectives.views_objective import TwoViews
from muntin.ops.masks import Mask, draw_masks, draw_quarters, draw_units
from muntin.shapes import Size

Model = Any
"""Config of a backbone, of any family."""

BuildObjective = Callable[[Any, Backbone, Preprocessing], LossObjective]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretraining:
    """One way to learn from images without labels.

    Attributes:
        name: The kind of its head's config.
        families: Models that it suits, by the names of their classes; empty for all.
        suits: Why it is the one for these, as a clause.
        default_head: Config of the head for a model.
        fit_model: Changes fields of a model that the head needs otherwise.
        build_objective: From head config, backbone and preprocessing to the objective.
    """

    name: str
    families: tuple[str, ...]
    suits: str
    default_head: Callable[[Model], PretrainingConfig]
    fit_model: Callable[[Model], Model]
    build_objective: BuildObjective


@dataclass(frozen=True, slots=True)
class PretrainingChoice:
    """A way to pretrain, and why it was chosen; empty if it was asked for."""

    value: Pretraining
    notes: tuple[str, ...] = ()


def _size_decoder(model: Model) -> MAEConfig:
    """The published decoder for models of published widths, a smaller one for smaller models."""
    depths = getattr(model, "depths", ())
    width = model.embed_dim * 2 ** max(len(depths) - 1, 0)
    ratio = 0.6 if depths else 0.75  # Hiera's paper, and MAE's
    if width >= 768:
        return MAEConfig(mask_ratio=ratio)
    heads = max(1, round(width * 2 / 3 / 32))
    depth = max(1, (sum(depths) or model.depth) // 6)
    return MAEConfig(mask_ratio=ratio, dim=32 * heads, depth=depth, num_heads=heads)


def _norm_maps(model: Model) -> Model:
    """The layer of the head reads the normalised map of the last stage or block."""
    fields = {"pool_norm": "before"} if hasattr(model, "pool_norm") else {}
    return replace(model, {"out_norm": "last", **fields})


def _norm_tokens(model: Model) -> Model:
    """The decoder reads normalised tokens, or normalises fused maps itself."""
    fields = {"pool_norm": "before"} if hasattr(model, "pool_norm") else {"out_norm": "none"}
    return replace(model, fields)


def _mask_patches(
    config: MAEConfig, backbone: Backbone, preprocessing: Preprocessing
) -> MaskedReconstruction:
    def draw(count: int, size: Size, generator: torch.Generator) -> Mask:
        rows, columns = backbone.mask_grid(size)
        return Mask(draw_masks(count, rows * columns, config.mask_ratio, generator))

    return MaskedReconstruction(preprocessing, draw)


def _choose_units(model: Model) -> SimMIMConfig:
    """Uniform masking of a Swin whose images have at least 4 x 4 units, as one of 256 pixels has.

    Otherwise units of 32 pixels as published, smaller ones in images that have fewer than 4 x 4.
    """
    patch, side = model.patch_size, min(model.img_size)
    stages = len(getattr(model, "depths", ()))
    if stages:
        stride = patch * 2 ** (stages - 1)
        if stride > patch and side >= 2 * stride and not any(s % stride for s in model.img_size):
            heads = min(8, max(1, round(model.embed_dim * stride / patch / 3 / 32)))
            return SimMIMConfig(
                uniform=True, mask_ratio=0.25, mask_unit=stride // 2, dim=32 * heads,
                num_heads=heads,
            )  # fmt: skip
    fitting = [k for k in range(1, 33) if patch * k <= 32 and side // (patch * k) >= 4]
    return SimMIMConfig(mask_unit=patch * max(fitting, default=1))


def _mask_units(
    config: SimMIMConfig, backbone: Backbone, preprocessing: Preprocessing
) -> MaskedReconstruction:
    step = config.mask_unit // backbone.mask_px
    draw_mask = draw_quarters if config.uniform else draw_units

    def draw(count: int, size: Size, generator: torch.Generator) -> Mask:
        return draw_mask(count, backbone.mask_grid(size), step, config.mask_ratio, generator)

    return MaskedReconstruction(preprocessing, draw)


PRETRAINING: Mapping[str, Pretraining] = {
    "mae": Pretraining(
        name="mae",
        families=("ViT", "Hiera"),
        suits="this model computes only the patches that are seen",
        default_head=_size_decoder,
        fit_model=_norm_tokens,
        build_objective=_mask_patches,
    ),
    "simmim": Pretraining(
        name="simmim",
        families=("Swin", "SwinV2", "ViT"),
        suits="windows need a token at every place",
        default_head=_choose_units,
        fit_model=_norm_maps,
        build_objective=_mask_units,
    ),
    "views": Pretraining(
        name="views",
        families=(),
        suits="this model cannot be masked",
        default_head=lambda model: ViewsConfig(),
        fit_model=lambda model: model,
        build_objective=lambda config, backbone, preprocessing: TwoViews(preprocessing, config),
    ),
}


def choose_pretraining(name: str, model: Model) -> PretrainingChoice:
    """Find the way to pretrain a model by its name, or the one that suits it if "auto".

    Raises:
        ConfigError: The name is unknown, or the model cannot be pretrained so.
    """
    if name != "auto" and name not in PRETRAINING:
        raise ConfigError(unknown_name("objective", name, ["auto", *PRETRAINING]))
    family = type(model).__name__.removesuffix("Config")
    suitable = [row for row in PRETRAINING.values() if family in row.families or not row.families]
    if name == "auto":
        first = suitable[0]
        return PretrainingChoice(first, (f"objective: {first.name} ({first.suits})",))
    row = PRETRAINING[name]
    if row not in suitable:
        message = (
            f"objective {name!r} must be one that suits the model's family {family!r} "
            f"({', '.join(one.name for one in suitable)}). Choose one of these, or a model of "
            f"{', '.join(row.families)}."
        )
        raise ConfigError(message)
    return PretrainingChoice(row)
