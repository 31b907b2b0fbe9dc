# SPDX-License-Identifier: Apache-2.0
"""The package answers as it did, and opens what it wrote: see `make_golden.py`."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

from tests.golden.answers import difference
from tests.golden.make_golden import ANSWERS, is_slow, questions
from tests.golden.material import HERE, OLD

STORED = json.loads(ANSWERS.read_text())
SMALL = 1_000_000
"""Bytes that everything stored here may take."""


def _names() -> list[object]:
    names = [name for name, _ in questions(HERE)]
    return [pytest.param(one, marks=pytest.mark.slow if is_slow(one) else ()) for one in names]


@pytest.mark.parametrize("name", _names())
def test_answers_are_what_they_were(name, tmp_path):
    torch.manual_seed(0)
    ask = dict(questions(tmp_path, bits=False))[name]
    with warnings.catch_warnings():
        # Of torch's own exporter.
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
        answers = {f"{name}/{key}": one for key, one in ask().items() if one.kind != "bits"}
    stored = {key: one for key, one in STORED.items() if key.startswith(f"{name}/")}
    assert answers.keys() == stored.keys()
    found = {key: difference(one, stored[key]) for key, one in answers.items()}
    wrong = {key: problem for key, problem in found.items() if problem}
    assert not wrong


def test_every_stored_answer_has_a_question():
    names = [f"{name}/" for name, _ in questions(HERE)]
    assert [key for key in STORED if not key.startswith(tuple(names))] == []


def test_what_is_stored_is_small_and_names_no_machine():
    files = [path for path in HERE.rglob("*") if path.is_file() and "__pycache__" not in str(path)]
    assert sum(path.stat().st_size for path in files) < SMALL
    for path in OLD.rglob("config.json"):
        assert not Path(json.loads(path.read_text())["data"]).is_absolute()
