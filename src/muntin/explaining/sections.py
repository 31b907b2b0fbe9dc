# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Sections of the page. Free of heavy imports, because the command line's help lists them."""

from __future__ import annotations

from typing import Literal

__all__ = ["SECTIONS", "Section"]

Section = Literal["cut", "positions", "attention", "decision", "features", "cost", "comparison"]

SECTIONS: dict[Section, str] = {
    "cut": "Patches and windows",
    "positions": "Position information",
    "attention": "Attention",
    "decision": "Attribution of the prediction",
    "features": "Features",
    "cost": "Compute and memory",
    "comparison": "Comparison of two models",
}
"""Names of the sections and their headings, in the order of the page."""
