# SPDX-License-Identifier: Apache-2.0
"""``muntin explain``: the page, and one line for each mistake."""

from __future__ import annotations

import re
import sys

import pytest

from muntin.commands import explain
from muntin.explaining import SECTIONS
from tests.commands.cli_errors import fails_with
from tests.small import train_small, write_images


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "trees")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return train_small(data, tmp_path_factory.mktemp("runs") / "trees").path


def test_a_page_of_a_run(muntin, run, data, tmp_path):
    out = tmp_path / "out"
    options = ["--sections=cut,attention", "--point=0.2,0.8", "--target=birch", "--out", out]
    code, stdout, err = muntin("explain", run, data / "ash" / "0.png", *options)
    assert code == 0
    assert str(out / "page.html") in stdout
    assert err
    assert (out / "page.html").is_file()


@pytest.mark.filterwarnings("always::muntin.errors.MuntinWarning")
def test_unreadable_images_are_skipped(muntin, run, data, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"")
    places = [data / "ash" / "0.png", tmp_path / "broken.png"]
    code, stdout, err = muntin("explain", run, *places, "--sections=cut", "--out", tmp_path / "out")
    assert code == 1
    assert "page:" in stdout
    assert "broken.png" in err


def test_errors_are_one_line(muntin, run, data, tmp_path):
    path = data / "ash" / "0.png"
    to = ("--out", tmp_path / "out")
    assert fails_with(muntin("explain", "swin_tiney", path, *to), "'swin_tiny'")
    assert fails_with(muntin("explain", run, path, "--target=brich", *to), "'birch'")
    assert fails_with(muntin("explain", run, path, "--point=9", *to), "--point")
    assert fails_with(muntin("explain", run, path, "--point=0.5,2", *to), "--point")
    assert fails_with(muntin("explain", run, path, "--sections=cuts", *to), "'cuts'", "'cut'")
    assert fails_with(muntin("explain", run, tmp_path / "none.png", *to), "none.png")
    (tmp_path / "file").write_text("")
    result = muntin("explain", run, path, "--out", tmp_path / "file")
    assert fails_with(result, str(tmp_path / "file"))
    assert fails_with(muntin("explain", run), "muntin explain --help")
    for empty in ("", " , "):
        assert fails_with(muntin("explain", run, path, f"--sections={empty}", *to), "cut")
    assert fails_with(muntin("explain", run, path, "--target=1.5", *to), "'1.5'")
    assert fails_with(muntin("explain", "nosuch", path, *to), "muntin models 'swin*'")


def test_sections_are_those_of_the_page():
    assert explain.SECTIONS is SECTIONS


def test_unknown_sections_fail_before_heavy_imports(muntin, monkeypatch):
    monkeypatch.setitem(sys.modules, "muntin.explaining", None)  # importing it fails
    assert fails_with(muntin("explain", "any", "none.png", "--sections=foo"), "'foo'")


def test_help_names_every_section(muntin, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, stdout, _ = muntin("explain", "--help")
    assert code == 0
    words = re.findall(r"\w+", stdout)
    assert {*SECTIONS} <= {*words}


def test_interruption_reports_the_output(muntin, run, data, tmp_path, monkeypatch):
    def stop(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("PIL.Image.open", stop)
    out = tmp_path / "out"
    code, _, err = muntin("explain", run, data / "ash" / "0.png", "--out", out)
    assert code == 1
    assert str(out) in err
    assert not out.exists()


def test_what_shows_nothing_is_no_success(muntin, data, tmp_path):
    """A convolutional network attends to nothing."""
    words = ["explain", "timm:resnet10t", data / "ash" / "0.png", "--sections=attention"]
    code, stdout, _ = muntin(*words, "--out", tmp_path / "out")
    assert code == 1
    assert "not shown" in stdout
    assert "timm:resnet10t" in stdout
