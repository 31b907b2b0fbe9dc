# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Sections of the page. Free of heavy imports, because the command line's help lists them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from muntin.errors import ConfigError, unknown_name

__all__ = ["SECTIONS", "Section", "check_sections"]

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


def check_sections(sections: str | Sequence[str]) -> tuple[str, ...]:
    """Validate section names; a string is one name.

    Raises:
        ConfigError: A section is unknown.

    Example:
        >>> check_sections("cut"), check_sections(["cut", "cost"])
        (('cut',), ('cut', 'cost'))
    """
    names = (sections,) if isinstance(sections, str) else tuple(sections)
    for name in names:
        if name not in SECTIONS:
            raise ConfigError(unknown_name("section", str(name), SECTIONS))
    return names
