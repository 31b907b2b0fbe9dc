# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0

import json

import numpy as np
import pytest

from muntin.errors import ShapeError
from muntin.results import Labels


def make(scores=(0.7, 0.2), names=("cat", "dog")):
    return Labels(
        path="a.png",
        size=(3, 4),
        class_ids=np.array([1, 0]),
        scores=np.array(scores),
        class_names=tuple(names),
    )


def test_to_dict_and_back_through_json():
    again = Labels.from_dict(json.loads(json.dumps(make().to_dict())))
    assert again.to_dict() == make().to_dict()
    assert again.size == (3, 4)
    assert again.best == "cat"


def test_above_keeps_the_columns_together():
    kept = make().above(0.5)
    assert (len(kept), kept.class_names, kept.class_ids.tolist()) == (1, ("cat",), [1])
    assert len(make().above(0.9)) == 0


def test_best_of_no_classes():
    assert make().above(1.0).best == ""


def test_columns_of_different_length_are_errors():
    with pytest.raises(ShapeError, match="2, 2 and 1"):
        make(names=("cat",))
