# SPDX-License-Identifier: Apache-2.0
"""What people see, at a terminal and in a file."""

from __future__ import annotations

import importlib.util
import io

from rich.console import Console

from muntin.training.progress import Reporter, _is_live


def shown(terminal, every=0.0):
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100)
    with Reporter(console, every) as reporter:
        for step in range(3):
            reporter.step("epoch 1/2", step / 6, {"loss": f"{1 - step / 10:.2f}", "left": "9s"})
        reporter.note("epoch 1/2  " + "long " * 40 + "end")
    return text.getvalue()


def test_lines_where_there_is_no_terminal():
    lines = shown(False).splitlines()
    assert lines[:3] == [
        "epoch 1/2  0%  loss 1.00  left 9s",
        "epoch 1/2  17%  loss 0.90  left 9s",
        "epoch 1/2  33%  loss 0.80  left 9s",
    ]
    assert len(lines) == 4, "a note is one line, however long"
    assert "\x1b" not in "".join(lines)


def test_few_lines():
    assert len(shown(False, every=60).splitlines()) == 1


def test_a_bar_at_a_terminal():
    text = shown(True)
    assert "\x1b" in text
    assert "loss" in text


def test_nothing_when_quiet():
    with Reporter(None) as reporter:
        reporter.step("epoch", 0.5, {})
        reporter.note("nobody reads this")


def test_a_bar_in_a_notebook_needs_widgets(monkeypatch):
    console = Console(force_jupyter=True)
    for spec in (None, "a spec"):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, spec=spec: spec)
        assert _is_live(console) == bool(spec)
