# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The layers around attention, each with its neighbours, as one step: for networks that only infer.

Each function says in plain operations what it computes, and takes a Triton kernel
(`muntin.ops.triton`) instead where one qualifies: on a GPU, in half precision, when nothing learns.

Norms before a product have neither scale nor shift: both belong into the product behind
(`muntin.inference.folding.fold_norm`). Instead they take `sums`, the sum of the product's weights
over its inputs, from which the kernels get the norm without a pass of its own. Vectors are float32
whatever the tokens are.

Letters: B images, H and W sides of a map in tokens, C and K channels in, N channels out, D hidden
channels.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from muntin.errors import ConfigError
from muntin.ops.triton.window_support import is_forbidden
from muntin.ops.windows import merge_neighbours
from muntin.shapes import Float, Size

__all__ = [
    "LayerBackend",
    "apply_linear",
    "apply_mlp",
    "embed_patches",
    "merge_tokens",
    "why_not_fused",
]

LayerBackend = Literal["auto", "plain", "fused"]

WIDEST_MLP = 192
"""Channels up to which the whole MLP is one kernel; wider rows do not fit into the registers."""

WIDEST_PATCH = 256
"""Channels of a token up to which patches are normalised where they are made."""

_HAS_TRITON = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_FORBIDDEN = is_forbidden()


def why_not_fused(x: Tensor, weight: Tensor, *, segment: int) -> str:
    """Say what keeps a layer from the kernels.

    Args:
        x: Tokens, or pixels.
        weight: Of the product; its type is what it is computed in.
        segment: Channels that lie together in the input.

    Returns:
        One clause, such as "there is no triton here"; empty if nothing does.
    """
    reason = ""
    # From the cheapest check to the one that depends on the tensors.
    if _FORBIDDEN:
        reason = "the environment variable MUNTIN_FUSED is 0"
    elif not _HAS_TRITON:
        reason = "there is no triton here"
    elif torch.compiler.is_exporting():
        reason = "an exported graph holds plain operations only"
    elif not _reaches(x.device):
        reason = f"the tensors are on {x.device.type}, not on a GPU of NVIDIA, Ampere or newer"
    elif weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        reason = f"weights are {weight.dtype}, not float32, bfloat16 or float16"
    elif segment % 16:
        reason = f"the {segment} channels in are no multiple of 16"
    elif torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        reason = "somebody wants a gradient"
    return reason


def apply_linear(
    x: Float[Tensor, "*rows K"],
    weight: Float[Tensor, "N K"],
    bias: Float[Tensor, " N"] | None = None,
    *,
    sums: Float[Tensor, " N"] | None = None,
    gamma: Float[Tensor, " N"] | None = None,
    beta: Float[Tensor, " N"] | None = None,
    eps: float = 1e-5,
    gelu: bool = False,
    factor: Float[Tensor, " B"] | None = None,
    residual: Float[Tensor, "*rows N"] | None = None,
    backend: LayerBackend = "auto",
) -> Float[Tensor, "*rows N"]:
    """Norm, product, GELU, norm, factor and residual: in this order, as far as asked for.

    Args:
        x: Tokens.
        weight: Of their type.
        bias: Added to the product.
        sums: Of the weights over K; given, the tokens are normalised before.
        gamma: Scale of the norm behind; given with `beta`, there is one.
        beta: Its shift.
        eps: Added to the variance, of whichever norm there is.
        gelu: Whether the exact GELU follows the product.
        factor: One number an image (the first side of x), such as that of drop path.
        residual: Added last.
        backend: "auto" takes the kernel where it qualifies and pays; the others force one.

    Returns:
        Tokens of the type of x. Sums are taken in float32, and nothing is rounded between.

    Raises:
        ConfigError: "fused" is asked for where it cannot be.
    """
    # Kernels convert nothing: tokens and weights must have one type.
    why = why_not_fused(x, weight, segment=weight.shape[1])
    if not why and x.dtype != weight.dtype:
        why = f"tokens are {x.dtype} and weights {weight.dtype}"
    if not why and factor is not None and gamma is not None:
        why = "a factor behind a norm has no kernel"
    if _takes_kernel(backend, why, weight):
        return _operators().linear(x, weight, bias, sums, gamma, beta, factor, residual, eps, gelu)
    # Reference: the same steps as separate PyTorch operations.
    y = x if sums is None else F.layer_norm(x, x.shape[-1:], eps=eps)
    y = F.linear(y, weight, _as(bias, weight))
    if gelu:
        y = F.gelu(y)
    if gamma is not None:
        y = F.layer_norm(y, y.shape[-1:], _as(gamma, y), _as(beta, y), eps)
    if factor is not None:
        y = y * factor.to(y.dtype).view(-1, *[1] * (y.ndim - 1))
    return y if residual is None else residual + y


def apply_mlp(
    x: Float[Tensor, "*rows C"],
    weight1: Float[Tensor, "D C"],
    bias1: Float[Tensor, " D"],
    weight2: Float[Tensor, "C D"],
    bias2: Float[Tensor, " C"],
    *,
    sums: Float[Tensor, " D"] | None = None,
    gamma: Float[Tensor, " C"] | None = None,
    beta: Float[Tensor, " C"] | None = None,
    eps: float = 1e-5,
    backend: LayerBackend = "auto",
    widest: int = WIDEST_MLP,
) -> Float[Tensor, "*rows C"]:
    """Give x + MLP(norm(x)) with `sums`, or x + norm(MLP(x)) with `gamma` and `beta`.

    Narrow rows take one kernel, which never writes the hidden channels; others take two.

    Args:
        x: Tokens.
        weight1: Into the hidden channels.
        bias1: Of the hidden channels.
        weight2: Back.
        bias2: The same.
        sums: Of `weight1` over C, for the norm before.
        gamma: Scale of the norm behind.
        beta: Its shift.
        eps: Added to the variance.
        backend: As in `apply_linear`.
        widest: Channels up to which one kernel computes all of it.

    Returns:
        Tokens of the type of x.

    Raises:
        ConfigError: "fused" is asked for where it cannot be.
    """
    d, c = weight1.shape
    why = why_not_fused(x, weight1, segment=c)
    takes = _takes_kernel(backend, why, weight1)
    # One kernel if a tile holds whole rows; otherwise two products with h written.
    if takes and c <= widest and d % 16 == 0 and _splits(c):
        return _operators().mlp(x, weight1, bias1, weight2, bias2, sums, gamma, beta, eps)
    hidden = apply_linear(x, weight1, bias1, sums=sums, eps=eps, gelu=True, backend=backend)
    return apply_linear(
        hidden, weight2, bias2, gamma=gamma, beta=beta, eps=eps, residual=x, backend=backend
    )


def merge_tokens(
    x: Float[Tensor, "B H W C"],
    weight: Float[Tensor, "N C4"],
    bias: Float[Tensor, " N"] | None = None,
    *,
    sums: Float[Tensor, " N"] | None = None,
    gamma: Float[Tensor, " N"] | None = None,
    beta: Float[Tensor, " N"] | None = None,
    eps: float = 1e-5,
    backend: LayerBackend = "auto",
) -> Float[Tensor, "B h w N"]:
    """Join 2 x 2 neighbours (`merge_neighbours`): norm and product, or product and norm.

    Args:
        x: A map; odd sides get a row or column of zeros, which take part in the norm.
        weight: Its inputs are the four tokens, column by column.
        bias: Added to the product.
        sums: As in `apply_linear`.
        gamma: The same.
        beta: The same.
        eps: The same.
        backend: The same.

    Returns:
        A map of half the sides, rounded up.

    Raises:
        ConfigError: "fused" is asked for where it cannot be.
    """
    why = why_not_fused(x, weight, segment=x.shape[3])
    if not why and x.dtype != weight.dtype:
        why = f"tokens are {x.dtype} and weights {weight.dtype}"
    if _takes_kernel(backend, why, weight):
        return _operators().merge(x, weight, bias, sums, gamma, beta, eps)
    return apply_linear(
        merge_neighbours(x), weight, bias, sums=sums, gamma=gamma, beta=beta, eps=eps,
        backend="plain",
    )  # fmt: skip


def embed_patches(
    images: Tensor,
    weight: Float[Tensor, "N K"],
    bias: Float[Tensor, " N"] | None,
    fill: Float[Tensor, " in_chans"],
    *,
    patch: int,
    grid: Size,
    gamma: Float[Tensor, " N"] | None = None,
    beta: Float[Tensor, " N"] | None = None,
    eps: float = 1e-5,
    backend: LayerBackend = "auto",
) -> Float[Tensor, "B H W N"]:
    """Make tokens of patches of pixels, and normalise them where `gamma` and `beta` are given.

    Args:
        images: B, in_chans, height, width, of numbers of any type; channels may also lie last in
            memory.
        weight: Of the values of a patch by channel, row and column, as a convolution has them.
        bias: Added to the product.
        fill: What a pixel beyond the right and lower edge counts as.
        patch: Side of a patch in pixels.
        grid: Patches down and across; what lies beyond them is not read.
        gamma: As in `apply_linear`.
        beta: The same.
        eps: The same.
        backend: The same.

    Returns:
        A map of tokens, of the type of the weights.

    Raises:
        ConfigError: "fused" is asked for where it cannot be.
    """
    why = why_not_fused(images, weight, segment=16)
    if not why and gamma is not None and weight.shape[0] > WIDEST_PATCH:
        why = f"the {weight.shape[0]} channels of a token are more than {WIDEST_PATCH}"
    if _takes_kernel(backend, why, weight):
        return _operators().embed(images, weight, bias, fill, gamma, beta, patch, *grid, eps)
    high, wide = grid[0] * patch, grid[1] * patch
    x = images[:, :, :high, :wide].to(weight.dtype)
    height, width = x.shape[2:]
    # Patches beyond the image read `fill`, which normalises to 0.
    if (height, width) != (high, wide):
        spread = fill.to(x.dtype).view(1, -1, 1, 1).expand(x.shape[0], -1, high, wide).clone()
        spread[:, :, :height, :width] = x
        x = spread
    # N, in_chans * p * p -> N, in_chans, p, p
    kernel = weight.view(weight.shape[0], x.shape[1], patch, patch)
    y = F.conv2d(x, kernel, _as(bias, weight), stride=patch).permute(0, 2, 3, 1)  # B, H, W, N
    if gamma is None:
        return y
    return F.layer_norm(y, y.shape[-1:], _as(gamma, y), _as(beta, y), eps)


def _takes_kernel(backend: LayerBackend, why_not: str, weight: Tensor) -> bool:
    """Whether the kernel runs: if it can, and if "auto" expects something of it."""
    if backend == "fused" and why_not:
        message = (
            f'backend="fused" must be on a GPU, of a fitting shape and without gradients, but '
            f'{why_not}. Choose backend="auto", which takes plain operations here.'
        )
        raise ConfigError(message)
    # Float32 has no tensor cores here: PyTorch is as fast.
    if backend == "auto":
        return not why_not and weight.is_cuda and weight.dtype != torch.float32
    return backend == "fused"


def _reaches(device: torch.device) -> bool:
    """Whether kernels run on a device: a GPU, or in Triton's interpreter the CPU."""
    if device.type == "cuda":
        return torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)
    return _INTERPRETED and device.type == "cpu"


def _splits(channels: int) -> bool:
    """Whether rows lie in one tile or in three of equal width, which is a power of two."""
    width = channels // 3 if channels % 3 == 0 else channels
    return width & (width - 1) == 0 and width >= 16


def _as(vector: Tensor | None, like: Tensor) -> Tensor | None:
    return None if vector is None else vector.to(like.dtype)


def _operators() -> Any:  # noqa: ANN401 (a module)
    """The kernels; importing them needs triton."""
    from muntin.ops.triton import fused_operators

    return fused_operators
