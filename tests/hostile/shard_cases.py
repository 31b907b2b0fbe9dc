# SPDX-License-Identifier: Apache-2.0
"""Packed data whose head, table, annotations and shards lie, and shards of others."""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

from muntin.data.shard_index import Head, Shard, format_table
from muntin.data.shards import write_index
from muntin.samples import Classes
from tests.hostile import mutations
from tests.hostile.data_cases import MOST_OTHERS, make_image
from tests.hostile.harness import Case, Place

PLACES = {"far": (0, 2**62, 9, 0), "shard": (7, 512, 9, 0), "negative": (0, -1, 9, 0)}
ENTRY = {"path": "ash/0.png", "class_ids": [0], "size": [24, 32], "group": "a"}
OBJECT = {"boxes": [[0, 0, 9, 9]], "class_ids": [0], "crowd": [False], "areas": [81.0]}
OBJECTS = {**ENTRY, "objects": {**OBJECT, "masks": [[[0, 0, 9, 0, 9, 9]]]}}

Files = dict[str, bytes]


def shard_cases() -> Iterator[Case]:
    """Each value of the head and of an annotation, each file's bytes, and hostile members."""
    yield _case("index", "plain", pack, "accept")
    for label, make in mutations.json_mutations(json.loads(pack()["index.json"]), MOST_OTHERS):
        yield _case("index", f"head/{label}", partial(_with, "index.json", make))
    for name in ("index.bin", "index.json", "train-000000.tar"):
        for label, make in mutations.byte_mutations(name, lambda n=name: pack()[n], flips=9):
            yield _case("index", f"{name}/{label}", partial(_with, name, make))
    for label, make in mutations.json_mutations(ENTRY, MOST_OTHERS):
        yield _case("index", f"entry/{label}", lambda make=make: pack(make()))
    for label, make in mutations.json_mutations(OBJECTS, MOST_OTHERS):
        yield _case("index", f"objects/{label}", lambda make=make: pack(make()), task="instance")
    for label, place in PLACES.items():
        yield _case("index", f"place/{label}", partial(pack, place=place), "refuse")
    image = make_image(".png")
    files = {"0.png": image, "0.cls": b"0", "1.png": image, "1.cls": b"1"}
    for label, make in mutations.tar_mutations(files):
        yield _case("plain", label, lambda make=make: {"x.tar": make(), "y.tar": make()})


@cache
def pack(text: bytes = b"", place: tuple[int, int, int, int] | None = None) -> Files:
    """Two images, where the annotation of the first, or its place, is this one."""
    image = make_image(".png")
    shard = mutations.pack_tar({"0.png": image, "1.png": image})
    right = (0, 512, len(image), zlib.crc32(image))
    rows = {"ash/0.png": place or right, "oak/0.png": right}
    texts = [json.dumps({"path": name, "class_ids": [n]}).encode() for n, name in enumerate(rows)]
    head = Head(
        task="classify", holds="outlines" if b"objects" in text else "classes",
        classes=Classes(names=("ash", "oak")), num_files=2, sets=(("train", 2),),
        shards=(Shard(name="train-000000.tar", size=len(shard)),),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        table = format_table(rows, [text or texts[0], texts[1]])
        write_index(head, table, Path(folder), ("index.json", "index.bin"))
        found = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return {**found, "train-000000.tar": shard}


def _with(name: str, make: mutations.Make) -> Files:
    return {**pack(), name: make()}


def _case(
    kind: str, label: str, make: Callable[[], Files], expect: str = "either", task: str = "classify"
) -> Case:
    def build(place: Place) -> list[str]:
        for name, data in make().items():
            (place.source / name).write_bytes(mutations.settle(data, str(place.outside)))
        return ["check", task, str(place.source), "--json"]

    return Case(name=f"shards/{kind}/{label}", kind=f"shards-{kind}", build=build, expect=expect)
