# SPDX-License-Identifier: Apache-2.0
"""Data sets: every layout of `docs/reference/data.md`, with each value and byte made hostile."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from muntin.data.readers import Reader
from tests.data.layout_page import GROUPS, data_of, files_of, trees_of
from tests.golden.material import OLD
from tests.hostile import mutations
from tests.hostile.harness import Case, Place

TEXTS = (".json", ".yaml", ".xml", ".csv", ".txt")
# Values tried at each place of a file; 0: every one. The layouts that most people use come first.
PER_PLACE = {"COCO": 0, "YOLO": 0, "VOC": 12, "CSV": 0, "DeepLabCut": 0, "masks": 0}
MOST_OTHERS = 4
SKELETON = {
    "edges": [["left_ear", "right_ear"]], "flip_pairs": [["left_ear", "right_ear"]],
    "mirrored": True, "sigmas": {"left_ear": 0.03}, "keypoints": ["left_ear", "right_ear"],
}  # fmt: skip
RUN_LENGTHS = {
    "images": [{"id": 7, "file_name": "1.jpg", "height": 24, "width": 32}],
    "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [0, 0, 1, 24], "iscrowd": 0,
                     "segmentation": {"size": [24, 32], "counts": [0, 24, 744]}}],
    "categories": [{"id": 3, "name": "cat"}],
}  # fmt: skip


def data_cases() -> Iterator[Case]:
    """Of every layout: as it is, each text mutated, an image and a mask damaged."""
    for group, tasks, readers in GROUPS:
        for reader in readers:
            for number, tree in enumerate(trees_of(group, reader)):
                yield from _tree_cases(reader, tasks, number, tree)
    tree = f"annotations/instances_train.json  {json.dumps(RUN_LENGTHS)}\ntrain/1.jpg"
    yield from _tree_cases(
        GROUPS[1][2][0], ("instance",), 8, tree, only="annotations/instances_train.json"
    )
    yield _case(GROUPS[1][2][0], "COCO-8/larger-than-any", "instance", _larger_than_any(), "refuse")
    reader = next(one for one in GROUPS[3][2] if one.name == "DeepLabCut")
    tree = f"{trees_of('keypoints', reader)[0]}\nskeleton.json  {json.dumps(SKELETON)}"
    yield from _tree_cases(reader, ("pose",), 8, tree, only="skeleton.json")


def _larger_than_any() -> str:
    """An image that is said to have 10^10 pixels, and a mask that fills it."""
    data = json.loads(json.dumps(RUN_LENGTHS))
    data["images"][0].update(height=10**5, width=10**5)
    data["annotations"][0].update(segmentation={"size": [10**5] * 2, "counts": [0, 10**10]})
    del data["annotations"][0]["bbox"]
    return f"annotations/instances_train.json  {json.dumps(data)}\ntrain/1.jpg"


def _tree_cases(
    reader: Reader[Any, Any], tasks: tuple[str, ...], number: int, tree: str, only: str = ""
) -> Iterator[Case]:
    layout = f"{reader.name}-{number}"
    yield _case(reader, f"{layout}/plain", tasks[0], tree, "accept")
    done: set[str] = set()
    for path, text in files_of(tree):
        suffix = Path(path).suffix.lower()
        # One of several files of a kind is enough.
        kind = path if suffix in TEXTS[:3] else Path(path).parts[0] + suffix
        if kind in done or (only and path != only):
            continue
        done.add(kind)
        for turn, (label, make) in enumerate(_mutate(path, text, reader.name)):
            name = f"{layout}/{path}/{label}"
            yield _case(reader, name, tasks[turn % len(tasks)], tree, "either", (path, make))


def _mutate(path: str, text: str, layout: str) -> Iterator[mutations.Mutation]:
    suffix, count = Path(path).suffix.lower(), PER_PLACE.get(layout, MOST_OTHERS)
    if suffix not in TEXTS:
        yield from list(mutations.byte_mutations(path, lambda: make_image(suffix), flips=2))[::3]
        return
    yield from mutations.document_mutations(path, text.encode())
    if suffix == ".json":
        yield from mutations.json_mutations(json.loads(text), count)
    elif suffix == ".xml":
        yield from mutations.xml_mutations(text.encode(), count)
    elif suffix == ".yaml":
        import yaml

        yield from mutations.json_mutations(yaml.safe_load(text), count)
    else:
        yield from mutations.cell_mutations(text, count)


def make_image(suffix: str) -> bytes:
    """A small image of noise."""
    data = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(pixels).save(data, Image.registered_extensions()[suffix])
    return data.getvalue()


def _case(
    reader: Reader[Any, Any], name: str, task: str, tree: str, expect: str,
    change: tuple[str, mutations.Make] | None = None,
) -> Case:  # fmt: skip
    def build(place: Place) -> list[str]:
        data = data_of(reader, tree, place.source)
        if change is not None:
            settled = mutations.settle(change[1](), str(place.outside))
            (place.source / change[0]).write_bytes(settled)
        return ["check", task, str(data), "--json"]

    return Case(name=f"data/{name}", kind=reader.name, build=build, expect=expect)


def archive_cases() -> Iterator[Case]:
    """Zips and tars of class folders, plain and packed, whose directories and bytes lie."""
    files = {f"{name}/{n}.png": make_image(".png") for name in ("ash", "oak") for n in range(3)}
    whole_zip, whole_tar = mutations.pack_zip(files), mutations.pack_tar(files)
    kinds: dict[str, tuple[str, bytes]] = {"zip": (".zip", whole_zip), "tar": (".tar", whole_tar)}
    for suffix, pack in ((".tar.gz", gzip.compress), (".tar.bz2", bz2.compress)):
        kinds[suffix[1:]] = (suffix, pack(whole_tar))
    kinds["tar.xz"] = (".tar.xz", lzma.compress(whole_tar))
    for kind, (suffix, data) in kinds.items():
        yield _archive(kind, "plain", suffix, partial(bytes, data), "accept")
        for label, make in mutations.byte_mutations(f"a{suffix}", partial(bytes, data), flips=12):
            wrong = label.startswith(("no-", "one-", "zeros", "ones"))
            yield _archive(kind, label, suffix, make, "refuse" if wrong else "either")
        yield _archive(kind, "folder", suffix, None)
    for label, make in mutations.zip_mutations(files):
        yield _archive("zip", label, ".zip", make)
    for label, make in mutations.tar_mutations(files):
        yield _archive("tar", label, ".tar", make)
        yield _archive("tar.gz", label, ".tar.gz", lambda make=make: gzip.compress(make(), 1))
    yield _archive("zip", "bomb", ".zip", lambda: mutations.pack_zip(files | _bomb()))
    yield _archive(
        "tar.gz", "bomb", ".tar.gz", lambda: gzip.compress(mutations.pack_tar(files | _bomb()), 1),
        "refuse",
    )  # fmt: skip


def _bomb() -> dict[str, bytes]:
    """A file that is packed a thousandfold."""
    return {"ash/bomb.png": bytes(300 * 2**20)}


def _archive(
    kind: str, label: str, suffix: str, data: mutations.Make | None, expect: str = "either"
) -> Case:
    def build(place: Place) -> list[str]:
        path = place.source / f"data{suffix}"
        if data is None:
            path.mkdir()
        else:
            path.write_bytes(mutations.settle(data(), str(place.outside)))
        return ["check", "classify", str(path), "--json"]

    return Case(name=f"archive/{kind}/{label}", kind=kind, build=build, expect=expect)


def place_cases() -> Iterator[Case]:
    """Links, pipes, devices and depths in place of files and folders."""
    for label, make in _PLACES.items():
        for command in (["check", "classify"], ["check", "detect"], ["check", "semantic"]):
            yield _place(label, make, command)
    name = "place/pipe-of-video/predict"
    yield Case(name=name, kind="places", build=_pipe_of_video, expect="refuse")


def _place(label: str, make: Callable[[Place], None], command: list[str]) -> Case:
    def build(place: Place) -> list[str]:
        for name in ("ash", "oak"):
            (place.source / name).mkdir()
            (place.source / name / "1.png").write_bytes(make_image(".png"))
        make(place)
        return [*command, str(place.source), "--json"]

    return Case(name=f"place/{label}/{command[1]}", kind="places", build=build)


def _link(target: str, name: str) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        where = target.replace(mutations.OUTSIDE, str(place.outside))
        (place.source / name).symlink_to(where)

    return make


def _sizeless_pipe(place: Place) -> None:
    os.mkfifo(place.source / "2.png")
    data = {**RUN_LENGTHS, "images": [{"id": 7, "file_name": "2.png"}]}
    (place.source / "instances.json").write_text(json.dumps(data))


def _pipe_of_video(place: Place) -> list[str]:
    os.mkfifo(place.source / "1.mp4")
    return ["predict", str(OLD / "classify"), str(place.source / "1.mp4"), "--json"]


def _many_folders(place: Place) -> None:
    (place.source / Path(*["d"] * 150)).mkdir(parents=True)


def _odd_names(place: Place) -> None:
    for name in (b"\xff\xfe.png", b"a\nb.png", b"\x1b[31m.png", b"x" * 250 + b".png"):
        path = os.path.join(os.fsencode(place.source), b"ash", name)
        with open(path, "wb") as file:
            file.write(make_image(".png"))


_PLACES: dict[str, Callable[[Place], None]] = {
    "pipe": lambda place: os.mkfifo(place.source / "ash" / "2.png"),
    "pipe-of-annotations": lambda place: os.mkfifo(place.source / "instances.json"),
    "pipe-of-yaml": lambda place: os.mkfifo(place.source / "data.yaml"),
    "pipe-of-table": lambda place: os.mkfifo(place.source / "labels.csv"),
    "pipe-of-unknown-size": _sizeless_pipe,
    "device": _link("/dev/zero", "ash/2.png"),
    "device-of-annotations": _link("/dev/zero", "instances.json"),
    "device-of-yaml": _link("/dev/zero", "data.yaml"),
    "link-to-itself": _link("2.png", "ash/2.png"),
    "link-up": _link("..", "ash/up"),
    "link-to-the-system": _link("/proc", "ash/system"),
    "link-to-nothing": _link("nothing", "ash/2.png"),
    "folder-as-image": lambda place: (place.source / "ash" / "2.png").mkdir(),
    "folder-as-annotations": lambda place: (place.source / "instances.json").mkdir(),
    "many-folders": _many_folders,
    "odd-names": _odd_names,
}  # fmt: skip
