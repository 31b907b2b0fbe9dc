# SPDX-License-Identifier: Apache-2.0
"""Foreign content is read within bounds: no waiting, no unpacking without limit, no traceback."""

from __future__ import annotations

import os

import pytest

from muntin.errors import ConfigError, DataError
from muntin.untrusted import (
    check_budget,
    open_regular,
    parse_json,
    parse_xml,
    parse_yaml,
    read_regular,
    reading,
)

LAUGHS = "a0: &a0 x\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(OSError, match="regular"):
            open_regular(path)
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link") == b"abc"


def test_a_sparse_file_is_no_way_around_the_budget(tmp_path, monkeypatch):
    monkeypatch.setenv("MUNTIN_MAX_MEMORY", "1M")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**31)
    (tmp_path / "full").write_bytes(os.urandom(2**20 + 1))
    assert len(read_regular(tmp_path / "full")) == 2**20 + 1
    with pytest.raises(ValueError, match="MUNTIN_MAX_MEMORY"):
        read_regular(tmp_path / "sparse")


def test_budget(monkeypatch):
    check_budget(2**31, "it")
    with pytest.raises(ValueError, match="limit is 2"):
        check_budget(2**31 + 1, "it")
    monkeypatch.setenv("MUNTIN_MAX_MEMORY", "8GiB")
    check_budget(2**33, "it")
    monkeypatch.setenv("MUNTIN_MAX_MEMORY", "much")
    with pytest.raises(ConfigError, match="much"):
        check_budget(1, "it")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "Expecting value"),
        (b"{", "property name"),
        (b"[" * 100_000 + b"]" * 100_000, "deep"),
        (b"1" * 5000, "digits"),
        (b'{"a": "\xff"}', "utf-8"),
        (b"\xff\xfe\x00", "utf-16"),
    ],
)
def test_json_that_cannot_be_read(data, reason):
    with pytest.raises(ValueError, match=reason):
        parse_json(data)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r'"\ud800"', "\ufffd"),
        (r'"\udc00\ud800x"', "\ufffd\ufffdx"),
        (r'"\ud83d\ude00"', "\U0001f600"),
        (r'"\\ud800"', r"\ud800"),
        (r'"\\\ud800"', "\\\ufffd"),
        ('\ufeff{"a": [1.5, null]}', {"a": [1.5, None]}),
    ],
)
def test_json(text, value):
    assert parse_json(text) == value
    assert parse_json(text.encode()) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUGHS, "aliases"),
        ("a: &a [*a]", "itself"),
        ("[" * 5000, "deep"),
        ("a: [1", "expected"),
        ("!!python/object:os.system x", "python/object"),
        ("1" * 5000, "digits"),
        ("\0", "special characters"),
    ],
)
def test_yaml_that_cannot_be_read(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_yaml(text)


def test_yaml():
    assert parse_yaml("a: &x [1, b]\nc: *x") == {"a": [1, "b"], "c": [1, "b"]}
    assert parse_yaml("") is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no element"),
        (b"<a>", "no element"),
        ("<a>\ud800</a>", "surrogates"),
        (b"<!DOCTYPE a [<!ENTITY e 'x'>]><a>&e;</a>", "entities"),
        (b"<!DOCTYPE a SYSTEM 'http://127.0.0.1/a.dtd'><a>&e;</a>", "entity"),
        (b"<?xml version='1.0' encoding='none'?><a/>", "encoding"),
    ],
)
def test_xml_that_cannot_be_read(data, reason):
    with pytest.raises(ValueError, match=reason):
        parse_xml(data)


@pytest.mark.parametrize("fault", [TypeError("bad"), KeyError("bad"), OverflowError("bad")])
def test_what_a_parser_raises_names_the_file(fault):
    place = reading(lambda: "a.json", "Mend it.", DataError)
    with pytest.raises(DataError, match=r"a\.json cannot be read: \w+: '?bad'?\. Mend it"), place:
        raise fault
