# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""benchmarks/gpu.py: what it refuses, what counts as done, and how it ends."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="benchmarks are not there")


@pytest.fixture
def call(monkeypatch):
    """The script as a module, and a way to call it."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
        with pytest.raises(SystemExit) as ended:
            script.main()
        return int(ended.value.code or 0)

    run.script = script
    return run


@pytest.mark.parametrize("words", [(), ("--tiny",), ("--device", "cpu")])
def test_it_needs_a_gpu(call, monkeypatch, capsys, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(call.script, "_run_outside", lambda *_: pytest.fail("a section began"))
    assert call(*words) == 2
    messages = capsys.readouterr().err.splitlines()
    assert len(messages) == 1
    assert "--tiny --device cpu" in messages[0]


def test_a_section_that_failed_is_told_and_tried_again(call, monkeypatch, tmp_path):
    import record

    begun = []

    def run(name, options, seconds):
        begun.append(name)
        facts = {"commit": "abc", "device": record.device_name(), "tiny": True, "lines": []}
        failed = {"failed": "no"} if name == "latency" and begun.count(name) == 1 else {}
        path = Path(options.out) / f"2026-01-01_here_gpu_{name}.json"
        path.write_text(json.dumps({**facts, **failed}))
        return not failed

    monkeypatch.setattr(call.script, "_run_outside", run)
    words = ("--tiny", "--device", "cpu", "--commit", "abc", "--out", str(tmp_path))
    assert call(*words) == 1
    assert begun == list(call.script.SECTIONS)  # the others still ran
    assert call(*words) == 0
    assert begun[len(call.script.SECTIONS) :] == ["latency"]
    assert call.script._find(tmp_path, "plan", {"commit": "abc", "tiny": False}) is None


def test_a_trial_leaves_the_results_alone(call, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    out = []
    monkeypatch.setattr(call.script, "_run_outside", lambda _, options, __: out.append(options.out))
    assert call("--tiny", "--device", "cpu", "--only", "plan") == 1
    assert Path(out[0]).parent == tmp_path


def test_a_section_of_which_nothing_ran_has_failed(call, monkeypatch, tmp_path):
    import record

    monkeypatch.setattr(record, "RESULTS", tmp_path)
    result = {"rows": [{"name": "ours", "failed": "no kernel"}], "lines": []}
    monkeypatch.setattr(call.script, "_find_work", lambda _: lambda _: result)
    assert call("--inside", "--only", "plan", "--tiny", "--device", "cpu") == 1
    content = json.loads(next(tmp_path.glob("*_gpu_plan.json")).read_text())
    assert content["failed"] == "nothing was measured: no kernel"
