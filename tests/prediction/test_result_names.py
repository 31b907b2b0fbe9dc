# SPDX-License-Identifier: Apache-2.0
"""Results are called like their inputs, and no file is written over another."""

import os

import pytest

from muntin.errors import RunError
from muntin.prediction.result_names import name_results
from muntin.staging import refuse_existing, staged

IMAGE, MAP, VIDEO = (".png",), (".png", "_labels.png"), (".mp4", ".csv")
NAMES = {
    "one": (["new/three.png"], IMAGE, ["three"]),
    "dots": (["new/shot.0.png", "new/shot.1.png"], IMAGE, ["shot.0", "shot.1"]),
    "folders": (["new/mon/0.png", "new/tue/0.png", "new/tue/1.png"], IMAGE,
                ["mon/0", "tue/0", "tue/1"]),
    "depths": (["a/0.png", "a/b/0.png", "0.png"], IMAGE, ["a/0", "a/b/0", "0"]),
    "different folders, different names": (["a/0.png", "b/1.png"], IMAGE, ["0", "1"]),
    "suffixes": (["clip.mp4", "clip.avi"], VIDEO, ["clip.mp4", "clip.avi"]),
    "capitals": (["a.JPG", "A.jpg", "b.jpg"], IMAGE, ["a.JPG", "A_2", "b"]),
    "the same file": (["./x/../a.png", "a.png"], IMAGE, ["a.png", "a_2"]),
    "labels": (["x.png", "x_labels.png"], MAP, ["x", "x_labels.png"]),
    "labels first": (["x_labels.png", "x.png"], MAP, ["x_labels", "x.png"]),
    "table": (["poses.mp4"], VIDEO, ["poses.mp4"]),
    "image beside video": (["a.jpg"], IMAGE, ["a"]),
}  # fmt: skip


@pytest.mark.parametrize(("paths", "endings", "names"), NAMES.values(), ids=NAMES)
def test_names_are_those_of_inputs_and_differ(paths, endings, names):
    found = name_results(dict.fromkeys(paths, endings), ["poses.csv"])
    assert [*found] == paths
    assert [*found.values()] == names
    files = [f"{name}{each}".casefold() for name in found.values() for each in endings]
    assert len({*files, "poses.csv"}) == len(files) + 1


@pytest.mark.parametrize("force", [False, True, None])
def test_an_input_is_never_a_place_of_results(tmp_path, force):
    (tmp_path / "clip.mp4").write_text("")
    os.symlink(tmp_path, tmp_path / "other")
    for place in (tmp_path / "clip.mp4", tmp_path / "other" / "clip.mp4"):
        with pytest.raises(RunError, match=r"--out.*clip\.mp4"):
            refuse_existing([place], [tmp_path / "clip.mp4"], option="--out", force=force)


@pytest.mark.parametrize(("force", "advice"), [(False, True), (True, None), (None, False)])
def test_other_files_are_replaced_if_asked(tmp_path, force, advice):
    places = [tmp_path / "new.png", tmp_path / "old.png"]
    places[1].write_text("")
    if force:
        refuse_existing(places, ["a.png", ""], option="--out", force=force)
        return
    with pytest.raises(RunError, match=r"old\.png") as caught:
        refuse_existing(places, ["a.png", ""], option="--out", force=force)
    assert ("--force" in str(caught.value)) == advice


@pytest.mark.parametrize("force", [False, True])
def test_a_stage_moves_all_or_nothing(tmp_path, force):
    given = tmp_path / "b.png"
    given.write_text("input")

    def write():
        with staged(tmp_path, inputs=[given], force=force) as stage:
            for name in ("a.png", "b.png"):
                (stage / name).write_text("result")

    with pytest.raises(RunError, match=r"b\.png"):
        write()
    assert given.read_text() == "input"
    assert [*tmp_path.iterdir()] == [given]
