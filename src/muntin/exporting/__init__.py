# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Exports networks to files for other engines, verified against the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from muntin.lazy import resolve_lazily

if TYPE_CHECKING:
    from muntin.exporting.run_export import Exported, export

__all__ = [
    "Exported",
    "export",
]

__getattr__, __dir__ = resolve_lazily(
    __name__,
    {
        "run_export": "Exported export",
    },
)
