# SPDX-License-Identifier: Apache-2.0
"""`POST /explain`: the page of `muntin explain`, made by a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from pathlib import Path

from muntin.serving.batching import RefusedError
from muntin.serving.uploads import Upload, refuse
from muntin.untrusted import read_regular

SECONDS = 180.0
WAITING = 3
"""Explanations that wait or run; one runs at a time."""


class Explainer:
    """Runs one explanation at a time, beside the worker, so that predictions go on."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def explain(self, source: str, upload: Upload, target: str = "") -> bytes:
        """Make the page of an image, which needs no other file.

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
                    return await _run(source, upload, target, Path(folder))
        finally:
            self._waiting -= 1


async def _run(source: str, upload: Upload, target: str, folder: Path) -> bytes:
    image = folder / "image"  # the name that a stranger gave is no name of a file
    image.write_bytes(upload.data)
    out = folder / "out"
    words = [sys.executable, "-m", "muntin", "explain", source, str(image), "--out", str(out)]
    words += ["--target", target] if target else []
    process = await asyncio.create_subprocess_exec(
        *words,
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
