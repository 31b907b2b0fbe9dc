# SPDX-License-Identifier: Apache-2.0
"""How deep imports go: no cycle, and chains short enough to follow.

Imports under ``if TYPE_CHECKING`` and those of a package's ``__init__`` are not counted: they are
never executed, or only hand names on.
"""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rules.sources import ROOT, modules, none

MAX_CHAIN = 18
MAX_CHAIN_WITH_LOCALS = 23

Graph = dict[str, set[str]]


def _imports(tree: ast.AST, *, local: bool) -> Iterator[str]:
    """Names that a module imports from the package; with `local` those inside functions too."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not local:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not isinstance(node, ast.expr):  # no expression holds an import
            waiting += ast.iter_child_nodes(node)


@functools.cache
def import_graph(*, local: bool) -> Graph:
    """Module -> modules of the package that it imports."""
    known = {m.name: m for m in modules() if not m.path.endswith("__init__.py")}
    # A name taken from a package comes from the module that its __init__ takes it from.
    handed_on: dict[str, str] = {}
    for module in modules():
        if module.path.endswith("__init__.py"):
            for node in ast.walk(module.tree):
                if isinstance(node, ast.ImportFrom) and node.module in known:
                    for alias in node.names:
                        handed_on[f"{module.name}.{alias.name}"] = node.module
    graph: Graph = {}
    for name, module in known.items():
        found = {handed_on.get(target, target) for target in _imports(module.tree, local=local)}
        graph[name] = (found & known.keys()) - {name}
    return graph


def longest_chain(graph: Graph) -> list[str]:
    """The longest path, top first.

    Raises:
        ValueError: Modules import each other in a cycle; the message lists it.
    """
    chains: dict[str, list[str]] = {}
    active: list[str] = []

    def visit(name: str) -> list[str]:
        if name in active:
            raise ValueError(" -> ".join([*active[active.index(name) :], name]))
        if name not in chains:
            active.append(name)
            below = [visit(target) for target in sorted(graph[name])]
            active.pop()
            chains[name] = [name, *max(below, key=len, default=[])]
        return chains[name]

    return max((visit(name) for name in sorted(graph)), key=len)


@pytest.mark.parametrize(
    ("local", "limit"),
    [(False, MAX_CHAIN), (True, MAX_CHAIN_WITH_LOCALS)],
    ids=["import time", "local imports too"],
)
def test_chains_of_imports_are_short_and_have_no_cycle(local: bool, limit: int) -> None:
    chain = longest_chain(import_graph(local=local))
    assert len(chain) <= limit, "Flatten this chain of imports:\n" + "\n".join(chain)


def test_a_cycle_would_be_found() -> None:
    with pytest.raises(ValueError, match="a -> b -> a"):
        longest_chain({"a": {"b"}, "b": {"a"}})


@pytest.mark.parametrize("package", ["heads", "objectives"])
def test_heads_and_objectives_need_no_models(package: str) -> None:
    graph = import_graph(local=True)
    waiting = [name for name in graph if name.startswith(f"muntin.{package}.")]
    assert waiting, f"muntin.{package} is gone: what is this test about?"
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += graph[name]
    assert not [name for name in seen if name.startswith("muntin.models.")]


SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_import_what_the_package_has(path: Path) -> None:
    """Most scripts run for many minutes, so no test runs them."""
    wrong = [
        f"{path.name}:{node.lineno} {node.module}.{alias.name}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "muntin"
        for alias in node.names
        if not _is_defined(node.module or "", alias.name)
    ]
    none(wrong, "These names are gone or have moved.")


def _is_defined(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name) or bool(
            importlib.import_module(f"{module}.{name}")
        )
    except ModuleNotFoundError:
        return False


def test_a_script_that_imports_what_is_gone_would_be_found() -> None:
    assert _is_defined("muntin.prediction", "from_run")
    assert _is_defined("muntin.prediction.from_run", "load")
    assert not _is_defined("muntin.prediction.from_run", "lode")
