# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Sections of an explanation. Imports nothing heavy: the command line reads it for its help."""

from __future__ import annotations

from typing import Literal

__all__ = ["SECTIONS", "Section"]

Section = Literal["cut", "positions", "attention", "decision", "features", "cost", "comparison"]

SECTIONS: dict[Section, str] = {
    "cut": "How the image is cut",
    "positions": "What the model knows of places",
    "attention": "Who looks at whom",
    "decision": "What decided",
    "features": "What the maps hold",
    "cost": "What it costs",
    "comparison": "How two models differ",
}
"""Headings of the page by name, in order."""
