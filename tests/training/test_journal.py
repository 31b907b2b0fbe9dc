# SPDX-License-Identifier: Apache-2.0
"""Lines of a journal: appended, cut off, dropped, refused."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from muntin.errors import MissingExtra, RunError
from muntin.runs import Run, append_journal, drop_epochs_from, read_journal
from muntin.train_config import MachineConfig
from muntin.training.run_logs import choose_logs, start_tensorboard
from tests.golden.material import OLD


def run_in(folder):
    return replace(Run.open(OLD / "classify"), path=folder)


def test_lines(tmp_path):
    assert read_journal(tmp_path) == []
    for epoch in (1, 2, 3):
        append_journal(tmp_path, {"epoch": epoch, "loss": 0.1 * epoch})
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"epoch": 4, "lo')
    assert [line["epoch"] for line in read_journal(tmp_path)] == [1, 2, 3]
    drop_epochs_from(tmp_path, 3)
    append_journal(tmp_path, {"epoch": 3})
    assert [line["epoch"] for line in read_journal(tmp_path)] == [1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["journal.jsonl"]


def test_events_need_tensorboard_only_where_they_are_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert choose_logs(MachineConfig()) == ()
    assert choose_logs(MachineConfig(tensorboard="off")) == ()
    with pytest.raises(MissingExtra, match=r"muntin\[log\]"):
        choose_logs(MachineConfig(tensorboard="on"))


def test_events(tmp_path):
    pytest.importorskip("tensorboard")
    start_tensorboard(run_in(tmp_path), "").add(1, {"loss": 0.5})
    assert list((tmp_path / "events").iterdir())


def test_a_disk_that_refuses(tmp_path):
    (tmp_path / "journal.jsonl").mkdir()
    with pytest.raises(RunError, match=r"journal\.jsonl"):
        append_journal(tmp_path, {"epoch": 1})
    with pytest.raises(RunError, match=r"journal\.jsonl"):
        drop_epochs_from(tmp_path, 1)
    assert not list(tmp_path.glob("*.partial"))
    pytest.importorskip("tensorboard")
    (tmp_path / "events").write_text("in the way")
    with pytest.raises(RunError, match="events"):
        start_tensorboard(run_in(tmp_path), "").add(1, {"loss": 0.5})
