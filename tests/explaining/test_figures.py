# SPDX-License-Identifier: Apache-2.0
"""Texts and formulas of the figures, for translators and for browsers."""

from __future__ import annotations

import json
import string

import pytest
from matplotlib.figure import Figure

from muntin.explaining.figures import load_texts, make_figure
from tests.explaining.convert_formulas import TEXTS, convert_formulas

LANGUAGES = sorted(path.stem for path in TEXTS.glob("*.toml"))
STORED = json.loads((TEXTS / "mathml.json").read_text(encoding="utf-8"))


def _fields(table):
    """Keys of a table, with the fields of each text; LaTeX has braces of its own."""
    return {
        key: _fields(value)
        if isinstance(value, dict)
        else {name for _, name, _, _ in string.Formatter().parse(value) if name}
        for key, value in table.items()
        if key != "latex"
    }


@pytest.mark.parametrize("language", LANGUAGES)
def test_languages_have_the_same_texts_with_the_same_fields(language):
    assert _fields(load_texts(language)) == _fields(load_texts("en"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_formulas_of_figures_exist_and_are_converted(language):
    texts = load_texts(language)
    for table in texts.values():
        assert table.get("formula", "patches") in texts["formulas"]
    for row in texts["formulas"].values():
        assert STORED[row["latex"]].startswith("<math")


def test_stored_formulas_are_those_of_the_library():
    pytest.importorskip("latex2mathml", reason="latex2mathml is not installed")
    assert convert_formulas() == STORED


def test_parts_and_fields_make_a_caption():
    fields = {"height": 3, "width": 4}
    figure = make_figure("attention-distance", Figure(), ("text", False, "global"), **fields)
    assert figure.section == "attention"
    assert "3 x 4 pixels" in figure.text
    assert figure.text.endswith("globally.")
    assert figure.formula.startswith("<math")
    assert "2010.11929" in figure.source
