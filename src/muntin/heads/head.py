# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What every head is: a reader of features, with losses of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from muntin.features import Features

__all__ = ["Head", "HeadConfig"]


class HeadConfig:
    """What the config of every head says; `muntin.heads.head_table` lists the classes."""

    __slots__ = ()
    kind: ClassVar[str]

    @property
    def finest(self) -> int:
        """Stride in pixels of the finest map that the head reads."""
        raise NotImplementedError


class Head(nn.Module):
    """Reads what a backbone computed. It never sees the backbone, nor the pixels.

    Attributes:
        reads: The part of the features that it reads.
        losses: From features and targets of the head's own kind to the loss of each image (B), by
            name. It may look at the whole batch.
    """

    reads: ClassVar[Literal["maps", "vector", "tokens"]] = "maps"

    losses: Callable[..., dict[str, Tensor]]

    def forward(self, features: Features) -> Any:  # noqa: ANN401 (each head has its own)
        """Give raw output, the same in training and in evaluation but for dropout and norms."""
        raise NotImplementedError

    def decode(self, raw: Any) -> Any:  # noqa: ANN401 (as `forward`)
        """Turn raw output into answers, where it is none yet."""
        return raw
