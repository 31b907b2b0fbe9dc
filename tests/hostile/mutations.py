# SPDX-License-Identifier: Apache-2.0
"""Turns a small valid file into hostile ones: by its values, its cells, its bytes, its members.

Everything is seeded by names, so a case is the same on every machine; what a mutation makes is made
when it is asked for.
"""

from __future__ import annotations

import copy
import io
import json
import random
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from xml.etree import ElementTree

OUTSIDE = "@OUTSIDE"
"""Stands for the folder that nothing may touch; `settle` puts it in."""

_RAW = "@RAW:{}@"
RAW = {
    "digits-5000": "9" * 5000,
    "deep-lists": "[" * 100_000 + "]" * 100_000,
    "deep-objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "1e999": "1e999",
}
VALUES: dict[str, Any] = {
    "null": None, "true": True, "minus": -1, "zero": 0, "half": 0.5, "large": 1e308,
    "nan": float("nan"), "infinite": float("inf"), "digits-400": 10**400, "31-bits": 2**31,
    "63-bits": 2**63, "empty": "", "long": "x" * 100_000, "half-a-pair": "\ud83d", "nul": "a\0b",
    "escape": "\x1b[31mred\n", "object": {}, "list": [], "nested": [[[1], {"a": [2]}]],
    "path-out": "../../../outside/secret.png", "device": "/dev/zero", "pipe": f"{OUTSIDE}/pipe",
    "address": "http://127.0.0.1:9/a.png", **{name: _RAW.format(name) for name in RAW},
}  # fmt: skip
TEXTS = {
    "empty": "", "minus": "-1", "large": "1e308", "1e999": "1e999", "nan": "nan", "inf": "-inf",
    "digits-400": "9" * 400, "digits-5000": "9" * 5000, "half": "0.5", "long": "x" * 100_000,
    "half-a-pair": "\ud83d", "nul": "a\0b", "escape": "\x1b[31mred", "lines": "a\nb,c\n\"d",
    "path-out": "../../../outside/secret.png", "device": "/dev/zero", "pipe": f"{OUTSIDE}/pipe",
    "arabic": "\u0663", "zeros": "0",
}  # fmt: skip

Make = Callable[[], bytes]
Mutation = tuple[str, Make]
"""A label, and what makes the file."""


def settle(data: bytes, outside: str) -> bytes:
    """Put the folder that nothing may touch where the stand-in is."""
    return data.replace(OUTSIDE.encode(), outside.encode())


def json_mutations(tree: Any, per_place: int = 0) -> Iterator[Mutation]:
    """Replace, remove, double and rename each value in turn; all values, or `per_place` of them."""
    for path in _places(tree):
        label = ".".join(map(str, path)) or "all"
        for name in _some(VALUES, label, per_place):
            yield f"{label}={name}", partial(_dump, tree, path, partial(_set, name=name))
        if path:
            yield f"{label}-removed", partial(_dump, tree, path, _remove)
        if path and isinstance(path[-1], str):
            yield f"{label}-doubled", partial(_dump, tree, path, _double)
            yield f"{label}-renamed", partial(_dump, tree, path, _rename)


def _some(names: Any, label: str, count: int) -> list[str]:
    every = list(names)
    return random.Random(label).sample(every, count) if count else every


def _places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Path of each value; of a list, of its first and its last."""
    yield path
    if isinstance(tree, dict):
        for key in tree:
            yield from _places(tree[key], (*path, key))
    elif isinstance(tree, list) and tree:
        for index in sorted({0, len(tree) - 1}):
            if index == 0 or not isinstance(tree[index], dict | list):
                yield from _places(tree[index], (*path, index))


def _set(owner: Any, key: Any, name: str) -> None:
    owner[key] = VALUES[name]


def _remove(owner: Any, key: Any) -> None:
    owner.pop(key)


def _double(owner: dict[str, Any], key: str) -> None:
    owner[f"{key}@TWICE"] = None


def _rename(owner: dict[str, Any], key: str) -> None:
    owner[f"{key} "] = owner.pop(key)


def _dump(tree: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> bytes:
    holder = owner = {"": copy.deepcopy(tree)}
    key: Any = ""
    for part in path:
        owner, key = owner[key], part
    change(owner, key)
    text = json.dumps(holder[""]).replace("@TWICE", "")
    for name, raw in RAW.items():
        text = text.replace(f'"{_RAW.format(name)}"', raw)
    return text.encode()


def cell_mutations(text: str, per_place: int = 0) -> Iterator[Mutation]:
    """Replace each cell of the first three lines in turn; remove and double lines."""
    lines = text.splitlines()
    for row, line in enumerate(lines[:3]):
        cells = re.split(r"([\s,;:=]+)", line)
        for column in range(0, len(cells), 2):
            label = f"{row}.{column // 2}"
            for name in _some(TEXTS, label, per_place):
                changed = "".join([*cells[:column], TEXTS[name], *cells[column + 1 :]])
                yield f"{label}={name}", partial(_join, lines, row, [changed])
        for label, instead in {
            "removed": [], "doubled": [line, line], "cut": [line[: len(line) // 2]],
            "long": [line + ",1" * 100_000],
        }.items():  # fmt: skip
            yield f"{row}-{label}", partial(_join, lines, row, instead)


def _join(lines: list[str], row: int, instead: list[str]) -> bytes:
    changed = [*lines[:row], *instead, *lines[row + 1 :], ""]
    return "\n".join(changed).encode("utf-8", "surrogatepass")


def xml_mutations(data: bytes, per_place: int = 0) -> Iterator[Mutation]:
    """Replace each text and attribute in turn; remove, double and rename elements."""
    for number, one in enumerate(ElementTree.fromstring(data).iter()):
        label = f"{number}.{one.tag}"
        for slot in [*one.attrib, *(["text"] if (one.text or "").strip() else [])]:
            for name in _some(TEXTS, f"{label}.{slot}", per_place):
                yield f"{label}.{slot}={name}", partial(_write_slot, data, number, slot, name)
        for change in ("removed", "doubled", "renamed") if number else ():
            yield f"{label}-{change}", partial(_write_element, data, number, change)


def _write_slot(data: bytes, number: int, slot: str, name: str) -> bytes:
    root = ElementTree.fromstring(data)
    found = list(root.iter())[number]
    if slot == "text":
        found.text = TEXTS[name]
    else:
        found.set(slot, TEXTS[name])
    return ElementTree.tostring(root, encoding="unicode").encode("utf-8", "surrogatepass")


def _write_element(data: bytes, number: int, change: str) -> bytes:
    root = ElementTree.fromstring(data)
    found = list(root.iter())[number]
    owner = next(one for one in root.iter() if found in list(one))
    if change == "renamed":
        found.tag += "x"
    elif change == "doubled":
        owner.append(found)
    else:
        owner.remove(found)
    return ElementTree.tostring(root)


def random_xml(load: Make, count: int) -> Iterator[Mutation]:
    """Change one place of a large XML, drawn by number."""
    for number in range(count):
        yield f"place-{number}", partial(_draw_slot, load, number)


def _draw_slot(load: Make, seed: int) -> bytes:
    data, rng = load(), random.Random(seed)
    elements = list(ElementTree.fromstring(data).iter())
    number = rng.randrange(len(elements))
    slot = rng.choice([*elements[number].attrib, "text"])
    return _write_slot(data, number, slot, rng.choice(list(TEXTS)))


def document_mutations(name: str, data: bytes) -> Iterator[Mutation]:
    """What is hostile as a whole file, by the ending of its name."""
    for label, content in _documents(name, data).items():
        yield label, partial(bytes, content)


def _documents(name: str, data: bytes) -> dict[str, bytes]:
    suffix = name.rpartition(".")[2]
    found = {
        "no-bytes": b"", "spaces": b" " * 1000, "zeros": b"\0" * 1000,
        "utf-16": data.decode().encode("utf-16"), "latin-1": data.replace(b"cat", b"caf\xe9"),
        "marked-utf-8": b"\xef\xbb\xbf" + data, "every-byte": bytes(range(256)) * 8,
    }  # fmt: skip
    if suffix in ("json", "jsonl", "yaml"):
        found |= {kind: raw.encode() for kind, raw in RAW.items()}
    if suffix == "yaml":
        found["laughs"] = LAUGHS.encode()
        found["alias-of-itself"] = b"names: &a [*a]\ntrain: &b {c: *b}\n"
        found["tag-of-python"] = b"names: !!python/object/apply:os.system ['touch x']\n"
        found["whole-disk"] = b"names: {99999999999: a}\ntrain: /\n"
    if suffix == "xml":
        found["laughs"] = _LAUGHING_XML.encode() + data
        found["entity-outside"] = _FOREIGN_XML.encode() + data
        found["deep"] = b"<a>" * 100_000 + b"</a>" * 100_000
        found["unknown-encoding"] = b"<?xml version='1.0' encoding='none'?>" + data
        found["packed-encoding"] = b"<?xml version='1.0' encoding='zlib_codec'?>" + data
    return found


LAUGHS = "a0: &a0 x\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
_LAUGHING_XML = '<!DOCTYPE a [<!ENTITY b0 "x">{}]>'.format(
    "".join(f'<!ENTITY b{i} "{f"&b{i - 1};" * 10}">' for i in range(1, 11))
)
_FOREIGN_XML = f'<!DOCTYPE a [<!ENTITY b SYSTEM "file://{OUTSIDE}/pipe">]>'


def byte_mutations(name: str, load: Make, flips: int = 6) -> Iterator[Mutation]:
    """Cut, flip, fill and swap bytes."""
    for share in (0.02, 0.3, 0.6, 0.95):
        yield f"cut-{share:.0%}", partial(_cut, load, share)
    for label, whole in {
        "no-bytes": b"", "one-byte": b"\x89", "zeros": b"\0" * 4096, "ones": b"\xff" * 4096
    }.items():  # fmt: skip
        yield label, partial(bytes, whole)
    yield "tail", lambda: load() + b"\0" * 100_000
    for number in range(flips):
        yield f"flip-{number}", partial(_flip, name, load, number)
    yield "noise", lambda: load()[:24] + random.Random(name).randbytes(600)
    for magic, head in MAGIC.items():
        yield f"magic-{magic}", lambda head=head: head + load()[len(head) :]


def _cut(load: Make, share: float) -> bytes:
    data = load()
    return data[: max(1, int(len(data) * share))]


def _flip(name: str, load: Make, number: int) -> bytes:
    # Half of them among the first bytes, where sizes and types stand.
    rng, changed = random.Random(f"{name}-{number}"), bytearray(load())
    span = len(changed) if number % 2 else min(64, len(changed))
    for _ in range(1 + number % 4):
        changed[rng.randrange(span)] ^= 1 << rng.randrange(8)
    return bytes(changed)


MAGIC = {"png": b"\x89PNG\r\n\x1a\n", "gzip": b"\x1f\x8b\x08\0", "zip": b"PK\3\4"}

MEMBERS = {
    "out": "../../../outside/member.png", "absolute": f"{OUTSIDE}/member.png", "nul": "a/nul\0.png",
    "long": "a/" + "n" * 5000 + ".png", "deep": "a/" + "d/" * 2000 + "x.png",
    "escape": "a/\x1b[31m.png", "backslash": "..\\..\\x.png", "drive": "C:/a/q.png",
    "empty": "", "dot": "a/./y.png", "folder": "a/x.png/",
}  # fmt: skip


def zip_mutations(files: dict[str, bytes]) -> Iterator[Mutation]:
    """Archives of these files, whose directories lie."""
    for label, name in MEMBERS.items():
        yield f"member-{label}", partial(pack_zip, {**files, name.replace("\0", "\1"): b"x"})
    yield "link", partial(_zip_link, files)
    yield "no-members", partial(pack_zip, {})
    yield "twice", partial(pack_zip, files, again=(next(iter(files)), b"other"))
    yield "in-itself", lambda: pack_zip({"a.zip": pack_zip(files)})
    for label, (central, local, value) in ZIP_FIELDS.items():
        yield label, partial(_patch_zip, files, central, local, value)


# Where a field stands in the directory, and in front of each member; its value.
ZIP_FIELDS: dict[str, tuple[int, int | None, bytes]] = {
    **{f"method-{one}": (10, 8, one.to_bytes(2, "little")) for one in (1, 9, 12, 14, 95, 99)},
    "encrypted": (8, 6, b"\1\0"), "size-4-gib": (24, 22, b"\xfe\xff\xff\xff"),
    "size-1": (24, 22, b"\1\0\0\0"), "offset-beyond": (42, None, b"\xff\xff\xff\x7f"),
    "offset-same": (42, None, b"\0\0\0\0"),
}  # fmt: skip


def pack_zip(files: dict[str, bytes], again: tuple[str, bytes] | None = None) -> bytes:
    """A zip of these files."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
        if again:
            info = zipfile.ZipInfo(again[0].upper())
            archive.writestr(info, again[1])
    return data.getvalue().replace(again[0].upper().encode(), again[0].encode()) if again else (
        data.getvalue()
    )  # fmt: skip


def _zip_link(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO(pack_zip(files))
    with zipfile.ZipFile(data, "a") as archive:
        info = zipfile.ZipInfo("a/link.png")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, f"{OUTSIDE}/secret.png")
    return data.getvalue()


def _patch_zip(files: dict[str, bytes], central: int, local: int | None, value: bytes) -> bytes:
    data = pack_zip(files)
    changed = bytearray(data)
    for mark, offset in ((b"PK\1\2", central), (b"PK\3\4", local)):
        for found in re.finditer(re.escape(mark), data) if offset is not None else ():
            changed[found.start() + offset : found.start() + offset + len(value)] = value
    return bytes(changed)


def tar_mutations(files: dict[str, bytes]) -> Iterator[Mutation]:
    """Archives of these files, whose headers lie."""
    for label, name in MEMBERS.items():
        yield f"member-{label}", partial(pack_tar, files, name=name or ".")
    for label, kind in TAR_KINDS.items():
        yield label, partial(pack_tar, files, name="a/special.png", kind=kind)
    for label, size in (("8-gib", 2**33), ("63-bits", 2**63 - 1), ("80-bits", 2**80)):
        yield f"first-{label}", partial(_resize, files, size, last=False)
        yield f"last-{label}", partial(_resize, files, size, last=True)
    for label, fields in PAX.items():
        yield f"pax-{label}", partial(pack_tar, files, name="a/pax.png", fields=fields)


TAR_KINDS = {
    "link": tarfile.SYMTYPE, "hard-link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE,
    "pipe": tarfile.FIFOTYPE, "sparse": tarfile.GNUTYPE_SPARSE,
}  # fmt: skip
PAX = {
    "minus": {"size": "-5"}, "word": {"size": "abc"}, "nan": {"mtime": "nan"},
    "sparse": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 12},
    "map": {"GNU.sparse.map": "0,1,x", "GNU.sparse.size": "9"}, "nul": {"path": "a/\0x.png"},
    "digits": {"size": "9" * 5000},
}  # fmt: skip


def pack_tar(
    files: dict[str, bytes], name: str = "", kind: bytes = tarfile.REGTYPE,
    fields: dict[str, str] | None = None,
) -> bytes:  # fmt: skip
    """A tar of these files, and of one more member of this name, kind and pax header."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for one, content in files.items():
            info = tarfile.TarInfo(one)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if name:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.pax_headers = kind, f"{OUTSIDE}/secret.png", fields or {}
            archive.addfile(info)
    return data.getvalue()


def _resize(files: dict[str, bytes], size: int, *, last: bool) -> bytes:
    """Say another size in the first header, or in that of one more member; the sums are right."""
    data = pack_tar(files)
    start = 0
    if last:
        body = data.rstrip(b"\0")
        start = -(-len(body) // 512) * 512
        more = tarfile.TarInfo("a/last.png").tobuf(tarfile.GNU_FORMAT)
        data = body.ljust(start, b"\0") + more
    head = bytearray(data[start : start + 512])
    head[124:136] = b"\x80" + size.to_bytes(11, "big")
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return data[:start] + bytes(head) + data[start + 512 :]
