# SPDX-License-Identifier: Apache-2.0
"""What the command line tells about itself and its models, and how to keep it silent."""

from __future__ import annotations

import json

import pytest

from muntin.commands import main
from muntin.training.field_list import default_heads
from muntin.training.machine import describe_load
from muntin.zoo import create_model
from muntin.zoo.model_building import find_model
from tests.commands.cli_errors import fails_with


def test_models_say_what_they_take_and_whether_weights_are_here(muntin, tmp_path, monkeypatch):
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    (tmp_path / f"{name}.safetensors").write_bytes(b"")
    _, before, _ = muntin("models", "vit_tiny*", "--json")
    monkeypatch.setenv("MUNTIN_WEIGHTS", str(tmp_path))
    _, after, _ = muntin("models", "vit_tiny*", "--json")
    here = [{row["name"]: row["here"] for row in json.loads(text)} for text in (before, after)]
    assert here == [
        {"vit_tiny_patch16_224": False, "vit_tiny_patch16_384": False},
        {"vit_tiny_patch16_224": True, "vit_tiny_patch16_384": False},
    ]
    row = json.loads(after)[0]
    assert row["license"] == "Apache-2.0"
    assert row["heads"]["pretrain"] == "mae"
    code, text, _ = muntin("models", "vit_tiny*")
    assert code == 0
    lines = [line for line in text.splitlines() if "vit_tiny_patch16" in line]
    assert ["here" in line for line in lines] == [True, False]
    assert "hub" in lines[1]
    assert all("Apache-2.0" in line for line in lines)
    assert "detect, instance, semantic, pose, pretrain" in text


def test_default_heads_are_those_of_training():
    small = default_heads(find_model("swin_nano").config)
    large = default_heads(find_model("swin_base").config)
    assert (small["detect"], large["detect"]) == ("dense_small", "dense")
    assert (small["classify"], small["pretrain"]) == ("linear", "simmim")


def test_models_of_timm(muntin):
    timm = pytest.importorskip("timm")
    code, text, _ = muntin("models", "timm:vit_*", "--json")
    rows = json.loads(text)
    assert code == 0
    assert [row["name"] for row in rows] == sorted(f"timm:{x}" for x in timm.list_models("vit_*"))
    assert {row["params"] for row in rows} == {None}
    # Its stages lie in a module of their own, which belongs to none of them.
    (row,) = json.loads(muntin("models", "timm:convnext_atto", "--json")[1])
    model = create_model("timm:convnext_atto")
    assert row["params"] == sum(parameter.numel() for parameter in model.parameters())
    code, text, _ = muntin("models", "timm:test_vit")  # counted without gradients
    assert code == 0
    assert "timm:test_vit" in text
    assert fails_with(muntin("models", "timm:no_such*"), "timm:no_such*")


@pytest.mark.parametrize(
    "words", [["--quiet", "models", "swin_t*"], ["models", "swin_t*", "--quiet"]]
)
def test_quiet(muntin, words):
    assert muntin(*words) == (0, "", "")
    code, text, _ = muntin(*words, "--json")
    assert code == 0
    assert json.loads(text)[0]["alias"] == "swin_tiny"
    assert fails_with(muntin("models", "swim_tiny", "--quiet"), "'swim_tiny'")
    assert fails_with(muntin("models", "a", "b", "--quiet"), "muntin models --help")


@pytest.mark.filterwarnings("always::muntin.errors.MuntinWarning")
def test_quiet_lets_warnings_through(muntin, tmp_path):
    from tests.golden.material import DATA, OLD

    (tmp_path / "broken.png").write_bytes(b"")
    image = next((DATA / "classify").rglob("*.png"))
    code, out, err = muntin("predict", OLD / "classify", image, tmp_path, "--quiet")
    assert (code, out) == (1, "")
    assert err.startswith("muntin: warning: skipped")
    assert len(err.splitlines()) == 1
    # Behind "--" it is the name of a file.
    assert "--quiet" in muntin("predict", OLD / "classify", "--", "--quiet")[2]


def test_completion_of_shells(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("_MUNTIN_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "muntin mod")
    monkeypatch.setenv("COMP_CWORD", "1")
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    assert capsys.readouterr().out.split() == ["models"]
    monkeypatch.delenv("_MUNTIN_COMPLETE")
    shellingham = pytest.importorskip("shellingham")
    monkeypatch.setattr(shellingham, "detect_shell", lambda: ("bash", "/bin/bash"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(["--install-completion"])
    assert ended.value.code == 0
    assert (tmp_path / ".bash_completions" / "muntin.sh").is_file()


def test_a_busy_machine_is_told():
    assert describe_load(0.4, 2) == describe_load(3.0, 16) == ()
    (note,) = describe_load(3.4, 2)
    assert "load 3.4 on 2 cores" in note


USAGE = {
    "no format": ["predict", "run", "a.png", "--out", "o", "--format", ""],
    "format without out": ["predict", "run", "a.png", "--format", "csv"],
    "resume without out": ["predict", "run", "a.png", "--resume"],
    "force and resume": ["predict", "run", "a.png", "--out", "o", "--force", "--resume"],
    "time": ["predict", "run", "a.png", "--max-time", "abc"],
    "tile": ["predict", "run", "a.png", "--tile", "abc"],
    "nothing to search": ["search", "e.npy"],
    "sections": ["explain", "run", "a.png", "--sections", ","],
}


@pytest.mark.parametrize("case", USAGE)
def test_words_that_make_no_sense_are_wrong_usage(muntin, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    verb = USAGE[case][0]
    assert fails_with(muntin(*USAGE[case]), f"See: muntin {verb} --help")
    assert not list(tmp_path.iterdir())
