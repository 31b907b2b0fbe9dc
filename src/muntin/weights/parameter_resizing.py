# SPDX-License-Identifier: Apache-2.0
"""Change tensors learned with another window, patch size or channels, or with other positions.

A token plus its position is one vector: a file that holds both and one that holds their sum are the
same model. facebookresearch/dinov2 and transformers give the class token a position where timm has
registers; DeiT III gives it none.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from muntin.models.vit import ViTConfig
from muntin.shapes import Float, Size


def embed_table(
    table: Float[Tensor, "positions h"], *, window: Size, full: Size
) -> Float[Tensor, "full_positions h"]:
    """Pad the relative position bias table of a window to that of a larger window.

    `table` stays unchanged in the center; larger offsets repeat the value of the nearest known one.
    Windows are (height, width) in tokens.
    """
    rows, columns = full[0] - window[0], full[1] - window[1]
    grid = table.t().reshape(1, -1, 2 * window[0] - 1, 2 * window[1] - 1)
    grid = F.pad(grid.float(), (columns, columns, rows, rows), mode="replicate")  # 1, h, 2M-1, 2M-1
    return grid.flatten(2)[0].t().to(table.dtype)


def crop_table(
    table: Float[Tensor, "full_positions h"], *, window: Size, full: Size
) -> Float[Tensor, "positions h"]:
    """Crop a relative position bias table to the center, which a smaller window reads."""
    rows, columns = full[0] - window[0], full[1] - window[1]
    grid = table.view(2 * full[0] - 1, 2 * full[1] - 1, -1)
    grid = grid[rows : grid.shape[0] - rows, columns : grid.shape[1] - columns]
    return grid.flatten(0, 1)


def resample_patches(
    kernel: Float[Tensor, "C in_chans p1 p2"], size: Size
) -> Float[Tensor, "C in_chans q1 q2"]:
    """Resize a patch embedding to a (height, width) in pixels: resized patches keep their tokens.

    Beyer et al. 2023, "FlexiViT" (arXiv 2212.08013), section 3.4: the pseudo-inverse of the bicubic
    resize of a patch. Compared with timm 1.0.31 (`resample_patch_embed`).
    """
    old = (kernel.shape[2], kernel.shape[3])
    if old == size:
        return kernel
    pixels = torch.eye(old[0] * old[1], dtype=torch.float64).view(-1, 1, *old)
    resize = F.interpolate(pixels, size=size, mode="bicubic", antialias=True).flatten(1).t()
    # Shrinking loses some pixel patterns: their singular values are near 0, and inverting them
    # would amplify noise.
    inverse = torch.linalg.pinv(resize.t(), rtol=1e-6).float().to(kernel.device)
    resized = kernel.flatten(2).float() @ inverse.t()
    return resized.unflatten(2, size).to(kernel.dtype)


def adapt_channels(
    kernel: Float[Tensor, "C in_chans p1 p2"], in_chans: int
) -> Float[Tensor, "C new_chans p1 p2"]:
    """Adapt a patch embedding to other input channels, as timm 1.0.31 (`adapt_input_conv`).

    For one channel (gray), the kernel's channels are summed. For more channels, they are repeated
    cyclically and scaled so that tokens keep their magnitude.
    """
    known = kernel.shape[1]
    if in_chans == known:
        return kernel
    if in_chans == 1:
        return kernel.float().sum(dim=1, keepdim=True).to(kernel.dtype)
    repeats = -(-in_chans // known)
    wide = kernel.float().repeat(1, repeats, 1, 1)[:, :in_chans] * (known / in_chans)
    return wide.to(kernel.dtype)


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
