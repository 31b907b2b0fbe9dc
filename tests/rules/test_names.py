# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""A name says what the thing is, one word for one idea."""

from __future__ import annotations

import ast

from tests.rules.sources import functions, modules, none, rooms

SAY_NOTHING = {"utils", "util", "helpers", "helper", "misc", "common", "core", "base", "tools"}

# Other spellings of ideas that docs/reference/words.md has a word for.
SPELLED_OTHERWISE = {
    "channels_in": "in_chans",
    "hidden_size": "embed_dim",
    "n_class": "num_classes",
    "n_classes": "num_classes",
    "n_embd": "embed_dim",
    "n_head": "num_heads",
    "n_heads": "num_heads",
    "nheads": "num_heads",
    "stochastic_depth_prob": "drop_path_rate",
    "win_size": "window_size",
    "ws": "window_size",
}


def test_module_names_say_something() -> None:
    wrong = [
        module.path
        for module in modules()
        if SAY_NOTHING
        & set(module.path.removesuffix(".py").strip("_").replace("/", "_").split("_"))
    ]
    none(wrong, "Name the file after what is in it.")


def test_one_word_for_one_idea() -> None:
    # A dialect keeps its own spelling at the border.
    wrong = [
        f"{module.path}:{argument.lineno} {argument.arg} -> {SPELLED_OTHERWISE[argument.arg]}"
        for module in modules()
        if module.room != "weights"
        for function in functions(module.tree)
        for argument in _arguments(function)
        if argument.arg in SPELLED_OTHERWISE
    ]
    none(wrong, "Use the word of docs/reference/words.md.")


def _arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    spec = function.args
    return [*spec.posonlyargs, *spec.args, *spec.kwonlyargs]


def test_no_room_has_the_name_of_a_public_function() -> None:
    public = next((module for module in modules() if module.path == "__init__.py"), None)
    names = _all_names(public.tree) if public else set()
    wrong = sorted({room.rstrip("/").removesuffix(".py") for room in rooms()} & names)
    none(wrong, "Importing a submodule of that name would overwrite the function.")


def test_few_public_names() -> None:
    public = next(module for module in modules() if module.path == "__init__.py")
    assert 10 < len(_all_names(public.tree)) <= 30
    assert public.num_lines <= 80


def _all_names(tree: ast.Module) -> set[str]:
    """What ``__all__`` lists; empty when it is not a literal."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            values = ast.walk(node.value)
            return {str(v.value) for v in values if isinstance(v, ast.Constant)}
    return set()
