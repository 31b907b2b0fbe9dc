# SPDX-License-Identifier: Apache-2.0

import json
import sys

import numpy as np
import pytest

from muntin.errors import MissingExtra, ShapeError
from muntin.results import Detections, Labels
from muntin.run_lengths import encode_mask


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


def detections(count, *, masks=True):
    bitmap = np.eye(3, 4, dtype=bool)
    return Detections(
        path="a.png",
        size=(3, 4),
        boxes=np.tile([0.0, 1.0, 2.0, 3.0], (count, 1)),
        class_ids=np.arange(count),
        scores=np.linspace(0.9, 0.1, count),
        class_names=tuple("abc"[:count]),
        masks=(encode_mask(bitmap),) * count if masks else None,
    )


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("masks", [False, True])
def test_to_supervision(count, masks):
    pytest.importorskip("supervision")
    found = detections(count, masks=masks)
    converted = found.to_supervision()
    assert np.array_equal(converted.xyxy, found.boxes)
    assert np.array_equal(converted.confidence, found.scores)
    assert converted.class_id.tolist() == found.class_ids.tolist()
    assert converted.data["class_name"].tolist() == list(found.class_names)
    expected = np.tile(np.eye(3, 4, dtype=bool), (count, 1, 1)) if masks else None
    assert expected is None if converted.mask is None else np.array_equal(converted.mask, expected)


def test_to_supervision_names_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)  # as if it were not installed
    with pytest.raises(MissingExtra, match=r"muntin\[supervision\]"):
        detections(1).to_supervision()
