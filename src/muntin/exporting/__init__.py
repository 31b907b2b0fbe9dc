# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Files for other engines, compared with the network before they get their name."""

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
