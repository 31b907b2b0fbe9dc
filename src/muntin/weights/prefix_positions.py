# SPDX-License-Identifier: Apache-2.0
"""Positions of the tokens before those of the patches, which some ecosystems keep in the tokens.

A token plus its position is one vector: a file that holds both and one that holds their sum are the
same model. facebookresearch/dinov2 and transformers give the class token a position where timm has
registers; DeiT III gives it none.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from muntin.models.vit import ViTConfig

TOKENS = ("cls_token", "dist_token", "reg_token")
"""Tokens before those of the patches, in their order."""


def move_positions(
    tensors: Mapping[str, Tensor], config: ViTConfig, wanted: int, held: int | None = None
) -> dict[str, Tensor]:
    """Give a ViT's tensors, by our names, `wanted` positions before those of the patches.

    `held` is how many they have, found out by default.

    Returns the tensors that change: positions that go become part of their tokens, and new ones are
    zero; the model computes the same.
    """
    positions = tensors.get("pos_embed")
    if config.shared_position or positions is None:
        return {}
    tokens = [name for name in TOKENS if name in tensors]
    ends = [sum(tensors[name].shape[1] for name in tokens[: n + 1]) for n in range(len(tokens))]
    if held is None:
        held = _count_held(positions, config, [wanted, 0, *ends])
    if held == wanted or not 0 <= held <= max([0, *ends]) or wanted > max([0, *ends]):
        return {}
    if held < wanted:
        added = positions.new_zeros(1, wanted - held, positions.shape[2])
        return {"pos_embed": torch.cat([positions[:, :held], added, positions[:, held:]], dim=1)}
    changed = {"pos_embed": torch.cat([positions[:, :wanted], positions[:, held:]], dim=1)}
    for name, end in zip(tokens, ends, strict=True):
        first = end - tensors[name].shape[1]
        if wanted <= first and end <= held:
            changed[name] = tensors[name] + positions[:, first:end]
    return changed


def _count_held(positions: Tensor, config: ViTConfig, possible: list[int]) -> int:
    """The first possible number that leaves the grid of the model, or a square one."""
    for held in possible:
        rest = positions.shape[1] - held
        square = rest > 0 and round(rest**0.5) ** 2 == rest
        if square or rest == config.grid[0] * config.grid[1]:
            return held
    return possible[0]
