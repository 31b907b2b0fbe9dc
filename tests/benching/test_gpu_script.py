# SPDX-License-Identifier: Apache-2.0
"""benchmarks/gpu.py: what it refuses, what counts as done, and how it ends."""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="benchmarks are not there")


@pytest.fixture
def gpu(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def call(gpu, *words, **more) -> int:
    with pytest.raises(SystemExit) as ended:
        gpu.main(words, **more)
    return int(ended.value.code or 0)


@pytest.mark.parametrize("words", [(), ("--tiny",), ("--device", "cpu")])
def test_it_needs_a_gpu(gpu, monkeypatch, capsys, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert call(gpu, *words, run=lambda *_: pytest.fail("a section began")) == 2
    messages = capsys.readouterr().err.splitlines()
    assert len(messages) == 1
    assert "--tiny --device cpu" in messages[0]


def test_a_section_that_failed_is_told_and_tried_again(gpu, tmp_path):
    import record

    begun = []

    def run(name, options, seconds):
        begun.append(name)
        facts = {"commit": "abc", "device": record.device_name(), "tiny": True, "lines": []}
        failed = {"failed": "no"} if name == "latency" and begun.count(name) == 1 else {}
        path = Path(options.out) / f"2026-01-01_here_gpu_{name}.json"
        path.write_text(json.dumps({**facts, **failed}))
        return not failed

    words = ("--tiny", "--device", "cpu", "--commit", "abc", "--out", str(tmp_path))
    assert call(gpu, *words, run=run) == 1
    assert begun == list(gpu.SECTIONS)  # the others still ran
    assert call(gpu, *words, run=run) == 0
    assert begun[len(gpu.SECTIONS) :] == ["latency"]
    assert gpu.find_result(tmp_path, "training", {"commit": "abc", "tiny": False}) is None


def test_a_trial_leaves_the_results_alone(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    out = []

    def run(name, options, seconds):
        out.append(options.out)
        return False

    assert call(gpu, "--tiny", "--device", "cpu", "--only", "training", run=run) == 1
    assert Path(out[0]).parent == tmp_path


def inside(section, folder):
    return argparse.Namespace(
        only=section, tiny=True, device="cpu", commit="abc", out=str(folder), inside=True
    )


def test_a_section_of_which_nothing_ran_has_failed(gpu, tmp_path):
    result = {"rows": [{"name": "ours", "failed": "no kernel"}], "lines": []}
    assert not gpu.work_inside(inside("training", tmp_path), lambda: result)
    content = json.loads(next(tmp_path.glob("*_gpu_training.json")).read_text())
    assert content["failed"] == "nothing was measured: no kernel"


def test_one_that_fails_is_a_row_like_the_others(gpu):
    from gpu_timing import Settings, describe, time_works

    def fail():
        raise RuntimeError("no kernel")

    works = {"ours": lambda: time.sleep(0.002), "theirs": lambda: time.sleep(0.02), "none": fail}
    ours, theirs, none = time_works(works, Settings(device="cpu", tiny=True), calls=2)
    assert ours["ms"]["count"] == 3
    assert ours["ours"] == 1
    assert theirs["ours"] > 1
    assert none == {"name": "none", "failed": "RuntimeError: no kernel"}
    assert "no kernel" in describe(none)


@pytest.mark.slow
@pytest.mark.parametrize("section", ["correctness", "attention", "latency", "training"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::FutureWarning")
def test_a_section_on_toy_sizes(gpu, tmp_path, section):
    assert gpu.work_inside(inside(section, tmp_path))
    content = json.loads(next(tmp_path.glob(f"*_gpu_{section}.json")).read_text())
    assert content["lines"]
    assert content["commit"] == "abc"
    for row in content.get("rows", []):
        assert row["ms"]["median"] > 0
        assert row.get("error", 0) < 0.05
    assert all(case["right"] for case in content.get("cases", []))
