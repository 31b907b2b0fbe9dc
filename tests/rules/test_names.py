# SPDX-License-Identifier: Apache-2.0
"""A name says what the thing is, one word for one idea."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

from tests.rules.make_field_words import LIST, split_name
from tests.rules.sources import ROOT, classes, functions, modules, none, rooms

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


def test_no_file_name_twice() -> None:
    places = defaultdict(list)
    for module in modules():
        name = Path(module.path).name
        if name != "__init__.py":
            places[name].append(module.path)
    wrong = [", ".join(found) for found in places.values() if len(found) > 1]
    none(wrong, "One file name for one idea: add the noun of the folder, or say what differs.")


def test_names_are_words_of_the_field() -> None:
    known = {*LIST.read_text(encoding="utf-8").split(), *_documented_words(), "init", "main"}
    wrong = []
    for module in modules():
        names = [*Path(module.path).with_suffix("").parts]
        names += [node.name for node in classes(module.tree)]
        for name in names:
            odd = [word for word in split_name(name) if not _is_known(word, known)]
            if odd:
                wrong.append(f"{module.path} {name}: {', '.join(odd)}")
    none(
        wrong,
        "Use a word that two libraries of the field use in names (tests/rules/field_words.txt), "
        "or give it a row in docs/reference/words.md with its standard synonym.",
    )


def test_an_odd_word_would_be_found() -> None:
    known = {"mask", "match", "quantise", "query"}
    forms = ("mask", "masks", "masking", "matches", "matcher", "quantised", "queries", "queried")
    assert all(_is_known(word, known) for word in forms)
    assert not any(_is_known(word, known) for word in ("mas", "twin", "matchbox"))


def _is_known(word: str, known: set[str]) -> bool:
    """Whether a word is listed, or is a plural or a verb form of a listed one."""
    if word in known:
        return True
    for ending in ("s", "es", "ed", "er", "ing"):
        stem = word.removesuffix(ending)
        # Also "tiling" from tile, and "cropped" from crop.
        if stem != word and ({stem, f"{stem}e", re.sub(r"(.)\1$", r"\1", stem)} & known):
            return True
    return re.sub(r"ie[sd]$", "y", word) in known


def _documented_words() -> set[str]:
    """Words in the first column of the tables that say what else a word is called."""
    text = (ROOT / "docs" / "reference" / "words.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| word \| meaning \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert len(tables) == 2, "docs/reference/words.md must have two tables of words"
    cells = [row.split("|")[1] for table in tables for row in table.splitlines()]
    return set(re.findall(r"[a-z]+", " ".join(cells).lower())) | {
        word for cell in cells for word in split_name(cell)
    }
