# SPDX-License-Identifier: Apache-2.0
"""Packed data beside the folder it came from: images a second, file operations, a large index, S3.

Folder and shards are read in turns by the loader of training, images are decoded each time (no
cache of decoded images). File operations are opens, counted by Python's audit hook, and read calls
of the process by the kernel's count. The index of generated entries is opened in a process of its
own. `streaming` trains on shards behind a server of S3 on this machine, and on the folder, in
turns: the share is the time of the folder over that of the address, where 1 is a store that never
makes training wait.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import record

import muntin
from muntin.data.cache import ImageCache
from muntin.data.data_config import DataConfig
from muntin.data.listing import list_classify
from muntin.data.loading import EvalLoader
from muntin.data.shard_index import Head, Shard, ShardIndex, format_table
from muntin.data.shards import open_shards, write_index
from muntin.data.transforms import Preprocessing
from muntin.devices import peak_mib, reset_peak
from muntin.samples import Classes
from muntin.synthetic.datasets import write_classify

TURNS = 5
PRE = Preprocessing(img_size=(96, 96), mean=(0.5,) * 3, std=(0.5,) * 3)
ENTRIES = 1_000_000
_opens = [0]


def _count(event: str, arguments: tuple[object, ...]) -> None:
    _opens[0] += event == "open"


def reads() -> int:
    """Read calls of this process so far."""
    text = Path("/proc/self/io").read_text()
    return int(dict(line.split(": ") for line in text.splitlines())["syscr"])


def read_all(place: Path) -> dict[str, float]:
    """Read a set once; images a second, opens and read calls for each image."""
    listing = list_classify(place).train
    store = ImageCache(listing, PRE, DataConfig(cache_mib=0))
    opens, calls, begun = _opens[0], reads(), time.perf_counter()
    count = sum(batch.num_real for batch in EvalLoader(store, batch_size=64))
    seconds = time.perf_counter() - begun
    return {
        "images_per_s": count / seconds,
        "opens_per_image": (_opens[0] - opens) / count,
        "reads_per_image": (reads() - calls) / count,
    }


def make_index(folder: Path) -> None:
    """Write the index of a million images in shards that are not there."""
    folder.mkdir()
    shards = tuple(Shard(name=f"train-{n:06}.tar", size=2**28) for n in range(500))
    names = [f"class{n % 1000:04}/image_{n:08}.jpg" for n in range(ENTRIES)]
    places = {name: (n % 500, 512 + n, 120_000, n) for n, name in enumerate(names)}
    texts = (json.dumps({"path": n, "class_ids": [i % 1000]}).encode() for i, n in enumerate(names))
    head = Head(
        task="classify", holds="classes", num_files=ENTRIES, shards=shards,
        classes=Classes(names=tuple(f"class{n:04}" for n in range(1000))),
        sets=(("train", ENTRIES),),
    )  # fmt: skip
    write_index(head, format_table(places, texts), folder, ("index.json", "index.bin"))
    for shard in shards:
        with open(folder / shard.name, "wb") as file:
            file.truncate(2**28)  # a sparse file


def open_index(folder: str) -> dict[str, float]:
    """Open it and find files; then list all images."""
    reset_peak()
    before, begun = peak_mib(), time.perf_counter()
    index: ShardIndex = open_shards(f"file://{folder}").index
    opened, memory = time.perf_counter() - begun, peak_mib() - before
    for number in range(0, ENTRIES, 1000):
        assert index.find(f"class{number % 1000:04}/image_{number:08}.jpg") is not None
    begun = time.perf_counter()
    assert len(index.listings("file://x")["train"]) == ENTRIES
    listed = time.perf_counter() - begun
    return {"open_s": opened, "open_mib": memory, "list_s": listed, "list_mib": peak_mib() - before}


def train(data: str, out: str) -> float:
    """Seconds of one epoch after the first, which fills caches."""
    run = muntin.train(
        "classify", data, model="vit_tiny", weights="none", epochs=2, img_size=96, batch_size=32,
        device="cpu", out=out, settings={"data.cache_mib": 0, "machine.workers": 2},
    )  # fmt: skip
    rows = [json.loads(line) for line in (run.path / "journal.jsonl").read_text().splitlines()]
    return float(rows[0]["seconds"])


def stream(folder: Path, packed: Path) -> float:
    """Share of the time of a training from a server of S3 that is not waiting."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    os.environ["MUNTIN_SHARD_CACHE_SIZE"] = "0"  # every image comes from the server
    system = s3fs.S3FileSystem()
    system.mkdir("bucket")
    system.put(str(packed), "bucket/set", recursive=True)
    with tempfile.TemporaryDirectory() as out:
        pairs = [
            (train(str(folder), f"{out}/a{n}"), train("s3://bucket/set", f"{out}/b{n}"))
            for n in range(2)
        ]
    server.stop()
    return statistics.median(local / remote for local, remote in pairs)


def main() -> None:
    """Measure and record."""
    sys.addaudithook(_count)
    few = "--few" in sys.argv
    with tempfile.TemporaryDirectory() as root:
        folder, packed = Path(root, "folder"), Path(root, "packed")
        write_classify(
            folder, num_train_per_class=20 if few else 300, num_val_per_class=2, size=(160, 160)
        )
        muntin.pack("classify", folder, packed, shard_size="16MB")
        turns = [(read_all(folder), read_all(packed)) for _ in range(2 if few else TURNS)]
        found = {
            f"{name}_{kind}": statistics.median(turn[place][name] for turn in turns)
            for place, kind in enumerate(("folder", "packed"))
            for name in turns[0][0]
        }
        found["speed"] = statistics.median(
            shards["images_per_s"] / files["images_per_s"] for files, shards in turns
        )
        make_index(Path(root, "index"))
        found |= record.alone(open_index, str(Path(root, "index")))
        if not few:
            found["streaming"] = stream(folder, packed)
    if few:
        record.log(json.dumps(found, indent=2))
    else:
        record.save("packed", {"what": "packed data beside its folder", **found}, ("s3fs", "moto"))


if __name__ == "__main__":
    main()
