# SPDX-License-Identifier: Apache-2.0
import gzip
import io
import multiprocessing
import multiprocessing.forkserver
import os
import tarfile
import zipfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from muntin.data import archives
from muntin.data.archives import is_archive, list_files, read_bytes
from muntin.data.trees import read_json
from muntin.errors import DataError

CONTENTS = {f"top/class {n % 3}/p\u00efc {n}.jpg": bytes([n]) * (500 + n) for n in range(40)}
KINDS = ("zip", "tar", "tar.gz", "tgz", "tar.bz2", "tar.xz")


def pack(path: Path, contents: dict[str, bytes] = CONTENTS, folders: tuple[str, ...] = ()) -> str:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for folder in folders:
                file.mkdir(folder)
            for name, data in contents.items():
                file.writestr(name, data)
        return str(path)
    packing = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, packing) as file:
        for folder in folders:
            info = tarfile.TarInfo(f"./{folder}")
            info.type = tarfile.DIRTYPE
            file.addfile(info)
        for name, data in contents.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return str(path)


@pytest.mark.parametrize("kind", KINDS)
def test_archives_read_like_folders(tmp_path, kind):
    source = pack(tmp_path / f"set.{kind}", folders=("empty",))
    for name, data in CONTENTS.items():
        place = tmp_path / "folder" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    (tmp_path / "folder" / "empty").mkdir()
    folder = str(tmp_path / "folder")
    assert is_archive(source)
    assert not is_archive(folder)
    assert list_files(source) == list_files(folder)
    assert list_files(source)[1] == ["empty", "top", "top/class 0", "top/class 1", "top/class 2"]
    for name, data in CONTENTS.items():
        assert read_bytes(source, name) == read_bytes(folder, name) == data
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", f"set.{kind}"]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_threads(tmp_path, kind):
    source = pack(tmp_path / f"set.{kind}")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(partial(read_bytes, source), list(CONTENTS) * 20))
    assert found == list(CONTENTS.values()) * 20


@pytest.fixture
def no_server_stays():
    """Without it the server lives as long as the process of the tests."""
    yield
    multiprocessing.forkserver._forkserver._stop()


@pytest.mark.usefixtures("no_server_stays")
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_other_processes(tmp_path, kind, start):
    source = pack(tmp_path / f"set.{kind}")
    read_bytes(source, next(iter(CONTENTS)))
    context = multiprocessing.get_context(start)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert list(pool.map(partial(read_bytes, source), CONTENTS)) == list(CONTENTS.values())


def test_another_process_opens_its_own_zip(tmp_path, monkeypatch):
    source = pack(tmp_path / "set.zip")
    name = next(iter(CONTENTS))
    read_bytes(source, name)
    mine = archives._opened[source]
    read_bytes(source, name)
    assert archives._opened[source] is mine
    monkeypatch.setattr(os, "getpid", lambda: -5)
    assert read_bytes(source, name) == CONTENTS[name]
    assert archives._opened[source] is not mine


def test_listing_again_sees_a_changed_archive(tmp_path):
    source = pack(tmp_path / "set.tar")
    list_files(source)
    pack(tmp_path / "set.tar", {"new.jpg": b"new"})
    assert list_files(source) == (["new.jpg"], [])
    assert read_bytes(source, "new.jpg") == b"new"


def test_few_archives_stay_open(tmp_path):
    for number in range(20):
        source = pack(tmp_path / f"{number}.zip", {"a": b"x"})
        assert read_bytes(source, "a") == b"x"
    assert len(archives._opened) <= 8


def test_links_to_folders_are_followed_once(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jpg").touch()
    source = tmp_path / "set"
    source.mkdir()
    (source / "cats").symlink_to(tmp_path / "elsewhere")
    (source / "loop").symlink_to(source)
    assert list_files(source)[0] == ["cats/a.jpg"]


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_archives(tmp_path, kind):
    source = pack(tmp_path / f"set.{kind}")
    data = Path(source).read_bytes()
    Path(source).write_bytes(data[: len(data) * 2 // 3 + 7])
    with pytest.raises(DataError, match=r"archive .*set.* broken"):
        list_files(source)


@pytest.mark.parametrize("kind", KINDS)
def test_not_an_archive(tmp_path, kind):
    (tmp_path / f"set.{kind}").write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(DataError, match=r"broken .*download cut off"):
        list_files(tmp_path / f"set.{kind}")


def test_damaged_inside(tmp_path):
    source = pack(tmp_path / "set.zip", {"a.jpg": b"abc" * 1000})
    data = bytearray(Path(source).read_bytes())
    data[40:44] = b"\xff\xff\xff\xff"
    Path(source).write_bytes(data)
    with pytest.raises(DataError, match=r"'a.jpg' in the archive .*set\.zip' cannot be read"):
        read_bytes(source, "a.jpg")


def test_tar_cut_after_it_was_listed(tmp_path):
    source = pack(tmp_path / "set.tar", {"a.jpg": b"abc" * 1000})
    list_files(source)
    Path(source).write_bytes(Path(source).read_bytes()[:1000])
    with pytest.raises(DataError, match=r"'a.jpg' .* cannot be read: 3000 bytes wanted, 488 there"):
        read_bytes(source, "a.jpg")


def test_too_large_to_hold(tmp_path):
    """The header alone says so: nothing is unpacked."""
    header = tarfile.TarInfo("a.jpg")
    header.size = 5 * 2**30
    path = tmp_path / "set.tar.gz"
    path.write_bytes(gzip.compress(header.tobuf()))
    with pytest.raises(DataError, match=r"5 GiB.*MUNTIN_MAX_MEMORY.* unpacked folder"):
        list_files(str(path))


def test_missing(tmp_path):
    with pytest.raises(DataError, match=r"archive at .*none', found nothing"):
        list_files(tmp_path / "none")
    with pytest.raises(DataError, match=r"^Cannot read 'a.json' in .*: No such file"):
        read_json(str(tmp_path), "a.json")
    with pytest.raises(DataError, match=r"Cannot read 'a.jpg' in .*: No such file"):
        read_bytes(str(tmp_path), "a.jpg")
    source = pack(tmp_path / "set.zip")
    with pytest.raises(DataError, match=r"no file 'a.jpg' in .*set\.zip'"):
        read_bytes(source, "a.jpg")


def bomb_of_zip(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", bytes(3 * 2**20))


def bomb_of_tar(path):
    """A header that says little, and extended names that unpack to much."""
    with tarfile.open(path, "w:xz", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("a.jpg")
        member.pax_headers = {"comment": "x" * (3 * 2**20)}
        archive.addfile(member)


def bomb_of_holes(path):
    with path.open("wb") as file:
        file.truncate(3 * 2**20)


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.zip", bomb_of_zip), ("a.tar.xz", bomb_of_tar), ("a.tar", bomb_of_holes)],
)
def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch, name, write):
    write(tmp_path / name)
    monkeypatch.setenv("MUNTIN_MAX_MEMORY", "2M")
    source = str(tmp_path / name)
    with pytest.raises(DataError, match=r"0\.0\d+ GiB.*MUNTIN_MAX_MEMORY"):
        [read_bytes(source, file) for file in list_files(source)[0]]
