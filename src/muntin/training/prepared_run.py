# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What `muntin.training.setup.prepare` returns: a run with every field resolved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from muntin.heads.network import Network
    from muntin.runs import Run
    from muntin.samples import Listing

__all__ = ["PreparedRun"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedRun:
    """A run that is ready to start: every field resolved, initial weights loaded, nothing written.

    `keep_batch` tells whether the user has set the batch size; `notes` say what was chosen
    automatically and why, one line each.
    """

    run: Run
    network: Network
    train: Listing
    val: Listing
    keep_batch: bool
    notes: tuple[str, ...]
