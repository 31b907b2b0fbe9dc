# SPDX-License-Identifier: Apache-2.0
"""Tests pin behaviour: few golden sentences, and no patch of the package itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.rules.sources import ROOT, none

MAX_SENTENCES = 20
SENTENCE = re.compile(r"[A-Za-z]+(?:,? [A-Za-z']+){3,}")
"""Four or more plain words in a row."""

# Where a test may patch the package: why no argument would do.
PATCHED: dict[str, str] = {
    "tests/diagnosing/test_overfit_check.py overfit_check._OverfitCheck._learn": (
        "how fast a loss falls within seconds depends on the machine"
    ),
    "tests/diagnosing/test_overfit_check.py Reporter.note": "what is noted of those losses",
}


PATCHES = ("setattr", "delattr", "patch", "object")


def _tests(*words: str) -> Iterator[tuple[str, ast.Module]]:
    """Files that hold one of the words, without which a rule has nothing to look at."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if any(word in text for word in words):
            yield path.relative_to(ROOT).as_posix(), ast.parse(text)


def test_few_golden_sentences() -> None:
    found = [
        f"{where}:{keyword.value.lineno} {ast.unparse(keyword.value)}"
        for where, tree in _tests("match")
        for keyword in ast.walk(tree)
        if isinstance(keyword, ast.keyword) and keyword.arg == "match"
        if SENTENCE.search(_plain(keyword.value))
    ]
    advice = f"Match the option, the offending value and few words: {len(found)} sentences"
    assert len(found) <= MAX_SENTENCES, "\n".join([advice, *found])


def _plain(node: ast.expr) -> str:
    """The literal text of a pattern; other parts of an f-string become a gap."""
    if isinstance(node, ast.JoinedStr):
        return "{}".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
    parts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
    return "".join(part for part in parts if isinstance(part, str))


def test_no_test_patches_the_package() -> None:
    patched = {f"{where} {name}" for where, tree in _tests(*PATCHES) for name in _patches(tree)}
    none(sorted(patched - PATCHED.keys()), "Give the function an argument instead of patching it.")
    none(sorted(PATCHED.keys() - patched), "Gone: take it out of PATCHED.")


def _patches(tree: ast.Module) -> Iterator[str]:
    """Names of the package that ``setattr`` or ``delattr`` of monkeypatch, or mock, replace."""
    nodes = tuple(ast.walk(tree))
    ours = {
        alias.asname or alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "muntin"
        for alias in node.names
    } | {"muntin"}
    for node in nodes:
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr not in PATCHES or not node.args:
            continue
        target, *rest = node.args
        if isinstance(target, ast.Constant) and str(target.value).startswith("muntin."):
            yield str(target.value)
        elif ast.unparse(target).split(".")[0] in ours:
            name = rest[0].value if rest and isinstance(rest[0], ast.Constant) else "?"
            yield f"{ast.unparse(target)}.{name}"
