# SPDX-License-Identifier: Apache-2.0
"""What README and the site tell a reader to type works; ``running`` says how it is run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from muntin.synthetic.datasets import write_coco, write_frames, write_maps
from muntin.synthetic.scenes import CLASS_NAMES, make_scene
from tests.docs.pages import ROOT, blocks_of, is_translation, place, prose_of, site_pages
from tests.docs.running import PageError, Reader, call_muntin, split_commands, split_pipe

# A Chinese page has the code of the English one, which another test compares.
PAGES = [
    page
    for page in site_pages()
    if not is_translation(page) and any(block.runs for block in blocks_of(page))
]
SLOW = re.compile(r"^<!-- slow: .+ -->$")
RUNS = {"flowers": "classify", "cells": "detect", "masks": "instance", "fields": "semantic",
        "mice": "pose"}  # fmt: skip
"""Runs that are there, with their tasks, unless the page makes them; `masks` learns from cells."""
FLOWERS = ("daisy", "rose", "tulip")


def _write_flowers(root: Path) -> None:
    """Write class folders of drawn shapes, which have the names of flowers."""
    for class_id, name in enumerate(FLOWERS):
        for part, numbers in (("train", range(8)), ("val", range(8, 11)), ("test", range(11, 14))):
            (root / part / name).mkdir(parents=True)
            for number in numbers:
                shape = CLASS_NAMES[class_id]
                scene = make_scene(class_id, number, size=(64, 64), classes=(shape,))
                Image.fromarray(scene.image).save(root / part / name / f"{number:03}.jpg")


def _write_mice(root: Path) -> None:
    write_frames(root, num_train=8, num_val=3, size=(64, 64))
    shutil.copytree(root / "val", root / "test")


def _write_photos(root: Path) -> None:
    root.mkdir()
    for number in range(8):
        Image.fromarray(make_scene(5, number, size=(64, 80)).image).save(root / f"{number}.jpg")


DATA: dict[str, Callable[[Path], object]] = {
    "flowers": _write_flowers,
    "cells": lambda root: write_coco(root, num_train=8, num_val=3, size=(64, 80)),
    "fields": lambda root: write_maps(root, num_train=8, num_val=3, size=(64, 80)),
    "mice": _write_mice,
    "photos": _write_photos,
}
IMAGES = {"rose.jpg": (96, 72), "tulip.png": (64, 64), "street.jpg": (96, 128),
          "slide.png": (200, 260)}  # fmt: skip


@pytest.fixture(scope="session")
def place_of_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all data sets and images that a page may name."""
    root = tmp_path_factory.mktemp("docs")
    for name, write in DATA.items():
        write(root / name)
    for number, (name, size) in enumerate(IMAGES.items()):
        scene = make_scene(9, number, size=size, max_objects=4)
        Image.fromarray(scene.image).save(root / name)
    return root


def _train(root: Path, name: str) -> Path:
    """Train a run when a page first needs it."""
    folder = root / "runs" / name
    if not folder.exists():
        data = "cells" if name == "masks" else name
        words = ["train", RUNS[name], str(root / data), "--out", str(folder), "--quiet"]
        code, _, said = call_muntin(words)
        assert code == 0, said
    return folder


def _needed(page: Path) -> tuple[list[str], list[str]]:
    """Names of data and of runs that the code of a page has, but does not make itself."""
    code = "\n".join(block.text for block in blocks_of(page) if block.runs)
    data = [name for name in (*DATA, *IMAGES) if re.search(rf"\b{re.escape(name)}\b", code)]
    made = set(re.findall(r"train.*?out[ =]\"?runs/(\w+)", code))
    runs = [name for name in RUNS if f"runs/{name}" in code and name not in made]
    return data, runs


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow)
        if any(SLOW.match(line) for _, line in prose_of(page))
        else page
        for page in PAGES
    ],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_page(
    page: Path, place_of_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, runs = _needed(page)
    for name in data:
        source = place_of_data / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    for name in runs:
        shutil.copytree(_train(place_of_data, name), tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    try:
        Reader(page).read(blocks_of(page))
    finally:
        plt.close("all")


def test_blocks_say_what_they_are() -> None:
    wrong = [
        f"{place(page, block.line)} {block.kind}"
        for page in site_pages()
        for block in blocks_of(page)
        if block.kind in ("bash", "shell", "console", "py")
        or block.left_out == ""
        or (block.left_out and block.kind not in ("sh", "python"))
    ]
    advice = "A block is sh, python or data; <!-- not run: REASON --> is for sh and python."
    assert not wrong, "\n".join([advice, *wrong])


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("```sh\ntrue\nfalse\n```\n", 2, "exits with 1, not 0"),
        ("```sh\nmuntin models 'swin_t*' --json\nmuntin lacks\n```\n", 3, "exits with 2"),
        ("\n```python\nfirst = 1\nsecond = first / 0\n```\n", 4, "ZeroDivisionError"),
        ("```sh\npip install 'muntin[lacks]'\n```\n", 2, "no such extra: lacks"),
        ("<!-- exit code 3: it must -->\n```sh\nexit 4\n```\n", 3, "exits with 4, not 3"),
    ],
)
def test_a_fault_is_found(tmp_path: Path, text: str, line: int, said: str) -> None:
    page = ROOT / "docs" / "none.md"
    written = tmp_path / "none.md"
    written.write_text(text, encoding="utf-8")
    with pytest.raises(PageError, match=rf"^docs/none\.md:{line}: ") as caught:
        Reader(page).read(blocks_of(written))
    assert said in str(caught.value)


def test_commands_are_told_apart() -> None:
    text = "# words\nls\nls \\\n  photos\nmuntin models # all\nmuntin plan \\\n  classify\n\necho\n"
    expected = [(1, "ls\nls \\\n  photos"), (4, "muntin models # all"),
                (5, "muntin plan \\\n  classify"), (8, "echo")]  # fmt: skip
    assert split_commands(text) == expected
    assert split_pipe("muntin models 'a|b' | head -1") == ("muntin models 'a|b' ", "| head -1")
    assert split_pipe("muntin models --json > out.json") == ("muntin models --json ", "> out.json")
    assert split_pipe("muntin models # a > b") == ("muntin models # a > b", "")
