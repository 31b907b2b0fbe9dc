# SPDX-License-Identifier: Apache-2.0
"""Files of results are read back by our readers, pycocotools, csv and PIL, with the same answers.

Masks and maps are equal to the pixel, boxes and keypoints to 0.001 pixels.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as peer_masks
from pycocotools.coco import COCO

from muntin.data.detection import check_detect, list_detect
from muntin.data.mask_values import read_mask
from muntin.data.pose import check_pose, list_pose
from muntin.data.semantic import check_semantic, list_semantic
from muntin.errors import ConfigError, MissingExtra, RunError
from muntin.prediction.formats.contours import find_rings, join_rings
from muntin.prediction.formats.format_table import choose_formats
from muntin.prediction.formats.items import FormatContext
from muntin.prediction.formats.result_files import JOURNAL, ResultFiles, plan_files
from muntin.prediction.formats.table_writers import write_csv
from muntin.results import Detections, Labels, Poses, SemanticMap
from muntin.run_lengths import decode_mask, encode_mask, mask_area, to_run_lengths
from muntin.samples import Classes, Skeleton
from muntin.staging import format_json, list_json

NAMES = ("\u732b", "dog, big", "\u9f20")
SKELETON = Skeleton(
    names=("nose", "left ear", "right ear"), edges=((0, 1), (0, 2)), flip_pairs=((1, 2),),
    mirrored=True,
)  # fmt: skip
SIZES = {"\u732b 1.png": (37, 53), "b.jpg": (64, 41), "empty.png": (20, 20)}


@pytest.fixture
def images(tmp_path):
    """Images of odd sizes, one with a Chinese name."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in SIZES.items():
        pixels = rng.integers(0, 255, (*size, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return [folder / name for name in SIZES]


def objects(path, rng, *, masks):
    """Boxes of two classes, or masks with holes and several parts; none in the last image."""
    size = SIZES[path.name]
    count = 0 if path.name == "empty.png" else 5
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1) * (size[1], size[0])
    corners[:, 1] = np.maximum(corners[:, 1], corners[:, 0] + 2).clip(max=(size[1], size[0]))
    boxes = corners.reshape(-1, 4).round(3)
    found = None
    if masks:
        bitmaps = [bitmap(number, size) for number in range(count)]
        found = tuple(map(encode_mask, bitmaps))
        edges = [
            (*np.argwhere(one).min(0)[::-1], *(np.argwhere(one).max(0)[::-1] + 1))
            for one in bitmaps
        ]
        boxes = np.array(edges, float).reshape(-1, 4)
    return Detections(
        path=str(path), size=size, boxes=boxes, masks=found,
        class_ids=np.arange(count) % 2, class_names=tuple(NAMES[n % 2] for n in range(count)),
        scores=np.linspace(0.95, 0.15, count).round(6),
    )  # fmt: skip


def bitmap(number, size):
    """A disc, a ring, two parts, a pixel, and a stripe along two edges of the image."""
    rows, columns = np.indices(size)
    away = np.hypot(rows - size[0] / 2, columns - size[1] / 2)
    parts = (columns < 9) & (rows < 12) | (columns > 20) & (rows > 25) & (rows < 33)
    one = (rows == 5) & (columns == 7)
    return [away < 12, (away < 15) & (away > 7), parts, one, (rows < 3) | (columns < 2)][number]


def poses(path, rng, *, boxes):
    size = SIZES[path.name]
    count = 0 if path.name == "empty.png" else 2 if boxes else 1
    places = rng.uniform(0.1, 0.9, (count, 3, 2)) * size[::-1]
    points = np.concatenate([places.round(3), np.full((count, 3, 1), 0.9)], axis=2)
    points[:, 1, 2] = 0.1
    around = np.array([[0, 0, size[1], size[0]]] * count, float).reshape(-1, 4)
    around[1:] -= (0, 0, 2, 3)
    return Poses(
        path=str(path), size=size, keypoints=points, scores=np.full(count, 0.6),
        keypoint_names=SKELETON.names, edges=SKELETON.edges,
        boxes=around if boxes else None, box_scores=np.full(count, 0.8) if boxes else None,
    )  # fmt: skip


def semantic(path, rng):
    height, width = SIZES[path.name]
    cells = rng.integers(0, 3, (5, 4))
    labels = cells[np.arange(height) * 5 // height][:, np.arange(width) * 4 // width]
    return SemanticMap(
        path=str(path), size=(height, width), labels=labels.astype(np.int16), class_names=NAMES
    )


def write(out, results, names, *, resume=False, about=None, **options):
    kind = {Labels: "classification", Detections: "detection", Poses: "keypoints"}
    kind = kind.get(type(results[0]), "segmentation")
    classes = Classes(names=NAMES, skeleton=SKELETON if kind == "keypoints" else None)
    formats = choose_formats(names.split(","), kind, crops=options.pop("crops", False))
    context = FormatContext(folder=out, kind=kind, classes=classes, scorer="run", min_score=0.3)
    sources = [one.path for one in results]
    about = about or {}
    plan = plan_files(formats, context, (sources, []), about=about, force=False, resume=resume)
    with ResultFiles(formats, context, plan, about=about, resume=resume) as files:
        for one in results:
            if one.path not in plan.done:
                files.add(one)
    return plan


def read(call, *given, **options):
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools says what it does
        return call(*given, **options)


def by_name(listing):
    return {entry.path.rpartition("/")[2]: entry for entry in listing.entries}


@pytest.mark.parametrize("layout", ["coco", "yolo", "labelme", "csv"])
def test_boxes_come_back(images, tmp_path, layout):
    rng = np.random.default_rng(1)
    results = [objects(path, rng, masks=False) for path in images]
    write(tmp_path / "out", results, layout)
    data = tmp_path / "out" / "data.yaml" if layout == "yolo" else tmp_path
    assert check_detect(data).ok
    sets = list_detect(data)
    assert not sets.problems
    found = by_name(sets.train)
    assert {*found} == {*SIZES}
    for path, result in zip(images, results, strict=True):
        kept = result if layout in ("coco", "csv") else result.above(0.3)
        entry = found[path.name]
        assert entry.size == result.size
        np.testing.assert_allclose(entry.objects.boxes, kept.boxes, atol=1e-3)
        names = tuple(sets.train.class_names[n] for n in entry.objects.class_ids)
        assert names == kept.class_names


@pytest.mark.parametrize("layout", ["coco", "labelme", "yolo"])
def test_masks_come_back(images, tmp_path, layout):
    """To the pixel, with holes and parts."""
    rng = np.random.default_rng(1)
    results = [objects(path, rng, masks=True) for path in images]
    write(tmp_path / "out", results, layout)
    sets = list_detect(tmp_path / "out" / "data.yaml" if layout == "yolo" else tmp_path, masks=True)
    found = by_name(sets.train)
    for path, result in zip(images, results, strict=True):
        kept = result if layout == "coco" else result.above(0.3)
        masks = [to_run_lengths(one, result.size) for one in found[path.name].objects.masks]
        assert len(masks) == len(kept)
        for mask, wanted in zip(masks, kept.masks, strict=True):
            assert (decode_mask(mask) == decode_mask(wanted)).all()


@pytest.mark.parametrize("boxes", [True, False])
@pytest.mark.parametrize("layout", ["coco", "yolo", "labelme"])
def test_keypoints_come_back(images, tmp_path, layout, boxes):
    rng = np.random.default_rng(1)
    results = [poses(path, rng, boxes=boxes) for path in images]
    write(tmp_path / "out", results, layout)
    data = tmp_path / "out" / "data.yaml" if layout == "yolo" else tmp_path
    assert check_pose(data).ok
    listing = list_pose(data, whole=True).train
    order = [listing.skeleton.names.index(one) for one in SKELETON.names if one != "left ear"]
    found = by_name(listing)
    for path, result in zip(images, results, strict=True):
        seen = found[path.name].objects
        assert len(seen) == len(result)
        if layout != "labelme":  # which names the points that are there alone
            assert listing.skeleton.names == SKELETON.names
            assert (seen.keypoints[:, 1, 2] == 0).all()
        np.testing.assert_allclose(
            seen.keypoints[:, order, :2], result.keypoints[:, [0, 2], :2], atol=1e-3
        )
        if boxes:
            np.testing.assert_allclose(seen.boxes, result.boxes, atol=1e-3)


@pytest.mark.parametrize("layout", ["masks", "coco", "labelme", "yolo"])
def test_maps_of_classes_come_back(images, tmp_path, layout):
    rng = np.random.default_rng(1)
    results = [semantic(path, rng) for path in images]
    write(tmp_path / "out", results, layout)
    data = tmp_path / "out" / "data.yaml" if layout == "yolo" else tmp_path
    assert check_semantic(data).ok
    listing = list_semantic(data).train
    found = by_name(listing)
    numbers = np.array([listing.class_names.index(name) for name in NAMES])
    for path, result in zip(images, results, strict=True):
        labels = read_mask(listing, found[path.name]).labels
        assert (labels == numbers[result.labels]).all()
    if layout == "masks":
        shown = Image.open(tmp_path / "out" / "b_labels.png")
        assert shown.mode == "P"
        assert len(shown.convert("RGB").getcolors()) == len({*results[1].labels.ravel().tolist()})


def test_pycocotools_reads_both_files(images, tmp_path):
    rng = np.random.default_rng(1)
    results = [objects(path, rng, masks=True) for path in images]
    write(tmp_path, results, "coco")
    peer = read(COCO, tmp_path / "predictions_coco.json")
    assert [row["name"] for row in peer.loadCats(peer.getCatIds())] == [*NAMES]
    again = read(peer.loadRes, str(tmp_path / "predictions_coco_results.json"))
    for number, result in enumerate(results, 1):
        for api in (peer, again):
            rows = api.loadAnns(api.getAnnIds(imgIds=[number]))
            assert [row["score"] for row in rows] == result.scores.tolist()
            assert [row["area"] for row in rows] == [mask_area(one) for one in result.masks]
            for row, mask in zip(rows, result.masks, strict=True):
                assert (api.annToMask(row) == peer_masks.decode(mask)).all()
    write(tmp_path / "poses", [poses(path, rng, boxes=True) for path in images], "coco")
    rows = json.loads((tmp_path / "poses" / "predictions_coco_results.json").read_text())
    assert rows[0]["keypoints"][2::3] == [0.9, 0.1, 0.9]


@pytest.mark.parametrize("kind", ["objects", "poses", "semantic", "labels"])
def test_tables_have_a_row_for_everything(images, tmp_path, kind):
    rng = np.random.default_rng(1)
    made = {
        "objects": lambda path: objects(path, rng, masks=True),
        "poses": lambda path: poses(path, rng, boxes=True),
        "semantic": lambda path: semantic(path, rng),
        "labels": lambda path: Labels(
            path=str(path), size=SIZES[path.name], class_ids=np.array([2, 0]),
            scores=np.array([0.7, 0.3]), class_names=(NAMES[2], NAMES[0]),
        ),
    }[kind]  # fmt: skip
    results = [made(path) for path in images]
    write(tmp_path / "out", results, "csv,json")
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    answers = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    assert answers == [one.to_dict() for one in results]
    assert {(tmp_path / "out" / row["path"]).resolve() for row in rows} == {*images}
    things = [row for row in rows if row.get("class") or row.get("keypoint")]
    empty = kind in ("objects", "poses")
    assert len(rows) == len(things) + empty
    if kind == "poses":
        points = [[float(row[key]) for key in ("x", "y", "score")] for row in things]
        wanted = np.concatenate([one.keypoints.reshape(-1, 3) for one in results])
        assert points == wanted.tolist()
        assert {row["instance"] for row in things} == {"0", "1"}
        return
    key = {"objects": "boxes", "semantic": "semantic", "labels": "classes"}[kind]
    wanted = [row for one in answers for row in one[key]]
    value = "share" if kind == "semantic" else "score"
    assert [(row["class"], float(row[value])) for row in things] == [
        (row["name"], row[value]) for row in wanted
    ]
    if kind == "objects":
        assert [row["mask"] for row in things] == [row["mask"]["counts"] for row in wanted]


def test_a_list_keeps_what_it_was_told():
    """Line breaks of Unicode, which JSON does not escape, among them."""
    rows = [{"path": "a\u2028b\u0085c.png", "classes": [1, 2]}, {}, {"path": "d"}]
    for count in range(4):
        text = "".join(list_json(map(format_json, rows[:count])))
        assert json.loads(text) == rows[:count]


def test_the_first_object_of_a_table_may_come_late(tmp_path):
    frame = {"path": "clip.mp4", "size": [9, 9], "frame": 0, "time": 0.0, "boxes": []}
    box = {"xyxy": [0, 0, 4, 4], "name": "a", "id": 0, "score": 0.9, "track": 1}
    answers = [*([frame] * 10_001), {**frame, "boxes": [box]}]
    context = FormatContext(
        folder=tmp_path, kind="detection", classes=Classes(names=("a",)), scorer="run"
    )
    write_csv(lambda: iter(answers), [tmp_path / "a.csv"], context)
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [len(rows), rows[0]["track"], rows[-1]["track"]] == [10_002, "", "1"]


def test_parquet_has_the_rows_of_the_csv(images, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    rng = np.random.default_rng(1)
    results = [objects(path, rng, masks=True) for path in images]
    write(tmp_path, results, "csv,parquet")
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        wanted = list(csv.DictReader(file))
    found = parquet.read_table(tmp_path / "predictions.parquet").to_pylist()
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in found] == wanted
    assert type(found[0]["score"]) is float


def test_crops_lie_in_folders_of_classes(images, tmp_path):
    result = objects(images[1], np.random.default_rng(1), masks=False)
    write(tmp_path / "out", [result], "csv", crops=True)
    folder = tmp_path / "out" / "crops"
    found = {path.relative_to(folder).as_posix() for path in folder.glob("*/*")}
    sure = result.above(0.3)
    assert found == {f"{name}/b_{number}.png" for number, name in enumerate(sure.class_names)}
    left, top, right, bottom = np.rint(sure.boxes[0]).astype(int)
    piece = np.asarray(Image.open(tmp_path / "out" / "crops" / sure.class_names[0] / "b_0.png"))
    pixels = np.asarray(Image.open(images[1]).convert("RGB"))
    np.testing.assert_array_equal(piece, pixels[top:bottom, left:right])
    with pytest.raises(RunError, match="crops"):
        write(tmp_path / "out", [result], "json", crops=True)


def test_a_class_cannot_lead_out_of_the_folder(images, tmp_path):
    result = objects(images[1], np.random.default_rng(1), masks=False)
    names = tuple("../../a/b" for _ in result.class_names)
    odd = Detections(
        path=result.path, size=result.size, boxes=result.boxes, class_ids=result.class_ids,
        scores=result.scores, class_names=names,
    )  # fmt: skip
    write(tmp_path / "out", [odd], "csv", crops=True)
    (folder,) = (tmp_path / "out" / "crops").iterdir()
    assert folder.name == "_.._a_b"


def test_tables_go_on(images, tmp_path):
    rng = np.random.default_rng(1)
    results = [objects(path, rng, masks=True) for path in images]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    write(whole, results, "csv,json,coco")
    write(parts, results[:1], "csv,json,coco")
    with pytest.raises(RunError, match="--resume"):
        write(parts, results, "yolo,json")
    with (parts / JOURNAL).open("a") as file:
        file.write('{"path": "cut off')  # as a process leaves it that is killed
    with pytest.raises(RunError, match="threshold"):
        write(parts, results, "csv,json,coco", resume=True, about={"threshold": 0.5})
    assert len(write(parts, results, "csv,json,coco", resume=True).done) == 1
    for name in ("predictions.csv", "predictions.json", "predictions_coco.json"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
    # Another format of the same answers needs no prediction.
    assert len(write(parts, results, "csv,json", resume=True).done) == len(results)


def test_a_journal_that_somebody_changed_is_named(images, tmp_path):
    results = [objects(images[0], np.random.default_rng(1), masks=False)]
    write(tmp_path, results, "csv")
    with (tmp_path / JOURNAL).open("a") as file:
        file.write("[1, 2]\n")
    with pytest.raises(RunError, match=JOURNAL):
        write(tmp_path, results, "csv", resume=True)


def test_an_interrupted_call_leaves_whole_files(images, tmp_path):
    rng = np.random.default_rng(1)
    results = [objects(path, rng, masks=True) for path in images]

    formats = choose_formats(["json", "yolo"], "detection")
    context = FormatContext(
        folder=tmp_path / "out", kind="detection", classes=Classes(names=NAMES), scorer="run"
    )
    plan = plan_files(
        formats, context, ([str(p) for p in images], []), about={}, force=False, resume=False
    )

    def begin():
        with ResultFiles(formats, context, plan, about={}, resume=False) as files:
            files.add(results[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin()
    answers = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    assert answers == [results[0].to_dict()]
    assert not [*(tmp_path / "out").rglob("*partial*")]
    formats = choose_formats(["json", "yolo"], "detection")
    plan = plan_files(
        formats, context, ([str(p) for p in images], []), about={}, force=False, resume=True
    )
    assert plan.done == {results[0].path}


def test_results_are_freed(images, tmp_path):
    """Of 300 results hardly any lives at a time."""
    alive, most = 0, 0

    class Counted(Detections):
        def __del__(self):
            nonlocal alive
            alive -= 1

    template = objects(images[0], np.random.default_rng(1), masks=False)
    fields = ("size", "boxes", "class_ids", "scores", "class_names")
    formats = choose_formats(["csv", "json", "coco"], "detection")
    context = FormatContext(
        folder=tmp_path / "out", kind="detection", classes=Classes(names=NAMES), scorer="run"
    )
    sources = [f"{number}.png" for number in range(300)]
    plan = plan_files(formats, context, (sources, []), about={}, force=False, resume=False)
    with ResultFiles(formats, context, plan, about={}, resume=False) as files:
        for path in sources:
            alive += 1
            most = max(most, alive)
            files.add(Counted(path=path, **{name: getattr(template, name) for name in fields}))
    assert most <= 3
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 300


def test_what_a_format_cannot_hold_is_refused():
    with pytest.raises(ConfigError, match="csv"):
        choose_formats(["yolo"], "classification")
    with pytest.raises(ConfigError, match="'coco'"):
        choose_formats(["cocoo"], "detection")


def test_parquet_names_its_extra():
    with contextlib.suppress(ImportError):
        import pyarrow  # noqa: F401

        pytest.skip("pyarrow is installed")
    with pytest.raises(MissingExtra, match="parquet"):
        choose_formats(["parquet"], "detection")


def test_rings_hold_the_centres_of_the_pixels_of_a_mask():
    rng = np.random.default_rng(3)
    for _ in range(20):
        mask = encode_mask(rng.random((6, 7)) > 0.4, size=(15, 20), top=9, left=3)
        joined = join_rings([ring for area in find_rings(mask) for ring in area])
        centres = np.stack(np.meshgrid(np.arange(20), np.arange(15)), axis=-1).reshape(-1, 2) + 0.5
        inside = count_crossings(joined, centres + np.array([0, 1e-6])) % 2 == 1
        assert (inside.reshape(15, 20) == decode_mask(mask)).all()
    assert find_rings(encode_mask(np.zeros((4, 5), bool))) == []


def count_crossings(ring, points):
    """How many edges of a polygon a ray to the right of each point crosses, one after another."""
    count = np.zeros(len(points), int)
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if y0 != y1:
            at = x0 + (points[:, 1] - y0) * (x1 - x0) / (y1 - y0)
            count += ((y0 > points[:, 1]) != (y1 > points[:, 1])) & (at > points[:, 0])
    return count
