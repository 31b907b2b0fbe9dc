# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
from PIL import Image
from pycocotools.coco import COCO

from muntin.data.detection import check_detect, list_detect
from muntin.data.listing import list_classify
from muntin.run_lengths import decode_mask
from muntin.synthetic.datasets import write_classify, write_coco
from muntin.synthetic.scenes import CLASS_NAMES, KEYPOINT_NAMES, make_scene


def test_write_classify_is_a_data_set(tmp_path):
    root = write_classify(
        tmp_path / "set", num_train_per_class=5, num_val_per_class=2, size=(24, 32), seed=1
    )
    data = list_classify(root)
    assert data.train.class_names == CLASS_NAMES
    assert data.train.class_counts == (5,) * 6
    assert data.val.class_counts == (2,) * 6
    assert {entry.path.rpartition(".")[2] for entry in data.train.entries} == {"jpg", "png"}
    images = [path.read_bytes() for path in root.rglob("*.*")]
    assert len(set(images)) == 42


def test_write_coco_is_a_data_set(tmp_path):
    root = write_coco(tmp_path / "set", num_train=9, num_val=4, size=(40, 56), seed=2)
    report = check_detect(root, masks=True)
    assert report.ok
    assert not [problem for problem in report.problems if "no objects in" not in problem.what]
    data = list_detect(root, masks=True)
    assert data.train.class_names == CLASS_NAMES
    assert (len(data.train), len(data.val)) == (9, 4)
    assert {entry.path.rpartition(".")[2] for entry in data.train.entries} == {"jpg", "png"}
    images = [path.read_bytes() for path in root.glob("*/*.*g")]
    assert len(set(images)) == 13
    for index, entry in enumerate((*data.train.entries, *data.val.entries)):
        scene = make_scene(2, index, size=(40, 56), max_objects=5)
        assert entry.size == (40, 56)
        assert np.array_equal(entry.objects.boxes, [one.box_xyxy for one in scene.objects])
        for one, mask in zip(scene.objects, entry.objects.masks, strict=True):
            assert np.array_equal(decode_mask(mask), one.mask)


def test_pycocotools_reads_write_coco(tmp_path, capsys):
    root = write_coco(
        tmp_path, num_train=6, num_val=1, size=(48, 64), max_objects=3, classes=("disc", "star")
    )
    coco = COCO(str(root / "annotations" / "instances_train.json"))
    capsys.readouterr()
    assert [one["name"] for one in coco.loadCats(coco.getCatIds())] == ["disc", "star"]
    for one in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToMask(one)
        assert mask.shape == (48, 64)
        assert mask.sum() == one["area"]
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y, width, height = one["bbox"]
        assert (x, x + width) == (columns[0], columns[-1] + 1)
        assert (y, y + height) == (rows[0], rows[-1] + 1)
        points = np.reshape(one["keypoints"], (len(KEYPOINT_NAMES), 3))
        assert one["num_keypoints"] == (points[:, 2] > 0).sum()
        assert not points[points[:, 2] == 0].any()
        assert set(points[:, 2]) <= {0, 1, 2}
    (category, _) = coco.loadCats(coco.getCatIds())
    assert category["keypoints"] == list(KEYPOINT_NAMES)
    assert max(place for bone in category["skeleton"] for place in bone) == len(KEYPOINT_NAMES)


def test_write_coco_again_gives_the_same(tmp_path):
    texts = []
    for name in ("a", "b"):
        root = write_coco(tmp_path / name, num_train=2, num_val=1, size=(32, 32), seed=5)
        texts.append((root / "annotations" / "instances_val.json").read_text())
        with Image.open(root / "val" / "00000.jpg") as image:
            assert image.size == (32, 32)
    assert texts[0] == texts[1]
    assert json.loads(texts[0])["images"][0]["file_name"] == "00000.jpg"
