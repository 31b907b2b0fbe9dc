# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from muntin.data.class_csv import Row, read_table
from muntin.errors import DataError


def table(folder: Path, text: str, *, files: tuple[str, ...] = ("a.jpg", "b c.jpg")) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    place = folder / "set.csv"
    place.write_bytes(text.encode("utf-8"))
    return place


def test_rows(tmp_path):
    text = "Path , CLASS,group,split,note\r\na.jpg,cat,g1,train,x\r\n b c.jpg ,dog,,val,y\r\n"
    assert read_table(table(tmp_path, text)) == [
        Row(path="a.jpg", classes=("cat",), group="g1", split="train"),
        Row(path="b c.jpg", classes=("dog",), group="", split="val"),
    ]


def test_byte_order_mark_and_quotes(tmp_path):
    place = table(tmp_path, '\ufeffpath,class\n"a.jpg","cat, black"\n')
    assert read_table(place) == [Row(path="a.jpg", classes=("cat, black",))]


def test_several_classes(tmp_path):
    place = table(tmp_path, "path,class\na.jpg,cat; dog|cow\nb c.jpg,\n")
    assert [row.classes for row in read_table(place)] == [("cat", "dog", "cow"), ()]


def test_backslashes_and_absolute_paths(tmp_path):
    absolute = tmp_path / "a.jpg"
    place = table(
        tmp_path, f"path,class\nsub\\d.jpg,x\n{absolute},y\n", files=("sub/d.jpg", "a.jpg")
    )
    assert [row.path for row in read_table(place)] == ["sub/d.jpg", absolute.as_posix()]


def test_one_accent_two_spellings(tmp_path):
    place = table(tmp_path, "path,class\na.jpg,caf\u00e9\nb c.jpg,cafe\u0301\n")
    assert len({row.classes for row in read_table(place)}) == 1


def test_errors(tmp_path):
    with pytest.raises(DataError, match=r"^'\S+' must have the .* path and class, .* got file"):
        read_table(table(tmp_path, "file,label\na.jpg,cat\n"))
    with pytest.raises(DataError, match=r"commas, got path;class"):
        read_table(table(tmp_path, "path;class\na.jpg;cat\n"))
    with pytest.raises(DataError, match=r"got an empty file"):
        read_table(table(tmp_path, ""))
    with pytest.raises(DataError, match=r"none below"):
        read_table(table(tmp_path, "path,class\n"))
    rows = "".join(f"x{number}.jpg,cat\n" for number in range(5))
    with pytest.raises(
        DataError, match=r"5 of 6 are not: row 3 'x0.jpg', row 4 'x1.jpg', .* and 2 more"
    ):
        read_table(table(tmp_path, f"path,class\na.jpg,cat\n{rows}"))
    place = tmp_path / "latin.csv"
    place.write_bytes("path,class\na.jpg,caf\u00e9\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"text in UTF-8, got: .* at byte 20"):
        read_table(place)
