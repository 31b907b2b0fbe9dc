# SPDX-License-Identifier: Apache-2.0
"""Keypoints as people store them: what is read, what is left out and how that is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from muntin.data.cache import ImageCache
from muntin.data.data_config import DataConfig
from muntin.data.pose import check_pose, is_whole, list_pose
from muntin.data.skeletons import COCO_PERSON
from muntin.data.transforms import Preprocessing
from muntin.errors import DataError, MuntinWarning
from muntin.samples import Classes
from muntin.synthetic.datasets import write_coco, write_frames

HEAD = "scorer,me,me,me,me\nbodyparts,nose,nose,tail,tail\ncoords,x,y,x,y\n"


def images(root: Path, *names: str, size=(60, 80)) -> Path:
    for number, name in enumerate(names):
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 255, (*size, 3), np.uint8)
        Image.fromarray(noise).save(place)
    return root


def labelled(
    root: Path, rows: str, *names: str, head: str = HEAD, file: str = "labels.csv"
) -> Path:
    images(root, *(names or ("a.png", "b.png", "c.png")))
    (root / file).write_text(head + rows, encoding="utf-8")
    return root


def points_of(listing, place=0):
    entry = listing.entries[place]
    return entry.objects.keypoints[entry.instance].tolist()


def said(data) -> str:
    return " | ".join(f"{one.file}: {one.what}" for one in data.problems)


def test_deeplabcut(tmp_path):
    data = list_pose(labelled(tmp_path, "a.png,1.5,2,30,40\nb.png,,,5,6\n"))
    listing = data.train
    assert listing.skeleton.names == ("nose", "tail")
    assert points_of(listing) == [[1.5, 2, 2], [30, 40, 2]]
    assert points_of(listing, 1) == [[0, 0, 0], [5, 6, 2]], "an empty cell is not visible"
    assert is_whole(listing)
    assert listing.entries[0].box == (0, 0, 80, 60)
    assert "no keypoint is named after a side" in data.note
    assert not listing.skeleton.mirrored
    assert data.val is None
    assert not data.problems


def test_keypoints_as_fractions_are_refused(tmp_path):
    table = labelled(tmp_path / "table", "a.png,.1,.6,1,0\nb.png,,,.5,.25\n")
    file = coco(tmp_path / "json", [person(points=(0.1, 0.6, 2, 0.2, 0.3, 1, 0, 0, 0))])
    for place in (table, file):
        with pytest.raises(DataError, match=r"up to (1|0\.6) only.* Multiply x"):
            list_pose(place)
    table.joinpath("labels.csv").write_text(HEAD + "a.png,8,36,80,0\nb.png,,,40,15\n")
    assert points_of(list_pose(table).train) == [[8, 36, 2], [80, 0, 2]]


def test_deeplabcut_in_folders_and_the_newer_head(tmp_path):
    images(tmp_path, "labeled-data/one/img1.png", "labeled-data/two/img1.png")
    head = "scorer,,,me,me\nbodyparts,,,nose,nose\ncoords,,,x,y\n"
    for folder, x in (("one", 3), ("two", 4)):
        path = tmp_path / "labeled-data" / folder / "CollectedData_me.csv"
        path.write_text(f"{head}labeled-data,{folder},img1.png,{x},5\n", encoding="utf-8")
    listing = list_pose(tmp_path).train
    assert [entry.path for entry in listing.entries] == [
        "labeled-data/one/img1.png", "labeled-data/two/img1.png",
    ]  # fmt: skip
    assert [points_of(listing, place)[0][0] for place in (0, 1)] == [3, 4]
    assert [entry.group for entry in listing.entries] == ["labeled-data/one", "labeled-data/two"]
    one = list_pose(tmp_path / "labeled-data" / "one" / "CollectedData_me.csv").train
    assert len(one) == 1


def test_lines_of_a_deeplabcut_project(tmp_path):
    labelled(tmp_path, "a.png,1.5,2,30,40\n")
    text = "bodyparts: [nose, tail]\nskeleton:\n- - nose\n  - tail\n- - nose\n  - wing\n"
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    assert list_pose(tmp_path).train.skeleton.edges == ((0, 1),)
    assert "left out of config.yaml: ['nose', 'wing']" in list_pose(tmp_path).note
    (tmp_path / "config.yaml").write_text("a: [", encoding="utf-8")
    assert list_pose(tmp_path).train.skeleton.edges == ()


def test_individuals_are_subjects_with_boxes(tmp_path):
    head = (
        "scorer,me,me,me,me,me,me,me,me\nindividuals,i,i,i,i,ii,ii,ii,ii\n"
        "bodyparts,nose,nose,tail,tail,nose,nose,tail,tail\ncoords,x,y,x,y,x,y,x,y\n"
    )
    rows = "a.png,10,10,20,30,50,40,60,50\nb.png,10,10,20,30,,,,\n"
    data = list_pose(labelled(tmp_path, rows, head=head))
    assert [(e.path, e.instance) for e in data.train.entries] == [
        ("a.png", 0), ("a.png", 1), ("b.png", 0),
    ]  # fmt: skip
    left, top, right, bottom = data.train.entries[1].box
    assert left < 50
    assert top < 40
    assert right > 60
    assert bottom > 50
    assert not is_whole(data.train)
    assert not data.problems
    whole = list_pose(tmp_path, whole=True).train
    assert [len(entry.objects) for entry in whole.entries] == [2, 1]


def test_faulty_rows_are_named_with_file_and_row(tmp_path):
    rows = (
        "a.png,1,2,3,4\na.png,1,2,3,4\nb.png,1,2,3\nnone.png,1,2,3,4\nc.png,one,2,3,4\n"
        "d.png,,,,\ne.png,900,2,3,4\nf.png,1,,3,4\n\n"
    )
    names = [f"{letter}.png" for letter in "abcdef"]
    data = list_pose(labelled(tmp_path, rows, *names))
    text = said(data)
    assert "labels.csv: row 5 left out, duplicate: a.png is in row 4 too" in text
    assert "row 6 left out, with a wrong number of keypoints: 3 cells, 4 needed" in text
    assert "row 7 left out, of an image that is not there: none.png" in text
    assert "row 8 left out, with cells that are no numbers: nose is (one, 2)" in text
    assert "row 9 left out, without a visible keypoint" in text
    assert "row 10: nose outside the image of 60 x 80" in text
    assert "row 11 left out, with cells that are no numbers: nose is (1, )" in text
    assert [entry.path for entry in data.train.entries] == ["a.png", "e.png"]
    assert points_of(data.train, 1)[0] == [0, 0, 0]
    report = check_pose(tmp_path)
    assert report.ok
    assert dict(report.counts)["subjects"] == 2
    assert "6 annotations left out" in data.left_out


def test_one_is_no_plural(tmp_path):
    lines = check_pose(labelled(tmp_path, "a.png,1,2,3,4\n")).lines
    assert lines[0].startswith("DeepLabCut, train 1 image, 1 instance of 2 keypoints;")
    assert lines[1] == "train: 1 image, 1 instance of 2 keypoints"


def test_a_image_of_several_subjects_is_named_once(tmp_path):
    coco(tmp_path, [person(1), person(2, box=(9, 9, 30, 40)), person(3, image=2)])
    listing = list_pose(tmp_path).train
    (tmp_path / "1.png").write_bytes(b"nothing")
    pre = Preprocessing(img_size=(64, 64), mean=(0.0,) * 3, std=(1.0,) * 3, fit="instance_crop")
    with pytest.warns(MuntinWarning, match=r"2 of 3 instances in .* left out, .*read: 1\.png\."):
        ImageCache(listing, pre, DataConfig(strict=False))


def test_nothing_visible_is_an_error(tmp_path):
    data = list_pose(labelled(tmp_path, "a.png,,,,\n"))
    assert "no instance with a visible keypoint" in data.fault
    assert not check_pose(tmp_path).ok


NUMBERED = {
    "0, 7": (("0.png", "7.png"), ["0.png", "7.png"]),
    "00,07": (("img0.png", "img007.png"), ["img0.png", "img007.png"]),
    "7,0": (("v2 frame0_.png", "v2 frame7_.png"), ["v2 frame0_.png", "v2 frame7_.png"]),
    "one is not there": (("img1.png", "img7.png"), []),
    "one is there twice": (("img0.png", "img7.png", "mask7.png"), []),
    "one is elsewhere": (("img0.png", "other/img7.png"), []),
}


@pytest.mark.parametrize(("names", "found"), NUMBERED.values(), ids=NUMBERED)
def test_frames_by_number_are_found_all_or_none(tmp_path, names, found):
    data = list_pose(labelled(tmp_path, "0,1,2,3,4\n07,1,2,3,4\n", *names))
    assert [entry.path for entry in data.train.entries] == found
    assert ("row 5 left out, of an image that is not there: 07" in said(data)) == (not found)


def test_labels_of_a_network_beside_those_of_people(tmp_path):
    rows = "a.png,1,2,3,4\nb.png,1,2,3,4\n"
    root = labelled(tmp_path, rows, file="machinelabels-iter0.csv")
    assert len(list_pose(root).train) == 2
    data = list_pose(labelled(root, "a.png,7,2,3,4\n", file="CollectedData_me.csv"))
    assert points_of(data.train)[0] == [7, 2, 2]
    assert len(data.train) == 1
    assert data.note.count("machinelabels-iter0.csv") == 1
    assert not data.problems
    (root / "more.csv").write_text(HEAD + rows)
    data = list_pose(root)
    assert [entry.path for entry in data.train.entries] == ["a.png", "b.png"]
    (problem,) = data.problems
    assert "1 row (row 4)" in problem.what
    assert "CollectedData_me.csv" in problem.what


def test_a_project_in_two_resolutions_with_a_frame_that_cannot_be_read(tmp_path):
    root = images(tmp_path, "c.png", size=(30, 20))
    labelled(root, "a.png,70,2,3,40\nb.png,1,2,3,4\nc.png,1,29,19,4\n", "a.png", "b.png")
    (root / "b.png").write_bytes(b"nothing")
    data = list_pose(root)
    assert [(one.path, one.size) for one in data.train.entries] == [
        ("a.png", (60, 80)), ("c.png", (30, 20)),
    ]  # fmt: skip
    assert points_of(data.train, 1) == [[1, 29, 2], [19, 4, 2]]
    assert "1 image left out that cannot be read" in data.left_out
    assert [one.file for one in data.problems] == ["b.png"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("scorer,me\nbodyparts,nose\ncoords,x\na.png,1\n", "must have the columns x and y"),
        ("scorer,me\nbodyparts,nose\nrow,x\ncoords\n", "must begin with rows named scorer"),
    ],
)
def test_broken_heads(tmp_path, content, text):
    images(tmp_path, "a.png")
    (tmp_path / "labels.csv").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=text):
        list_pose(tmp_path / "labels.csv")
    assert not check_pose(tmp_path / "labels.csv").ok


def test_columns_are_read_by_name(tmp_path):
    head = HEAD.replace("x,y,x,y", "y,x,y,x")
    listing = list_pose(labelled(tmp_path, "a.png,1.5,2,30,40\n", head=head)).train
    assert points_of(listing) == [[2, 1.5, 2], [40, 30, 2]]


@pytest.mark.parametrize("others", ["nose,nose", "nose,tail"])
def test_a_body_part_that_stands_twice_is_refused(tmp_path, others):
    head = HEAD.replace("tail,tail", others)
    labelled(tmp_path, "a.png,1,2,3,4\n", head=head)
    with pytest.raises(DataError, match=r"'labels.csv' must .* got 'nose'"):
        list_pose(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "text"),
    [
        ("l.csv", "", "'l.csv' is empty"),
        ("l.csv", HEAD.replace(",", ";"), "'l.csv' has semicolons between its cells"),
        ("l.csv", HEAD.split("\n", 1)[1], "'l.csv' has no row that begins with scorer"),
        ("l.csv", "a.png,1,2,3,4\n", "no row that begins with scorer and none with bodyparts"),
        (
            "l.csv",
            "scorer,me,me,me\nbodyparts,a,a,a\ncoords,x,y,likelihood\na.png,1,2,1\n",
            "'l.csv' holds predictions .* give its own path",
        ),
        ("l.json", "", "'l.json' is empty"),
        ("l.json", "[]", "'l.json' holds a list"),
        ("l.json", "{", "'l.json' is no JSON"),
        ("l.json", '{"images": []}', "'l.json' has no annotations and no categories"),
    ],
)
def test_a_file_of_no_use_is_named_with_the_reason(tmp_path, file, content, text):
    images(tmp_path, "a.png")
    (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=f"No keypoints in .*{text}"):
        list_pose(tmp_path)


def test_images_outside_the_folder_of_a_table(tmp_path):
    images(tmp_path, "in/a.png", "out/a.png", size=(30, 40))
    (tmp_path / "out" / "t.csv").write_text(HEAD + "../in/a.png,1,2,3,4\n", encoding="utf-8")
    images(tmp_path, "out/a.png")
    listing = list_pose(tmp_path / "out" / "t.csv").train
    assert [(entry.path, entry.size) for entry in listing.entries] == [("../in/a.png", (30, 40))]
    assert check_pose(tmp_path / "out" / "t.csv").ok
    inside = list_pose(tmp_path).train
    assert [entry.path for entry in inside.entries] == ["in/a.png"]
    path = (tmp_path / "in" / "a.png").as_posix()
    (tmp_path / "t.csv").write_text(HEAD + f"{path},1,2,3,4\n", encoding="utf-8")
    assert list_pose(tmp_path / "t.csv").train.entries[0].path == "in/a.png"


def test_files_of_other_body_parts_are_refused(tmp_path):
    labelled(tmp_path, "a.png,1,2,3,4\n")
    other = HEAD.replace("tail", "paw")
    (tmp_path / "more.csv").write_text(f"{other}b.png,1,2,3,4\n", encoding="utf-8")
    with pytest.raises(DataError, match="same body parts"):
        list_pose(tmp_path)


@pytest.mark.parametrize("path", ["", "nowhere", "a.png"])
def test_wrong_places(tmp_path, path):
    images(tmp_path, "a.png")
    with pytest.raises(DataError, match="DATA must be"):
        list_pose(tmp_path / path if path == "a.png" else path)
    with pytest.raises(DataError, match="Looked for COCO"):
        list_pose(tmp_path)


def coco(
    root: Path, annotations, *, keypoints=("nose", "left_ear", "right_ear"), **category
) -> Path:
    images(root, "1.png", "2.png")
    names = {"keypoints": list(keypoints)} if keypoints else {}
    data = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 60, "width": 80} for n in (1, 2)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person", **names, **category}],
    }
    (root / "person_keypoints.json").write_text(json.dumps(data), encoding="utf-8")
    return root


def person(number=1, image=1, box=(10, 10, 30, 40), points=(20, 20, 2, 15, 18, 1, 0, 0, 0), **more):
    return {
        "id": number, "image_id": image, "category_id": 1, "bbox": list(box), "area": 600,
        "iscrowd": 0, "keypoints": list(points), "num_keypoints": 2, **more,
    }  # fmt: skip


def test_coco(tmp_path):
    crowd = person(2, image=2, points=[0] * 9, iscrowd=1)
    nobody = person(3, image=2, box=(40, 5, 20, 20), points=[0] * 9)
    data = list_pose(coco(tmp_path, [person(), crowd, nobody], skeleton=[[1, 2], [1, 3]]))
    listing = data.train
    assert len(listing) == 1
    assert points_of(listing) == [[20, 20, 2], [15, 18, 1], [0, 0, 0]]
    assert listing.entries[0].box == (10, 10, 40, 50)
    assert listing.entries[0].objects.areas.tolist() == [600]
    skeleton = listing.skeleton
    assert skeleton.edges == ((0, 1), (0, 2))
    assert skeleton.flip_pairs == ((1, 2),)
    assert skeleton.mirrored
    assert skeleton.partners == (0, 2, 1)
    assert "annotation 3 left out, without a visible keypoint" in said(data)
    assert "annotation 2" not in said(data), "a crowd has none"
    whole = list_pose(tmp_path, whole=True).train
    assert [len(entry.objects) for entry in whole.entries] == [1, 2]


def test_faulty_annotations_are_named(tmp_path):
    rows = [
        person(1),
        person(2, points=(1, 2, 2)),
        person(3, box=(200, 200, 10, 10)),
        person(4, box=(5, 5, 9, 9), points=(20, 20, 3, 0, 0, 0, 0, 0, 0)),
        person(5, box=(6, 5, 9, 9), points=("x", 20, 2, 0, 0, 0, 0, 0, 0)),
        person(6, box=(7, 5, 9, 9), points=(20, float("nan"), 2, 0, 0, 0, 0, 0, 0)),
        person(7, box=(8, 5, 9, 9), points=(20, 300, 2, 10, 10, 2, 0, 0, 0)),
    ]
    text = said(list_pose(coco(tmp_path, rows)))
    assert "1.png: annotation 2 left out, with a wrong number of keypoints: 3 numbers" in text
    assert "1.png: annotation 3 left out, outside the image" in text
    assert "annotation 4 left out, with a visibility that is not 0, 1 or 2: 3" in text
    assert "annotation 5 left out, with keypoints that are no numbers: 'x'" in text
    assert "annotation 6 left out, with keypoints that are no numbers: nan" in text
    assert "annotation 7: nose outside the image" in text


def test_a_box_apart_from_its_keypoints_is_named(tmp_path):
    crowd = person(2, image=2, box=(60, 50, 5, 5), iscrowd=1)
    data = list_pose(coco(tmp_path, [person(box=(60, 50, 5, 5)), person(3, image=2), crowd]))
    assert said(data).count("none of its keypoints lies in its box") == 1
    assert "1.png: annotation 1: none of its keypoints lies in its box, x from 60 to 65" in said(
        data
    )
    assert "1 box holds none of the instance's keypoints" in data.note
    assert len(data.train) == 2


def test_links_that_join_nothing_are_named(tmp_path):
    odd = [[1, 2], [0, 1], [2, 9], [3, 3], ["a", 1], [1], 7]
    data = list_pose(coco(tmp_path, [person()], skeleton=odd))
    assert data.train.skeleton.edges == ((0, 1),)
    text = (
        "in the skeleton of category 'person' left out: [0, 1], [2, 9], [3, 3], ['a', 1], [1] and"
    )
    assert f"person_keypoints.json: {text} 1 more" in said(data)
    assert "lines left out of the skeleton" in data.note


def test_a_keypoint_named_twice_is_refused(tmp_path):
    coco(tmp_path, [person()], keypoints=("nose", "ear", "ear"))
    with pytest.raises(DataError, match=r"ear twice in .* of 'person_keypoints"):
        list_pose(tmp_path)


def test_a_category_without_keypoints_is_refused(tmp_path):
    with pytest.raises(DataError, match="the same keypoints"):
        list_pose(coco(tmp_path, [person()], keypoints=()))


def test_a_missing_partner_is_said_aloud(tmp_path):
    data = list_pose(coco(tmp_path, [person()], keypoints=("nose", "left_ear", "chin")))
    assert "without a partner on the other side: left_ear" in data.note
    assert not data.train.skeleton.mirrored


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (("L_ear", "R_ear"), ((0, 1),)),
        (("earLeft", "earRight"), ((0, 1),)),
        (("Left Ear", "nose", "Right Ear"), ((0, 2),)),
        (("pawLF", "pawRF", "pawLH", "pawRH"), ((0, 1), (2, 3))),
        (("leftover", "bright"), ()),
        (("leftear", "rightear", "lefteye", "righteye"), ((0, 1), (2, 3))),
        (("earleft", "upright", "earright"), ((0, 2),)),
        (("Lhip", "Rhip", "lear", "rear"), ((0, 1), (2, 3))),
        (("hip.L", "hip.R", "forepaw_L1", "forepaw_R1"), ((0, 1), (2, 3))),
        (("FL", "FR", "RL", "RR"), ((0, 1), (2, 3))),
        (("LF", "RF", "LR", "RR"), ((0, 1), (2, 3))),
        (
            ("left_eye_left", "left_eye_right", "right_eye_left", "right_eye_right"),
            ((0, 3), (1, 2)),
        ),
        (("oreille gauche", "oreille droite", "oeil gauche", "oeil droit"), ((0, 1), (2, 3))),
        (("\u5de6\u8033", "\u53f3\u8033"), ((0, 1),)),
        (("rear", "front"), ()),
    ],
)
def test_partners_by_their_names(tmp_path, names, pairs):
    points = [10, 10, 2] * len(names)
    listing = list_pose(coco(tmp_path, [person(points=points)], keypoints=names)).train
    assert listing.skeleton.flip_pairs == pairs
    assert listing.skeleton.mirrored == bool(pairs)


@pytest.mark.parametrize(
    ("rows", "edges", "said"),
    [
        ([[1, 2], [2, 3]], ((0, 1), (1, 2)), "edges: 2"),
        ([[0, 1], [1, 2]], ((0, 1), (1, 2)), "counts from 0"),
        ([[0, 1], [1, 3]], ((0, 2),), "left out of the skeleton: [0, 1]"),
    ],
)
def test_a_skeleton_counts_from_one_or_from_zero(tmp_path, rows, edges, said):
    root = coco(tmp_path, [person()], keypoints=("nose", "ear", "tail"), skeleton=rows)
    data = list_pose(root)
    assert data.train.skeleton.edges == edges
    assert said in data.note


@pytest.mark.parametrize(("edges", "pairs"), [("edges", "flip_pairs"), ("links", "pairs")])
def test_a_skeleton_file_is_read_with_todays_names_and_with_the_old_ones(tmp_path, edges, pairs):
    coco(tmp_path, [person()])
    values = {
        edges: [["nose", "left_ear"]], pairs: [], "mirrored": True, "sigmas": {"nose": 0.03},
    }  # fmt: skip
    (tmp_path / "skeleton.json").write_text(json.dumps(values), encoding="utf-8")
    skeleton = list_pose(tmp_path).train.skeleton
    assert skeleton.edges == ((0, 1),)
    assert skeleton.flip_pairs == ()
    assert skeleton.mirrored
    assert skeleton.sigmas == (0.03, 0.05, 0.05)
    note = list_pose(tmp_path).note
    assert "pairs none (skeleton.json)" in note
    assert "edges: 1 from skeleton.json" in note
    assert "sigmas for OKS from skeleton.json, 0.05 for left_ear, right_ear" in note


@pytest.mark.parametrize("both", [("edges", "links"), ("flip_pairs", "pairs")])
def test_a_skeleton_file_with_a_key_under_two_names_is_refused(tmp_path, both):
    coco(tmp_path, [person()])
    (tmp_path / "skeleton.json").write_text(json.dumps({key: [] for key in both}))
    with pytest.raises(DataError, match=f"skeleton.json.*{both[0]}.*{both[1]}"):
        list_pose(tmp_path)


def test_what_was_chosen_is_said(tmp_path):
    note = list_pose(coco(tmp_path, [person()], skeleton=[[1, 2], [1, 3]])).note
    assert "pairs left_ear/right_ear (by their names)" in note
    assert "edges: 2 from the annotations" in note
    assert "OKS takes 0.05 for the sigma of every keypoint" in note
    note = list_pose(
        coco(tmp_path, [person(points=[9] * 50 + [2])], keypoints=COCO_PERSON.names)
    ).note
    assert "edges: 19 from COCO" in note
    assert "sigmas for OKS as COCO has them" in note


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"edges": [["nose", "tial"]]}, "tial"),
        ({"edges": [["nose"]]}, "two keypoints each"),
        ({"edges": [["nose", "nose"]]}, "nose with itself"),
        ({"flip_pairs": [["left_ear", "left_ear"]]}, "left_ear with itself"),
        (
            {"flip_pairs": [["left_ear", "right_ear"], ["left_ear", "nose"]]},
            "got left_ear in left_ear/right_ear, left_ear/nose",
        ),
        ({"limbs": []}, "also limbs"),
        ({"sigmas": {"nose": -1}}, "above 0"),
        ({"sigmas": 3}, "3 numbers"),
        ({"keypoints": ["a"]}, "those of the data"),
        ({"keypoints": 1.5}, "those of the data.*1.5"),
        ([], "must be an object"),
    ],
)
def test_broken_skeleton_files(tmp_path, values, text):
    coco(tmp_path, [person()])
    (tmp_path / "skeleton.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(DataError, match=text):
        list_pose(tmp_path)


def test_keypoints_follow_a_run_by_name(tmp_path):
    listing = list_pose(coco(tmp_path, [person()])).train
    classes = Classes(names=("person",), skeleton=listing.skeleton)
    other = ("right_ear", "nose", "left_ear")
    coco(tmp_path, [person(points=(0, 0, 0, 20, 20, 2, 15, 18, 1))], keypoints=other)
    again = list_pose(tmp_path, classes=classes).train
    assert points_of(again) == points_of(listing)
    assert again.skeleton == listing.skeleton
    coco(tmp_path, [person()], keypoints=("a", "b", "nose"))
    with pytest.raises(DataError, match="left_ear, right_ear, unknown a, b"):
        list_pose(tmp_path, classes=classes)


def test_generated_sets(tmp_path):
    coco_set = list_pose(write_coco(tmp_path / "coco", num_train=3, num_val=2))
    assert coco_set.train.skeleton.names == coco_set.val.skeleton.names
    assert coco_set.train.skeleton.flip_pairs == ((2, 4),)
    frames = list_pose(write_frames(tmp_path / "frames", num_train=4, num_val=2))
    assert (len(frames.train), len(frames.val)) == (4, 2)
    assert is_whole(frames.train)


def test_mini_coco(data_root):
    data = list_pose(data_root / "coco_mini")
    assert len(data.val) == 16
    skeleton = data.val.skeleton
    assert skeleton.sigmas == COCO_PERSON.sigmas
    assert skeleton.flip_pairs == COCO_PERSON.flip_pairs
    assert set(skeleton.edges) == set(COCO_PERSON.edges)
    assert check_pose(data_root / "coco_mini").ok


def test_mirror_mouse(data_root):
    data = list_pose(data_root / "mirror_mouse_pose")
    assert len(data.train) == 90
    visible = np.concatenate([e.objects.keypoints[:, :, 2] for e in data.train.entries]) > 0
    assert 0.08 < 1 - visible.mean() < 0.1
    assert len(data.train.skeleton.names) == 17
    assert not data.train.skeleton.mirrored
    assert check_pose(data_root / "mirror_mouse_pose").ok


def test_unique_body_parts_belong_to_the_scene(tmp_path):
    head = (
        "scorer,me,me,me,me,me,me\nindividuals,m1,m1,m2,m2,single,single\n"
        "bodyparts,nose,nose,nose,nose,corner,corner\ncoords,x,y,x,y,x,y\n"
    )
    rows = "a.png,10,10,50,40,3.5,4.5\nb.png,10,10,,,,\n"
    data = list_pose(labelled(tmp_path, rows, head=head))
    found = [
        (e.path, e.instance, *e.class_ids, points_of(data.train, n))
        for n, e in enumerate(data.train.entries)
    ]
    assert found == [
        ("a.png", 0, 0, [[10, 10, 2], [0, 0, 0]]),
        ("a.png", 1, 0, [[50, 40, 2], [0, 0, 0]]),
        ("a.png", 2, 1, [[0, 0, 0], [3.5, 4.5, 2]]),
        ("b.png", 0, 0, [[10, 10, 2], [0, 0, 0]]),
    ]
    assert data.train.entries[2].box == (0, 0, 80, 60)
    assert data.train.class_names == ("subject", "scene")
    assert not data.problems


def yolo(root: Path, settings: str, **texts: str) -> Path:
    images(root, *(f"images/{part}/{part}.png" for part in texts))
    (root / "data.yaml").write_text(
        "names: [cow, dog]\n" + "".join(f"{part}: images/{part}\n" for part in texts) + settings,
        encoding="utf-8",
    )
    for part, text in texts.items():
        (root / "labels" / part).mkdir(parents=True, exist_ok=True)
        (root / "labels" / part / f"{part}.txt").write_text(text, encoding="utf-8")
    return root


BOX = "0.5 0.5 0.5 0.5"


@pytest.mark.parametrize(
    ("settings", "row", "points"),
    [
        ("kpt_shape: [2, 3]", "0.25 0.5 2 0.5 0.25 1", [[20, 30, 2], [40, 15, 1]]),
        ("kpt_shape: [2, 3]", "0.25 0.5 2 0.5 0.25 0", [[20, 30, 2], [0, 0, 0]]),
        ("kpt_shape: [2, 2]", "0.25 0.5 0 0", [[20, 30, 2], [0, 0, 0]]),
        ("kpt_shape: [2, 2]", "0.3 0.5 -1 -1", [[24, 30, 2], [0, 0, 0]]),
    ],
)
@pytest.mark.parametrize("data", ["", "data.yaml"])
def test_yolo_pose(tmp_path, settings, row, points, data):
    sets = list_pose(
        yolo(tmp_path, settings, train=f"1 {BOX} {row}\n\n", val=f"0 {BOX} {row}") / data
    )
    assert sets.train.entries[0].box == (20, 15, 60, 45)
    assert [listing.entries[0].class_ids for listing in (sets.train, sets.val)] == [(1,), (0,)]
    assert points_of(sets.train) == points
    assert points_of(sets.val) == points
    assert sets.train.skeleton.names == ("point 0", "point 1")
    assert not sets.problems
    assert not sets.train.skeleton.mirrored
    assert "YOLO pose" in check_pose(tmp_path / data).lines[0]


@pytest.mark.parametrize(
    ("settings", "names", "pairs", "mirrored"),
    [
        ("flip_idx: [0, 2, 1]", ("point 0", "point 1", "point 2"), ((1, 2),), True),
        ("flip_idx: [0, 1, 2]", ("point 0", "point 1", "point 2"), (), True),
        ("flip_idx: [1, 2, 0]", ("point 0", "point 1", "point 2"), (), False),
        ("flip_idx: [1, 0]", ("point 0", "point 1", "point 2"), (), False),
        ("kpt_names: {0: [a, l_b, r_b]}", ("a", "l_b", "r_b"), ((1, 2),), True),
        ("kpt_names: {0: a, 1: b, 2: c}", ("a", "b", "c"), (), False),
        (
            "kpt_names: [a, left, right]\nflip_idx: [1, 0, 2]",
            ("a", "left", "right"),
            ((0, 1),),
            True,
        ),
    ],
)
def test_flips_and_names_of_yolo(tmp_path, settings, names, pairs, mirrored):
    row = f"0 {BOX} 0.1 0.1 2 0.2 0.2 2 0.3 0.3 2"
    sets = list_pose(yolo(tmp_path, f"kpt_shape: [3, 3]\n{settings}\n", train=row))
    skeleton = sets.train.skeleton
    assert (skeleton.names, skeleton.flip_pairs, skeleton.mirrored) == (names, pairs, mirrored)


def test_seventeen_points_in_the_order_of_coco_have_their_names(tmp_path):
    flips = "[0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]"
    row = f"0 {BOX} " + "0.5 0.5 2 " * 17
    data = list_pose(yolo(tmp_path, f"kpt_shape: [17, 3]\nflip_idx: {flips}\n", train=row))
    assert data.train.skeleton == COCO_PERSON


def test_faulty_rows_of_yolo_are_no_background(tmp_path):
    rows = (
        f"0 {BOX} 0.5 0.5 2\n0 {BOX} 0.5 0.5\n7 0.1 0.1 0.2 0.2 0.5 0.5 2\n"
        "0 0.8 0.8 0.1 0.1 0.8 0.8 5\n"
    )
    root = yolo(tmp_path, "kpt_shape: [1, 3]", train=rows)
    data = list_pose(root)
    assert [entry.instance for entry in data.train.entries] == [0]
    text = said(data)
    assert "line 2 left out, with a wrong number of keypoints: 7 numbers, 8 needed" in text
    assert "line 3 left out, of an unknown class beyond the names: 7" in text
    assert "line 4 left out, with a visibility" in text
    crowd = list_pose(root, whole=True).train.entries[0].objects.crowd
    assert crowd.tolist() == [False, True, True, True]


@pytest.mark.parametrize("shape", ["17", "[0, 3]", "[17, 4]", "[a, 2]"])
def test_a_shape_of_keypoints_that_is_none(tmp_path, shape):
    with pytest.raises(DataError, match=r"kpt_shape in 'data.yaml'"):
        list_pose(yolo(tmp_path, f"kpt_shape: {shape}\n", train=f"0 {BOX} 0.5 0.5 2"))


def labelme(root: Path, name: str, *shapes) -> Path:
    images(root, f"{name}.png")
    rows = [
        {
            "label": label, "group_id": group, "points": points,
            "shape_type": "point" if len(points) == 1 else "rectangle",
        }
        for label, group, points in shapes
    ]  # fmt: skip
    value = {"imagePath": f"{name}.png", "imageHeight": 60, "imageWidth": 80, "shapes": rows}
    (root / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return root


def test_points_of_labelme(tmp_path):
    labelme(
        tmp_path,
        "a",
        ("cow", 1, [[30, 40], [5, 10]]),
        ("nose", 1, [[8, 12]]),
        ("tail", 1, [[50, 50]]),
        ("cow", None, [[40, 5], [70, 30]]),
        ("nose", None, [[45, 9]]),
        ("nose", 2, [[20, 50]]),
        ("tail", 2, [[30, 55]]),
    )
    listing = list_pose(tmp_path).train
    assert listing.skeleton.names == ("nose", "tail")
    assert [points_of(listing, place) for place in range(3)] == [
        [[8, 12, 2], [50, 50, 2]], [[45, 9, 2], [0, 0, 0]], [[20, 50, 2], [30, 55, 2]],
    ]  # fmt: skip
    assert [listing.entries[n].box for n in (0, 1)] == [(5, 10, 30, 40), (40, 5, 70, 30)]
    assert [listing.class_names[e.class_ids[0]] for e in listing.entries] == ["cow"] * 2 + [
        "subject"
    ]
    left, top, right, bottom = listing.entries[2].box
    assert (left < 20, top < 50, right > 31, bottom > 56) == (True,) * 4


def test_points_of_labelme_without_groups_are_one_subject(tmp_path):
    labelme(tmp_path, "a", ("10", None, [[8, 12]]), ("2", None, [[50, 50]]))
    labelme(tmp_path, "b", ("2", None, [[1, 2]]), ("2", None, [[3, 4]]))
    data = list_pose(tmp_path)
    assert data.train.skeleton.names == ("2", "10")
    assert is_whole(data.train)
    assert [points_of(data.train, n) for n in range(len(data.train))] == [[[50, 50, 2], [8, 12, 2]]]
    assert "with a keypoint given twice: 2" in said(data)


SKELETON = (
    '<skeleton label="cow"><points label="nose" points="{},12"/>'
    '<points label="tail" occluded="1" points="50,50"/>'
    '<points label="ear" outside="1" points="1,1"/></skeleton>'
)
TOOLS = {
    "skeletons, one in a box of its class": (
        "cvat", SKELETON.format(8) + SKELETON.format(31)
        + '<box label="cow" xtl="5" ytl="10" xbr="30" ybr="55"/>'
        + '<box label="pen" xtl="0" ytl="0" xbr="70" ybr="58"/>',
        {"cow": [[[0, 0, 0], [8, 12, 2], [50, 50, 1]], [[0, 0, 0], [31, 12, 2], [50, 50, 1]]]},
    ),
    "points of a group": (
        "cvat", '<box label="cow" group_id="3" xtl="5" ytl="10" xbr="30" ybr="40"/>'
        '<points label="nose" group_id="3" points="8,12"/>'
        '<points label="tail" group_id="3" occluded="1" points="50,50"/>',
        {"cow": [[[8, 12, 2], [50, 50, 1]]]},
    ),
    "several points in one shape": (
        "cvat", '<points label="cow" points="8,12;50,50"/><points label="cow" points="9,2;5,4"/>'
        '<points label="cow" points="9,2;5,4;30,30"/><polyline label="x" points="1,1;2,2"/>',
        {"cow": [[[8, 12, 2], [50, 50, 2]], [[9, 2, 2], [5, 4, 2]]]},
    ),
    "points alone": (
        "cvat", '<points label="nose" points="8,12"/><points label="tail" points="50,50"/>',
        {"subject": [[[8, 12, 2], [50, 50, 2]]]},
    ),
    "VIA": (
        "via", [{"name": "point", "cx": 8, "cy": 12, "class": "nose"},
        {"name": "point", "cx": 50, "cy": 50, "class": "tail"},
        {"name": "rect", "x": 5, "y": 10, "width": 50, "height": 45, "class": "cow"}],
        {"cow": [[[8, 12, 2], [50, 50, 2]]]},
    ),
    "Label Studio": (
        "label studio", [{"x": 10, "y": 20, "keypointlabels": ["nose"], "parentID": "b"},
        {"x": 62.5, "y": 50, "keypointlabels": ["tail"]},
        {"x": 0, "y": 0, "width": 25, "height": 25, "rectanglelabels": ["cow"], "id": "b"},
        {"x": 50, "y": 40, "width": 25, "height": 25, "rectanglelabels": ["cow"]}],
        {"cow": [[[8, 12, 2], [0, 0, 0]], [[0, 0, 0], [50, 30, 2]]]},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("tool", "drawn", "wanted"), TOOLS.values(), ids=TOOLS)
def test_points_of_tools(tmp_path, tool, drawn, wanted):
    images(tmp_path, "1.png")
    if tool == "cvat":
        text = (
            f'<annotations><image name="1.png" width="80" height="60">{drawn}</image></annotations>'
        )
    elif tool == "via":
        rows = [{"shape_attributes": one, "region_attributes": one} for one in drawn]
        text = json.dumps({"1": {"filename": "1.png", "regions": rows}})
    else:
        kinds = [next(key for key in one if key.endswith("labels")) for one in drawn]
        rows = [
            {"type": kind, "original_width": 80, "original_height": 60, "value": one}
            | {"id": one.get("id", f"r{n}"), "parentID": one.get("parentID")}
            for n, (kind, one) in enumerate(zip(kinds, drawn, strict=True))
        ]
        text = json.dumps(
            [{"id": 1, "data": {"image": "1.png"}, "annotations": [{"result": rows}]}]
        )
    (tmp_path / f"file.{'xml' if tool == 'cvat' else 'json'}").write_text(text)
    data = list_pose(tmp_path)
    listing, found = data.train, {}
    for number, entry in enumerate(listing.entries):
        name = listing.class_names[entry.class_ids[0]]
        found.setdefault(name, []).append(points_of(listing, number))
    assert found == wanted
    assert len(listing.skeleton.names) == len(next(iter(wanted.values()))[0])
    assert not data.fault
