# SPDX-License-Identifier: Apache-2.0
"""Configs are values, constructors say what they take, and importing does nothing."""

from __future__ import annotations

import ast

from tests.rules.sources import Module, classes, dataclass_options, functions, modules, none

# Typer registers verbs while the command modules are imported.
REGISTERS_AT_IMPORT = {"commands", "__main__"}


def test_no_kwargs_in_a_constructor() -> None:
    wrong = [
        f"{module.path}:{function.lineno} {node.name}.__init__(**{function.args.kwarg.arg})"
        for module in modules()
        for node in classes(module.tree)
        for function in node.body
        if isinstance(function, ast.FunctionDef)
        and function.name in ("__init__", "__new__")
        and function.args.kwarg
    ]
    none(wrong, "A mistyped argument would be swallowed. Name every argument, or take a config.")


def test_configs_are_frozen_values() -> None:
    wrong = []
    for module, node in _configs():
        options = dataclass_options(node) or {}
        missing = [word for word in ("frozen", "kw_only", "slots") if not options.get(word)]
        if missing:
            wrong.append(f"{module.path}:{node.lineno} {node.name} lacks {', '.join(missing)}")
    none(wrong, "A config is @dataclass(frozen=True, kw_only=True, slots=True).")


def test_configs_hold_plain_values() -> None:
    forbidden = ("list", "dict", "set", "Callable", "Any", "Tensor", "dtype", "device")
    wrong = []
    for module, node in _configs():
        for field in node.body:
            if isinstance(field, ast.AnnAssign):
                names = {
                    part.id for part in ast.walk(field.annotation) if isinstance(part, ast.Name)
                }
                bad = names & set(forbidden)
                if bad:
                    place = f"{module.path}:{field.lineno} {node.name}.{ast.unparse(field.target)}"
                    wrong.append(f"{place} is {ast.unparse(field.annotation)}")
    none(wrong, "Fields are numbers, strings, booleans, tuples, Literals or other configs.")


def _configs() -> list[tuple[Module, ast.ClassDef]]:
    return [
        (module, node)
        for module in modules()
        for node in classes(module.tree)
        if node.name.endswith("Config") and not node.name.startswith("_")
    ]


def test_a_list_is_never_a_field() -> None:
    wrong = [
        f"{module.path}:{field.lineno} {node.name}.{ast.unparse(field.target)}"
        for module in modules()
        for node in classes(module.tree)
        if (dataclass_options(node) or {}).get("frozen")
        for field in node.body
        if isinstance(field, ast.AnnAssign) and ast.unparse(field.annotation).startswith("list[")
    ]
    none(wrong, "A frozen thing that holds a list can still change. Use a tuple.")


def test_no_mutable_default() -> None:
    wrong = [
        f"{module.path}:{default.lineno} {function.name}"
        for module in modules()
        for function in functions(module.tree)
        for default in [*function.args.defaults, *function.args.kw_defaults]
        if isinstance(default, ast.List | ast.Dict | ast.Set)
    ]
    none(wrong, "The default would be shared between calls.")


def test_importing_does_nothing() -> None:
    wrong = [
        f"{module.path}:{node.lineno} {ast.unparse(node)[:60]}"
        for module in modules()
        if module.room not in REGISTERS_AT_IMPORT
        for node in module.tree.body
        if (isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant))
        or isinstance(node, ast.For | ast.While | ast.With)
    ]
    none(wrong, "Move it into a function: a module defines and does nothing.")


def test_ops_are_pure_functions() -> None:
    wrong = [
        f"{module.path}:{node.lineno} {node.name}"
        for module in modules()
        if module.room == "ops"
        for node in classes(module.tree)
        if any(ast.unparse(parent).endswith("Module") for parent in node.bases)
    ]
    none(wrong, "A module with parameters belongs in nn/ or in its family's file.")


def test_forward_writes_nothing_to_self() -> None:
    wrong = [
        f"{module.path}:{node.lineno} {ast.unparse(node.targets[0])} = ..."
        for module in modules()
        if module.room in ("nn", "models", "heads")
        for function in functions(module.tree)
        if function.name in ("forward", "embed")
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        and any(ast.unparse(target).startswith("self.") for target in node.targets)
    ]
    none(wrong, "One image must not change how the next one is computed.")
