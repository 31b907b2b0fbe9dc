# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The command line: exit codes, one line for each mistake, JSON, interruptions."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from muntin.ops.triton.window_support import find_missing
from muntin.training.checkpoint import read_checkpoint
from muntin.training.journal import read_journal
from tests.commands.refusing import refuses
from tests.small import CLASSES, MODEL, SETTINGS, train_small, write_pictures

ROOT = Path(__file__).resolve().parents[2]
SMALL = [f"--set={name}={value}" for name, value in SETTINGS.items()]
SMALL += ["--model", MODEL, "--img-size=16", "--batch-size=4", "--precision=fp32", "--device=cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "trees")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return train_small(data, tmp_path_factory.mktemp("runs") / "trees").path


@pytest.mark.filterwarnings("ignore:the run was trained on")
def test_a_run_from_beginning_to_end(muntin, data, tmp_path):
    out = tmp_path / "run"
    code, said, _ = muntin("train", "classify", data, "--out", out, "--epochs=2", *SMALL)
    assert code == 0
    assert "learning rate" in said
    assert f"next: muntin predict {out} IMAGE..." in said
    code, said, _ = muntin("eval", out, data)
    assert code == 0
    assert "top1" in said
    assert "birch" in said
    code, said, _ = muntin("predict", out, data / "ash", "--out", tmp_path / "drawn", "--tta")
    assert code == 0
    assert said.count("ash") >= 6
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 6


@pytest.mark.filterwarnings("ignore:the run was trained on")
def test_json_is_all_there_is_on_stdout(muntin, run, data):
    figures = json.loads(muntin("eval", run, data, "--json")[1])
    assert {"top1", "top5", "num_images"} <= figures.keys()
    results = json.loads(muntin("predict", run, data / "ash" / "0.png", "--json")[1])
    assert [list(result) for result in results] == [["path", "size", "classes"]]
    most = json.loads(muntin("predict", run, data / "ash", "--json", "--threshold=0.99")[1])
    assert all(row["score"] >= 0.99 for result in most for row in result["classes"])
    assert json.loads(muntin("models", "vit_t*", "--json")[1])[0]["name"].startswith("vit_tiny")
    assert json.loads(muntin("check", "classify", data, "--json")[1])["ok"] is True
    facts = json.loads(muntin("doctor", "--json")[1])
    assert facts["works"] == "yes"
    assert facts["engine eager"] == "can run"
    assert facts["engine cuda"].split(":")[0] in ("can run", "no")


def test_doctor_says_which_setting_is_wrong(muntin, monkeypatch):
    monkeypatch.setenv("MUNTIN_FUSED", "2")
    find_missing.cache_clear()
    code, said, _ = muntin("doctor")
    find_missing.cache_clear()
    assert code == 0
    assert "MUNTIN_FUSED must be 0, which forbids fused kernels, or 1, got '2'" in " ".join(
        said.split()
    )


def test_models(muntin):
    code, said, _ = muntin("models", "swin_tiny*")
    assert code == 0
    assert "28.29" in said
    assert "swin_tiny_patch4_window7_224" in said  # a pipe has no width; nothing is cut
    assert refuses(muntin("models", "swim_tiny"), "Did you mean 'swin_tiny'")


@pytest.mark.filterwarnings("always:left out")
def test_predict_leaves_out_what_cannot_be_read(muntin, run, tmp_path):
    data = write_pictures(tmp_path / "trees")
    (data / "ash" / "zero.png").write_bytes(b"")
    code, said, err = muntin("predict", run, data, "--out", tmp_path / "drawn", "--json")
    assert code == 1
    assert len(json.loads(said)) == 18
    assert len(err.splitlines()) == 1
    assert err.startswith("muntin: warning: left out: ")
    assert "zero.png" in err
    drawn = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert len(drawn) == 18
    assert drawn[0] == "00000_ash_0.png"
    code, said, err = muntin("predict", run, data / "birch", tmp_path / "gone.png", "--json")
    assert (code, len(json.loads(said))) == (1, 6)
    assert "gone.png" in err
    assert refuses(muntin("predict", run, tmp_path / "gone.png"), "gone.png")


def test_check(muntin, tmp_path):
    data = write_pictures(tmp_path / "trees")
    assert muntin("check", "classify", data)[0] == 0
    (data / "ash" / "zero.png").write_bytes(b"")
    code, said, err = muntin("check", "classify", data)
    assert code == 1
    assert "zero.png" in said
    assert not err
    assert muntin("check", "classify", tmp_path / "nothing")[0] == 1


def test_check_says_when_too_few_are_there_to_keep_some(muntin, tmp_path):
    data = write_pictures(tmp_path / "trees", each=1)
    code, said, _ = muntin("check", "classify", data)
    assert code == 0
    assert "cannot be split for validation" in said
    assert refuses(muntin("train", "classify", data, "--out", tmp_path / "run"), "cannot be split")


WRONG = {
    "unknown model": (["--model", "swin_tiney"], "Did you mean 'swin_tiny'"),
    "unknown option": (["--epoch", "3"], "--epoch"),
    "unknown setting": (["--set", "train.epoch=3"], "Did you mean 'epochs'"),
    "unknown group": (["--set", "trian.epochs=3"], "Did you mean 'train'"),
    "no setting": (["--set", "train.epochs"], "--set must be name=value, such as train.epochs=10"),
    "wrong type": (["--set", "train.epochs=many"], "epochs in --set must be a whole number, got"),
    "no epochs": (["--epochs", "0"], "Invalid value for '--epochs'"),
    "no number": (["--epochs", "many"], "Invalid value for '--epochs'"),
    "no time": (["--max-time", "soon"], "--max-time must be a time such as 90s, 15m or 2h"),
    "no size": (["--img-size", "0x3"], "--img-size must be a side such as 224, or HxW"),
    "no batch": (
        ["--batch-size", "0"],
        "--batch-size must be a number of pictures from 1 on, or auto",
    ),
    "no such weights": (["--weights", "none.safetensors"], "none.safetensors"),
    "unknown recipe": (["--recipe", "small"], "Unknown recipe 'small'"),
    "resume without out": (["--resume"], "got no --out"),
    "no config": (["--config", "nothing.json"], "nothing.json"),
    "wrong device": (["--device", "gpu"], "Did you mean 'cuda'"),
    "huge pictures": (["--img-size", "3x99999999"], "img_size must be at most 32768 pixels"),
    "two choices": (
        ["--set", "train.memory_gib=1", "--set", "train.recomputed_blocks=2"],
        "Take one of them",
    ),
    "too many blocks": (
        ["--model", "swin_nano", "--weights", "none", "--set", "train.recomputed_blocks=99"],
        "must be at most 6",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options(muntin, data, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    options, text = WRONG[case]
    assert refuses(muntin("train", "classify", data, *options), text)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [("tarin",), ("train",), ("train", "classify"), ("eval",)])
def test_wrong_words(muntin, arguments):
    assert refuses(muntin(*arguments), "See: muntin", "--help")


def test_wrong_data(muntin, data, tmp_path):
    train = ("train", "classify")
    assert refuses(muntin(*train, tmp_path / "nothing"), "found nothing at")
    (tmp_path / "empty").mkdir()
    assert refuses(muntin(*train, tmp_path / "empty"), "No images in")
    one = write_pictures(tmp_path / "one", classes=CLASSES[:1])
    assert refuses(muntin(*train, one), "needs at least two classes, got ash")
    (tmp_path / "one" / "birch").mkdir()
    assert refuses(muntin(*train, one), "got none in birch")
    zero = write_pictures(tmp_path / "zero")
    for path in zero.rglob("*.png"):
        path.write_bytes(b"")
    assert refuses(muntin(*train, zero, "--out", tmp_path / "run"), "muntin check")
    assert refuses(muntin("tune", "classify", data), "No such command 'tune'")
    assert refuses(muntin("train", "clasify", data), "Did you mean 'classify'")


def test_wrong_runs(muntin, run, data, tmp_path):
    assert refuses(muntin("eval", tmp_path, data), "must hold config.json, got none")
    assert refuses(muntin("predict", tmp_path / "no", data), "must be a folder")
    assert refuses(muntin("train", "classify", data, "--out", run), "which holds a run")
    assert refuses(muntin("predict", run, tmp_path / "*.png"), "must be a picture at")
    (tmp_path / "empty").mkdir()
    assert refuses(muntin("predict", run, tmp_path / "empty"), "got none of .jpg")
    other = write_pictures(tmp_path / "other", classes=("oak", "elm"))
    assert refuses(muntin("eval", run, other), "got also elm, oak")
    wide = ["--set=model.embed_dim=32", "--weights", run]
    result = muntin("train", "classify", data, *SMALL, *wide, "--out", tmp_path / "x")
    assert refuses(result, "must fit Swin", "The model is unchanged")


def test_a_bug_is_2(muntin, monkeypatch, run, data):
    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("muntin.runs.Run.load_network", broken)
    code, _, err = muntin("eval", run, data)
    assert code == 2
    assert "Traceback" in err
    assert "this is a bug in muntin" in err


def test_help(muntin):
    for arguments in (("--help",), ("-h",), ("train", "--help")):
        code, said, err = muntin(*arguments)
        assert code == 0, err
        assert "Usage: " in said
        assert not err
    code, out, err = muntin()
    assert code == 1
    assert "Usage: " in out + err
    assert "predict" in out + err
    assert len((out + err).splitlines()) > 8


def started(*arguments, **options):
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "MUNTIN_NO_HOOK": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "muntin", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options,
    )  # fmt: skip


def finished(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_unreadable_pictures_are_counted_in_a_line(tmp_path):
    data = write_pictures(tmp_path / "trees")
    (data / "ash" / "zero.png").write_bytes(b"")
    train = ("train", "classify", data, "--out", tmp_path / "run", "--epochs=1")
    code, _, err = finished(started(*train, *SMALL))
    assert code == 0
    assert len(err.splitlines()) == 1
    assert err.startswith("muntin: warning: 1 of ")
    assert "zero.png" in err


def imported_by(code):
    paths = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    code = f"import sys\n{code}\nsys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=paths, check=True
    )
    return set(done.stderr.split())


def test_torch_is_loaded_when_it_is_needed():
    heavy = {"torch", "numpy", "matplotlib", "torchvision", "lightning_fabric"}
    assert not heavy & imported_by("import muntin")
    ask = "from muntin.commands import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert not heavy & imported_by(ask)


def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path, muntin):
    data = write_pictures(tmp_path / "trees", each=20)
    out = tmp_path / "run"
    train = ("train", "classify", data, "--out", out)
    process = started(*train, "--epochs=400", "--set=train.warmup=0.5", *SMALL)
    end = time.monotonic() + 100
    while not len(read_journal(out)) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    code, said, err = finished(process)
    assert code == 1
    assert "Traceback" not in err
    assert f"nothing is lost. Go on with: muntin train classify {data} --resume --out {out}" in said
    position = read_checkpoint(out)["position"]
    assert not list(out.rglob("*.partial"))
    (out / "config.json").write_text(
        (out / "config.json")
        .read_text()
        .replace('"epochs": 400', f'"epochs": {position["epoch"] + 1}')
    )
    code, said, _ = muntin(*train, "--resume")
    assert code == 0
    assert [line["epoch"] for line in read_journal(out)] == list(range(1, position["epoch"] + 2))


@pytest.mark.parametrize("limit", [2_000, 40_000, 90_000])
def test_a_full_disk(data, tmp_path, limit):
    out = tmp_path / "run"

    def limit_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    train = ("train", "classify", data, "--out", out, "--epochs=2")
    code, _, err = finished(started(*train, *SMALL, preexec_fn=limit_files))
    assert code == 1, err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1, err
    assert "written" in err
    left = [path.name for path in out.rglob("*") if path.is_file()]
    assert not [name for name in left if "partial" in name or name.endswith(".part")], left
    assert not list(out.glob("last.ckpt.*"))
