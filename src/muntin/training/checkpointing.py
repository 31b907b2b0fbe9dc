# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Less memory in training: what is inside a block is computed again on the way back."""

from __future__ import annotations

import re
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from muntin.errors import ConfigError

__all__ = ["checkpoint_blocks"]

_BLOCK = re.compile(r"(?:^|\.)blocks\.\d+$")


def checkpoint_blocks(backbone: nn.Module, most: int | None = None) -> int:
    """Make blocks of a backbone forget what is inside them until it is needed.

    Args:
        backbone: Changed; its outputs and gradients stay the same, bit for bit.
        most: How many, from the first one on; all when left out.

    Returns:
        Number of blocks that were changed.

    Raises:
        ConfigError: There are no blocks.

    Source:
        Chen et al. 2016 (arXiv 1604.06174); `torch.utils.checkpoint`.
    """
    blocks = [module for name, module in backbone.named_modules() if _BLOCK.search(name)]
    if not blocks:
        message = (
            f"train.checkpointing needs a backbone with blocks, got {type(backbone).__name__}. "
            f"Leave it off."
        )
        raise ConfigError(message)
    for block in blocks[:most]:
        plain = block.forward
        block.forward = partial(checkpoint, plain, use_reentrant=False)
    return len(blocks[:most])
