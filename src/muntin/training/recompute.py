# SPDX-License-Identifier: Apache-2.0
"""Recomputation of layers and blocks, and a residual stream in half precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from muntin.errors import ConfigError


def checkpoint_blocks(backbone: nn.Module, count: int | None = None) -> int:
    """Apply activation checkpointing to the leading blocks of a backbone; None = all.

    Outputs and gradients stay bit-equal. Refuses a backbone with fewer blocks.

    Source:
        Chen et al. 2016 (arXiv 1604.06174); `torch.utils.checkpoint`.
    """
    blocks = list(cast("Sequence[nn.Module]", getattr(backbone, "blocks", ())))
    if not blocks:
        message = (
            f"train.checkpointing needs a backbone with blocks, got {type(backbone).__name__}. "
            f"Turn it off."
        )
        raise ConfigError(message)
    if count is not None and count > len(blocks):
        message = (
            f"train.recomputed_blocks must be at most {len(blocks)}, the number of blocks of this "
            f"{type(backbone).__name__}, got {count}. Lower it, or set train.checkpointing=true."
        )
        raise ConfigError(message)
    for block in blocks[:count]:
        _wrap(block, "forward")
    return len(blocks[:count])


def recompute_layers(network: nn.Module) -> int:
    """Recompute what is large and cheap: norms, attention weights and hidden channels of MLPs.

    A module lists in `recomputable` the methods whose intermediate values are not stored; returned
    is the number of such methods. The last product of each is not computed again: its output is not
    needed. Outputs and gradients stay bit-equal.
    """
    found = [
        (module, name)
        for module in network.modules()
        for name in cast("tuple[str, ...]", getattr(module, "recomputable", ()))
    ]
    for module, name in found:
        _wrap(module, name)
    return len(found)


def _wrap(module: nn.Module, name: str) -> None:
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    # Replaced on the instance: a wrapping module would rename the parameters.
    setattr(module, name, partial(_recompute, getattr(module, name), norms))


def _recompute(
    forward: Callable[..., Any], norms: list[_BatchNorm], *args: Any, **options: Any
) -> Any:  # noqa: ANN401 (any block)
    if not torch.is_grad_enabled():
        return forward(*args, **options)
    if torch.compiler.is_compiling():  # the compiler removes in-place changes by itself
        return checkpoint(forward, *args, use_reentrant=False, **options)
    # The caller (DenseNet) or the block (HRNet) may change a list before it is used again.
    inputs = _copy_lists(args)
    versions = [arg._version for arg in args if isinstance(arg, Tensor)]
    # Both forward passes get fresh lists, so that neither sees what the other has appended.
    output = checkpoint(
        lambda *saved: forward(*_copy_lists(saved), **options),
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _freeze_statistics(norms)),
    )
    if versions != [arg._version for arg in args if isinstance(arg, Tensor)]:
        # The second forward would read the overwritten input: gradients would be wrong.
        message = (
            "train.checkpointing needs blocks that do not modify their input in place, got one "
            "that does. Turn it off."
        )
        raise ConfigError(message)
    return output


def _copy_lists(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(list(arg) if isinstance(arg, list) else arg for arg in args)


@contextmanager
def _freeze_statistics(norms: list[_BatchNorm]) -> Iterator[None]:
    """Do not update running statistics: the first forward pass has counted this batch."""
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # Not track_running_stats=False: the number of saved tensors would differ from the first
        # forward pass, which torch.utils.checkpoint refuses.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def narrow_residual(backbone: nn.Module) -> None:
    """Run the residual stream between blocks in half precision, in training under autocast.

    The backbone needs a `pos_drop` module before its first block.
    """
    start: nn.Module | None = getattr(backbone, "pos_drop", None)
    if start is None:
        kind = type(backbone).__name__
        message = f"train.residual=half needs a Swin or a ViT, got {kind}. Omit it."
        raise ConfigError(message)
    start.register_forward_hook(_narrow)


def _narrow(module: nn.Module, inputs: Any, tokens: Tensor) -> Tensor:  # noqa: ANN401 (unused)
    kind = tokens.device.type
    # Without autocast the layers would get tokens of another type than their weights.
    if not module.training or not torch.is_autocast_enabled(kind):
        return tokens
    return tokens.to(torch.get_autocast_dtype(kind))
