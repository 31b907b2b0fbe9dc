# SPDX-License-Identifier: Apache-2.0
"""What a reader must carry: how much source there is, and how large its parts are."""

from __future__ import annotations

import ast
import io
import zipfile
from collections import defaultdict

import muntin
from tests.rules.sources import PACKAGE, count_lines, functions, modules, none

# Raised for processes, packed data, clusters, dense detectors, whole models of transformers, added
# classes, bands and diagnosis; what is not a new capability must fit.
MOST_LINES, MOST_FILES = 78_120, 420
MOST_FILE_P90, MOST_FUNCTION_P90 = 340, 32
MOST_FUNCTION_LINES = 80
MOST_PARAMETERS = 7
# Arguments are the symbols of a published formula.
FORMULAS = {"window_attention"}
MOST_EQUAL_LINES = 11
MOST_WHEEL_BYTES = 1_310_000


def _p90(values: list[int]) -> int:
    return sorted(values)[int(len(values) * 0.9)]


def test_lines_and_files() -> None:
    assert sum(module.num_lines for module in modules()) <= MOST_LINES
    assert len(modules()) <= MOST_FILES


def test_files_and_functions_are_short() -> None:
    assert _p90([module.num_lines for module in modules()]) <= MOST_FILE_P90
    # Methods of one file may share a name, so a list.
    lengths = [
        (count_lines(function), f"{module.path} {function.name}")
        for module in modules()
        for function in functions(module.tree)
    ]
    assert _p90([n for n, _ in lengths]) <= MOST_FUNCTION_P90
    wrong = [f"{name}: {n} lines" for n, name in lengths if n > MOST_FUNCTION_LINES]
    none(wrong, f"No function has more than {MOST_FUNCTION_LINES} lines, public verbs included.")


def test_few_parameters() -> None:
    """Public verbs name every option; kernels of Triton are called by one launch function each."""
    wrong = []
    for module in modules():
        for function in functions(module.tree):
            public = function.name in muntin.__all__ or module.room == "commands"
            kernel = any("triton.jit" in ast.unparse(mark) for mark in function.decorator_list)
            if public or kernel or function.name in FORMULAS:
                continue
            given = function.args
            names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            count = len(names) - (names[:1] in (["self"], ["cls"]))
            if count > MOST_PARAMETERS:
                wrong.append(f"{module.path} {function.name}: {count} parameters")
    none(wrong, f"At most {MOST_PARAMETERS} parameters: a dataclass, or fewer choices.")


def _code_lines(text: str) -> list[tuple[int, str]]:
    """(number, line) without blank lines, comments, imports, docstrings and signatures.

    Verbs with the same arguments have the same lines for them, as help() and editors show these.
    """
    skipped, inside = set(), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        ):
            skipped |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        if isinstance(node, ast.FunctionDef):
            skipped |= set(range(node.lineno, node.body[0].lineno))
        if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno != node.lineno:
            inside |= set(range(node.lineno + 1, (node.end_lineno or node.lineno) + 1))
    lines = [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1) if n not in skipped]
    # What begins like a comment within a text is part of the text.
    return [(n, line) for n, line in lines if line and (n in inside or line[0] != "#")]


def test_no_long_repetition() -> None:
    """No run of 12 or more equal lines of code in two places."""
    places = defaultdict(list)
    size = MOST_EQUAL_LINES + 1
    for module in modules():
        lines = _code_lines(module.text)
        for start in range(len(lines) - size + 1):
            run = tuple(line for _, line in lines[start : start + size])
            places[run].append(f"{module.path}:{lines[start][0]}")
    wrong = [" = ".join(found) for found in places.values() if len(found) > 1]
    none(wrong, f"At most {MOST_EQUAL_LINES} equal lines in two places: name what they do.")


def test_what_is_not_code_is_no_repetition() -> None:
    text = '"""What."""\nimport os\n\n# Why.\nx = 1  # because\n'
    assert _code_lines(text) == [(5, "x = 1  # because")]
    assert _code_lines('x = """\n# a\n"""\n') == [(1, 'x = """'), (2, "# a"), (3, '"""')]
    assert _code_lines("def f(\n    a: int,\n) -> int:\n    return a\n") == [(4, "return a")]


def test_wheel() -> None:
    """The package, packed as a wheel is, stays small."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in PACKAGE.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                archive.write(path, path.relative_to(PACKAGE))
    assert len(packed.getvalue()) <= MOST_WHEEL_BYTES
