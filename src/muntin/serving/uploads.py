# SPDX-License-Identifier: Apache-2.0
"""Bodies of requests: read within limits, and taken apart to encoded images and options.

Nothing is decoded here but the headers of images, and nothing is fetched: an image is in the body.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import re
from collections.abc import (
    AsyncGenerator,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, replace
from typing import Any

import python_multipart  # noqa: F401 (starlette asks for it only when a form comes)
from fastapi import Request
from PIL import UnidentifiedImageError
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser

from muntin.data.deep_images import tiff_size
from muntin.data.image_formats import open_header, readable_formats, way_out
from muntin.errors import first_line
from muntin.serving.batching import RefusedError
from muntin.serving.header_limits import find_parts, find_scans
from muntin.serving.request_options import join_options, parse_options
from muntin.serving.serve_settings import ServeLimits
from muntin.untrusted import parse_json

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")
FindModel = Callable[[str], object]
_LONGEST_NAME = 1000
MOST_VALUES = 200_000
"""Values of a JSON body."""

_AT_ONCE = 65_536
"""Larger bodies, in bytes, are taken apart in a thread."""
_DATA_ADDRESS = re.compile(r"data:[\w./+-]*(;[\w=.-]+)*;base64,")


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """An image of a request: an image file, or the uint8 values of `shape`."""

    name: str
    data: bytes
    pixels: int
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictRequest:
    """What a request asks for.

    Attributes:
        model: Name of a model; empty takes the first.
        threshold: Minimum score; None keeps what the model gives.
        tile: Side in pixels, or "auto"; see `muntin predict --tile`.
    """

    uploads: tuple[Upload, ...] = ()
    model: str = ""
    threshold: float | None = None
    tta: bool = False
    tile: int | str | None = None


def refuse(status: int, text: str, reason: str = "request") -> RefusedError:
    """Make the error of a request that cannot be answered."""
    return RefusedError(status, text, reason=reason)


def check_length(request: Request, limits: ServeLimits) -> None:
    """Refuse a body by what the head says of it.

    Raises:
        RefusedError: It is too large, or compressed.
    """
    if (coding := request.headers.get("content-encoding", "identity")).lower() != "identity":
        message = f"a body must not be compressed, got Content-Encoding {coding!r}. Send it as is."
        raise refuse(415, message, "encoding")
    text = request.headers.get("content-length", "")
    if text.isdecimal() and (len(text) > 19 or int(text) > limits.body_bytes):
        raise _too_large(limits)


def _too_large(limits: ServeLimits) -> RefusedError:
    message = (
        f"a body must have at most {limits.body_mib:g} MiB. Send fewer or smaller images, or "
        f"start the server with --set limits.body_mib=N."
    )
    return refuse(413, message, "body")


async def read_body(request: Request, limits: ServeLimits) -> bytes:
    """Read a body within its limits of size and time.

    Raises:
        RefusedError: It is too large, takes too long, or the server has no place for it.
    """
    take = getattr(request.state, "take", lambda _: None)  # of `Service.admitted`
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.receive):
            async for part in request.stream():
                size += len(part)
                if size > limits.body_bytes:
                    raise _too_large(limits)
                take(len(part))
                parts.append(part)
    except TimeoutError:
        message = f"a body must arrive within {limits.receive:g} s, got {size} bytes by then."
        raise refuse(408, message, "slow") from None
    return b"".join(parts)


async def read_request(
    request: Request, limits: ServeLimits, find_model: FindModel = lambda _: None
) -> PredictRequest | dict[str, Any]:
    """Read what is asked; a JSON object with tasks, which is of Label Studio, is given as it is.

    `find_model` refuses an unknown name, before images are looked at.

    Raises:
        RefusedError: The request is too large, or not understood.
    """
    body = await read_body(request, limits)
    if len(body) <= _AT_ONCE:
        return _parse(request, body, limits, find_model)
    # Others are answered meanwhile.
    return await asyncio.to_thread(_parse, request, body, limits, find_model)


def _parse(
    request: Request, body: bytes, limits: ServeLimits, find_model: FindModel
) -> PredictRequest | dict[str, Any]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    query: list[tuple[str, Any]] = [*request.query_params.multi_items()]
    name = request.query_params.get("name", "")[:_LONGEST_NAME]
    query = [option for option in query if option[0] != "name"]
    if kind == "multipart/form-data":
        form, files = _read_form(request, body, limits)
        asked = _read_options([*query, *form], find_model)
        return _add_images(asked, [check_image(*file, limits) for file in files], limits)
    if kind == "application/json" or kind.endswith("+json"):
        values = parse_object(body)
        if "tasks" in values:
            return values
        images = values.pop("images", values.pop("image", []))
        images = images if isinstance(images, list) else [images]
        asked = _read_options([*query, *values.items()], find_model)
        check_number(len(images), limits)
        uploads = [_read_base64(one, place, limits) for place, one in enumerate(images, 1)]
        return _add_images(asked, uploads, limits)
    _refuse_other_kind(body, kind)
    asked = _read_options(query, find_model)
    uploads = [check_image(name, body, limits)] if body else []
    return _add_images(asked, uploads, limits)


def _refuse_other_kind(body: bytes, kind: str) -> None:
    """Refuse a body that is no image, but JSON or a form whose type is not said."""
    starts = {b"{": "application/json", b"[": "application/json", b"--": "multipart/form-data"}
    begun = body[:1000].lstrip()[:100]
    wanted = next((name for start, name in starts.items() if begun.startswith(start)), "")
    if kind == "application/x-www-form-urlencoded" and re.match(rb"[\w.-]+=", begun):
        wanted = "multipart/form-data"
    if wanted:
        more = "; boundary=... (curl: -F image=@FILE)" if wanted.startswith("multipart") else ""
        message = (
            f"the Content-Type of this body must be {wanted}, got {kind[:100]!r}. Send the header "
            f"Content-Type: {wanted}{more}"
        )
        raise refuse(415, message, "format")


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse a JSON object of at most 200,000 values.

    Raises:
        RefusedError: It is none, or has more values.
    """
    # Nothing else goes on while many are read; an image in base64 is one.
    if body.count(b",") + body.count(b"\\u") > MOST_VALUES:
        message = (
            f"JSON must have at most {MOST_VALUES} values and escapes of characters, got more. "
            f"Send an image as a file, not as numbers."
        )
        raise refuse(413, message, "values")
    try:
        values = parse_json(body)
    except ValueError as error:
        message = f"the body must be JSON, as its Content-Type says, got: {first_line(error)}"
        raise refuse(400, message) from error
    if not isinstance(values, dict):
        message = f"the body must be a JSON object, got {name_kind(values)}."
        raise refuse(422, message)
    return values


def name_kind(value: object) -> str:
    """Name what a value of JSON is, as JSON calls it."""
    kinds = {
        dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"
    }  # fmt: skip
    return kinds.get(type(value), "a number")


class _MemoryParser(MultiPartParser):
    """Keeps files in memory: the body already is, and has a limit."""

    spool_max_size = 2**40
    ended = False

    def on_end(self) -> None:
        """Note that the last boundary was there."""
        self.ended = True

    def close(self) -> None:
        """Free the files, the one of a part that was cut off among them."""
        for file in self._files_to_close_on_error:
            file.close()


def _read_form(
    request: Request, body: bytes, limits: ServeLimits
) -> tuple[list[tuple[str, Any]], list[tuple[str, bytes]]]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        parser = _MemoryParser(
            request.headers, stream(), max_files=limits.images + 1, max_fields=20,
            max_part_size=100_000,
        )  # fmt: skip
        form = _finish(parser.parse())
        if not parser.ended:
            message = "the last boundary is missing"
            parser.close()
            raise ValueError(message)
    except (MultiPartException, KeyError, ValueError) as error:
        text = getattr(error, "message", "") or first_line(error)
        if "Too many files" in text:
            check_number(limits.images + 1, limits)
        message = f"the body must be multipart/form-data, as its Content-Type says, got: {text}"
        raise refuse(400, message) from error
    fields: list[tuple[str, Any]] = []
    files = []
    for name, value in form.multi_items():
        if isinstance(value, str):
            fields.append((name, value))
        else:
            files.append(((value.filename or "")[:_LONGEST_NAME], value.file.read()))
    parser.close()
    check_number(len(files), limits)
    return fields, files


def _finish(work: Coroutine[Any, Any, FormData]) -> FormData:
    """Run what waits for nothing, as the body is there and files are in memory."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    message = "the parser of forms waits for something"
    raise RuntimeError(message)


def check_number(count: int, limits: ServeLimits) -> None:
    """Refuse a request with too many images."""
    if count > limits.images:
        message = (
            f"a request must have at most {limits.images} images, got {count}. Send several "
            f"requests, or start the server with --set limits.images=N."
        )
        raise refuse(413, message, "images")


def _read_base64(value: Any, place: int, limits: ServeLimits) -> Upload:  # noqa: ANN401 (of JSON)
    name = ""
    if isinstance(value, Mapping):
        name, value = str(value.get("name", ""))[:_LONGEST_NAME], value.get("data")
    if not isinstance(value, str):
        message = (
            f'image {place} must be base64, or {{"name": ..., "data": base64}}, got '
            f"{name_kind(value)}."
        )
        raise refuse(422, message)
    return check_image(name, decode_base64(value, f"image {place}"), limits)


def decode_base64(text: str, where: str) -> bytes:
    """Decode base64, or a ``data:`` address of it; other addresses are not fetched.

    Raises:
        RefusedError: It is neither.
    """
    found = _DATA_ADDRESS.match(text[:200])
    if found is None and re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", text[:20]):
        message = (
            f"{where} must be in the body, got an address, {text[:100]!r}: nothing is fetched. "
            f"Send the file itself, or its base64."
        )
        raise refuse(422, message, "address")
    encoded = text[found.end() :] if found else text
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        message = f"{where} must be base64, got: {first_line(error)}"
        raise refuse(422, message) from error


def check_image(name: str, data: bytes, limits: ServeLimits) -> Upload:
    """Read the header of an image, and refuse it before anything is decoded.

    Raises:
        RefusedError: It is no image of a format that is read, or has too many pixels.
    """
    shown = f"the image {name!r}" if name else "the image"
    if not data:
        raise refuse(422, f"{shown} must hold data, got 0 bytes.", "image")
    _refuse_excess(shown, find_parts(data))
    formats = tuple(each for each in FORMATS if each in readable_formats())
    try:
        with open_header(io.BytesIO(data), formats) as image:
            size = image.size
    except UnidentifiedImageError:
        found = tiff_size(data)  # of more bands than Pillow knows
        if found is None:
            advice = way_out(name, data) or "send JPEG, PNG, WebP, TIFF, BMP or GIF"
            message = f"{shown} must be of a format that is read, got another: {advice}."
            raise refuse(415, message, "format") from None
        size = found
    except Exception as error:  # each of Pillow's readers has its own ways to fail
        message = f"{shown} must be readable, got a broken header: {first_line(error)}."
        raise refuse(422, message, "image") from error
    width, height = size
    if width * height > limits.pixels:
        message = (
            f"{shown} must have at most {limits.megapixels:g} million pixels, got {width} x "
            f"{height}. Make it smaller, or start the server with --set limits.megapixels=N."
        )
        raise refuse(413, message, "pixels")
    _refuse_excess(shown, find_scans(data, width * height))
    return Upload(name=name, data=data, pixels=width * height)


def _refuse_excess(shown: str, excess: str) -> None:
    if excess:
        message = f"{shown} must be read in reasonable time, got {excess}. Save it anew."
        raise refuse(422, message, "excess")


def _read_options(options: Iterable[tuple[str, Any]], find_model: FindModel) -> PredictRequest:
    """Read the options of a request, still without its images."""
    values = join_options(options)
    asked = PredictRequest(model=str(values.get("model") or ""))
    find_model(asked.model)
    return replace(asked, **dict(parse_options(values)))


def _add_images(
    asked: PredictRequest, uploads: Sequence[Upload], limits: ServeLimits
) -> PredictRequest:
    if not uploads:
        message = (
            "a request must hold an image, got none. Send files (multipart/form-data), the bytes "
            'of one file, or JSON: {"images": [base64, ...]}'
        )
        raise refuse(422, message)
    check_number(len(uploads), limits)
    return replace(asked, uploads=tuple(uploads))
