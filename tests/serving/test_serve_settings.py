# SPDX-License-Identifier: Apache-2.0
"""What a server is started with: names, tokens, addresses and limits."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from muntin.configs import with_texts
from muntin.errors import ConfigError, MuntinWarning
from muntin.serving.serve_settings import (
    ModelSource,
    ServeLimits,
    ServeSettings,
    is_loopback,
    name_models,
    read_token,
)

MODELS = (ModelSource(name="a", path="runs/a"),)


@pytest.mark.parametrize(
    ("text", "name", "path"),
    [
        ("runs/cells", "cells", "runs/cells"), ("runs/cells/", "cells", "runs/cells/"),
        ("b/model.v2.onnx", "model.v2", "b/model.v2.onnx"), ("big=b/m.onnx", "big", "b/m.onnx"),
        ("a b/c d.pt2", "c-d", "a b/c d.pt2"), ("x=y=z", "x", "y=z"),
        ("-bad=z", "bad-z", "-bad=z"), ("caf\xe9=r", "caf\xe9", "r"), ("a=b/c", "a", "b/c"),
        ("..../???", "model", "..../???"),
    ],
)  # fmt: skip
def test_models_are_named_by_their_paths(text: str, name: str, path: str) -> None:
    assert name_models([text]) == (ModelSource(name=name, path=path),)


def test_a_folder_whose_name_looks_like_a_choice_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1").mkdir()
    assert name_models(["lr=0.1"]) == (ModelSource(name="lr-0.1", path="lr=0.1"),)
    assert name_models(["."])[0].path == "."


def test_names_must_differ() -> None:
    with pytest.raises(ConfigError, match=r"'m'.*'a/m'.*'b/m.onnx'.*m2=b/m.onnx"):
        name_models(["a/m", "b/m.onnx"])
    assert [model.name for model in name_models(["a/m", "m2=b/m.onnx"])] == ["m", "m2"]
    with pytest.raises(ConfigError, match="got none"):
        name_models([])


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("::1", True),
        ("[::1]", True), ("0.0.0.0", False), ("::", False), ("10.1.2.3", False), ("", False),
        ("localhost.example", False), ("127.0.0.1.example", False), ("2130706433", False),
    ],
)  # fmt: skip
def test_only_this_machine_asks_without_a_token(host: str, local: bool) -> None:
    assert is_loopback(host) is local
    if local:
        ServeSettings(models=MODELS, host=host)
    else:
        with pytest.raises(ConfigError, match="--token-file FILE, or --open"):
            ServeSettings(models=MODELS, host=host)
        ServeSettings(models=MODELS, host=host, open=True)
        ServeSettings(models=MODELS, host=host, token="t")


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"port": -1}, "--port"), ({"port": 65_536}, "--port"), ({"drain": -1}, "--drain"),
        ({"drain": float("nan")}, "--drain"), ({"log": "xml"}, "--log-format"),
        ({"files": "no/such/folder"}, "--files"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(values: dict[str, object], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        ServeSettings(models=MODELS, **values)


@pytest.mark.parametrize(
    "name",
    ["body_mib", "megapixels", "images", "waiting_images", "waiting_mib", "batch", "timeout",
     "receive", "connections"],
)  # fmt: skip
def test_limits_have_limits(name: str) -> None:
    values = [0, -1, 10**12]
    if isinstance(getattr(ServeLimits(), name), float):
        values += [math.nan, math.inf]
    for value in values:
        with pytest.raises(ConfigError, match=f"limits.{name}"):
            ServeLimits(**{name: value})


def test_a_request_that_is_allowed_has_a_place() -> None:
    with pytest.raises(ConfigError, match=r"limits\.waiting_images .*got 64 and 65\."):
        ServeLimits(images=65)
    with pytest.raises(ConfigError, match=r"limits\.waiting_mib .*limits\.body_mib=256"):
        ServeLimits(body_mib=300)
    with pytest.raises(ConfigError, match=r"lower limits\.images too: --set limits\.images=3"):
        ServeLimits(waiting_images=3)
    assert ServeLimits(images=65, waiting_images=65).images == 65
    assert ServeLimits(body_mib=0.5).body_bytes == 2**19
    assert ServeLimits(megapixels=1.5).pixels == 1_500_000


def test_an_unknown_limit_is_answered_by_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"Known: limits\.batch, limits\.body_mib") as caught:
        with_texts(ServeLimits(), [("bogus", "1")], group="limits")
    assert "Did you mean" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"Did you mean 'limits\.images'"):
        with_texts(ServeLimits(), [("image", "1")], group="limits")


def test_a_token_is_the_first_line_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    for text in ("0123456789abcdef", "0123456789abcdef\n", " 0123456789abcdef \r\nnotes\n"):
        path.write_text(text)
        assert read_token(str(path)) == "0123456789abcdef"
    assert read_token("") == ""
    path.write_text("short")
    with pytest.warns(MuntinWarning, match="5 characters"):
        assert read_token(str(path)) == "short"


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"a b", b"caf\xc3\xa9" * 9, b"\xff" * 40, b"\0" * 40]
)
def test_files_without_a_token_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="token"):
        read_token(str(path))


def test_a_token_file_is_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("nowhere", ".", "pipe"):
        with pytest.raises(ConfigError, match="--token-file"):
            read_token(str(tmp_path / name))
