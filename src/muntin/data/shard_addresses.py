# SPDX-License-Identifier: Apache-2.0
"""What DATA is packed, and where it is: addresses, and shards named with braces.

The source of packed listings is always an address, as `muntin.data.archives` knows them by.
"""

from __future__ import annotations

import contextlib
import math
import mimetypes
import os
import re
from itertools import product
from pathlib import Path

from muntin.data.archives import LOCAL
from muntin.errors import DataError
from muntin.untrusted import open_regular

INDEX, TABLE = "index.json", "index.bin"
FORMAT = "muntin-shards"
"""What the index says that it is."""

_ADDRESS = re.compile(r"([a-z][a-z0-9+]+):/+(.*)", re.DOTALL)  # a drive has one letter
_SECRETS = re.compile(r"(?<=://)[^/@\s]*@|\?\S*")
_TAR = re.compile(r"\.(?:tar|tar\.\w+|tgz)$")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 100_000  # shards
_BESIDE = (".json", ".txt", ".md", ".idx", ".index", ".yaml")  # what may lie beside shards
_STREAMS = frozenset(("rtsp", "rtsps", "rtmp", "rtmps", "udp", "tcp", "srt"))


def names_shards(address: str) -> bool:
    """Whether an address ends as only those of packed data do."""
    return address.endswith(f"/{INDEX}") or _TAR.search(address) is not None


def redact(text: str) -> str:
    """Leave passwords and signatures out of addresses.

    Examples:
        >>> redact("https://me:secret@host/a.tar?signature=1")
        'https://***@host/a.tar?***'
    """
    return _SECRETS.sub(lambda found: "***@" if found[0].endswith("@") else "?***", text)


def find_address(path: str | os.PathLike[str]) -> str:
    """Give the address of DATA that is packed; "" for any other.

    On the disk: a folder with an index of packed data, a folder of tars alone, and shards with
    braces (``train-{000..012}.tar``); elsewhere any address but those of images and videos.

    Raises:
        DataError: It holds a password or a signature, which would be recorded; or packed data lacks
            its index.
    """
    text = os.fspath(path)
    found = _ADDRESS.fullmatch(text)
    if found is not None and not os.path.exists(text):
        address = f"{found[1]}://{'/' if found[1] == 'file' else ''}{found[2].rstrip('/')}"
        if found[1] in _STREAMS or _names_media(address):
            return ""
        if _SECRETS.search(address):
            message = (
                f"An address must hold no password or signature, as runs record it, got "
                f"{redact(address)!r}. Put them into ~/.netrc, or what fsspec reads (FSSPEC_...)."
            )
            raise DataError(message)
        return address
    place = Path(text)
    if place.name == INDEX and _holds_shards(place.parent):
        place = place.parent
    named = bool(_BRACES.search(place.name)) and place.suffix == ".tar" and not place.exists()
    is_one = bool(text.strip()) and (named or (place.is_dir() and _holds_shards(place)))
    return f"{LOCAL}{place.absolute()}" if is_one else ""


def _names_media(address: str) -> bool:
    """Whether an address is that of an image, a video or a camera."""
    plain, asks, _ = address.partition("?")
    kind = (mimetypes.guess_type(plain)[0] or "").partition("/")[0]
    asked = bool(asks) and plain.startswith("http") and not names_shards(plain)
    return asked or kind in ("image", "video")


def _holds_shards(folder: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        if (folder / INDEX).is_file():
            with open_regular(folder / INDEX) as file:
                return f'"{FORMAT}"'.encode() in file.read(200)
        with os.scandir(folder) as found:
            names = [one.name for one in found if not one.name.startswith(".")]
        if TABLE in names and any(name.endswith(".tar") for name in names):
            message = (
                f"{str(folder)!r} must hold {INDEX} beside {TABLE} and its shards, as "
                f"muntin pack wrote it. Copy it, or remove {TABLE} to read the tars alone."
            )
            raise DataError(message)
        return any(name.endswith(".tar") for name in names) and all(
            name.endswith((".tar", *_BESIDE)) for name in names
        )
    return False


def split_address(source: str) -> tuple[str, list[str]]:
    """Part an address in its folder, and the names of shards where it names them."""
    root, _, last = source.rpartition("/")
    if last == INDEX:
        return root, []
    return (root, expand_braces(last)) if _TAR.search(last) else (source, [])


def expand_braces(pattern: str) -> list[str]:
    """Write braces out: ``{00..12}`` keeps the zeros, ``{a,b}`` is a choice.

    Examples:
        >>> expand_braces("{a,b}-{08..10}.tar")[:4]
        ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar']
    """
    choices = []
    for place, part in enumerate(_BRACES.split(pattern)):
        found = _RANGE.fullmatch(part) if place % 2 else None
        numbers = range(int(found[1]), int(found[2]) + 1) if found else range(0)
        if found is not None and not 0 < len(numbers) <= _MOST:
            message = f"A range in braces must rise, by less than {_MOST:,}, got {{{part}}}."
            raise DataError(message)
        width = len(found[1]) if found and found[1].startswith("0") else 0
        plain = part.split(",") if place % 2 else [part]
        choices.append([str(number).zfill(width) for number in numbers] if found else plain)
    if math.prod(map(len, choices)) > _MOST:
        message = f"Braces must stand for at most {_MOST:,} shards, got {pattern!r}. Check them."
        raise DataError(message)
    return ["".join(each) for each in product(*choices)]
