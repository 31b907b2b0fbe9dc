# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What a model sees, as images with a few plain words and a formula beside each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from muntin.explaining.showing import Page, explain

__all__ = ["Page", "explain"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 (a class or a function)
    # matplotlib and torch take a second to load; names of sections are asked for without them.
    if name not in __all__:
        message = f"module 'muntin.explaining' has no attribute {name!r}"
        raise AttributeError(message)
    from muntin.explaining import showing

    return getattr(showing, name)
