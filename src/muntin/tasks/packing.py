# SPDX-License-Identifier: Apache-2.0
"""Pack a data set of any task into tar shards: `pack`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from muntin.data.data_config import DataConfig, change_reading
from muntin.data.grouping import give_groups
from muntin.data.shard_writer import write_shards
from muntin.errors import ConfigError, DataError, quote
from muntin.tasks.task_table import list_whole
from muntin.untrusted import parse_amount

_SMALLEST = 2**10


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedData:
    """What was written.

    The folder, images of each set, shards, bytes of all shards, and notes on what was read.
    """

    path: Path
    sets: Mapping[str, int]
    num_shards: int
    num_bytes: int
    notes: tuple[str, ...]


def pack(
    task: str,
    data: str | Path,
    out: str | Path,
    *,
    shard_size: int | str = "256MB",
    workers: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> PackedData:
    """Pack a data set into tar shards in webdataset's layout, with an index.

    The folder can be given wherever the data set can, from a disk or an address that fsspec reads,
    and a training on it equals that on the data set to the bit. Where it was stopped, the same call
    goes on.

    Args:
        task: "classify", "detect", "instance", "semantic", "pose" or "pretrain".
        data: What `muntin.train` takes.
        out: A new folder.
        shard_size: Bytes, or "256MB" (of 1024 x 1024 bytes), that a shard has at most.
        workers: Shards that are written at the same time; 0 = one a core, at most 8.
        settings: Options of reading this data: ``{"data.ignored": "background"}``.

    Raises:
        DataError: The data cannot be used, or `out` is not new.
        ConfigError: An option is wrong.
        RunError: `out` cannot be written.
    """
    size = parse_amount(str(shard_size), "--shard-size")
    for name, least, got in (("--shard-size", _SMALLEST, size), ("--workers", 0, workers)):
        if got < least:
            message = f"{name} must be at least {least}, got {got}."
            raise ConfigError(message)
    if "://" in str(out):
        message = f"OUT must be a folder, got {str(out)!r}. Pack to a folder, and copy that there."
        raise DataError(message)
    reading = change_reading(DataConfig(), settings or {})
    row, found = list_whole(task, data, reading)
    if found.fault:
        message = f"{found.fault}. See: muntin check {row.name} {quote(data)}"
        raise DataError(message)
    notes: list[str] = [found.note] if found.note else []
    sets = {part: give_groups(one, reading.groups, notes) for part, one in found.parts.items()}
    head = write_shards(
        replace(found, train=sets.get("train"), val=sets.get("val"), test=sets.get("test")),
        row.name,
        Path(out),
        shard_size=size,
        workers=workers,
    )
    return PackedData(
        path=Path(out),
        sets=dict(head.sets),
        num_shards=len(head.shards),
        num_bytes=sum(shard.size for shard in head.shards),
        notes=tuple(notes),
    )
