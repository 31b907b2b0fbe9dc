# SPDX-License-Identifier: Apache-2.0
"""Bodies: every form, every limit with its status code, and images that are not what they seem."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import re
import resource
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from fastapi import Request
from PIL import Image

from muntin.serving.batching import RefusedError
from muntin.serving.serve_settings import ServeLimits
from muntin.serving.uploads import PredictRequest, check_length, read_body, read_request
from tests.data.deep_files import tiff
from tests.serving.quick import image

LIMITS = ServeLimits(body_mib=1, megapixels=1, images=3)
PNG = image()


def ask(
    body: bytes = b"",
    kind: str = "",
    query: str = "",
    parts: list[bytes] | None = None,
    **more: Any,
) -> Request:
    """A request as the server makes it."""
    headers = [(b"content-type", kind.encode())] if kind else []
    headers += [
        (name.replace("_", "-").encode(), str(value).encode()) for name, value in more.items()
    ]
    left = list(parts if parts is not None else [body])

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        part = left.pop(0) if left else b""
        return {"type": "http.request", "body": part, "more_body": bool(left)}

    scope = {
        "type": "http", "method": "POST", "path": "/predict", "headers": headers, "state": {},
        "query_string": query.encode(),
    }  # fmt: skip
    return Request(scope, receive)


def read(request: Request, limits: ServeLimits = LIMITS) -> Any:
    """What is asked, or the error."""
    try:
        return asyncio.run(read_request(request, limits))
    except RefusedError as error:
        return error


def refused(request: Request, status: int, *words: str, limits: ServeLimits = LIMITS) -> None:
    """Check that a request is refused, with a status code and words of the text."""
    found = read(request, limits)
    assert isinstance(found, RefusedError), found
    assert found.status == status, str(found)
    assert all(word in str(found) for word in words), str(found)
    assert len(str(found)) < 3000
    assert str(found).isprintable() or "\n" not in str(found)


def form(*files: tuple[str, bytes], **fields: str) -> bytes:
    """A body of multipart/form-data."""
    lines = []
    for name, data in files:
        quoted = name.replace("\\", "\\\\").replace('"', '\\"').encode("utf-8", "surrogatepass")
        lines += [
            b'--x\r\nContent-Disposition: form-data; name="f"; filename="' + quoted + b'"\r\n'
        ]
        lines += [b"Content-Type: image/png\r\n\r\n", data, b"\r\n"]
    for name, value in fields.items():
        head = f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        lines += [head.encode()]
    return b"".join([*lines, b"--x--\r\n"])


FORM = "multipart/form-data; boundary=x"
JSON = "application/json"


def in_json(**values: Any) -> bytes:
    return json.dumps(values).encode()


TEXT = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    ("body", "kind", "query", "names"),
    [
        (PNG, "image/png", "", [""]), (PNG, "", "name=a.png", ["a.png"]),
        (PNG, "application/octet-stream", "name=%E4%BD%A0.png", ["\u4f60.png"]),
        (PNG, "text/plain", "", [""]), (PNG, "application/x-www-form-urlencoded", "", [""]),
        (form(("a.png", PNG)), FORM, "", ["a.png"]),
        (form(("a", PNG), ("b", PNG), ("a", PNG)), FORM, "", ["a", "b", "a"]),
        (in_json(image=TEXT), JSON, "", [""]), (in_json(images=[TEXT, TEXT]), JSON, "", ["", ""]),
        (in_json(images=[{"name": "c", "data": TEXT}]), JSON + "; charset=utf-8", "", ["c"]),
        (in_json(image="data:image/png;base64," + TEXT), "application/vnd.a+json", "", [""]),
        (in_json(image=TEXT[:20] + "\n " + TEXT[20:]), JSON, "", [""]),
    ],
)  # fmt: skip
def test_every_form_of_a_body(body: bytes, kind: str, query: str, names: list[str]) -> None:
    asked = read(ask(body, kind, query))
    assert [each.name for each in asked.uploads] == names
    assert all(each.data == PNG and each.pixels == 64 for each in asked.uploads)


def test_options_come_from_the_address_the_form_and_the_json() -> None:
    wanted = {"model": "m", "threshold": 0.25, "tta": True, "tile": 64}
    found = [
        read(ask(PNG, "", "model=m&threshold=0.25&tta=1&tile=64")),
        read(ask(form(("a", PNG), model="m", threshold="0.25", tta="true", tile="64"), FORM)),
        read(ask(in_json(image=TEXT, **wanted), JSON)),
        read(ask(in_json(image=TEXT, model="m", threshold=0.25), JSON, "tta=True&tile=64&model=m")),
    ]
    for each in found:
        assert {name: getattr(each, name) for name in wanted} == wanted
    assert read(ask(PNG, "", "tile=auto&tta=0&threshold=&model=")).tile == "auto"
    assert read(ask(PNG)) == PredictRequest(uploads=read(ask(PNG)).uploads)


@pytest.mark.parametrize(
    ("body", "kind", "query"),
    [
        (PNG, "image/png", "model=a&model=b"),
        (b"", "json", "model=a"),
        (b"", "form", "model=a"),
        (b"", "form", "tile=64"),
    ],
)
def test_an_option_has_one_value(body: bytes, kind: str, query: str) -> None:
    if kind == "json":
        body, kind = in_json(images=[base64.b64encode(PNG).decode()], model="b"), "application/json"
    elif kind == "form":
        body, kind = form(("a.png", PNG), model="b", tile="32"), FORM
    refused(ask(body, kind, query), 422, query[:4], "once", "Leave one out")


def test_an_option_that_says_the_same_twice_is_one() -> None:
    body = form(("a.png", PNG), model="b", threshold="0.5")
    assert read(ask(body, FORM, "model=b&threshold=0.5&model=")).model == "b"


@pytest.mark.parametrize(
    ("body", "kind", "word"),
    [
        (b' {"image": "a"}', "application/x-www-form-urlencoded", "application/json"),
        (b"[1]", "", "application/json"),
        (form(("a", PNG)), "application/octet-stream", "multipart/form-data; boundary"),
    ],
)
def test_the_type_of_a_body_must_be_said(body: bytes, kind: str, word: str) -> None:
    refused(ask(body, kind), 415, f"Send the header Content-Type: {word}", repr(kind))


@pytest.mark.parametrize("image", [1, None, True, ["a"], {"name": "a"}])
def test_what_came_is_named_as_json_names_it(image: Any) -> None:
    found = str(read(ask(in_json(images=[image]), JSON)))
    assert re.search(r"got (a number|null|a boolean|an array)\.$", found), found


def test_tasks_are_given_as_they_are() -> None:
    assert read(ask(in_json(tasks=[1]), JSON)) == {"tasks": [1]}


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"threshold": "high"}, "threshold"), ({"threshold": -0.1}, "threshold"),
        ({"threshold": 1.01}, "threshold"), ({"threshold": "nan"}, "threshold"),
        ({"threshold": True}, "threshold"), ({"threshold": [0.5]}, "threshold"),
        ({"threshold": 10**400}, "threshold"), ({"tta": "maybe"}, "tta"), ({"tta": 2}, "tta"),
        ({"tile": 0}, "tile"), ({"tile": -64}, "tile"), ({"tile": 1.5}, "tile"),
        ({"tile": "auto "}, "tile"), ({"tile": 10**12}, "tile"), ({"tile": "\u0663\u0662"}, "tile"),
        ({"treshold": 0.5}, "treshold"), ({"x" * 10_000: 1}, "options"), ({"\ud83d": 1}, "options"),
    ],
)  # fmt: skip
def test_odd_options_are_refused(values: dict[str, Any], word: str) -> None:
    refused(ask(in_json(image=TEXT, **values), JSON), 422, word)


@pytest.mark.parametrize(
    ("body", "kind", "status", "word"),
    [
        (b"", "", 422, "must hold an image"), (b"", FORM, 400, "multipart"),
        (form(model="m"), FORM, 422, "must hold an image"), (b"{}", JSON, 422, "hold an image"),
        (b"[]", JSON, 422, "object"), (b"7", JSON, 422, "object"), (b"{", JSON, 400, "JSON"),
        (b"\xff\xfe", JSON, 400, "JSON"), (b"[" * 100_000, JSON, 400, "deep"),
        (b'{"a":' * 100_000, JSON, 400, "deep"), (b"9" * 5000, JSON, 400, "JSON"),
        (PNG, FORM, 400, "multipart"), (form(("a", PNG)), "multipart/form-data", 400, "boundary"),
        (form(("a", PNG))[:-20], FORM, 400, "boundary"),
        (b"--x\r\n" * 1000, FORM, 400, "multipart"),
        (b"--x\r\nA: b\r\n\r\nc\r\n--x--", FORM, 400, "name"),
        (in_json(image=7), JSON, 422, "base64"), (in_json(image=None), JSON, 422, "base64"),
        (in_json(image={"name": "a"}), JSON, 422, "base64"), (in_json(images=[[]]), JSON, 422, ""),
        (in_json(image="@@@"), JSON, 422, "base64"), (in_json(image="a"), JSON, 422, "base64"),
        (in_json(image=""), JSON, 422, "0 bytes"), (in_json(image="\ud83d"), JSON, 422, "base64"),
        (in_json(image="http://127.0.0.1/a.png"), JSON, 422, "nothing is fetched"),
        (in_json(image="file:///etc/passwd"), JSON, 422, "nothing is fetched"),
        (in_json(image="data:text/html,abc"), JSON, 422, "nothing is fetched"),
        (form(*[("a", PNG)] * 4), FORM, 413, "at most 3 images"),
        (form(*[("a", b"x")] * 100), FORM, 413, "at most 3 images"),
        (in_json(images=[TEXT] * 4), JSON, 413, "at most 3 images"),
        (in_json(images=["x"] * 10_000), JSON, 413, "got 10000"),
        (form(**{f"f{n}": "x" for n in range(30)}), FORM, 400, "fields"),
        (form(model="x" * 200_000), FORM, 400, "size"),
        (b"x" * (2**20 + 1), "", 413, "at most 1 MiB"),
        (in_json(image=TEXT), "application/x-www-form-urlencoded", 415, "Type: application/json"),
        (b" [1]", "", 415, "application/json"),
        (b"image=@a.png", "application/x-www-form-urlencoded", 415, "-F image=@FILE"),
    ],
)  # fmt: skip
def test_odd_bodies_are_refused(body: bytes, kind: str, status: int, word: str) -> None:
    refused(ask(body, kind), status, word)


def test_the_length_is_judged_before_the_body_comes() -> None:
    check_length(ask(content_length=2**20), LIMITS)
    check_length(ask(), LIMITS)
    for text in (2**20 + 1, "9" * 19, "9" * 5000):
        with pytest.raises(RefusedError) as caught:
            check_length(ask(content_length=text), LIMITS)
        assert caught.value.status == 413
    with pytest.raises(RefusedError) as caught:
        check_length(ask(content_encoding="gzip"), LIMITS)
    assert caught.value.status == 415


def test_a_body_that_lies_about_its_length_is_cut() -> None:
    refused(ask(parts=[b"x" * 600_000] * 100, content_length=5), 413)


def test_a_slow_body_is_refused() -> None:
    async def never() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {}

    request = Request({"type": "http", "headers": [], "state": {}}, never)
    begun = time.monotonic()
    with pytest.raises(RefusedError, match=r"0\.1 s, got 0 bytes") as caught:
        asyncio.run(read_body(request, ServeLimits(receive=0.1)))
    assert caught.value.status == 408
    assert time.monotonic() - begun < 5


NAMES = (
    "../../../etc/passwd", "C:\\a\\b.png", 'a"b.png', "a'b", "<script>alert(1)</script>.png",
    "\u4f60\u597d.png", "a\tb", "x" * 10_000, ".", "con", "%2e%2e%2f", "caf\xe9.png", "a;b=c.png",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_text_and_nothing_else(name: str) -> None:
    kept = name[:1000]
    assert read(ask(in_json(image={"name": name, "data": TEXT}), JSON)).uploads[0].name == kept
    assert read(ask(PNG, "", f"name={quote(name)}")).uploads[0].name == kept
    if len(name) > 4000:  # more than the head of a part may have
        refused(ask(form((name, PNG)), FORM), 400, "multipart")
    elif "\\" not in name and "%" not in name:
        assert read(ask(form((name, PNG)), FORM)).uploads[0].name == kept
    refused(ask(in_json(image={"name": name, "data": "AAAA"}), JSON), 415)


def test_half_a_pair_of_surrogates_is_no_name() -> None:
    body = b'{"image": {"name": "a\\ud83d", "data": "' + TEXT.encode() + b'"}}'
    assert read(ask(body, JSON)).uploads[0].name == "a\ufffd"
    for odd in (b"\xed\xa0\xbd", b"\xff\xfe"):
        found = read(ask(form(("NAME", PNG)).replace(b"NAME", odd), FORM)).uploads[0].name
        found.encode()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    sealed = kind + data
    return struct.pack(">I", len(data)) + sealed + struct.pack(">I", zlib.crc32(sealed))


def png_of(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that says how large it is, and holds next to nothing."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + data
        + chunk(b"IDAT", b"")
        + chunk(b"IEND", b"")
    )


def _bmp_of(width: int, height: int) -> bytes:
    return struct.pack(
        "<2sIHHIIiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0
    )


def _gif_of(width: int, height: int) -> bytes:
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", width, height, 0, 0, 0)
        + b",\0\0\0\0"
        + struct.pack("<HHB", width, height, 0)
        + b"\2\2L\1\0;"
    )


@pytest.mark.parametrize(
    "data",
    [png_of(30_000, 30_000), png_of(2**31 - 1, 2**31 - 1), png_of(1, 2**31 - 1),
     _bmp_of(30_000, 30_000), _gif_of(65_535, 65_535), b"P6 100000 100000 255\n"],
    ids=["png", "largest-png", "long-png", "bmp", "gif", "ppm"],
)  # fmt: skip
def test_bombs_are_refused_by_their_header(data: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    refused(ask(data), 413, "million pixels")
    assert time.process_time() - begun < 0.5  # 50 ms, on a machine that is free
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def saved(form_: str, mode: str = "RGB", size: tuple[int, int] = (8, 6), **more: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, form_, **more)
    return file.getvalue()


def saved_png_with_chunks_after_its_pixels(count: int) -> bytes:
    return PNG[:-12] + chunk(b"abCd", b"") * count + PNG[-12:]


def _animated(form_: str) -> bytes:
    frames = [Image.new("RGB", (8, 6), (shade, 0, 0)) for shade in (0, 100, 200)]
    file = io.BytesIO()
    frames[0].save(file, form_, save_all=True, append_images=frames[1:])
    return file.getvalue()


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved("JPEG", exif=exif)


ACCEPTED: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: saved("JPEG"),
    "cmyk": lambda: saved("JPEG", "CMYK"),
    "grey": lambda: saved("PNG", "L"),
    "exif": _turned,
    "16-bit": lambda: saved("PNG", "I;16"),
    "palette": lambda: saved("PNG", "P"),
    "1-bit": lambda: saved("PNG", "1"),
    "alpha": lambda: saved("PNG", "RGBA"),
    "webp": lambda: saved("WEBP"),
    "tiff": lambda: saved("TIFF"),
    "float-tiff": lambda: saved("TIFF", "F"),
    "bands": lambda: tiff(np.zeros((6, 8, 5), np.uint16)),
    "bmp": lambda: saved("BMP"),
    "gif": lambda: _animated("GIF"),
    "apng": lambda: _animated("PNG"),
    "mpo": lambda: _animated("MPO"),
    "pages": lambda: _animated("TIFF"),
    "ppm": lambda: saved("PPM"),
    "one": lambda: saved("PNG", size=(1, 1)),
    "jp2": lambda: saved("JPEG2000"),
    "wide": lambda: saved("PNG", size=(60_000, 1)),
    "cut-off": lambda: saved("PNG", size=(600, 600))[:-200],
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_images_of_every_kind_pass(kind: str) -> None:
    upload = read(ask(ACCEPTED[kind]())).uploads[0]
    sides = {"one": 1, "wide": 60_000, "cut-off": 360_000}
    assert upload.pixels == sides.get(kind, 48)


def _progressive(scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    whole = saved("JPEG", size=(900, 900), progressive=True)
    at = whole.rindex(b"\xff\xda")
    return whole[:at] + whole[at:-2] * scans + whole[-2:]


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8" + b"\xff\xe5\0\2" * 200_000, b"\xff\xd8" + b"\xff" * 900_000,
        png_of(9, 9, chunk(b"abCd", b"") * 50_000), _progressive(3000),
        saved_png_with_chunks_after_its_pixels(50_000),
    ],
    ids=["segments", "fill-bytes", "chunks", "scans", "chunks-after"],
)  # fmt: skip
def test_images_that_take_long_to_read_are_refused(data: bytes) -> None:
    begun = time.process_time()
    refused(ask(data), 422, "reasonable time")
    assert time.process_time() - begun < 0.5


def test_usual_numbers_of_parts_pass() -> None:
    assert read(ask(_progressive(10))).uploads
    assert read(ask(saved_png_with_chunks_after_its_pixels(100))).uploads


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\xff\xd8\xff", 415), (b"\x89PNG\r\n\x1a\n", 415), (b"GIF89a", 415), (b"II*\0", 415),
        (b"RIFF\0\0\0\0WEBPVP8 ", 415), (b"\0" * 1000, 415), (b"<svg></svg>", 415),
        (b"%PDF-1.4", 415), (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415),
        (b"PK\3\4", 415), (PNG[:20], 415),
    ],
)  # fmt: skip
def test_what_is_no_image_is_told_so(data: bytes, status: int) -> None:
    found = read(ask(data))
    assert isinstance(found, RefusedError)
    assert found.status in (status, 422)


def test_no_change_of_bytes_gets_through_as_something_else() -> None:
    rng = random.Random(1)
    whole = [make() for make in ACCEPTED.values()]
    for _ in range(400):
        data = bytearray(rng.choice(whole))
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(min(len(data), 100))] = rng.randrange(256)
        found = read(ask(bytes(data[: rng.choice((len(data), rng.randrange(len(data)))) or 1])))
        if isinstance(found, RefusedError):
            assert found.status in (413, 415, 422)
        else:
            assert 0 < found.uploads[0].pixels <= LIMITS.pixels
