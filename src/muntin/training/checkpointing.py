# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Less memory in training: what is inside a block is computed again, what is between is halved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint, noop_context_fn

from muntin.errors import ConfigError

__all__ = ["checkpoint_blocks", "narrow_residual"]


def checkpoint_blocks(backbone: nn.Module, most: int | None = None) -> int:
    """Make blocks of a backbone forget what is inside them until it is needed.

    Args:
        backbone: Changed; its outputs and gradients stay the same, bit for bit.
        most: How many, from the first one on; all when left out.

    Returns:
        Number of blocks that were changed.

    Raises:
        ConfigError: There are no blocks, or fewer than that.

    Source:
        Chen et al. 2016 (arXiv 1604.06174); `torch.utils.checkpoint`.
    """
    blocks = list(cast("Sequence[nn.Module]", getattr(backbone, "blocks", ())))
    if not blocks:
        message = (
            f"train.checkpointing needs a backbone with blocks, got {type(backbone).__name__}. "
            f"Leave it off."
        )
        raise ConfigError(message)
    if most is not None and most > len(blocks):
        message = (
            f"train.recomputed_blocks must be at most {len(blocks)}, the blocks of this "
            f"{type(backbone).__name__}, got {most}. Lower it, or set train.checkpointing=true."
        )
        raise ConfigError(message)
    for block in blocks[:most]:
        norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
        block.forward = partial(_recompute, block.forward, norms)
    return len(blocks[:most])


def _recompute(
    forward: Callable[..., Any], norms: list[_BatchNorm], *args: Any, **options: Any
) -> Any:  # noqa: ANN401 (any block)
    if torch.compiler.is_compiling():  # what a compiled block does in place is done once
        return checkpoint(forward, *args, use_reentrant=False, **options)
    kept = _copy_lists(args)  # whoever gave a list may change it (DenseNet), or the block (HRNet)
    before = [one._version for one in args if isinstance(one, Tensor)]
    context = partial(_contexts, norms) if norms else noop_context_fn
    output = checkpoint(
        lambda *again: forward(*_copy_lists(again), **options),
        *kept,
        use_reentrant=False,
        context_fn=context,
    )
    if before != [one._version for one in args if isinstance(one, Tensor)]:
        # Computed again, it would read what it has overwritten, and gradients would be wrong.
        message = (
            "train.checkpointing needs blocks that leave their input as it is, got one that "
            "changes it in place. Leave it off."
        )
        raise ConfigError(message)
    return output


def _copy_lists(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(list(one) if isinstance(one, list) else one for one in args)


def _contexts(
    norms: list[_BatchNorm],
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _count_nothing(norms)


@contextmanager
def _count_nothing(norms: list[_BatchNorm]) -> Iterator[None]:
    """Leave running statistics alone: the first forward has counted this batch already."""
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # Not track_running_stats=False: then it would save fewer tensors than the first time.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def narrow_residual(backbone: nn.Module) -> None:
    """Keep the map between blocks in the precision of the products while training under autocast.

    Args:
        backbone: Changed; what it gives in evaluation stays the same.

    Raises:
        ConfigError: Its tokens do not pass a `pos_drop` before the first block.
    """
    start: nn.Module | None = getattr(backbone, "pos_drop", None)
    if start is None:
        kind = type(backbone).__name__
        message = f"train.residual=half needs a Swin or a ViT, got {kind}. Leave it out."
        raise ConfigError(message)
    start.register_forward_hook(_narrow)


def _narrow(module: nn.Module, inputs: Any, tokens: Tensor) -> Tensor:  # noqa: ANN401 (unused)
    kind = tokens.device.type
    if not module.training or not torch.is_autocast_enabled(kind):
        return tokens
    return tokens.to(torch.get_autocast_dtype(kind))
