# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Explanations of a model: attention, attribution, features and cost, as figures on a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from muntin.lazy import resolve_lazily

if TYPE_CHECKING:
    from muntin.explaining.explanation import Page, explain

__all__ = [
    "Page",
    "explain",
]

__getattr__, __dir__ = resolve_lazily(
    __name__,
    {
        "explanation": "Page explain",
    },
)
