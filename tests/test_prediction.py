# SPDX-License-Identifier: Apache-2.0
"""From images as people have them to results."""

from __future__ import annotations

import json
import re
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import muntin
from muntin.errors import ConfigError, DataError, MuntinError, RunError
from muntin.prediction.batch import find_images
from muntin.prediction.video import write_video
from muntin.results import Labels
from muntin.runs import Run
from tests.small import CLASSES, SETTINGS, image, train_small, write_images


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("run")
    data = write_images(root / "trees", each=10)
    run = train_small(data, root / "run", epochs=3).path
    shutil.rmtree(data)  # everything that prediction needs is in the run
    return run


@pytest.fixture(scope="module")
def predictor(run):
    return muntin.load(run)


def test_every_kind_of_image(predictor, tmp_path):
    sample = image(1, 77)
    path = tmp_path / "a.png"
    sample.save(path)
    results = predictor([str(path), path, sample, np.asarray(sample)])
    assert [result.path for result in results] == [str(path), str(path), "", ""]
    for result in results:
        assert isinstance(result, Labels)
        assert result.size == (16, 16)
        # Not to the bit: products on several threads may round differently by row.
        np.testing.assert_allclose(result.scores, results[0].scores, rtol=1e-6)
    for single in (path, str(path), sample, np.asarray(sample)):
        assert len(predictor(single)) == 1
    assert predictor([]) == []


def test_results_do_not_depend_on_the_batch(run):
    images = [image(number % 3, number, 10 + number) for number in range(7)]
    one, other = (muntin.load(run, batch_size=size)(images) for size in (1, 3))
    for left, right in zip(one, other, strict=True):
        np.testing.assert_allclose(left.scores, right.scores, rtol=1e-5)
        assert left.size == right.size


def test_modes_and_sizes_of_the_original(predictor, tmp_path):
    wide = image(0, 1).resize((40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    wide.save(tmp_path / "turned.jpg", exif=exif)
    wide.convert("RGBA").save(tmp_path / "alpha.png")
    wide.convert("L").save(tmp_path / "grey.png")
    sizes = [
        r.size for r in predictor([tmp_path / n for n in ("turned.jpg", "alpha.png", "grey.png")])
    ]
    assert sizes == [(40, 20), (20, 40), (20, 40)]


def test_to_dict(predictor, tmp_path):
    path = tmp_path / "a.png"
    image(2, 5).save(path)
    (result,) = predictor(path)
    values = json.loads(json.dumps(result.to_dict()))
    assert list(values) == ["path", "size", "threshold", "classes"]
    assert values["path"] == str(path)
    assert values["size"] == [16, 16]
    assert [list(row) for row in values["classes"]] == [["name", "id", "score"]] * 3
    scores = [row["score"] for row in values["classes"]]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1, abs=1e-5)
    assert {row["name"] for row in values["classes"]} == set(CLASSES)
    assert Labels.from_dict(values).to_dict() == values


def test_threshold(predictor):
    (result,) = predictor(image(0, 3))
    middle = float(result.scores[1])
    assert len(result.above(middle)) == 2
    assert result.above(middle).class_names == result.class_names[:2]
    assert result.above(1.0).best == ""
    assert result.best == result.class_names[0]


def test_the_mirrored_image_too(predictor):
    sample = image(0, 3)
    mirrored = sample.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    one, other = predictor([sample, mirrored], tta=True)
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4)
    assert not np.array_equal(one.scores, predictor(sample)[0].scores)


def test_calls_share_no_state(predictor):
    sample = image(0, 3)
    before = predictor(sample)[0].scores
    predictor([image(1, 1, 300)] * 3)
    np.testing.assert_array_equal(predictor(sample)[0].scores, before)


def test_a_broken_image_is_named(predictor, tmp_path):
    (tmp_path / "zero.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"zero\.png"):
        predictor([image(0, 0), tmp_path / "zero.png"])
    with pytest.raises(DataError, match=r"nowhere\.png"):
        predictor("nowhere.png")
    with pytest.warns(UserWarning, match=r"zero\.png"):
        results = predictor([image(0, 0), tmp_path / "zero.png", image(1, 1)], strict=False)
    assert len(results) == 2


@pytest.mark.parametrize("name", ["empty", "nothing*.png", "zero.mp4"])
def test_an_input_without_images_is_left_out(predictor, tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "zero.mp4").write_bytes(b"")
    with pytest.raises(DataError, match=re.escape(name)):
        predictor([tmp_path / name, image(0, 0)])
    with pytest.warns(UserWarning, match=re.escape(name)):
        assert len(predictor([tmp_path / name, image(0, 0)], strict=False)) == 1


def test_batch_size_and_device(run):
    with pytest.raises(ConfigError, match="batch_size"):
        muntin.load(run, batch_size=0)
    with pytest.raises(ConfigError, match=r"device.*cpu.*'abacus'"):
        muntin.load(run, device="abacus")


def test_draw(predictor):
    sample = image(0, 3, 40)
    sheet = muntin.draw(sample, predictor(sample)[0])
    assert sheet.mode == "RGB"
    assert sheet.height > sheet.width


def test_folders_patterns_and_bytes(predictor, tmp_path):
    names = ["b.png", "in/a.png", "in/\u732b.png"]
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image(number, number).save(tmp_path / name)
    each = predictor([tmp_path / name for name in names])
    found = predictor(tmp_path)
    assert [result.path for result in found] == [str(tmp_path / name) for name in names]
    for one, other in zip(found, each, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5)
    assert [r.path for r in predictor(f"{tmp_path}/in/*.png")] == [r.path for r in each[1:]]
    mixed = predictor([tmp_path / "in", image(0, 0)])
    assert [result.path for result in mixed] == [*(r.path for r in each[1:]), ""]
    data = (tmp_path / "b.png").read_bytes()
    for (result,) in (predictor(data), predictor([data])):
        assert (result.path, result.size) == ("", (16, 16))
        np.testing.assert_allclose(result.scores, each[0].scores, rtol=1e-5)
    assert muntin.draw(data, each[0]) == muntin.draw(tmp_path / "b.png", each[0])


def test_what_is_no_image(predictor, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        predictor(tmp_path / "empty")
    with pytest.raises(DataError, match=r"nothing\*"):
        predictor(f"{tmp_path}/nothing*")
    with pytest.raises(DataError, match="bytes"):
        predictor(b"no image")
    for address in ("https://example.com/a.png", "rtsp://example.com/live"):
        with pytest.raises(DataError, match=r"example\.com.*save"):
            predictor(address)


def test_frames_of_a_video(predictor, tmp_path):
    pytest.importorskip("av")
    frames = [Image.new("RGB", (64, 48), (80 * number, 20, 200)) for number in range(3)]
    video = write_video(tmp_path / "clip.mp4", frames, Fraction(5))
    found = predictor([video, image(0, 0)])
    assert [result.path for result in found] == [f"{video}#{number}" for number in range(3)] + [""]
    assert [result.size for result in found] == [(48, 64)] * 3 + [(16, 16)]


def test_find_images(tmp_path, monkeypatch):
    for name in ("b.png", "a.JPG", "in/c.png", "note.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    names = [path.name for path in find_images([tmp_path])]
    assert names == ["a.JPG", "b.png", "c.png"]
    assert [p.name for p in find_images([tmp_path / "*.png"])] == ["b.png"]
    assert [p.name for p in find_images([f"{tmp_path}/**/*.png"])] == ["b.png", "c.png"]
    monkeypatch.chdir(tmp_path)
    assert find_images(["in/*.png"]) == [Path("in/c.png")]
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match=r"bare"):
        find_images(["bare"])
    for wrong in ("*.gif", "none.png", str(tmp_path / "x*")):
        with pytest.raises(DataError, match=re.escape(wrong)):
            find_images([wrong])


def copy(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "run"))


SMALL_FILES = ("config.json", "classes.json", "preprocessing.json")


@pytest.mark.parametrize("name", [*SMALL_FILES, "weights.safetensors"])
def test_a_missing_file_is_named(run, tmp_path, name):
    folder = copy(run, tmp_path)
    (folder / name).unlink()
    with pytest.raises(RunError, match=re.escape(name)) as caught:
        muntin.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"{}", b'{"x": 1}', b"\xff\xfe"])
@pytest.mark.parametrize("name", [*SMALL_FILES, "weights.safetensors"])
def test_a_broken_file_is_named(run, tmp_path, name, content):
    folder = copy(run, tmp_path)
    (folder / name).write_bytes(content)
    with pytest.raises(MuntinError, match=name.replace(".", r"\.")) as caught:
        muntin.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "old", "new", "text"),
    [
        ("config.json", '"schema": 2', '"schema": 99', "schema.*99"),
        ("config.json", '"family": "swin"', '"family": "swim"', "'swin'"),
        ("config.json", '"depths"', '"depth"', "'depths'"),
        ("classes.json", '"birch",', "", "checksum"),
        ("preprocessing.json", '"bilinear"', '"linear"', "'bilinear'"),
        ("preprocessing.json", '"in_chans": 3', '"in_chans": 1', "mean"),
    ],
)
def test_a_changed_file_is_noticed(run, tmp_path, name, old, new, text):
    folder = copy(run, tmp_path)
    before = (folder / name).read_text()
    assert old in before
    (folder / name).write_text(before.replace(old, new))
    with pytest.raises(MuntinError, match=text):
        muntin.load(folder)


def test_no_run_at_all(tmp_path):
    with pytest.raises(
        RunError,
        match="nothing",
    ):
        muntin.load(tmp_path / "nothing")


def test_a_run_opens_elsewhere(run, tmp_path):
    folder = copy(run, tmp_path)
    assert Run.open(folder).config == Run.open(run).config
    assert Run.open(folder).config.model.embed_dim == SETTINGS["model.embed_dim"]
    sample = image(1, 1)
    np.testing.assert_array_equal(
        muntin.load(folder)(sample)[0].scores, muntin.load(run)(sample)[0].scores
    )
