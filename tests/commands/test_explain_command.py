# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""``muntin explain``: the page, and one line for each mistake."""

from __future__ import annotations

import pytest

from tests.commands.refusing import refuses
from tests.small import train_small, write_pictures


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "trees")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return train_small(data, tmp_path_factory.mktemp("runs") / "trees").path


def test_a_page_of_a_run(muntin, run, data, tmp_path):
    out = tmp_path / "out"
    options = ["--sections=cut,attention", "--point=0.2,0.8", "--target=birch", "--out", out]
    code, said, err = muntin("explain", run, data / "ash" / "0.png", *options)
    assert code == 0
    assert f"page: {out / 'page.html'}" in said
    assert err
    assert (out / "page.html").is_file()


@pytest.mark.filterwarnings("always:left out")
def test_what_cannot_be_read_is_left_out(muntin, run, data, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"")
    places = [data / "ash" / "0.png", tmp_path / "broken.png"]
    code, said, err = muntin("explain", run, *places, "--sections=cut", "--out", tmp_path / "out")
    assert code == 1
    assert "page:" in said
    assert "broken.png" in err


def test_a_mistake_is_one_line(muntin, run, data, tmp_path):
    path = data / "ash" / "0.png"
    to = ("--out", tmp_path / "out")
    assert refuses(muntin("explain", "swin_tiney", path, *to), "Did you mean 'swin_tiny'")
    assert refuses(muntin("explain", run, path, "--target=brich", *to), "Did you mean 'birch'")
    assert refuses(muntin("explain", run, path, "--point=9", *to), "--point must be x,y")
    assert refuses(muntin("explain", run, path, "--point=0.5,2", *to), "from 0 to 1")
    assert refuses(muntin("explain", run, path, "--sections=cuts", *to), "Did you mean 'cut'")
    assert refuses(muntin("explain", run, tmp_path / "none.png", *to), "none.png")
    (tmp_path / "file").write_text("")
    assert refuses(muntin("explain", run, path, "--out", tmp_path / "file"), "could not be written")
    assert refuses(muntin("explain", run), "See: muntin explain --help")
