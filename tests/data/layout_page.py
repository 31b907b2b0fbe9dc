# SPDX-License-Identifier: Apache-2.0
"""docs/reference/data.md: `python -m tests.data.layout_page` writes its table from READERS.

Its sections are written by hand. Each has the name of a row and small data sets of this layout:

    data.yaml  names: [cat, dog]          a path, two spaces, and the text of the file;
      | train: images/train               further lines of the text;
    images/train/1.jpg                    an image;
    masks/1.png  0 255                    an image of grey values in stripes;
    masks/2.png  #3C1098 #E2A929          one of colours.

DATA is the folder, or, where the reader recognises no folder, the file in the first line. Each tree
is written to a folder and read: the table lists the tasks that can use one, and the test of the
page expects that the first task of the group can use them all.
"""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from muntin.data import detection, listing, pose, semantic
from muntin.data.data_config import DataConfig
from muntin.data.image_formats import is_image
from muntin.data.readers import Reader, Source, find_reader
from muntin.tasks.task_table import TASKS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "data.md"


def _as_text(readers: tuple[Reader[Any, Any], ...]) -> tuple[Reader[Any, Any], ...]:
    """Layouts that a text can show: not packed data, which have a page of their own."""
    return tuple(reader for reader in readers if reader.looks_for)


GROUPS: tuple[tuple[str, tuple[str, ...], tuple[Reader[Any, Any], ...]], ...] = (
    ("labelled images", ("classify",), _as_text(listing.READERS)),
    ("objects", ("detect", "instance"), _as_text(detection.READERS)),
    ("masks", ("semantic",), _as_text(semantic.READERS)),
    ("keypoints", ("pose",), _as_text(pose.READERS)),
)
INTRODUCTION = """\
# Data that is read

`DATA` of `muntin train`, `eval`, `check` and `plan` is a folder, an archive of one (.zip, .tar) or
a single file. Each task tries its layouts in the order of this table; the first that recognises
DATA reads it, and `muntin check TASK DATA` names it. In the examples a path without a text is an
image; `|` begins the further lines of a file, numbers and colours beside an image are the values of
its pixels.
"""
HEIGHT, WIDTH = 24, 32


def sections() -> dict[str, str]:
    """The text of each section by its title."""
    _, *found = PAGE.read_text(encoding="utf-8").split("\n## ")
    return {title: text for title, _, text in (one.partition("\n") for one in found)}


def trees_of(kind: str, reader: Reader[Any, Any]) -> list[str]:
    """The example trees of a layout."""
    return re.findall(r"```\n(.*?)\n```", sections().get(f"{kind}: {reader.name}", ""), re.DOTALL)


def files_of(tree: str) -> Iterator[tuple[str, str]]:
    """Path and text of each file of a tree."""
    found: list[list[str]] = []
    for line in tree.splitlines():
        if line.lstrip().startswith("|"):
            found[-1].append(line.lstrip()[1:].removeprefix(" "))
        else:
            path, _, text = line.partition("  ")
            found.append([path.strip(), text.strip()])
    for path, *lines in found:
        yield path, "\n".join(lines)


def write_tree(tree: str, root: Path) -> Path:
    """Write the files of a tree; gives the first."""
    places = []
    for number, (path, text) in enumerate(files_of(tree)):
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if is_image(place.name):
            place.write_bytes(_draw(text, number, place.suffix.lower()))
        else:
            place.write_text(text + "\n", encoding="utf-8")
        places.append(place)
    return places[0]


def data_of(reader: Reader[Any, Any], tree: str, root: Path) -> Path:
    """Write a tree, and give the DATA that its layout asks for."""
    first = write_tree(tree, root)
    return root if reader.recognise(Source(root)) is not None else first


def _draw(text: str, number: int, suffix: str) -> bytes:
    if text:
        colored = text.startswith("#")
        values = [list(bytes.fromhex(t[1:])) if colored else [int(t)] for t in text.split()]
        pixels = np.repeat(np.array(values, np.uint8), -(-WIDTH // len(values)), axis=0)[:WIDTH]
        stripes = np.broadcast_to(pixels, (HEIGHT, *pixels.shape))
        image = Image.fromarray(stripes if colored else stripes[:, :, 0])
    else:
        random = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        image = Image.fromarray(random)
    data = io.BytesIO()
    image.save(data, Image.registered_extensions()[suffix])
    return data.getvalue()


def can_use(task: str, reader: Reader[Any, Any], readers: Any, tree: str) -> bool:
    """Whether a reader is the one that recognises a tree, and the task can train on it."""
    with tempfile.TemporaryDirectory() as folder:
        data = data_of(reader, tree, Path(folder))
        if find_reader(data, readers, what="data")[0] is not reader:
            return False
        sets = TASKS[task].list_data(data, None, DataConfig())
    faults = [problem for problem in sets.problems if problem.severity == "error"]
    return sets.train is not None and len(sets.train.entries) > 0 and not faults


def page() -> str:
    """The text of the page."""
    table = ["| tasks | layout | recognised by | DATA may also be |", "|---|---|---|---|"]
    written, shown = sections(), []
    for kind, tasks, readers in GROUPS:
        for reader in readers:
            trees = trees_of(kind, reader)
            fit = [t for t in tasks if any(can_use(t, reader, readers, tree) for tree in trees)]
            title = f"{kind}: {reader.name}"
            anchor = "".join(c for c in title.lower() if c.isalnum() or c in " -").replace(" ", "-")
            table.append(
                f"| {', '.join(fit)} | [{reader.name}](#{anchor}) | {reader.looks_for} "
                f"| {reader.file or 'an archive'} |"
            )
            shown.append(f"## {title}\n{written.get(title, '').rstrip()}\n")
    return "\n".join([INTRODUCTION, *table, "", *shown])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
