# SPDX-License-Identifier: Apache-2.0

import base64
import io
import json
import sys
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from muntin.errors import ConfigError, MissingExtra, ShapeError
from muntin.prediction.formats.items import FormatContext
from muntin.prediction.formats.table_writers import columns_of, list_rows
from muntin.results import DEFAULT_SCORE_THRESHOLD, Detections, Labels, Poses, SemanticMap
from muntin.run_lengths import encode_mask
from muntin.samples import Classes


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


def semantic():
    labels = np.array([[0, 0, 2], [2, 2, 2]], np.int16)
    return SemanticMap(path="m.png", size=(2, 3), labels=labels, class_names=("a", "b", "c"))


def poses(count=2, **more):
    return Poses(
        path="p.png",
        size=(30, 40),
        keypoints=np.arange(count * 6, dtype=float).reshape(count, 2, 3) / 10,
        scores=np.linspace(0.8, 0.2, count),
        keypoint_names=("nose", "tail"),
        boxes=np.tile([1.0, 2.0, 3.0, 4.0], (count, 1)),
        **more,
    )


EVERY = {
    "labels": make,
    "detections": lambda: detections(3),
    "boxes": lambda: detections(3, masks=False),
    "semantic": semantic,
    "poses": poses,
    "no labels": lambda: make().above(1.0),
    "no detections": lambda: detections(0),
    "no poses": lambda: poses(0),
}


@pytest.mark.parametrize("name", EVERY)
def test_a_result_is_a_sequence_of_records(name):
    result = EVERY[name]()
    rows = list(result)
    assert len(rows) == len(result)
    for number in range(len(result)):
        for row in (result[number], result[number - len(result)], result[np.int64(number)]):
            assert repr(row) == repr(rows[number])
    for number in (len(result), -len(result) - 1):
        with pytest.raises(IndexError, match=rf"{len(result)} records .* got {number}\."):
            result[number]


def test_records_have_what_the_columns_have():
    label = make()[0]
    assert (label.name, label.class_id, label.score) == ("cat", 1, 0.7)
    found = detections(3)
    first = found[0]
    assert (first.name, first.class_id, first.score) == ("a", 0, 0.9)
    assert first.xyxy == (0.0, 1.0, 2.0, 3.0)
    assert np.array_equal(first.mask, np.eye(3, 4, dtype=bool))
    assert detections(1, masks=False)[0].mask is None
    regions = list(semantic())
    assert [(region.name, region.class_id, region.share) for region in regions] == [
        ("a", 0, 1 / 3),
        ("c", 2, 2 / 3),
    ]
    assert regions[1].mask.tolist() == [[False, False, True], [True, True, True]]
    pose = poses()[1]
    assert (pose.score, pose.xyxy, pose.box_score) == (0.2, (1.0, 2.0, 3.0, 4.0), None)
    assert pose.keypoints.shape == (2, 3)
    assert poses(box_scores=np.array([0.6, 0.5]))[1].box_score == 0.5


@pytest.mark.parametrize("make_result", [make, lambda: detections(3), poses])
def test_a_part_of_a_result_is_a_result(make_result):
    result = make_result()
    assert len(result[1:]) == len(result) - 1
    chosen = result[np.array([False, True, False])[: len(result)]]
    assert chosen.scores.tolist() == [result.scores[1]]
    assert result[[1, 0]].scores.tolist() == [result.scores[1], result.scores[0]]
    assert len(result[[]]) == 0
    with pytest.raises(TypeError, match=r"one number.*\[0, 1\]"):
        semantic()[:2]


def test_a_threshold_goes_with_a_result():
    found = detections(3)
    assert found.threshold == DEFAULT_SCORE_THRESHOLD
    assert found.to_dict()["threshold"] == DEFAULT_SCORE_THRESHOLD
    assert found.above(0.5).threshold == 0.5
    assert found.above(0) is found, "0 removes nothing"
    assert found.above(0.5)[:1].threshold == 0.5
    again = Detections.from_dict(json.loads(json.dumps(found.above(0.5).to_dict())))
    assert again.threshold == 0.5
    old = {name: value for name, value in found.to_dict().items() if name != "threshold"}
    assert Detections.from_dict(old).threshold == DEFAULT_SCORE_THRESHOLD
    assert semantic().above(1.0).threshold == 0
    for wrong in (2, -0.1, float("nan")):
        with pytest.raises(ConfigError, match=r"threshold .* 0 to 1"):
            found.above(wrong)


def test_one_line_says_what_was_found():
    assert repr(make()) == "Labels(a.png, 3 x 4: cat 0.70, dog 0.20)"
    assert repr(make().above(0.99)) == "Labels(a.png, 3 x 4: no class with score >= 0.99)"
    assert repr(detections(3)) == "Detections(a.png, 3 x 4: 1 a, 1 b)"
    assert repr(detections(0)) == "Detections(a.png, 3 x 4: no objects)"
    assert repr(semantic()) == "SemanticMap(m.png, 2 x 3: c 66.7%, a 33.3%)"
    assert repr(poses()) == "Poses(p.png, 30 x 40: 1 instance, 1 keypoint with score >= 0.3)"


@pytest.mark.parametrize("name", EVERY)
def test_to_pandas(name):
    pandas = pytest.importorskip("pandas")
    result = EVERY[name]()
    frame = result.to_pandas()
    assert len(frame) == len(result) * (2 if isinstance(result, Poses) else 1)
    assert (frame["path"] == result.path).all()
    for column in {"path", "class", "keypoint", "mask"} & {*frame.columns}:
        assert not pandas.api.types.is_numeric_dtype(frame[column]), column
    assert len(pandas.concat([frame, frame])) == 2 * len(frame)


KINDS = {
    Labels: "classification", Detections: "detection", SemanticMap: "segmentation",
    Poses: "keypoints",
}  # fmt: skip


@pytest.mark.parametrize("name", [*EVERY, "tracked", "tracked poses"])
def test_columns_are_those_of_the_csv(name, tmp_path):
    tracked = {
        "tracked": lambda: replace(detections(2), track_ids=np.array([4, 2])),
        "tracked poses": lambda: poses(track_ids=np.array([4, 2]), box_scores=np.array([0.9, 0.8])),
    }
    result = {**EVERY, **tracked}[name]()
    classes = Classes(names=("a", "b", "c"))
    context = FormatContext(
        folder=tmp_path, kind=KINDS[type(result)], classes=classes, scorer="run"
    )
    columns = result.to_columns()
    extra = {name: columns.pop(name, None) for name in ("mask_area", "pixels", "box_score")}
    answer = result.to_dict()
    written = [*list_rows([answer], context)] if len(result) else []
    if written:
        assert [*columns] == [*columns_of(lambda: iter([answer]), context)]
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    assert len(rows) == len(written)
    for row, expected in zip(rows, written, strict=True):
        assert {**row, "path": ""} == pytest.approx({**expected, "path": ""}, abs=1e-3)
    lengths = {len(values) for values in extra.values() if values is not None}
    assert lengths <= {len(rows)}


def test_columns_that_are_not_in_the_csv():
    assert detections(2).to_columns()["mask_area"].tolist() == [3, 3]
    assert semantic().to_columns()["pixels"].tolist() == [2, 4]
    scores = poses(box_scores=np.array([0.6, 0.5])).to_columns()["box_score"]
    assert scores.tolist() == [0.6, 0.6, 0.5, 0.5]


def test_other_results_to_supervision():
    supervision = pytest.importorskip("supervision")
    labels = make().to_supervision()
    assert (labels.class_id.tolist(), labels.confidence.tolist()) == ([1, 0], [0.7, 0.2])
    regions = semantic().to_supervision()
    assert isinstance(regions, supervision.Detections)
    assert regions.class_id.tolist() == [0, 2]
    assert np.array_equal(regions.mask, [region.mask for region in semantic()])
    assert regions.data["class_name"].tolist() == ["a", "c"]
    points = poses().to_supervision()
    assert np.allclose(points.xy, poses().keypoints[:, :, :2])
    assert np.allclose(points.keypoint_confidence, poses().keypoints[:, :, 2])
    assert len(poses(0).to_supervision()) == 0


@pytest.mark.parametrize("library", ["pandas", "supervision"])
def test_a_missing_library_is_named(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    for result in (make(), detections(1), semantic(), poses()):
        with pytest.raises(MissingExtra, match=rf"muntin\[{library}\]"):
            getattr(result, f"to_{library}")()


@pytest.mark.parametrize("name", EVERY)
def test_notebooks_show_a_drawing_and_a_table(name, tmp_path):
    """Of an image that is gone, on grey."""
    result = EVERY[name]()
    page = ElementTree.fromstring(f"<div>{result._repr_html_()}</div>")
    data = page.find(".//img").get("src").removeprefix("data:image/jpeg;base64,")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.format == "JPEG"
    assert max(image.size) <= 640
    assert result.path in page.find("p").text
    shown = len(result.above(result.threshold))
    assert len(page.findall(".//tbody/tr")) == shown
    size = (64, 96)
    Image.new("RGB", size[::-1], "red").save(tmp_path / "a.png")
    labels = replace(make(), path=str(tmp_path / "a.png"), size=size)
    page = ElementTree.fromstring(f"<div>{labels._repr_html_()}</div>")
    data = page.find(".//img").get("src").removeprefix("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        red, green, blue = image.getpixel((image.width // 2, 10))
    assert red > 240 > 20 > max(green, blue)
    other = replace(result, path=str(tmp_path / "a.png"))
    assert "<img" in other._repr_html_(), "the file has another size than the result"


def test_names_are_no_html():
    found = make(names=("<script>", "a & b"))
    text = found._repr_html_()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
