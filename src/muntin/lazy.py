# SPDX-License-Identifier: Apache-2.0
"""Names that are imported when they are first used: torch takes seconds to import."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def resolve_lazily(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Build ``__getattr__`` and ``__dir__`` of a package (PEP 562).

    `modules` maps submodules to the names that they define, separated by spaces. These alone are
    listed by ``dir``.
    """
    homes = {name: module for module, names in modules.items() for name in names.split()}

    def find(name: str) -> Any:  # noqa: ANN401 (classes, functions and tables)
        if name not in homes:
            message = f"module {package!r} has no attribute {name!r}"
            raise AttributeError(message)
        value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return find, lambda: sorted(homes)


def resolve_method(module: str, name: str) -> Callable[[Any], Any]:
    """Build a method without arguments, whose function is imported when it is called.

    For what a room further up does with a noun, such as showing it in a notebook.
    """

    def call(self: Any) -> Any:  # noqa: ANN401 (of any class)
        return getattr(importlib.import_module(module), name)(self)

    return call
