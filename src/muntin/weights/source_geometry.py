# SPDX-License-Identifier: Apache-2.0
"""Resize weights by what is known of the model that they were made with.

A state dict does not say on which grid its positions lie: 64 of them may be 8 x 8 or 4 x 16. It is
said by the caller, by metadata of the file, or by the config.json beside it: of a run, of
transformers, or of timm. Where none does, a grid is a square, or 4:3 in a ViTPose, as all published
ones are; if the proportions of the model suggest another grid, or no such grid has this number of
positions, it is asked for.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from muntin.configs import replace
from muntin.errors import ConfigError, ShapeError, unknown_name
from muntin.models.swin_v2 import SwinV2Config
from muntin.models.timm_backbone import TimmBackbone, TimmConfig
from muntin.ops.positions import (
    Resampling,
    SizeRuleName,
    TableInterpolation,
    resample_grid,
    resample_line,
    resample_offsets,
)
from muntin.shapes import Size
from muntin.untrusted import parse_json
from muntin.weights.dialects import DIALECTS, NATIVE
from muntin.weights.parameter_resizing import adapt_channels, embed_table, resample_patches
from muntin.weights.window_buffers import built_window

MADE_WITH = "made_with"
"""Key of the metadata that holds these fields, as JSON."""
_FIELDS = ("img_size", "patch_size", "window_size", "pretrained_windows")


_ADVICE = (
    f"say which image size the weights were made for: load_weights(..., "
    f'{MADE_WITH}={{"img_size": (H, W)}}), or write a file that says it: muntin convert IN OUT '
    f"--to muntin --set img_size=H,W"
)


def find_source(
    config: Any,  # noqa: ANN401 (of any family)
    texts: Mapping[str, str],
    made_with: Mapping[str, Any] | None,
    tensors: Mapping[str, Tensor],
) -> Any:  # noqa: ANN401
    """Return the config that the weights were made with; None if their `img_size` is not known.

    `made_with` is what the caller says, `texts` what files say, `tensors` the renamed weights.
    Windows that the caller says are those at the model's own `img_size`, unless he says that too.
    """
    if made_with is not None:
        _reject_useless(config, made_with)
    fields = {**parse_json(texts.get(MADE_WITH, "{}")), **(made_with or {})}
    kernel = tensors.get("patch_embed.proj.weight")
    if kernel is not None and kernel.ndim == 4:
        fields["patch_size"] = kernel.shape[-1]
    known = {key: fields[key] for key in _FIELDS if key in fields and hasattr(config, key)}
    if "img_size" not in known and not (made_with and {*_FIELDS[2:]} & known.keys()):
        return None
    try:
        source = replace(config, known, where=MADE_WITH)
    except ConfigError:
        if made_with:
            raise
        return None
    # A file beside the weights may describe another model, or the size of its pre-training.
    return source if made_with or _agrees(source, tensors) else None


def _reject_useless(config: Any, made_with: Mapping[str, Any]) -> None:  # noqa: ANN401
    """Raise for fields that have no effect; a whole config is accepted."""
    every = [field.name for field in dataclasses.fields(config)]
    if set(every) <= made_with.keys():
        return
    names = [name for name in _FIELDS if name in every]
    for key in made_with:
        if key not in names:
            raise ConfigError(unknown_name(f"field of {MADE_WITH}", key, names))


def _agrees(source: Any, tensors: Mapping[str, Tensor]) -> bool:  # noqa: ANN401
    """Whether the numbers of positions and offsets are those of the grid, and of a few tokens."""
    for name, tensor in tensors.items():
        if name in _POSITIONS and not 0 <= tensor.shape[1] - math.prod(source.grid) <= 2:
            return False
        if name not in (*_POSITIONS, _DECODER) and is_on_grid(name):
            return len(tensor) - 3 == _count_offsets(source.grid)
    return True


def read_as_timm(
    backbone: TimmBackbone, state: Mapping[str, Tensor], source: TimmConfig | None
) -> dict[str, Tensor]:
    """Convert a state dict, with timm's names or ours, to what timm makes of it for this model."""
    prefix = next((p for p in ("backbone.net.", "net.") if any(k.startswith(p) for k in state)), "")
    inside = {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
    own = backbone.net.state_dict()
    if prefix and all(key in own and own[key].shape == inside[key].shape for key in inside):
        return dict(state)
    adapted = backbone.adapt_state(inside, None if source is None else source.img_size)
    rest = {key: tensor for key, tensor in state.items() if not key.startswith(prefix)}
    return rest | {prefix + key: tensor for key, tensor in adapted.items()}


@dataclass(frozen=True, slots=True)
class Resizer:
    """Resizes tensors for a model; `source` is the config that they were made with, or None."""

    config: Any
    source: Any
    dialect: str
    positions: Resampling
    method: TableInterpolation

    def fits(self, name: str, tensor: Tensor, own: Tensor) -> bool:
        """Whether a tensor needs no resizing: one with as many positions may have another grid."""
        moved = (
            is_on_grid(name) and self.source is not None and self.source.grid != self.config.grid
        )
        return tensor.shape == own.shape and not moved

    def resize(self, name: str, tensor: Tensor, own: Tensor) -> Tensor:
        """Return the tensor resized for the model, or unchanged if it cannot be resized."""
        if name.endswith(_TABLE) and tensor.shape[1:] == own.shape[1:]:
            if name.startswith("blocks."):  # a ViT's table has three more rows for the class token
                what = f"a table of {len(tensor)} rows, 3 of them for the class token"
                old = self._find_grid(what, len(tensor) - 3, _count_offsets)
                grid = self.config.grid
                patches = resample_offsets(tensor[:-3], old=old, new=grid, how=self.method)
                return torch.cat([patches, tensor[-3:]])
            return self._resize_windows(tensor, int(name.split(".")[1]))
        if name in (*_POSITIONS, _DECODER) and tensor.shape[2:] == own.shape[2:]:
            # Places of a decoder may be coarser than the patches.
            step = max(1, round((math.prod(self.config.grid) / own.shape[1]) ** 0.5))
            grid, count = _coarser(self.config.grid, step), partial(_count_coarser, step)
            prefix = own.shape[1] - math.prod(grid)
            what = f"{tensor.shape[1]} positions, {prefix} of them of other tokens"
            old = _coarser(self._find_grid(what, tensor.shape[1] - prefix, count), step)
            return resample_grid(tensor, old=old, new=grid, num_prefix=prefix, how=self.positions)
        if name.endswith((".rel_pos_h", ".rel_pos_w")):
            return resample_line(tensor, own.shape[0])
        if name == "patch_embed.proj.weight" and tensor.ndim == own.ndim:
            tensor = adapt_channels(tensor, own.shape[1])
            size = (own.shape[2], own.shape[3])
            return tensor if tensor.shape[0] != own.shape[0] else resample_patches(tensor, size)
        if name.startswith("net.") and name.endswith("pos_embed"):
            message = (
                f"timm does not resize positions of {tuple(tensor.shape)} to {tuple(own.shape)}. "
                f"Build the model with the img_size of the weights; {_ADVICE}"
            )
            raise ShapeError(message)
        if name.startswith("net.") and own.ndim == 4 and own.shape[1] == self.config.in_chans:
            same = tensor.shape[:1] + tensor.shape[2:] == own.shape[:1] + own.shape[2:]
            return adapt_channels(tensor, own.shape[1]) if same else tensor  # timm's stem
        return tensor

    def _resize_windows(self, tensor: Tensor, stage: int) -> Tensor:
        side = self.config.windows[stage]
        rule = "" if self.dialect == NATIVE else DIALECTS[self.dialect].built_rule
        if rule:
            built = built_window(self.config, stage, rule)
            if tensor.shape[0] == _count_offsets(built):
                return embed_table(tensor, window=built, full=(side, side))
        old = (math.isqrt(tensor.shape[0]) + 1) // 2
        if _count_offsets((old, old)) != tensor.shape[0]:
            message = (
                f"table must have (2M-1)^2 rows for a square window of side M, got "
                f"{tensor.shape[0]}. Build the model with the window size of the weights."
            )
            raise ShapeError(message)
        return resample_offsets(tensor, old=(old, old), new=(side, side), how=self.method)

    def _find_grid(self, what: str, count: int, count_of: Callable[[Size], int]) -> Size:
        """Find the grid of the source by its number of positions, or of their offsets."""
        if self.source is not None:
            grid: Size = self.source.grid
            if count_of(grid) == count:
                return grid
            message = (
                f"weights made with img_size={self.source.img_size} must be for a grid of {grid}, "
                f"got {what}. Check {MADE_WITH}"
            )
            raise ShapeError(message)
        usual = [(4, 3)] if getattr(self.config, "shared_position", False) else []
        published = (_scale(shape, count, count_of) for shape in (*usual, (1, 1)))
        first = next((grid for grid in published if grid), None)
        other = _scale(self.config.grid, count, count_of)
        if first is not None and other in (None, first):
            return first
        grids = " or ".join(f"{rows} x {columns}" for rows, columns in filter(None, (first, other)))
        message = (
            f"the grid of the patches must be known, got {what}"
            f"{f', which may be {grids}' if grids else ''}; {_ADVICE}"
        )
        raise ShapeError(message)


_POSITIONS = ("pos_embed", "absolute_pos_embed")
_DECODER = "head.decoder.pos_embed"
_TABLE = ".relative_position_bias_table"


def _coarser(grid: Size, step: int) -> Size:
    return grid[0] // step, grid[1] // step


def _count_coarser(step: int, grid: Size) -> int:
    return math.prod(_coarser(grid, step))


def is_on_grid(name: str) -> bool:
    """Whether a parameter has an entry for each patch of the grid, or for each of its offsets."""
    name = name.removeprefix("backbone.")
    return name in (*_POSITIONS, _DECODER) or (name.startswith("blocks.") and name.endswith(_TABLE))


def _count_offsets(grid: Size) -> int:
    return (2 * grid[0] - 1) * (2 * grid[1] - 1)


def _scale(shape: Size, count: int, count_of: Callable[[Size], int]) -> Size | None:
    """The grid with the proportions of `shape` that has `count` positions; None if none has."""
    rows, columns = (side // math.gcd(*shape) for side in shape)
    for factor in range(1, math.isqrt(max(count, 0)) + 1):
        grid = (factor * rows, factor * columns)
        if count_of(grid) == count:
            return grid
    return None


def scale_offsets(config: SwinV2Config, source: SwinV2Config, rule: SizeRuleName) -> SwinV2Config:
    """Return the config with which a Swin V2 computes the position biases of its source.

    A bias is a function of offsets relative to a window: that of the source, whatever the window
    of this model is.
    """
    theirs, ours = (
        [
            (fixed, fixed) if fixed else built_window(one, stage, rule)
            for stage, fixed in enumerate(one.pretrained_windows)
        ]
        for one in (source, config)
    )
    if theirs == ours:
        return config
    if any(rows != columns for rows, columns in theirs):
        message = (
            f"pretrained_windows must be square, got {theirs} of weights made with "
            f"img_size={source.img_size}. Set pretrained_windows."
        )
        raise ConfigError(message)
    return replace(config, {"pretrained_windows": tuple(rows for rows, _ in theirs)})
