# SPDX-License-Identifier: Apache-2.0
"""A process that ends at any moment: the checkpoint is whole, and the folder is free again."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial

import pytest
import torch

from muntin.errors import RunError
from muntin.run_files import find_results, write_best, write_json
from muntin.staging import part_of, write_file
from muntin.training.checkpoint import read_checkpoint, write_checkpoint
from muntin.training.run_lock import locked

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
OPERATIONS = ("open", "shutil.rmtree")


def end_in_child(work, folder, at=0):
    """Do `work` in a process that is killed before its file operation number `at` in `folder`."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.WTERMSIG(status) == signal.SIGKILL if os.WIFSIGNALED(status) else None
    left = [at]

    def count(event, arguments):
        named = event in OPERATIONS or event.startswith("os.")
        if named and any(str(folder) in str(each) for each in arguments):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    try:
        work()
    finally:
        os._exit(0)


def parts(epoch):
    return {"position": {"epoch": epoch}, "network": {"w": torch.full((64,), float(epoch))}}


def epoch_of(run):
    saved = read_checkpoint(run)
    assert saved["network"]["w"].eq(saved["position"]["epoch"]).all()
    return saved["position"]["epoch"]


def test_a_checkpoint_survives_being_killed_twice_at_any_operation(tmp_path):
    first, killed = 0, True
    while killed:
        first += 1
        run = tmp_path / str(first)
        write_checkpoint(run, parts(1))
        killed = end_in_child(lambda run=run: write_checkpoint(run, parts(2)), run, first)
        reached = epoch_of(run)
        assert reached in (1, 2)
        again = partial(write_checkpoint, run, parts(reached + 1))
        end_in_child(again, run, 1 + first * 5 % 19)
        assert epoch_of(run) in (reached, reached + 1)
        write_checkpoint(run, parts(4))
        assert epoch_of(run) == 4
        assert [path.name for path in run.iterdir()] == ["last.ckpt"]
    assert first > 8


@pytest.mark.parametrize(("name", "change"), [
    ("state.json", lambda data: data.replace(b"1", b"2")),
    ("state.safetensors", lambda data: data[:-1] + b"x"),
    ("checksums.json", lambda data: data[:9]),
])  # fmt: skip
def test_an_edited_checkpoint_is_refused_and_one_before_it_taken(tmp_path, name, change):
    write_checkpoint(tmp_path, parts(1))
    file = tmp_path / "last.ckpt" / name
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(RunError, match=rf"last\.ckpt.*{name[:4]}"):
        read_checkpoint(tmp_path)
    write_checkpoint(tmp_path / "b", parts(2))
    (tmp_path / "b" / "last.ckpt").rename(tmp_path / "last.ckpt.old")
    assert epoch_of(tmp_path) == 2
    (file.parent / "checksums.json").unlink()  # as earlier versions wrote it


def test_one_training_at_a_time(tmp_path):
    run = tmp_path / "runs" / "a"
    with locked(run, create=True):
        with (
            pytest.raises(RunError, match=str(run)),
            locked(run, create=False),
        ):
            pass
        assert end_in_child(lambda: None, run) is None  # a child that ends takes no lock along
        with pytest.raises(RunError), locked(run, create=True):
            pass
    assert not (tmp_path / "runs").exists()
    run.mkdir(parents=True)

    def die():
        with locked(run, create=False):
            os.kill(os.getpid(), signal.SIGKILL)

    assert end_in_child(die, run)
    assert (run / ".lock").exists()
    with locked(run, create=False):
        pass
    assert not list(run.iterdir())
    with locked(tmp_path / "none", create=False):
        assert not (tmp_path / "none").exists()


def test_nothing_is_written_through_a_link(tmp_path):
    run, outside = tmp_path / "run", tmp_path / "outside"
    run.mkdir()
    outside.mkdir()
    (outside / "file").write_text("precious")
    (run / "a.json").symlink_to(outside / "file")
    write_file(b"new", run / "a.json")
    assert (run / "a.json").read_bytes() == b"new"
    assert not (run / "a.json").is_symlink()
    (run / "pictures").symlink_to(outside)
    with pytest.raises(RunError, match=r"pictures.*outside"):
        part_of(run, "pictures", "eval")
    for name in ("last.ckpt", "last.ckpt.new", "last.ckpt.old"):
        (run / name).symlink_to(outside)
    write_checkpoint(run, parts(1))
    assert epoch_of(run) == 1
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "precious"
    (tmp_path / "by").symlink_to(run)  # a run folder itself may be one
    assert part_of(tmp_path / "by", "events") == tmp_path / "by" / "events"


def test_results_are_those_of_the_weights_wherever_a_process_ends(tmp_path):
    def write(folder, epoch):
        write_best(folder, lambda path: path.write_text(f"{epoch}"), epoch, {"loss": 1 / epoch})

    number, killed = 0, True
    while killed:
        number += 1
        run = tmp_path / str(number)
        for name in ("config.json", "classes.json", "preprocessing.json"):
            write_json(run / name, {"names": [name]})
        write(run, 1)
        killed = end_in_child(partial(write, run, 2), run, number)
        found = find_results(run, verify=True)
        assert found["epoch"] == int((run / "weights.safetensors").read_text())
        write(run, 3)
        assert find_results(run, verify=True)["epoch"] == 3
        assert "previous" not in find_results(run)
    assert number > 8
