# SPDX-License-Identifier: Apache-2.0
"""Packed data give what the data set gives, to the bit; what is torn is named in one line."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
from functools import partial

import numpy as np
import pytest
from PIL import Image

import muntin
from muntin.data.archives import read_bytes
from muntin.data.detection import list_detect
from muntin.data.image_lists import list_images
from muntin.data.listing import check_classify, list_classify
from muntin.data.pose import list_pose
from muntin.data.semantic import list_semantic
from muntin.errors import ConfigError, DataError, ShardError
from muntin.samples import Classes
from muntin.synthetic.datasets import write_classify, write_coco, write_frames, write_maps

WRITERS = {"coco": write_coco, "maps": write_maps, "frames": write_frames}
TASKS = [
    ("classify", "classes", list_classify),
    ("detect", "coco", list_detect),
    ("instance", "coco", partial(list_detect, masks=True)),
    ("semantic", "maps", list_semantic),
    ("semantic", "coco", list_semantic),
    ("pose", "frames", list_pose),
    ("pose", "coco", partial(list_pose, whole=True)),
    ("pretrain", "classes", list_images),
]


@pytest.fixture(scope="session")
def data_sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_classify(root / "classes", num_train_per_class=2, num_val_per_class=1, size=(24, 24))
    for name, write in WRITERS.items():
        write(root / name, num_train=4, num_val=2, size=(64, 64))
    return root


@pytest.fixture(scope="session")
def packed_classes(data_sets):
    muntin.pack("classify", data_sets / "classes", data_sets / "packed", shard_size="8k")
    return data_sets / "packed"


def values_of(entry):
    objects = entry.objects
    names = ("boxes", "class_ids", "crowd", "areas", "keypoints")
    columns = [getattr(objects, name) for name in names] if objects else []
    numbers = [None if one is None else (one.dtype, one.shape, one.tobytes()) for one in columns]
    rest = (entry.path, entry.class_ids, entry.group, entry.size, entry.mask, entry.instance)
    return rest, numbers, objects and objects.masks


def facts_of(one):
    return one.class_names, one.multi_label, one.encoding, one.skeleton


def assert_same(packed, original):
    assert packed.parts.keys() == original.parts.keys()
    for part, one in packed.parts.items():
        other = original.parts[part]
        assert facts_of(one) == facts_of(other)
        assert [*map(values_of, one.entries)] == [*map(values_of, other.entries)]
        for path in {p for e in one.entries for p in (e.path, e.mask) if p}:
            assert read_bytes(one.source, path) == read_bytes(other.source, path)


@pytest.mark.parametrize(
    ("task", "name", "read"),
    [pytest.param(*one, marks=[pytest.mark.slow] * (n in (1, 5))) for n, one in enumerate(TASKS)],
)
def test_listings_and_bytes_are_those_of_the_data_set(data_sets, tmp_path, task, name, read):
    packed = muntin.pack(task, data_sets / name, tmp_path / "out", shard_size="12k")
    assert packed.num_shards > 1
    assert_same(read(tmp_path / "out"), read(data_sets / name))


def test_bytes_of_shards_are_reproducible_and_plain(data_sets, tmp_path):
    source = shutil.copytree(data_sets / "coco", tmp_path / "copy")
    for path in source.rglob("*.jpg"):
        os.utime(path, (1, 1))
    muntin.pack("instance", data_sets / "coco", tmp_path / "a", shard_size="12k", workers=1)
    muntin.pack("instance", source, tmp_path / "b", shard_size="12k", workers=4)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    shard = tmp_path / "a" / "train-000000.tar"
    listed = subprocess.run(["tar", "tf", shard], check=True, capture_output=True, text=True)
    assert listed.stdout.split()[:2] == ["000000000.jpg", "000000000.json"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its own files
def test_webdataset_reads_the_shards(data_sets, packed_classes):
    webdataset = pytest.importorskip("webdataset")
    shards = sorted(map(str, packed_classes.glob("train-*.tar")))
    rows = [*webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)]
    train = list_classify(data_sets / "classes").train
    assert [int(row["cls"]) for row in rows] == [entry.class_ids[0] for entry in train.entries]
    assert [row["jpg"] for row in rows] == [read_bytes(train.source, e.path) for e in train.entries]
    assert [json.loads(row["json"])["path"] for row in rows] == [e.path for e in train.entries]


@pytest.mark.parametrize(
    ("task", "name", "read"), [TASKS[0], TASKS[1], TASKS[3]], ids=lambda one: str(one)[:8]
)
def test_classes_follow_those_of_a_run(data_sets, tmp_path, task, name, read):
    muntin.pack(task, data_sets / name, tmp_path / "out")
    names = ("other", *reversed(read(data_sets / name).train.class_names))
    is_map = read is list_semantic
    wanted = {"classes": Classes(names=names)} if is_map else {"class_names": names}
    assert_same(read(tmp_path / "out", **wanted), read(data_sets / name, **wanted))
    few = {"classes": Classes(names=names[:1])} if is_map else {"class_names": names[:1]}
    with pytest.raises(DataError, match="other"):
        read(tmp_path / "out", **few)


def test_what_is_done_is_not_done_again(data_sets, tmp_path):
    source, out = shutil.copytree(data_sets / "classes", tmp_path / "data"), tmp_path / "out"
    listing = list_classify(source).train
    last = source / listing.entries[-1].path
    kept = last.read_bytes()
    last.chmod(0)
    if os.access(last, os.R_OK):  # of an administrator
        last.unlink()
        os.mkfifo(last)
    with pytest.raises(DataError, match=last.name):
        muntin.pack("classify", source, out, shard_size="8k", workers=1)
    assert not (out / "index.json").exists()
    first = out / "train-000000.tar"
    before = first.stat().st_mtime_ns
    last.unlink()
    last.write_bytes(kept)
    muntin.pack("classify", source, out, shard_size="8k", workers=1)
    assert first.stat().st_mtime_ns == before
    assert_same(list_classify(out), list_classify(source))


def test_a_finished_packing_is_not_begun_again(data_sets, packed_classes):
    source, out = data_sets / "classes", packed_classes
    before = (out / "index.json").stat().st_mtime_ns
    muntin.pack("classify", source, out, shard_size="8k")
    assert (out / "index.json").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="--shard-size"):
        muntin.pack("classify", source, out, shard_size="16k")


@pytest.mark.parametrize("place", ["inside", "full"])
def test_a_folder_that_is_not_new_is_refused(data_sets, tmp_path, place):
    source = shutil.copytree(data_sets / "classes", tmp_path / "data")
    out = source / "out" if place == "inside" else tmp_path
    with pytest.raises(DataError, match="OUT must"):
        muntin.pack("classify", source, out)
    assert not (source / "out").exists()


@pytest.mark.parametrize("size", ["", "10", "12x", "-1M"])
def test_a_wrong_size_is_refused(data_sets, tmp_path, size):
    with pytest.raises(ConfigError, match="--shard-size"):
        muntin.pack("classify", data_sets / "classes", tmp_path / "out", shard_size=size)


def cut(path):
    path.write_bytes(path.read_bytes()[:-2000])


def change(path):
    data = bytearray(path.read_bytes())
    data[700] ^= 255
    path.write_bytes(data)


def swap_index(path):
    values = json.loads(path.read_text())
    values["sets"] = [["train", 5]]
    path.write_text(json.dumps(values))


def rename_set(path):
    path.write_text(path.read_text().replace('"train"', '"first"'))


DAMAGES = [
    ("train-000000.tar", cut, ShardError, "train-000000.tar"),
    ("train-000000.tar", os.unlink, ShardError, "train-000000.tar"),
    ("index.bin", cut, ShardError, "index.bin"),
    ("index.bin", change, ShardError, "index.bin"),
    ("index.bin", os.unlink, ShardError, "index.bin"),
    ("index.json", cut, DataError, "index.json"),
    ("index.json", swap_index, DataError, "index.bin"),
    ("index.json", rename_set, DataError, "train, val, test"),
]


@pytest.mark.parametrize(("name", "damage", "kind", "said"), DAMAGES)
def test_damage_is_named_at_once(packed_classes, tmp_path, name, damage, kind, said):
    shutil.copytree(packed_classes, tmp_path / "out")
    damage(tmp_path / "out" / name)
    with pytest.raises(kind, match=said):
        list_classify(tmp_path / "out")


def test_a_wrong_checksum_names_shard_and_file(packed_classes, tmp_path):
    shutil.copytree(packed_classes, tmp_path / "out")
    change(tmp_path / "out" / "train-000000.tar")
    listing = list_classify(tmp_path / "out").train
    first = listing.entries[0].path
    with pytest.raises(ShardError, match=f"{first}.*train-000000.tar.*checksum"):
        read_bytes(listing.source, first)


def picture(color):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), color, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            else:
                info.type, info.linkname = data
                tar.addfile(info)


def write_plain(folder, label="cls"):
    """Shards as others write them: six samples in three."""
    folder.mkdir()
    for shard in range(3):
        members = []
        for place in range(2):
            number = 2 * shard + place
            text = str(10 * (number % 2)) if label == "cls" else json.dumps({"label": number % 2})
            members += [
                (f"{number:04}.png", picture(number)),
                (f"{number:04}.{label}", text.encode()),
            ]
        write_tar(folder / f"train-{shard:03}.tar", members)


@pytest.mark.parametrize("label", ["cls", "json"])
@pytest.mark.parametrize("form", ["folder", "braces"])
def test_shards_of_others_are_read(tmp_path, monkeypatch, label, form):
    monkeypatch.setenv("MUNTIN_SHARD_CACHE", str(tmp_path / "cache"))
    write_plain(tmp_path / "set", label)
    place = tmp_path / "set" if form == "folder" else tmp_path / "set" / "train-{000..002}.tar"
    for _ in range(2):  # by scanning, and from the index that was kept
        listing = list_classify(place).train
        assert listing.class_names == (("0", "10") if label == "cls" else ("0", "1"))
        assert [entry.class_ids[0] for entry in listing.entries] == [0, 1] * 3
        found = [read_bytes(listing.source, entry.path) for entry in listing.entries]
        assert found == [picture(number) for number in range(6)]
    assert check_classify(place).ok


def test_a_single_shard_is_no_tar_of_class_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MUNTIN_SHARD_CACHE", str(tmp_path / "cache"))
    write_plain(tmp_path / "set")
    assert len(list_classify(tmp_path / "set" / "train-001.tar").train) == 2


PIXELS = picture(1)
HOSTILE = {
    "link": [("a.png", PIXELS), ("b.png", (tarfile.SYMTYPE, "/etc/passwd"))],
    "hard link": [("a.png", PIXELS), ("b.png", (tarfile.LNKTYPE, "a.png"))],
    "device": [("a.png", PIXELS), ("b.png", (tarfile.CHRTYPE, ""))],
    "outside": [("../a.png", PIXELS)],
    "twice": [("a.png", PIXELS), ("a.cls", b"1"), ("a.png", PIXELS)],
    "no images": [("a.txt", b"1")],
    "no class": [("a.png", PIXELS), ("a.cls", b"1"), ("b.png", PIXELS)],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_shards_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.setenv("MUNTIN_SHARD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    write_tar(tmp_path / "set" / "x.tar", HOSTILE[name])
    with pytest.raises(DataError, match=r"x\.tar|/set"):
        list_classify(tmp_path / "set")


@pytest.mark.parametrize("kind", ["gzip", "cut", "garbage", "bomb", "header"])
def test_broken_shards_are_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("MUNTIN_SHARD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / "x.tar"
    members = [("a.png", PIXELS), ("a.cls", b"1"), ("b.png", bytes(4000)), ("b.cls", b"2")]
    write_tar(path, members, "w:gz" if kind == "gzip" else "w")
    data = bytearray(path.read_bytes())
    if kind == "cut":
        path.write_bytes(data[:3000])
    if kind == "garbage":
        data[2048:2060] = b"x" * 12
        path.write_bytes(data)
    if kind == "bomb":  # says that it is longer than its shard
        info = tarfile.TarInfo("c.png")
        info.size = 2**40
        path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + data)
    if kind == "header":  # a header of its own of 100 GB
        info = tarfile.TarInfo("c")
        info.type, info.size = tarfile.XHDTYPE, 10**11
        path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + data)
    with pytest.raises(DataError, match=r"x\.tar"):
        list_classify(tmp_path / "set")


def test_a_packed_set_of_another_task_is_refused(packed_classes):
    for read in (list_detect, list_semantic, list_pose):
        with pytest.raises(DataError, match="holds classes"):
            read(packed_classes)
    assert len(list_images(packed_classes).train) == len(list_classify(packed_classes).train)
