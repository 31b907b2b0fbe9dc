# SPDX-License-Identifier: Apache-2.0
"""Write a data set as tar shards in webdataset's layout, with an index.

A sample is ``KEY.jpg`` (the bytes of the image as they are), ``KEY.json`` (its annotations),
``KEY.mask.png`` where it has a mask and ``KEY.cls`` where it has one class; KEY counts the images
of a set. The same data give the same bytes. A shard is written as a whole, and what it was made
from is noted beside it until the index is written last, so that what was stopped goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from muntin.configs import from_dict, to_dict
from muntin.data.archives import read_bytes, stamp_of
from muntin.data.shard_addresses import INDEX, TABLE
from muntin.data.shard_index import Head, Holds, Shard, format_entry, format_table, parse_head
from muntin.data.shards import write_index
from muntin.devices import granted_cores
from muntin.errors import DataError, MuntinError, RunError, cannot_write, shorten
from muntin.samples import Classes, DataSets, Entry, Listing
from muntin.staging import replacing, write_file
from muntin.untrusted import parse_json, read_regular

_NOTES = ".packing"  # the folder of what was made from each shard
_ENDING = re.compile(r"\.([A-Za-z0-9]{1,8})$")
_BLOCK = 512  # bytes of a tar
_LAYOUT = 1  # changes with the bytes of a shard

_Row = tuple[str, int, int, int]
"""Name in the data set, offset, size and CRC-32 of a member."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sample:
    key: str
    entry: Entry
    text: bytes  # of the .json
    label: bytes  # of the .cls

    @property
    def files(self) -> dict[str, str]:
        """The ending of each member, and which file it is."""
        found = {_ending_of(self.entry.path): self.entry.path}
        if self.entry.mask:
            found[f"mask.{_ending_of(self.entry.mask)}"] = self.entry.mask
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """A shard to be written.

    `digest` changes with names, sizes and annotations, `changed` is when a file last was, in ns.
    """

    name: str
    source: str
    samples: tuple[_Sample, ...]
    digest: str
    changed: int


def write_shards(
    data: DataSets, task: str, out: Path, *, shard_size: int, workers: int = 0
) -> Head:
    """Write all sets of a data set to a new folder, or go on where that was stopped.

    `shard_size` is in bytes; a shard is larger only if one image is. `workers` are threads, as
    reading, checksums and writing leave the interpreter free; 0 is one a core, at most 8.

    Raises:
        DataError: An image cannot be read, or `out` is in the data or holds something else.
        RunError: It cannot be written.
    """
    listings = data.parts
    classes = _classes_of(listings, data)
    plans = [plan for part, one in listings.items() for plan in _plan(part, one, shard_size)]
    if (there := _check_place(out, plans, listings)) is not None:
        return there
    try:
        (out / _NOTES).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(workers or min(8, granted_cores())) as pool:
            written = list(pool.map(partial(_write_once, out), plans))
        rows = [(row[0], (n, *row[1:])) for n, (_, rows) in enumerate(written) for row in rows]
        places = dict(reversed(rows))  # of a file that is in several samples, the first
        first = next(iter(listings.values()))
        head = Head(
            task=task,
            holds=_what_is_in(first),
            classes=classes,
            sets=tuple((part, len(one)) for part, one in listings.items()),
            num_files=len(places),
            shards=tuple(shard for shard, _ in written),
            note=data.note,
            left_out=data.left_out,
        )
        table = format_table(places, (one.text for plan in plans for one in plan.samples))
        whole = write_index(head, table, out, (INDEX, TABLE))
        # Shards of another size, that were left when packing was stopped.
        kept = {f"{shard.name}.json" for shard in head.shards}
        for note in (out / _NOTES).glob("*.tar.json"):
            if note.name not in kept:
                (out / note.stem).unlink(missing_ok=True)
        shutil.rmtree(out / _NOTES)
        return whole
    except OSError as error:
        raise RunError(cannot_write(out, error)) from error


def _classes_of(listings: Mapping[str, Listing], data: DataSets) -> Classes:
    kinds = {
        (one.source, one.class_names, one.multi_label, one.encoding, one.skeleton)
        for one in listings.values()
    }
    if not listings or len(kinds) != 1:
        message = (
            f"A data set to be packed must have sets of one source with the same classes, got "
            f"{shorten(sorted({one.source for one in listings.values()})) or 'none'} "
            f"({data.note}). Pack them one by one."
        )
        raise DataError(message)
    _, names, multi_label, encoding, skeleton = kinds.pop()
    return Classes(names=names, multi_label=multi_label, encoding=encoding, skeleton=skeleton)


def _ending_of(path: str) -> str:
    found = _ENDING.search(path)
    return found[1].lower() if found else "img"


def _plan(part: str, listing: Listing, shard_size: int) -> Iterator[_Plan]:
    """Share the images of a set out, in their order."""
    groups: list[list[tuple[_Sample, list[int], int]]] = []
    size = 0
    for place, entry in enumerate(listing.entries):
        sample = _describe(f"{place:09d}", entry, listing)
        stamps = [stamp_of(listing.source, path) for path in sample.files.values()]
        lengths = [length for length, _ in stamps] + [len(sample.text), len(sample.label)]
        added = sum(_BLOCK + length + -length % _BLOCK for length in lengths if length)
        if not groups or size + added > shard_size:
            groups.append([])
            size = 2 * _BLOCK
        groups[-1].append((sample, lengths, max(time for _, time in stamps)))
        size += added
    for number, group in enumerate(groups):
        digest = hashlib.blake2b(f"{_LAYOUT} {part}".encode(), digest_size=16)
        for sample, lengths, _ in group:
            told = repr((sample.key, sorted(sample.files.items()), lengths)).encode()
            digest.update(told + sample.text + sample.label)
        yield _Plan(
            name=f"{part}-{number:06d}.tar",
            source=listing.source,
            samples=tuple(sample for sample, _, _ in group),
            digest=digest.hexdigest(),
            changed=max(time for _, _, time in group),
        )


def _describe(key: str, entry: Entry, listing: Listing) -> _Sample:
    single = len(entry.class_ids) == 1 and not listing.multi_label and entry.objects is None
    label = f"{entry.class_ids[0]}".encode() if single else b""
    return _Sample(key=key, entry=entry, text=json.dumps(format_entry(entry)).encode(), label=label)


def _what_is_in(listing: Listing) -> Holds:
    if listing.skeleton is not None:
        return "keypoints"
    if listing.encoding is not None:
        return "masks"
    objects = [entry.objects for entry in listing.entries if entry.objects is not None]
    if objects:
        return "outlines" if any(one.masks for one in objects) else "boxes"
    return "classes" if listing.class_names else "images"


def _check_place(out: Path, plans: Sequence[_Plan], listings: Mapping[str, Listing]) -> Head | None:
    """Refuse a folder in the data, or with other things in it; give what is already written."""
    real = Path(os.path.realpath(out))
    for source in {one.source for one in listings.values()}:
        place = Path(os.path.realpath(source))
        if place.is_dir() and place in (real, *real.parents):
            message = f"OUT must not lie in the data, got {str(out)!r} in {source!r}. Move it out."
            raise DataError(message)
    if not out.exists():
        return None
    stopped, finished = (out / _NOTES).exists(), (out / INDEX).exists()
    if not out.is_dir() or not (stopped or finished or not any(out.iterdir())):
        message = (
            f"OUT must be a new folder, or one whose packing was stopped, got {str(out)!r}, which "
            f"holds something else. Choose another name."
        )
        raise DataError(message)
    if not finished:
        return None
    head = parse_head(read_regular(out / INDEX), str(out / INDEX))
    same = [shard.plan for shard in head.shards] == [plan.digest for plan in plans]
    written = (out / INDEX).stat().st_mtime_ns
    if not same or any(plan.changed > written for plan in plans):
        message = (
            f"OUT must be a new folder, got {str(out)!r}, which holds a packed data set of other "
            f"data or another --shard-size. Choose another name, or remove it."
        )
        raise DataError(message)
    return head


def _write_once(out: Path, plan: _Plan) -> tuple[Shard, list[_Row]]:
    """Write a shard, unless it is there."""
    path, note = out / plan.name, out / _NOTES / f"{plan.name}.json"
    try:
        values = parse_json(read_regular(note))
        shard = from_dict(Shard, values["shard"], where=str(note))
        same = (shard.plan, values["changed"]) == (plan.digest, plan.changed)
        if same and path.stat().st_size == shard.size:
            return shard, [(row[0], *map(int, row[1:])) for row in values["rows"]]
    except (OSError, ValueError, LookupError, TypeError, MuntinError):
        pass  # not written yet, or not whole
    rows: list[_Row] = []
    whole, size = hashlib.sha256(), 0
    with replacing(path) as fresh, open(fresh, "wb") as file:
        for name, member, data in _members(plan):
            info = tarfile.TarInfo(member)
            info.size, info.mode = len(data), 0o644
            header = info.tobuf(tarfile.USTAR_FORMAT)
            if name:
                rows.append((name, size + len(header), len(data), zlib.crc32(data)))
            for piece in (header, data, bytes(-len(data) % _BLOCK)):
                file.write(piece)
                whole.update(piece)
                size += len(piece)
        file.write(bytes(2 * _BLOCK))
        whole.update(bytes(2 * _BLOCK))
        size += 2 * _BLOCK
    shard = Shard(name=plan.name, size=size, digest=whole.hexdigest(), plan=plan.digest)
    values = {"shard": to_dict(shard), "rows": rows, "changed": plan.changed}
    write_file(json.dumps(values, ensure_ascii=True).encode(), note)
    return shard, rows


def _members(plan: _Plan) -> Iterator[tuple[str, str, bytes]]:
    """Name in the data set ("" for annotations), name in the shard, and content."""
    for sample in plan.samples:
        for ending, path in sample.files.items():
            yield path, f"{sample.key}.{ending}", read_bytes(plan.source, path)
        if sample.label:
            yield "", f"{sample.key}.cls", sample.label
        yield "", f"{sample.key}.json", sample.text
