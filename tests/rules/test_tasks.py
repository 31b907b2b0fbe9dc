# SPDX-License-Identifier: Apache-2.0
"""A task is one row: no room outside tasks/ asks which one it is."""

from __future__ import annotations

import ast

from tests.rules.sources import modules, nodes_of, none

TASKS = {"classify", "detect", "instance", "semantic", "pose", "pretrain"}


def test_no_room_outside_tasks_compares_a_task_name() -> None:
    wrong = [
        f"{module.path}:{node.lineno} {ast.unparse(node)[:70]}"
        for module in modules()
        if module.room != "tasks"
        for node in nodes_of(module.tree)
        if isinstance(node, ast.Compare | ast.MatchValue) and _names_a_task(node)
    ]
    none(wrong, "Give the row of the task a field, or dispatch on the type of the result.")


def _names_a_task(node: ast.AST) -> bool:
    return any(isinstance(part, ast.Constant) and part.value in TASKS for part in ast.walk(node))
