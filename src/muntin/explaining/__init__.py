# SPDX-License-Identifier: Apache-2.0
"""Explanations of a model: attention, attribution, features and cost, as figures on a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from muntin.errors import ConfigError, unknown_name
from muntin.lazy import resolve_lazily

if TYPE_CHECKING:
    from muntin.explaining.explanation import Page as Page
    from muntin.explaining.explanation import explain as explain

__getattr__, __dir__ = resolve_lazily(__name__, {"explanation": "Page explain"})

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
"""Names of the sections and their headings, in the order of the page.

Here, where nothing heavy is imported, because the command line's help lists them.
"""


def check_sections(sections: str | Sequence[str]) -> tuple[str, ...]:
    """Validate section names; a string is one name.

    Examples:
        >>> check_sections("cut"), check_sections(["cut", "cost"])
        (('cut',), ('cut', 'cost'))
    """
    names = (sections,) if isinstance(sections, str) else tuple(sections)
    for name in names:
        if name not in SECTIONS:
            raise ConfigError(unknown_name("section", str(name), SECTIONS))
    return names
