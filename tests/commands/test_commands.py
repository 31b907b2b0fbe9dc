# SPDX-License-Identifier: Apache-2.0
"""The command line: exit codes, one line per error, JSON, interruptions."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import typer

from muntin.commands import main
from muntin.ops.triton.window_support import find_missing
from muntin.runs import read_journal
from muntin.training.checkpoint import read_checkpoint
from tests.commands.cli_errors import fails_with
from tests.small import CLASSES, MODEL, SETTINGS, train_small, write_images

ROOT = Path(__file__).resolve().parents[2]
SMALL = [f"--set={name}={value}" for name, value in SETTINGS.items()]
SMALL += ["--model", MODEL, "--img-size=16", "--batch-size=4", "--precision=fp32", "--device=cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "trees")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return train_small(data, tmp_path_factory.mktemp("runs") / "trees").path


@pytest.mark.filterwarnings("ignore::muntin.errors.MuntinWarning")
def test_end_to_end(muntin, data, tmp_path):
    out = tmp_path / "run"
    code, stdout, _ = muntin("train", "classify", data, "--out", out, "--epochs=2", *SMALL)
    assert code == 0
    assert "learning rate" in stdout
    assert f"muntin predict {out}" in stdout
    code, stdout, _ = muntin("eval", out, data)
    assert code == 0
    assert "top1" in stdout
    assert "birch" in stdout
    code, stdout, _ = muntin("predict", out, data / "ash", "--out", tmp_path / "drawn", "--tta")
    assert code == 0
    assert stdout.count("ash") >= 6
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 6


@pytest.mark.filterwarnings("ignore::muntin.errors.MuntinWarning")
def test_json_is_the_only_output_on_stdout(muntin, run, data):
    figures = json.loads(muntin("eval", run, data, "--json")[1])
    assert {"top1", "top5", "num_images"} <= figures.keys()
    results = json.loads(muntin("predict", run, data / "ash" / "0.png", "--json")[1])
    assert [list(result) for result in results] == [["path", "size", "threshold", "classes"]]
    confident = json.loads(muntin("predict", run, data / "ash", "--json", "--threshold=0.99")[1])
    assert all(row["score"] >= 0.99 for result in confident for row in result["classes"])
    assert json.loads(muntin("models", "vit_t*", "--json")[1])[0]["name"].startswith("vit_tiny")
    assert json.loads(muntin("check", "classify", data, "--json")[1])["ok"] is True
    facts = json.loads(muntin("doctor", "--json")[1])
    assert facts["works"] == "yes"
    assert facts["engine eager"] == "can run"
    assert facts["engine cuda"].split(":")[0] in ("can run", "no")


def test_doctor_reports_a_wrong_setting(muntin, monkeypatch):
    monkeypatch.setenv("MUNTIN_FUSED", "2")
    find_missing.cache_clear()
    code, stdout, _ = muntin("doctor")
    find_missing.cache_clear()
    assert code == 0
    assert "MUNTIN_FUSED" in stdout
    assert "'2'" in stdout


def test_models(muntin):
    code, stdout, _ = muntin("models", "swin_tiny*")
    assert code == 0
    assert "28.29" in stdout
    assert "swin_tiny_patch4_window7_224" in stdout  # a pipe has no width; nothing is cut
    assert fails_with(muntin("models", "swim_tiny"), "'swim_tiny'", "'swin_tiny'")


@pytest.mark.filterwarnings("always::muntin.errors.MuntinWarning")
def test_predict_skips_unreadable_images(muntin, run, tmp_path):
    data = write_images(tmp_path / "trees")
    (data / "ash" / "zero.png").write_bytes(b"")
    code, stdout, err = muntin("predict", run, data, "--out", tmp_path / "drawn", "--json")
    assert code == 1
    assert len(json.loads(stdout)) == 18
    assert len(err.splitlines()) == 1
    assert "zero.png" in err
    drawn = sorted((tmp_path / "drawn").rglob("*.png"))
    assert len(drawn) == 18
    assert drawn[0] == tmp_path / "drawn" / "ash" / "0.png", "named as inputs, below one folder"
    code, stdout, err = muntin("predict", run, data / "birch", tmp_path / "gone.png", "--json")
    assert (code, len(json.loads(stdout))) == (1, 6)
    assert "gone.png" in err
    assert fails_with(muntin("predict", run, tmp_path / "gone.png"), "gone.png")


def test_check(muntin, tmp_path):
    data = write_images(tmp_path / "trees")
    assert muntin("check", "classify", data)[0] == 0
    (data / "ash" / "zero.png").write_bytes(b"")
    code, stdout, err = muntin("check", "classify", data)
    assert code == 1
    assert "zero.png" in stdout
    assert not err
    assert muntin("check", "classify", tmp_path / "nothing")[0] == 1


def test_check_warns_about_too_few_images(muntin, tmp_path):
    data = write_images(tmp_path / "trees", each=1)
    code, stdout, _ = muntin("check", "classify", data)
    assert code == 0
    assert "warning" in stdout
    assert fails_with(muntin("train", "classify", data, "--out", tmp_path / "run"), str(data))


WRONG = {
    "unknown model": (["--model", "swin_tiney"], "'swin_tiny'"),
    "unknown option": (["--epoch", "3"], "--epoch"),
    "unknown setting": (["--set", "train.epoch=3"], "'train.epochs'"),
    "unknown group": (["--set", "trian.epochs=3"], "'train.epochs'"),
    "no setting": (["--set", "train.epochs"], "train.epochs=10"),
    "wrong type": (["--set", "train.epochs=many"], "'many'"),
    "no epochs": (["--epochs", "0"], "--epochs"),
    "no number": (["--epochs", "many"], "--epochs"),
    "no time": (["--max-time", "soon"], "--max-time"),
    "no size": (["--img-size", "0x3"], "--img-size"),
    "no batch": (
        ["--batch-size", "0"],
        "--batch-size",
    ),
    "no such weights": (["--weights", "none.safetensors"], "none.safetensors"),
    "unknown recipe": (["--recipe", "small"], "'small'"),
    "resume without out": (["--resume"], "--out"),
    "no config": (["--config", "nothing.json"], "nothing.json"),
    "wrong device": (["--device", "gpu"], "'cuda'"),
    "huge images": (["--img-size", "64x99999999"], "32768"),
    "two choices": (
        ["--set", "train.memory_gib=1", "--set", "train.recomputed_blocks=2"],
        "train.recomputed_blocks=2",
    ),
    "too many blocks": (
        ["--model", "swin_nano", "--weights", "none", "--set", "train.recomputed_blocks=99"],
        "99",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options(muntin, data, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    options, text = WRONG[case]
    assert fails_with(muntin("train", "classify", data, *options), text)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [("tarin",), ("train",), ("train", "classify"), ("eval",)])
def test_wrong_words(muntin, arguments):
    assert fails_with(muntin(*arguments), "See: muntin", "--help")


def test_wrong_data(muntin, data, tmp_path):
    train = ("train", "classify")
    assert fails_with(muntin(*train, tmp_path / "nothing"), "nothing")
    (tmp_path / "empty").mkdir()
    assert fails_with(muntin(*train, tmp_path / "empty"), "empty")
    one = write_images(tmp_path / "one", classes=CLASSES[:1])
    assert fails_with(muntin(*train, one), "ash")
    (tmp_path / "one" / "birch").mkdir()
    assert fails_with(muntin(*train, one), "birch")
    zero = write_images(tmp_path / "zero")
    for path in zero.rglob("*.png"):
        path.write_bytes(b"")
    assert fails_with(muntin(*train, zero, "--out", tmp_path / "run"), "muntin check")
    assert fails_with(muntin("tune", "classify", data), "tune")
    assert fails_with(muntin("train", "clasify", data), "'classify'")


def test_wrong_runs(muntin, run, data, tmp_path):
    assert fails_with(muntin("eval", tmp_path, data), "config.json")
    assert fails_with(muntin("predict", tmp_path / "no", data), str(tmp_path / "no"))
    assert fails_with(muntin("train", "classify", data, "--out", run), str(run))
    assert fails_with(muntin("predict", run, tmp_path / "*.png"), "*.png")
    (tmp_path / "empty").mkdir()
    assert fails_with(muntin("predict", run, tmp_path / "empty"), "no image")
    other = write_images(tmp_path / "other", classes=("oak", "elm"))
    assert fails_with(muntin("eval", run, other), "elm, oak")
    wide = ["--set=model.embed_dim=32", "--weights", run]
    result = muntin("train", "classify", data, *SMALL, *wide, "--out", tmp_path / "x")
    assert fails_with(result, "Swin", str(run))


def exit_code_of(fault):
    verbs = typer.Typer()

    @verbs.command()
    def broken() -> None:
        raise fault

    with pytest.raises(SystemExit) as caught:
        main([], verbs)
    return caught.value.code


def test_exit_code_of_a_bug(capsys):
    assert exit_code_of(ZeroDivisionError) == 3
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "ZeroDivisionError" in err


def test_exit_code_of_an_interruption(capsys):
    assert exit_code_of(KeyboardInterrupt) == 1
    assert "interrupted" in capsys.readouterr().err


CLOSED = """
import os, sys
os.close({number})
sys.{name} = None
from muntin.commands import main
try:
    main(["--help"] if {number} == 1 else ["klingon"])
finally:
    assert os.get_inheritable({number})
"""


@pytest.mark.parametrize(("number", "name", "code"), [(1, "stdout", 0), (2, "stderr", 2)])
def test_closed_streams_lead_nowhere(number, name, code):
    paths = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    script = CLOSED.format(number=number, name=name)
    done = subprocess.run([sys.executable, "-c", script], env=paths, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")


def test_a_link_to_itself_as_a_place_of_results(muntin, run, data, tmp_path):
    place = tmp_path / "loop"
    place.symlink_to(place)
    assert fails_with(muntin("predict", run, data, "--out", place), "loop")


def test_help(muntin):
    for arguments in (("--help",), ("-h",), ("train", "--help")):
        code, stdout, err = muntin(*arguments)
        assert code == 0, err
        assert "Usage: " in stdout
        assert not err
    code, out, err = muntin()
    assert code == 2
    assert "Usage: " in out + err
    assert "predict" in out + err
    assert len((out + err).splitlines()) > 8


@pytest.mark.filterwarnings("always::UserWarning")
def test_unreadable_images_are_counted_in_a_line(muntin, tmp_path):
    data = write_images(tmp_path / "trees")
    (data / "ash" / "zero.png").write_bytes(b"")
    train = ("train", "classify", data, "--out", tmp_path / "run", "--epochs=1")
    code, _, err = muntin(*train, *SMALL)
    assert code == 0
    assert len(err.splitlines()) == 1
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


def interrupt_after_an_epoch(out):
    """Send Ctrl-C to this process once the run has a line in its journal."""

    def wait():
        end = time.monotonic() + 100
        while not read_journal(out) and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


def test_ctrl_c_leaves_a_resumable_run(muntin, data, tmp_path):
    out = tmp_path / "run"
    train = ("train", "classify", data, "--out", out)
    interrupt_after_an_epoch(out)
    more = ("--set=train.warmup=0.5", "--set=train.overfit_check=off")
    code, stdout, err = muntin(*train, "--epochs=9999", *more, *SMALL)
    assert code == 1
    assert "Traceback" not in err
    assert f"muntin train classify {data} --resume --out {out}" in stdout
    position = read_checkpoint(out)["position"]
    assert not list(out.rglob("*.partial"))
    config = (out / "config.json").read_text()
    last = position["epoch"] + 1
    (out / "config.json").write_text(config.replace('"epochs": 9999', f'"epochs": {last}'))
    code, stdout, _ = muntin(*train, "--resume")
    assert code == 0
    assert [line["epoch"] for line in read_journal(out)] == list(range(1, last + 1))


@pytest.fixture
def limit_files():
    """Let no file grow beyond a number of bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("limit", [2_000, 40_000, 90_000])
def test_a_full_disk(muntin, limit_files, data, tmp_path, limit):
    out = tmp_path / "run"
    limit_files(limit)
    code, _, err = muntin("train", "classify", data, "--out", out, "--epochs=2", *SMALL)
    assert code == 1, err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1, err
    assert str(out) in err
    left = [path.name for path in out.rglob("*") if path.is_file()]
    assert not [name for name in left if "partial" in name or name.endswith(".part")], left
    assert not list(out.glob("last.ckpt.*"))


@pytest.mark.parametrize("text", ["x" * 10_000, "a\x1b[31mb\nc", "\udcff\u202e"])
def test_an_error_is_a_line_that_a_terminal_can_show(muntin, text):
    assert muntin("check", "classify", text)[0] == 1  # prints it, which no encoding may stop
    code, _, err = muntin("train", "classify", text)
    assert code == 1
    assert err.rstrip("\n").isprintable()
    assert len(err) < 2100
