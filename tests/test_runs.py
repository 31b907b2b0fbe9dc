# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Small files of a run: whole or not at all."""

from __future__ import annotations

import pytest

from muntin.errors import ConfigError, RunError
from muntin.runs import RunConfig, read_json, write_json
from muntin.zoo import model_config


def config() -> RunConfig:
    return RunConfig(
        task="classify", data="d", model_name="swin_tiny", model=model_config("swin_tiny")
    )


def test_config_round_trip():
    values = config().to_dict()
    assert values["schema"] == 1
    assert values["model"]["family"] == "swin"
    assert RunConfig.from_dict(values) == config()


def test_unknown_keys_are_refused():
    values = config().to_dict()
    values["train"]["epoch"] = 3
    with pytest.raises(ConfigError, match=r"'epoch'. Did you mean 'epochs'"):
        RunConfig.from_dict(values)
    with pytest.raises(ConfigError, match=r"x.json must have schema 1 and a model, got schema 0"):
        RunConfig.from_dict({"schema": 0}, where="x.json")


def test_json(tmp_path):
    write_json(tmp_path / "in" / "a.json", {"a": [1, None]})
    assert read_json(tmp_path / "in" / "a.json") == {"a": [1, None]}
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["a.json"]


def test_json_errors(tmp_path):
    with pytest.raises(RunError, match=r"must hold a.json, got none. Is it a run of muntin train"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(RunError, match=r"a.json must be JSON, .*a list instead of an object"):
        read_json(tmp_path / "a.json")
    (tmp_path / "b.json").mkdir()
    with pytest.raises(RunError, match=r"b.json could not be written"):
        write_json(tmp_path / "b.json", {})
    assert not list(tmp_path.glob("*.partial"))
