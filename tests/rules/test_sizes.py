# SPDX-License-Identifier: Apache-2.0
"""Files, functions and reading sets stay small enough to read at one sitting."""

from __future__ import annotations

import ast

from tests.rules.sources import Module, count_lines, functions, modules, none

MOST_FILE_LINES = 400
MOST_FUNCTION_LINES = 60
# As low as Swin, the largest family, allows: 15 files with layers and attention back ends.
MOST_FILES_READ = 15
MOST_LINES_READ = 2550

# Where a file is longer, why it is not split.
LONGER_FILES = {
    "models/swin.py": "a family is one file: config, the presets as literal rows, and the model",
    "models/vit.py": "the same",
}
# Where a function is longer, signature and docstring included: why, and which ones.
LONGER_FUNCTIONS = {
    "a verb of the library: an argument a line, each of them explained": {
        "commands/predict.py predict",
        "explaining/explanation.py explain",
        "exporting/run_export.py export",
        "planning/estimate.py plan",
        "prediction/from_run.py load",
        "scoring/evaluation.py evaluate",
        "training/pretraining_session.py pretrain",
        "training/session.py train",
        "weights/weight_loading.py load_weights",
        "zoo/weight_conversion.py convert_weights",
    },
    "a kernel of Triton: an argument a line": {
        "ops/triton/window_backward.py attend_whole_backward",
        "ops/triton/window_backward.py attend_tiled_backward_queries",
    },
}


def test_files() -> None:
    wrong = [
        f"{module.path}: {module.num_lines} lines"
        for module in modules()
        if module.num_lines > MOST_FILE_LINES and module.path not in LONGER_FILES
    ]
    none(wrong, f"Split by noun, or say why not in LONGER_FILES (at most {MOST_FILE_LINES} lines).")


def _long_functions() -> dict[str, int]:
    """Lines of every function that is too long."""
    return {
        f"{module.path} {function.name}": length
        for module in modules()
        for function in functions(module.tree)
        if (length := count_lines(function)) > MOST_FUNCTION_LINES
    }


def test_functions() -> None:
    excused = set().union(*LONGER_FUNCTIONS.values())
    wrong = [f"{name}: {n} lines" for name, n in _long_functions().items() if name not in excused]
    none(wrong, f"Name the middle part (a function has at most {MOST_FUNCTION_LINES} lines).")


def test_no_exemption_outlives_its_reason() -> None:
    long_files = {module.path for module in modules() if module.num_lines > MOST_FILE_LINES}
    none(sorted(set(LONGER_FILES) - long_files), "Short again: take it out of LONGER_FILES.")
    excused = set().union(*LONGER_FUNCTIONS.values())
    short = sorted(excused - _long_functions().keys())
    none(short, "Short again, or gone: take it out of LONGER_FUNCTIONS.")


def test_reading_set_of_a_model() -> None:
    by_name = {module.name: module for module in modules()}
    wrong = []
    for module in modules():
        if module.room != "models" or module.path.endswith("__init__.py"):
            continue
        read = _reading_set(module, by_name)
        lines = sum(part.num_lines for part in read)
        if len(read) > MOST_FILES_READ or lines > MOST_LINES_READ:
            names = ", ".join(sorted(part.path for part in read))
            wrong.append(f"{module.path}: {len(read)} files, {lines} lines: {names}")
    none(
        wrong,
        f"A model reads with {MOST_FILES_READ} files and {MOST_LINES_READ} lines: move tricks.",
    )


def _reading_set(start: Module, by_name: dict[str, Module]) -> set[Module]:
    """The file and every file of ours that it imports, directly or not; no package ``__init__``.

    A family that builds on another (docs/adr/0012) is read after it, and after what that reads.
    """
    read, waiting = set(), [start]
    while waiting:
        module = waiting.pop()
        if module in read:
            continue
        read.add(module)
        waiting += [by_name[name] for name in _imports(module.tree) if name in by_name]
    known: set[Module] = set()
    for module in read - {start}:
        if module.room == "models":
            known |= {module, *_reading_set(module, by_name)}
    return {module for module in read - known if not module.path.endswith("__init__.py")}


def _imports(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("muntin.")}
