# SPDX-License-Identifier: Apache-2.0
"""The state of a run as files: exact, and never half."""

from __future__ import annotations

import errno

import pytest
import torch

from muntin.errors import RunError
from muntin.training.checkpoint import read_checkpoint, write_checkpoint

PARTS = {
    "position": {"epoch": 3, "best": None, "share": 0.1, "names": ["a", "b"]},
    "optimizers": [{"state": {0: {"step": torch.tensor(3.0), "avg": torch.rand(2, 3)}, 5: {}}}],
    "half": torch.rand(3).bfloat16(),
    "shared": [torch.ones(2)] * 2,
    "turned": torch.rand(4, 5).T,
}


def test_round_trip(tmp_path):
    write_checkpoint(tmp_path, PARTS)
    back = read_checkpoint(tmp_path)
    assert back["position"] == PARTS["position"]
    state = back["optimizers"][0]["state"]
    assert list(state) == [0, 5]
    assert state[0]["avg"].equal(PARTS["optimizers"][0]["state"][0]["avg"])
    assert back["half"].equal(PARTS["half"])
    assert back["turned"].equal(PARTS["turned"])
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        *("checksums.json", "last.ckpt", "state.json", "state.safetensors")
    ]


def test_a_second_one_takes_the_place_of_the_first(tmp_path):
    write_checkpoint(tmp_path, PARTS)
    write_checkpoint(tmp_path, {"position": {"epoch": 4}})
    assert read_checkpoint(tmp_path) == {"position": {"epoch": 4}}


def test_the_old_one_is_read_if_a_plug_was_pulled_between(tmp_path):
    write_checkpoint(tmp_path, PARTS)
    (tmp_path / "last.ckpt").rename(tmp_path / "last.ckpt.old")
    assert read_checkpoint(tmp_path)["position"] == PARTS["position"]


def test_what_a_full_disk_leaves(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    for write, said in (("first", "nothing can be resumed"), ("second", "previous one is kept")):
        if write == "second":
            write_checkpoint(tmp_path, PARTS)
        with monkeypatch.context() as patch:
            patch.setattr("safetensors.torch.save_file", fail)
            with pytest.raises(RunError, match=said):
                write_checkpoint(tmp_path, PARTS)


def test_none(tmp_path):
    with pytest.raises(RunError, match=r"last\.ckpt"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_broken(tmp_path, name, content):
    write_checkpoint(tmp_path, PARTS)
    (tmp_path / "last.ckpt" / name).write_bytes(content)
    with pytest.raises(RunError, match=r"last\.ckpt"):
        read_checkpoint(tmp_path)


def test_a_disk_that_refuses(tmp_path):
    write_checkpoint(tmp_path, PARTS)
    (tmp_path / "last.ckpt.new").write_text("in the way")
    with pytest.raises(RunError, match=r"last\.ckpt"):
        write_checkpoint(tmp_path, {"position": {}})
    assert read_checkpoint(tmp_path)["position"] == PARTS["position"]
