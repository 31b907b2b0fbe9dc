# SPDX-License-Identifier: Apache-2.0
"""`POST /explain`: the page of `muntin explain`, made by a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import tempfile
from pathlib import Path

from muntin.data.image_formats import format_of_suffix
from muntin.serving.batching import RefusedError
from muntin.serving.uploads import Upload, refuse
from muntin.untrusted import read_regular

SECONDS = 180.0
_LONGEST = 100
WAITING = 3
"""Explanations that wait or run; one runs at a time."""


class Explainer:
    """Runs one explanation at a time, beside the worker, so that predictions go on."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def explain(self, source: str, upload: Upload, language: str) -> bytes:
        """Make the page of an image in a language of `muntin explain`; it needs no other file.

        Raises:
            RefusedError: Too many wait, it takes too long, or the model cannot be explained.
        """
        if self._waiting >= WAITING:
            text = f"{self._waiting} explanations wait already. Try again later."
            raise RefusedError(429, text, reason="explanations", retry_after=15)
        self._waiting += 1
        try:
            async with self._turn:
                with tempfile.TemporaryDirectory(prefix="muntin-explain-") as folder:
                    return await _run(source, upload, Path(folder), language)
        finally:
            self._waiting -= 1


def file_name(name: str) -> str:
    """Make the name of a file of one that a stranger gave; the page shows it.

    It has letters, digits and a few signs, at most 100 of them, and the ending of an image or none.

    Examples:
        >>> file_name("../a photo.JPG"), file_name("*"), file_name("scan.txt")
        ('a photo.JPG', 'image', 'scan_txt')
    """
    last = name.replace("\\", "/").rpartition("/")[2]
    plain = re.sub(r"[^\w .()+-]", "_", last).strip(" ._-")
    stem, _, ending = plain.rpartition(".")
    if stem and format_of_suffix(f".{ending}"):
        return f"{_clean(stem)}.{ending}"
    return _clean(plain)


def _clean(text: str) -> str:
    # A letter may be four bytes, and a name may have 255.
    return text.replace(".", "_")[:_LONGEST].encode()[:200].decode(errors="ignore") or "image"


async def _run(source: str, upload: Upload, folder: Path, language: str) -> bytes:
    image = folder / "in" / file_name(upload.name)
    image.parent.mkdir()
    image.write_bytes(upload.data)
    out = folder / "out"
    words = ("-m", "muntin", "explain", source, str(image), "--out", str(out))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *words,
        f"--language={language}",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(SECONDS):
            _, errors = await process.communicate()
    except TimeoutError:
        text = f"an explanation must take at most {SECONDS:g} s. Send a smaller image."
        raise refuse(504, text, "deadline") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    pages = sorted(out.glob("*.html"))
    if not pages:
        lines = errors.decode(errors="replace").strip().splitlines()
        reason = lines[-1].removeprefix("muntin: ") if lines else f"exit {process.returncode}"
        raise refuse(422, reason.replace(str(image), "the image"), "explain")
    return read_regular(pages[0])
