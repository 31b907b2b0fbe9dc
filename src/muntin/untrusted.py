# SPDX-License-Identifier: Apache-2.0
"""Files of strangers: only regular files are opened, within a budget of memory and bounds of form.

What cannot be read raises `ValueError` or `OSError` with a plain reason; `reading` turns that, and
whatever else foreign content makes a parser raise, into one error that names the file.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
import os
import re
import stat
import struct
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import yaml
from safetensors import SafetensorError

from muntin.errors import ConfigError, MuntinError, first_line

BUDGET_VARIABLE = "MUNTIN_MAX_MEMORY"
MAX_PIXELS = 500_000_000
"""Images with more pixels are refused: a few kB can unpack to fill the memory."""
_DEFAULT_BUDGET = 2 * 2**30
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_MOST_YAML_VALUES = 1_000_000
# Half of a pair of escapes is no character, and cannot be written anywhere.
_HALF_PAIR = re.compile(
    r"(?<!\\)((?:\\\\)*)(?:(\\u[dD][89abAB]\w\w\\u[dD][c-fC-F]\w\w)|\\u[dD][89a-fA-F]\w\w)"
)
PARSER_FAULTS = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, EOFError,
    AssertionError, MemoryError, OSError, struct.error, zlib.error, csv.Error, yaml.YAMLError,
    lzma.LZMAError, ElementTree.ParseError, tokenize.TokenError, zipfile.BadZipFile,
    SafetensorError,
)  # fmt: skip
"""What parsers raise when their content is damaged or made to break them."""


def memory_budget() -> int:
    """Bytes that one foreign file may unpack to, or a model of one may need: 2 GiB.

    The environment variable ``MUNTIN_MAX_MEMORY`` sets it: bytes, or "500M", "8G".

    Raises:
        ConfigError: The variable is no amount of memory.
    """
    return amount_of(BUDGET_VARIABLE, _DEFAULT_BUDGET)


def amount_of(variable: str, default: int) -> int:
    """Bytes that an environment variable gives: "500M", "8G"; the default where it is not set."""
    text = os.environ.get(variable, "")
    return parse_amount(text, variable) if text else default


def parse_amount(text: str, name: str) -> int:
    """Parse an amount of bytes, "500M"; `name` is what has it.

    Raises:
        ConfigError: The text is no amount of memory.
    """
    found = re.fullmatch(r"(\d{1,15})\s*([kmgt]?)(i?b)?", text.strip().lower())
    if found is None:
        message = f"{name} must be an amount of memory such as 8G, got {text!r}."
        raise ConfigError(message)
    return int(found[1]) * _UNITS[found[2]]


def check_budget(num_bytes: float, what: str) -> None:
    """Refuse what needs more than the budget; `what` names it, as in "the array of a.npz".

    Raises:
        ValueError: With both amounts, and the variable that raises the limit.
    """
    most = memory_budget()
    if not num_bytes <= most:  # true for nan too
        message = (
            f"{what} needs {num_bytes / 2**30:.3g} GiB, the limit is {most / 2**30:.3g}; if you "
            f"trust the file, raise it: {BUDGET_VARIABLE}=8G"
        )
        raise ValueError(message)


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a file to be read; pipes, devices and sockets are refused instead of waited for.

    Raises:
        OSError: It is not there, may not be read, or is not a regular file.
        ValueError: It has more bytes than the budget, but hardly any of them lie on the disk.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode):
        os.close(descriptor)
        raise OSError(0, "It must be a regular file, and is a folder, pipe or device", str(path))
    file = os.fdopen(descriptor, "rb")
    # File systems may compress, but no file of use becomes that small.
    if info.st_size > 8 * 512 * getattr(info, "st_blocks", sys.maxsize):
        try:
            check_budget(info.st_size, f"the sparse file {os.fspath(path)!r}")
        except ValueError:
            file.close()
            raise
    return file


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """Read a regular file.

    Raises:
        OSError: As `open_regular`.
        ValueError: As `open_regular`, or it never ends, as files of the system may.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size + 1)
        if len(data) > size:  # it grows, or is of the system and says no size
            data += file.read(memory_budget())
            check_budget(len(data), f"{os.fspath(path)!r}")
    return data


def parse_json(data: bytes | str, *, hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:  # noqa: ANN401 (any JSON value)
    """Parse JSON; `hook` may change each object. Half pairs of surrogates become U+FFFD.

    Raises:
        ValueError: It is no JSON, not UTF-8, nested too deep, or holds a number of 4,300 digits.
    """
    text = data if isinstance(data, str) else data.decode(json.detect_encoding(data))
    text = text.removeprefix("\ufeff")
    if "\\ud" in text or "\\uD" in text:
        text = _HALF_PAIR.sub(lambda found: found[1] + (found[2] or "\\ufffd"), text)
    try:
        return json.loads(text, object_hook=hook)
    except RecursionError:
        message = "values nested too deep"
    raise ValueError(message)


def parse_yaml(text: str, loader: type[yaml.SafeLoader | yaml.BaseLoader] = yaml.SafeLoader) -> Any:  # noqa: ANN401
    """Parse YAML of at most a million values, those that aliases repeat included.

    Raises:
        ValueError: It is no YAML, nested too deep, or an alias holds itself.
    """
    try:
        parser = loader(text)
        try:
            root = parser.get_single_node()
            if root is None:
                return None
            if _count_values(root, {}) > _MOST_YAML_VALUES:
                message = f"more than {_MOST_YAML_VALUES:,} values with those that aliases repeat"
                raise ValueError(message)
            return parser.construct_document(root)
        finally:
            parser.dispose()
    except RecursionError:
        message = "values nested too deep"
    except (yaml.YAMLError, OverflowError) as error:
        message = " ".join(str(error).split())
    raise ValueError(message)


def _count_values(node: yaml.Node, known: dict[int, int]) -> int:
    if id(node) in known:
        if not known[id(node)]:
            message = "an alias that holds itself"
            raise ValueError(message)
        return known[id(node)]
    known[id(node)] = 0  # not counted yet
    inner = node.value if isinstance(node, yaml.CollectionNode) else ()
    parts = (part for item in inner for part in (item if isinstance(item, tuple) else (item,)))
    known[id(node)] = 1 + sum(_count_values(part, known) for part in parts)
    return known[id(node)]


def parse_xml(data: bytes | str) -> ElementTree.Element:
    """Parse XML without entities of its own; none from outside are ever fetched.

    Raises:
        ValueError: It is no XML, declares entities, or is of an unknown encoding.
    """
    if (b"<!ENTITY" if isinstance(data, bytes) else "<!ENTITY") in data:  # type: ignore[operator]
        message = "entities of its own"
        raise ValueError(message)
    try:
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, LookupError, RecursionError) as error:
        raise ValueError(first_line(error)) from error


def refuse_bomb(path: str | os.PathLike[str]) -> None:
    """Refuse a zip whose members unpack to more than the budget, and to 8 times its size.

    Raises:
        ValueError: As `check_budget`; `zipfile.BadZipFile` or `OSError` if it is no zip.
    """
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        total = sum(member.file_size for member in archive.infolist())
        if total > 8 * os.fstat(file.fileno()).st_size:
            check_budget(total, f"{os.fspath(path)!r}, unpacked,")


@contextmanager
def reading(what: str | Callable[[], str], advice: str, kind: type[MuntinError]) -> Iterator[None]:
    """Turn whatever foreign content makes a parser raise into one error that names it.

    `what` is the file or folder, or gives it once something failed; `advice` is a sentence.
    """
    try:
        yield
    except MuntinError:
        raise
    except PARSER_FAULTS as error:
        place = what if isinstance(what, str) else what()
        name = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        reason = first_line(error).rstrip(". ")
        message = f"{place} cannot be read: {name}{reason}. {advice}"
        raise kind(message) from error
