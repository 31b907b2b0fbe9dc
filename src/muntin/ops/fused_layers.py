# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Fused layers for inference: linear, MLP, patch merging, patch embedding, with norm and residual.

Each function has a plain PyTorch form and calls a Triton kernel (`muntin.ops.triton`) where one
applies: on a GPU, in half precision, without gradients.

A norm before a product has no scale and shift; they are folded into the product
(`muntin.inference.folding.fold_norm`). Kernels compute the norm from `sums`, the weights of the
product summed over its inputs, without another pass. Vectors are float32 for any token dtype.

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
"""Maximum channels for the one-kernel MLP; wider rows do not fit into registers."""

WIDEST_PATCH = 256
"""Maximum token channels for patch embedding with a fused norm."""

_HAS_TRITON = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_FORBIDDEN = is_forbidden()


def why_not_fused(x: Tensor, weight: Tensor, *, segment: int) -> str:
    """Return why a layer cannot use the kernels.

    Args:
        x: Tokens, or pixels.
        weight: Weight of the product; its dtype is that of the computation.
        segment: Contiguous channels of the input.

    Returns:
        A clause, such as "triton is not installed"; empty if it can.
    """
    reason = ""
    # From the cheapest check to the one that depends on the tensors.
    if _FORBIDDEN:
        reason = "the environment variable MUNTIN_FUSED is 0"
    elif not _HAS_TRITON:
        reason = "triton is not installed"
    elif torch.compiler.is_exporting():
        reason = "exported graphs contain standard operators only"
    elif not _reaches(x.device):
        reason = f"the tensors are on {x.device.type}, not on an NVIDIA GPU, Ampere or newer"
    elif weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        reason = f"weights are {weight.dtype}, not float32, bfloat16 or float16"
    elif segment % 16:
        reason = f"the {segment} input channels are not a multiple of 16"
    elif torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        reason = "a gradient is required"
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
    """Apply norm, linear, GELU, norm, factor and residual, in this order; all but linear optional.

    Args:
        x: Tokens.
        weight: Weight, in the dtype of x.
        bias: Bias of the product.
        sums: Weights summed over K; if given, tokens are normalised before the product.
        gamma: Scale of the norm after the product; requires `beta`.
        beta: Shift of the norm after the product.
        eps: Epsilon of either norm.
        gelu: Whether to apply exact GELU after the product.
        factor: One factor per image (first axis of x), such as drop path.
        residual: Added last.
        backend: "auto" uses the kernel where it applies and is faster; the others force one.

    Returns:
        Tokens in the dtype of x. The kernel accumulates in float32 and rounds once.

    Raises:
        ConfigError: backend="fused" where the kernel does not apply.
    """
    # Kernels convert nothing: tokens and weights must have one type.
    why = why_not_fused(x, weight, segment=weight.shape[1])
    if not why and x.dtype != weight.dtype:
        why = f"tokens are {x.dtype} and weights {weight.dtype}"
    if not why and factor is not None and gamma is not None:
        why = "no kernel supports a factor after a norm"
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
    """Compute x + MLP(norm(x)) with `sums`, or x + norm(MLP(x)) with `gamma` and `beta`.

    Narrow tokens use one kernel that never writes the hidden channels; wider ones use two.

    Args:
        x: Tokens.
        weight1: Weight of fc1.
        bias1: Bias of fc1.
        weight2: Weight of fc2.
        bias2: Bias of fc2.
        sums: `weight1` summed over C, for a norm before.
        gamma: Scale of a norm after.
        beta: Shift of a norm after.
        eps: Epsilon of the norm.
        backend: As in `apply_linear`.
        widest: Maximum channels for the one-kernel form.

    Returns:
        Tokens in the dtype of x.

    Raises:
        ConfigError: backend="fused" where the kernel does not apply.
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
    """Merge 2 x 2 neighbours (`merge_neighbours`): norm and linear, or linear and norm.

    Args:
        x: A map; odd sides are padded with zeros, which the norm includes.
        weight: Its inputs are the four tokens, column by column.
        bias: Bias of the product.
        sums: As in `apply_linear`.
        gamma: As in `apply_linear`.
        beta: As in `apply_linear`.
        eps: As in `apply_linear`.
        backend: As in `apply_linear`.

    Returns:
        A map with half the height and width, rounded up.

    Raises:
        ConfigError: backend="fused" where the kernel does not apply.
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
    """Embed patches of pixels as tokens, with a norm if `gamma` and `beta` are given.

    Args:
        images: B, in_chans, height, width, of any numeric dtype; channels_last is supported.
        weight: Flattened convolution weight: channel, row, column.
        bias: Bias of the product.
        fill: Value of pixels beyond the right and lower edge, per channel.
        patch: Side of a patch in pixels.
        grid: (rows, columns) of patches; pixels beyond them are ignored.
        gamma: As in `apply_linear`.
        beta: As in `apply_linear`.
        eps: As in `apply_linear`.
        backend: As in `apply_linear`.

    Returns:
        A map of tokens in the dtype of the weights.

    Raises:
        ConfigError: backend="fused" where the kernel does not apply.
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
        padded = fill.to(x.dtype).view(1, -1, 1, 1).expand(x.shape[0], -1, high, wide).clone()
        padded[:, :, :height, :width] = x
        x = padded
    # N, in_chans * p * p -> N, in_chans, p, p
    kernel = weight.view(weight.shape[0], x.shape[1], patch, patch)
    y = F.conv2d(x, kernel, _as(bias, weight), stride=patch).permute(0, 2, 3, 1)  # B, H, W, N
    if gamma is None:
        return y
    return F.layer_norm(y, y.shape[-1:], _as(gamma, y), _as(beta, y), eps)


def _takes_kernel(backend: LayerBackend, why_not: str, weight: Tensor) -> bool:
    """Whether to use the kernel: if it applies and, for "auto", is faster."""
    if backend == "fused" and why_not:
        message = (
            f'backend="fused" requires a GPU, a supported shape and no gradients, but {why_not}. '
            f'Choose backend="auto", which uses plain operations here.'
        )
        raise ConfigError(message)
    # Float32 has no tensor cores here: PyTorch is as fast.
    if backend == "auto":
        return not why_not and weight.is_cuda and weight.dtype != torch.float32
    return backend == "fused"


def _reaches(device: torch.device) -> bool:
    """Whether kernels run on a device: a GPU, or the CPU in Triton's interpreter."""
    if device.type == "cuda":
        return torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)
    return _INTERPRETED and device.type == "cpu"


def _splits(channels: int) -> bool:
    """Whether a row fits one tile, or three of equal width, a power of two."""
    width = channels // 3 if channels % 3 == 0 else channels
    return width & (width - 1) == 0 and width >= 16


def _as(vector: Tensor | None, like: Tensor) -> Tensor | None:
    return None if vector is None else vector.to(like.dtype)


def _operators() -> Any:  # noqa: ANN401 (a module)
    """The kernels; importing them needs triton."""
    from muntin.ops.triton import fused_operators

    return fused_operators
