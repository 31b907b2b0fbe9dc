# SPDX-License-Identifier: Apache-2.0
"""Features of images on disk: an array that grows image by image, their names, and the model.

``F.npy`` has a row an image, ``F.names.txt`` its path in the same line, ``F.json`` the model.
``F.parquet`` holds all three. While they are written, ``F.npy.part`` and ``F.npy.part.jsonl`` grow,
from which the same call goes on after an interruption.

Letters: N images.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muntin.errors import ConfigError, DataError, RunError, quote
from muntin.prediction.formats.table_writers import import_arrow
from muntin.staging import format_json, refuse_existing, replacing, sync, write_file, writing
from muntin.untrusted import open_regular, parse_json, read_regular, reading

ROWS = 4096
"""Rows that are in memory at a time."""

_SUFFIXES = (".npy", ".parquet")
_WHAT_NEEDS_ARROW = "a .parquet file"
_RECORD_KEY = b"muntin"
_ADVICE = "Write it again: muntin embed"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FeatureTable:
    """Features of images, one row an image.

    Attributes:
        rows: (N, channels), (N, tokens, channels) or (N, channels, height, width) float32; mapped
            from the file where it is one in NumPy's format.
        names: Path of each image.
        record: What made them: "model", "source", "weights" (SHA-256), "pool", "preprocessing".
        left_out: Images that could not be read.
    """

    rows: NDArray[np.float32]
    names: tuple[str, ...]
    record: Mapping[str, Any]
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)


def check_out(out: Path, *, force: bool) -> None:
    """Check that features can be written to a file, before any work."""
    if out.suffix.lower() not in _SUFFIXES:
        message = f"OUT must end in {' or '.join(_SUFFIXES)}, got {str(out)!r}. Change its suffix."
        raise ConfigError(message)
    if out.suffix.lower() == ".parquet":
        import_arrow(_WHAT_NEEDS_ARROW)
    refuse_existing([out], (), option="OUT", force=force)


class FeatureWriter:
    """Appends features to the parts of a file, and puts them together at the end.

    Raises:
        RunError: Parts are there that another model made, or nothing can be written.
    """

    def __init__(self, out: Path, record: Mapping[str, Any]) -> None:
        self.out, self.record = out, json.loads(json.dumps(record))
        self._rows = out.with_name(f"{out.name}.part")
        self._lines = out.with_name(f"{out.name}.part.jsonl")
        self.names: list[str] = []
        self._shape: tuple[int, ...] | None = None
        with reading(str(self._lines), "Delete it.", RunError):
            self._resume()

    def _resume(self) -> None:
        if not (self._lines.is_file() and self._rows.is_file()):
            return
        whole = read_regular(self._lines).split(b"\n")[:-1]
        if not whole:  # interrupted before the first image
            return
        first, *lines = whole
        found = parse_json(first)
        shape = tuple(found.pop("shape", ()))
        if found != self.record or not all(isinstance(side, int) for side in shape):
            message = (
                f"{self._lines} must be of the same model and pool to go on, but was begun with "
                f"others. Delete it to begin again, or choose another OUT."
            )
            raise RunError(message)
        start, each = len(_header((0, *shape))), 4 * math.prod(shape)
        count = min(len(lines), (self._rows.stat().st_size - start) // each)
        self.names = [str(parse_json(line)) for line in lines[:count]]
        self._shape = shape
        os.truncate(self._rows, start + count * each)
        kept = [first, *lines[:count], b""]
        write_file(b"\n".join(kept), self._lines)

    def add(self, names: Sequence[str], rows: NDArray[np.float32]) -> None:
        """Append the rows of some images.

        Raises:
            DataError: Their shape differs from that of the rows before.
        """
        texts = [json.dumps(name) for name in names]
        if self._shape is None:
            self._shape = rows.shape[1:]
            texts.insert(0, json.dumps({**self.record, "shape": list(self._shape)}))
            self._append(self._rows, _header((0, *self._shape)), fresh=True)
            self._append(self._lines, b"", fresh=True)
        if rows.shape[1:] != self._shape:
            self._remove()
            message = (
                f"features of one file must have one shape, got {rows.shape[1:]} for {names[0]} "
                f"after {self._shape}: tokens and maps depend on the size of the image. Embed "
                f"images of one size, or use pool vector."
            )
            raise DataError(message)
        self._append(self._rows, np.ascontiguousarray(rows, "<f4").tobytes())
        self._append(self._lines, "".join(f"{text}\n" for text in texts).encode())
        self.names += names

    def _append(self, path: Path, data: bytes, *, fresh: bool = False) -> None:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb" if fresh else "ab") as file:
                file.write(data)

    def finish(self, left_out: Sequence[str]) -> FeatureTable:
        """Put the file together, the last moment in which it can fail, and remove the parts."""
        shape = (len(self.names), *(self._shape or (0,)))
        record = {**self.record, "shape": list(shape), "left_out": list(left_out)}
        with writing(self.out):
            if self._shape is None:
                self._append(self._rows, _header(shape), fresh=True)
            with self._rows.open("r+b") as file:
                file.write(_header(shape))
            if self.out.suffix.lower() == ".parquet":
                _write_parquet(self.out, _map(self._rows), self.names, record)
            else:
                names = "".join(f"{_line(name)}\n" for name in self.names)
                write_file(names.encode("utf-8", "surrogateescape"), _beside(self.out, "names.txt"))
                write_file(format_json(record).encode(), _beside(self.out, "json"))
                sync(self._rows)
                os.replace(self._rows, self.out)
        self._remove()
        return read_features(self.out)

    def _remove(self) -> None:
        for part in (self._rows, self._lines):
            with suppress(OSError):
                part.unlink()


def _line(name: str) -> str:
    """A path as one line; those with line breaks, which few have, are quoted as in JSON."""
    return json.dumps(name) if "\n" in name or name.startswith('"') else name


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f"{path.stem}.{ending}")


def _header(shape: tuple[int, ...]) -> bytes:
    """Header of a file in NumPy's format; of equal length for any number of rows."""
    file = io.BytesIO()
    values = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, values)
    return file.getvalue()


def _map(path: Path) -> NDArray[np.float32]:
    """Map the array of a file into memory; what is no float32 array is a ValueError."""
    with open_regular(path) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            message = "it must be of version 1.0 of NumPy's format"
            raise ValueError(message)
        shape, fortran, kind = np.lib.format.read_array_header_1_0(file)
        size = os.fstat(file.fileno()).st_size - file.tell()
        if fortran or kind != np.dtype("<f4") or len(shape) < 2 or 4 * math.prod(shape) != size:
            message = f"it must be rows of float32, got {kind} of shape {shape} in {size} bytes"
            raise ValueError(message)
        if not size:
            return np.zeros(shape, np.float32)
        return np.memmap(file, np.float32, "r", file.tell(), shape)


def read_features(path: Path | str) -> FeatureTable:
    """Read what `muntin embed` wrote; rows of a .npy file stay on the disk until they are used.

    Raises:
        DataError: The file, its names or its record are missing or broken.
    """
    path = Path(path)
    if not path.exists():
        message = (
            f"FEATURES must be a file that muntin embed wrote, got {path}, which is not there. "
            f"Check the path, or write it: muntin embed RUN IMAGES --out {quote(path)}"
        )
        raise DataError(message)
    with reading(str(path), _ADVICE, DataError):
        if path.suffix.lower() == ".parquet":
            return _read_parquet(path)
        text = read_regular(_beside(path, "names.txt")).decode("utf-8", "surrogateescape")
        names = [parse_json(x) if x.startswith('"') else x for x in text.split("\n")[:-1]]
        record = parse_json(read_regular(_beside(path, "json")))
        return _table(_map(path), names, record)


def _table(rows: NDArray[np.float32], names: Sequence[str], record: Any) -> FeatureTable:  # noqa: ANN401 (of a file)
    if not isinstance(record, dict) or len(rows) != len(names):
        message = f"there must be a name for each of {len(rows)} rows, got {len(names)}"
        raise ValueError(message)
    left_out = tuple(map(str, record.get("left_out", ())))
    return FeatureTable(rows=rows, names=tuple(names), record=record, left_out=left_out)


def _write_parquet(
    out: Path, rows: NDArray[np.float32], names: Sequence[str], record: Mapping[str, Any]
) -> None:
    """Write columns "path" and "features", a list an image; their shape is in the metadata."""
    arrow = import_arrow(_WHAT_NEEDS_ARROW)
    width = math.prod(rows.shape[1:])
    kind = arrow.list_(arrow.float32(), width)
    text = format_json(record).encode()
    schema = arrow.schema(
        [("path", arrow.string()), ("features", kind)], metadata={_RECORD_KEY: text}
    )
    with replacing(out) as fresh, arrow.parquet.ParquetWriter(fresh, schema) as writer:
        for start in range(0, len(names), ROWS):
            part = arrow.array(np.asarray(rows[start : start + ROWS]).reshape(-1))
            lists = arrow.FixedSizeListArray.from_arrays(part, width)
            paths = arrow.array(names[start : start + ROWS], arrow.string())
            writer.write_table(arrow.table([paths, lists], schema=schema))


def _read_parquet(path: Path) -> FeatureTable:
    arrow = import_arrow(_WHAT_NEEDS_ARROW)
    with open_regular(path) as stream:
        file = arrow.parquet.ParquetFile(stream)
        record = parse_json((file.schema_arrow.metadata or {})[_RECORD_KEY])
        shape = tuple(record["shape"])
        rows, names = np.empty(shape, np.float32), list[str]()
        for batch in file.iter_batches(batch_size=ROWS):
            part = batch.column("features").flatten().to_numpy(zero_copy_only=False)
            start = len(names)
            names += batch.column("path").to_pylist()
            rows[start : len(names)] = part.reshape(-1, *shape[1:])
    return _table(rows, names, record)


def select_rows(table: FeatureTable, places: Sequence[int]) -> FeatureTable:
    """Select images by number, in this order."""
    names = tuple(table.names[place] for place in places)
    return replace(table, rows=np.asarray(table.rows[list(places)]), names=names)
