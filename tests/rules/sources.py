# SPDX-License-Identifier: Apache-2.0
"""What the rules look at: the files of the project, and the syntax trees of the package."""

from __future__ import annotations

import ast
import functools
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "muntin"


@dataclass(frozen=True)
class Module:
    """One source file of the package.

    Attributes:
        path: Relative to the package: ``ops/windows.py``.
        name: As it is imported: ``muntin.ops.windows``.
        text: The source.
        tree: Its syntax.
    """

    path: str
    name: str
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """First part of the path, without ``.py``."""
        return self.path.split("/")[0].removesuffix(".py")

    @property
    def num_lines(self) -> int:
        return self.text.count("\n")


@functools.cache
def modules() -> tuple[Module, ...]:
    """Every module of the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE).as_posix()
        dotted = relative.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        name = "muntin" if dotted == "__init__" else f"muntin.{dotted}"
        text = path.read_text(encoding="utf-8")
        found.append(Module(relative, name, text, ast.parse(text)))
    return tuple(found)


def rooms() -> list[str]:
    """Entries of the package as a tree shows them: ``errors.py``, ``ops/``."""
    folders = {f"{module.room}/" for module in modules() if "/" in module.path}
    files = {module.path for module in modules() if "/" not in module.path}
    return sorted(folders | files - {"__init__.py", "__main__.py"})


@functools.cache
def nodes_of(tree: ast.Module) -> tuple[ast.AST, ...]:
    """What `ast.walk` gives; most rules go through every node of the package."""
    return tuple(ast.walk(tree))


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in nodes_of(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def count_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the first decorator to the end, signature and docstring included."""
    first = min([function.lineno, *(mark.lineno for mark in function.decorator_list)])
    return (function.end_lineno or first) - first + 1


def classes(tree: ast.Module) -> Iterator[ast.ClassDef]:
    for node in nodes_of(tree):
        if isinstance(node, ast.ClassDef):
            yield node


def dataclass_options(node: ast.ClassDef) -> dict[str, bool] | None:
    """Keyword arguments of ``@dataclass(...)``; None for another class."""
    for decorator in node.decorator_list:
        call = decorator.func if isinstance(decorator, ast.Call) else decorator
        if ast.unparse(call) in ("dataclass", "dataclasses.dataclass"):
            words = decorator.keywords if isinstance(decorator, ast.Call) else []
            return {w.arg: ast.unparse(w.value) == "True" for w in words if w.arg}
    return None


@functools.cache
def project_files() -> tuple[Path, ...]:
    """Every text file that is, or would be, under version control."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        paths = [ROOT / line for line in listed.stdout.splitlines()]
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive
        paths = [
            p for top in ("src", "tests", "docs", "benchmarks") for p in (ROOT / top).rglob("*")
        ]
        paths += list(ROOT.glob("*.*"))
    return tuple(sorted(path for path in paths if path.is_file() and _is_text(path)))


def _is_text(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\0" not in file.read(4096)


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """(where, line) of a file; where is ``README.md:12``."""
    place = path.relative_to(ROOT).as_posix()
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        yield f"{place}:{number}", line


def none(wrong: list[str], advice: str) -> None:
    """Fail with one line for each place where a rule is broken."""
    assert not wrong, "\n".join([advice, *wrong])
