# SPDX-License-Identifier: Apache-2.0
"""Comments say why at the hard lines of the rooms that compute and train."""

from __future__ import annotations

import ast
import io
import tokenize

import pytest

from tests.rules.sources import Module, modules

MIN_PER_100_LINES = 5
FOR_TOOLS = ("noqa", "type:", "fmt:", "ruff:", "pragma", "SPDX")


@pytest.mark.parametrize("room", ["ops", "models", "heads", "training"])
def test_hard_lines_are_explained(room: str) -> None:
    counts = [count_lines(module) for module in modules() if module.room == room]
    comments, code = (sum(column) for column in zip(*counts, strict=True))
    share = 100 * comments / code
    assert share >= MIN_PER_100_LINES, f"{comments} comments on {code} lines: {share:.1f} in 100"


def count_lines(module: Module) -> tuple[int, int]:
    """Lines with a comment for readers, and lines of code without docstrings."""
    tokens = tokenize.generate_tokens(io.StringIO(module.text).readline)
    comments = {
        token.start[0]
        for token in tokens
        if token.type == tokenize.COMMENT and not token.string.lstrip("# ").startswith(FOR_TOOLS)
    }
    docstrings: set[int] = set()
    for node in ast.walk(module.tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            docstrings |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    code = [
        line
        for number, line in enumerate(module.text.splitlines(), 1)
        if line.strip() and not line.strip().startswith("#") and number not in docstrings
    ]
    return len(comments), len(code)


def test_what_is_for_tools_or_documents_does_not_count() -> None:
    text = '"""What."""\n# Why.\nx = 1  # noqa: E1\n\ny = 2  # because\n'
    assert count_lines(Module("a.py", "a", text, ast.parse(text))) == (2, 2)
