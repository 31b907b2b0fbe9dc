# SPDX-License-Identifier: Apache-2.0
"""One range for a whole set of images of more than 8 bits, in every task, from file to network."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from muntin.configs import from_dict, to_dict, with_texts
from muntin.data.cache import ImageCache
from muntin.data.data_config import DataConfig
from muntin.data.decoding import decode, open_image
from muntin.data.detection import list_detect
from muntin.data.entry_images import choose_range, measure_range
from muntin.data.listing import check_classify, list_classify
from muntin.data.pose import list_pose
from muntin.data.semantic import list_semantic
from muntin.data.transforms import Preprocessing
from muntin.data.value_ranges import OWN, UNSET, apply_range, robust_range, used_levels
from muntin.errors import ConfigError, DataError, MuntinWarning
from muntin.prediction.batch import read_images
from muntin.prediction.from_run import load
from muntin.runs import Run
from muntin.scoring.evaluation import evaluate
from muntin.tasks.task_table import find_task
from tests.data.deep_files import png_16, tiff
from tests.small import train_small

UNIFORM = np.linspace(800, 1200, 4001)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (UNIFORM, (800, 1200)),
        (np.arange(256, dtype=np.int32), (0, 255)),
        (np.r_[UNIFORM, 1e9], (800, 1200)),
        (np.r_[UNIFORM, [1e9] * 400], (800, 1200)),
        (np.r_[UNIFORM, [-9999.0] * 3000], (800, 1200)),
        (np.r_[UNIFORM, [-9999.0] * 3000, [-32768.0] * 3000], (800, 1200)),
        (np.r_[UNIFORM, [-3.4e38] * 9, np.inf, -np.inf, np.nan], (800, 1200)),
        (np.r_[UNIFORM, [65535.0] * 900], (800, 1200)),
        (np.r_[UNIFORM, [0.0] * 900], (0, 1200)),  # black is a value
        (np.r_[UNIFORM, [1230.0]], (800, 1230)),  # no outlier
        (np.r_[np.arange(400.0), [3000.0] * 400], (0, 3000)),  # an object, not missing data
        (np.r_[[-2000.0] * 50, np.linspace(-1100, 1900, 3001)], (-2000, 1900)),
        (np.array([7.0]), (7, 8)),
        (np.array([np.nan]), (0, 1)),
        (np.array([], np.float32), (0, 1)),
        (np.array([0, 65535], np.uint16), (0, 65535)),
    ],
)
def test_robust_range(values, expected):
    assert robust_range(values) == pytest.approx(expected, abs=1.0)


@pytest.mark.parametrize(
    ("value_range", "expected"),
    [
        ((1000, 1400), [0, 0, 64, 128, 255, 255]),
        ((0, 2550), [100, 100, 110, 120, 140, 255]),
        (OWN, None),
    ],
)
@pytest.mark.parametrize("kind", ["uint16", "int32", "float32", "float64"])
def test_apply_range(kind, value_range, expected):
    values = np.array([1000, 1001, 1100, 1200, 1400, 60000]).astype(kind)
    found = apply_range(values, value_range)
    assert found.dtype == np.uint8
    if expected is None:
        expected = np.rint((values.astype(float) - 1000) * 255 / 59000)
    assert np.abs(found - np.array(expected, float)).max() <= 1


def test_all_levels_that_8_bits_hold():
    values = np.arange(1000, 1256, dtype=np.uint16)
    assert len(np.unique(apply_range(values, robust_range(values)))) == 256
    eight = np.arange(256, dtype=np.int32)
    assert np.array_equal(apply_range(eight, robust_range(eight)), eight)
    assert apply_range(np.array([np.nan, np.inf, -np.inf]), (-1.0, 1.0)).tolist() == [0, 0, 0]


def test_used_levels():
    assert used_levels(np.arange(0, 4096), (0.0, 65535.0)) == 17
    assert used_levels(np.full(9, 5.0), (0.0, 10.0)) == 1
    assert used_levels(np.array([np.nan]), (0.0, 10.0)) == 0


def thermal(number: int, shape=(24, 32), bands: int = 1) -> np.ndarray:
    noise = np.random.default_rng(number).integers(0, 401, (*shape, bands))
    return (1000 + noise).astype(np.uint16)[..., 0 if bands == 1 else slice(None)]


def _files(root: Path, names: list[str], write) -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(write(thermal(number)))


def _classes(root: Path, write) -> list[str]:
    names = ["a/0.img", "a/1.img", "b/2.img", "b/3.img"]
    return [name.replace("img", "png" if write is png_16 else "tif") for name in names]


def _folder(kind: str, root: Path, write):
    """A data set of thermal images, listed for one kind of task."""
    names = _classes(root, write)
    if kind != "classify":
        names = [f"images/{Path(name).name}" for name in names]
    _files(root, names, write)
    match kind:
        case "classify":
            return list_classify(root).train
        case "semantic":
            (root / "masks").mkdir()
            for name in names:
                mask = np.zeros((24, 32), np.uint8)
                mask[:9] = 1
                Image.fromarray(mask).save(root / "masks" / f"{Path(name).stem}.png")
            return list_semantic(root).train
    keypoints = {"keypoints": [5, 5, 2, 9, 9, 2], "num_keypoints": 2} if kind == "pose" else {}
    things = [
        {"id": n, "image_id": n, "category_id": 1, "bbox": [2, 2, 20, 15], "iscrowd": 0,
         "area": 300, "segmentation": [[2, 2, 22, 2, 22, 17, 2, 17]], **keypoints}
        for n in range(4)
    ]  # fmt: skip
    category = {"id": 1, "name": "thing"} | (
        {"keypoints": ["nose", "tail"], "skeleton": []} if keypoints else {}
    )
    images = [
        {"id": n, "file_name": name, "height": 24, "width": 32} for n, name in enumerate(names)
    ]
    values = {"images": images, "annotations": things, "categories": [category]}
    (root / "all.json").write_text(json.dumps(values))
    if kind == "pose":
        return list_pose(root).train
    return list_detect(root, masks=kind == "instance").train


FITS = {"classify": "center_crop", "semantic": "sliding_window", "pose": "instance_crop"}


@pytest.mark.parametrize("write", [png_16, tiff, lambda v: tiff(v.astype("f4"), deflate=True)])
@pytest.mark.parametrize("kind", ["classify", "detect", "instance", "semantic", "pose"])
def test_training_and_prediction_see_the_same(tmp_path, kind, write):
    listing = _folder(kind, tmp_path, write)
    measured = measure_range(listing)
    assert measured.value_range == (1000, 1400)
    assert "1000 to 1400" in measured.note
    assert not measured.warning
    pre = Preprocessing(
        img_size=(24, 32), mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear",
        fit=FITS.get(kind, "letterbox"), value_range=measured.value_range,
    )  # fmt: skip
    assert from_dict(Preprocessing, json.loads(json.dumps(to_dict(pre)))) == pre
    store = ImageCache(listing, pre, DataConfig())
    wanted = np.rint((thermal(0).astype(float) - 1000) * 255 / 400)
    path = Path(listing.source) / listing.entries[0].path
    (predicted,) = read_images(path, value_range=pre.value_range)
    assert np.abs(predicted.pixels[..., 1] - wanted).max() <= 1
    if kind != "pose":  # which keeps the surroundings of the instance
        kept = store.load(0).pixels
        assert np.array_equal(kept.permute(1, 2, 0).numpy(), predicted.pixels)
    else:
        assert store.load(0).pixels.numpy().std() > 50, "not crushed"


def test_a_run_records_its_range(tmp_path):
    root = tmp_path / "data"
    for class_id, name in enumerate(("cold", "warm")):
        (root / name).mkdir(parents=True)
        for number in range(6):
            values = thermal(number, (16, 16)) // 4 + 750 + 300 * class_id  # 1000 to 1400
            (root / name / f"{number}.tif").write_bytes(tiff(values.astype(np.uint16)))
    out = tmp_path / "run"
    train_small(root, out, weights="none", epochs=1)
    run = Run.open(out)
    assert run.preprocessing.value_range == pytest.approx((1000, 1400), abs=4)
    assert run.config.data_config.range == run.preprocessing.value_range
    predictor = load(out, device="cpu")
    (crop,) = predictor.prepare(root / "cold" / "0.tif").parts
    assert crop.images.max() < 80
    assert crop.images.float().std() > 5
    array = np.array(Image.open(root / "cold" / "0.tif"))
    assert predictor.prepare(array).parts[0].images.equal(crop.images), "an array of the values"
    again = train_small(root, tmp_path / "again", config=out / "config.json")
    assert Run.open(again.path).preprocessing == run.preprocessing
    other = root.rename(tmp_path / "other")  # not the images of the training
    with pytest.warns(MuntinWarning, match=r"data\.range"):
        figures = evaluate(out, other, pictures=False, settings={"data.range": "0,65535"})
    assert figures["num_images"] == 12
    (tmp_path / "far.tif").write_bytes(tiff(thermal(0) * np.uint16(20)))
    with pytest.warns(MuntinWarning, match=r"far\.tif.*data\.range"):
        predictor(tmp_path / "far.tif")


def test_older_runs_keep_their_rule(tmp_path):
    (tmp_path / "a.png").write_bytes(png_16(np.array([[0, 257, 65535]], np.uint16)))
    old = from_dict(Preprocessing, {"img_size": [8, 8], "mean": [0.5] * 3, "std": [0.5] * 3})
    assert old.value_range == UNSET
    (image,) = read_images(tmp_path / "a.png", value_range=old.value_range)
    assert image.pixels[0, :, 0].tolist() == [0, 1, 255]
    with pytest.raises(DataError, match="float64"):
        next(read_images(np.zeros((4, 4)), value_range=UNSET))


def test_the_user_sets_it(tmp_path):
    listing = _folder("classify", tmp_path, png_16)
    given = with_texts(DataConfig(), [("range", "1100,1300")]).range
    assert measure_range(listing, given).value_range == (1100, 1300)
    with pytest.warns(MuntinWarning, match=r"4 of 4 .*data\.range is 0,65535.*1000 to 1400"):
        choose_range(listing, listing, (0.0, 65535.0))
    for wrong in ("5,5", "9,2"):
        with pytest.raises(ConfigError, match=r"data\.range"):
            with_texts(DataConfig(), [("range", wrong)])


def test_mixed_sets(tmp_path):
    """Images of 8 bits are read as they are beside others, and alone have no range."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for name in ("a/0.png", "b/1.png"):
        Image.fromarray(grey).save(tmp_path / name)
    assert measure_range(list_classify(tmp_path).train).value_range == UNSET
    assert not any("data.range" in line for line in check_classify(tmp_path).lines)
    given = measure_range(list_classify(tmp_path).train, (0.0, 9.0))
    assert given.value_range == (0, 9)
    assert "data.range has no effect" in given.note
    (tmp_path / "b/2.png").write_bytes(png_16(thermal(0, bands=3)))
    found = measure_range(list_classify(tmp_path).train)
    assert found.value_range == (1000, 1400)
    data = (tmp_path / "a/0.png").read_bytes()
    assert np.array_equal(decode(data, where="x", value_range=found.value_range)[..., 0], grey)
    assert any("1000 to 1400" in line for line in check_classify(tmp_path).lines)


def test_check_warns_where_little_is_used(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for number in range(4):  # reflectances, and one image in other units
        values = np.random.default_rng(number).random((20, 20)).astype(np.float32)
        values = values * 10000 if number == 0 else values
        Image.fromarray(values).save(tmp_path / "ab"[number % 2] / f"{number}.tif")
    report = check_classify(tmp_path)
    assert report.ok
    assert any("3 of 4" in one.what and "data.range" in one.what for one in report.problems)


@pytest.mark.parametrize("kind", ["classify", "detect", "instance", "semantic", "pose"])
def test_check_judges_the_range_that_is_set(tmp_path, kind):
    _folder(kind, tmp_path, png_16)
    good = find_task(kind).check_data(tmp_path, DataConfig(range=(1000, 1300)))
    assert any("1000 to 1300" in line for line in good.lines)
    poor = find_task(kind).check_data(tmp_path, DataConfig(range=(0, 65535)))
    assert sum("data.range is 0,65535" in one.what for one in poor.problems) == 1


def test_frames_that_differ_in_few_values_are_no_twins(tmp_path):
    for number, name in enumerate(("a/0.png", "b/1.png")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(png_16(thermal(number)))
    assert not [one for one in check_classify(tmp_path).problems if "same image" in one.what]


def test_drawings_show_an_image_by_its_own_range(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(thermal(0)))
    pixels = open_image(tmp_path / "a.tif")
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert open_image(Image.fromarray(thermal(0))).max() == 255
