# SPDX-License-Identifier: Apache-2.0
"""Layers that look at a whole batch or draw for it, where processes share the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from muntin import collectives
from muntin.collectives import largest
from muntin.data.batches import Batch
from muntin.data.transforms import Preprocessing


def see_whole_batch(module: nn.Module) -> None:
    """Let batch norms use the statistics, and dropout the draws, of all processes' images.

    PyTorch's SyncBatchNorm has no version for CPUs, and counts rows that only fill up a share.
    """
    for part in module.modules() if collectives.world_size() > 1 else ():
        # On the instance, as names of parameters and classes must stay what they are.
        if isinstance(part, _BatchNorm):
            part.forward = partial(_normalise, part, part.forward)  # type: ignore[method-assign]
        elif isinstance(part, _DropoutNd):
            part.forward = partial(_drop_out, part, part.forward)  # type: ignore[method-assign]


def pad_alike(views: tuple[Batch, ...], pre: Preprocessing) -> tuple[Batch, ...]:
    """Pad images of several sizes as in the whole batch: convolutions see how far zeros reach."""
    if pre.one_size or collectives.world_size() == 1:
        return views
    sizes = largest(*(side for view in views for side in view.images.shape[-2:]))
    padded = []
    for view, high, wide in zip(views, sizes[::2], sizes[1::2], strict=True):
        more = (0, wide - view.images.shape[-1], 0, high - view.images.shape[-2])
        padded.append(replace(view, images=F.pad(view.images, more)) if any(more) else view)
    return tuple(padded)


def _drop_out(layer: _DropoutNd, plain: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return collectives.drop_rows(plain, x) if layer.training and layer.p else plain(x)


def _normalise(norm: _BatchNorm, plain: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if not norm.training or norm.running_mean is None or not collectives.is_shared():
        return plain(x)
    axes, shape = [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
    with torch.autocast(x.device.type, enabled=False):
        values = x.float()
        real = collectives.real_rows(values)
        sums = torch.cat([real.sum(axes), real.new_tensor([real.numel() / x.shape[1]])])
        sums = collectives.sum_all(sums)
        count = float(sums[-1].detach())
        if count <= 1:  # a single value has no variance
            norm.eval()
            try:
                return plain(x)
            finally:
                norm.train()
        mean = sums[:-1] / count
        centred = values - mean.view(shape)
        # Of the differences from the mean: the square of a mean would cost digits.
        squares = collectives.sum_all(collectives.real_rows(centred).square().sum(axes))
        scale = (squares / count + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight
        normed = centred * scale.view(shape)
        if norm.bias is not None:
            normed = normed + norm.bias.view(shape)
    _track(norm, mean.detach(), squares.detach() / (count - 1))
    return normed.to(x.dtype)


@torch.no_grad()
def _track(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Update the running statistics as PyTorch does."""
    share = norm.momentum
    if norm.num_batches_tracked is not None:  # None while a layer is computed again
        norm.num_batches_tracked.add_(1)
        share = 1 / float(norm.num_batches_tracked) if share is None else share
    assert norm.running_mean is not None, "checked by the caller"
    assert norm.running_var is not None, "has the same origin"
    norm.running_mean.lerp_(mean, share or 0.0)
    norm.running_var.lerp_(variance, share or 0.0)
