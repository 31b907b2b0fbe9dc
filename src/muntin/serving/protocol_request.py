# SPDX-License-Identifier: Apache-2.0
"""Requests of the Open Inference Protocol: JSON, and the bytes of tensors that follow it.

Source:
    The protocol (kserve/open-inference-protocol, inference_rest.md) and the binary tensor data
    extension of Triton's documentation.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from muntin.errors import plural, unknown_name
from muntin.serving.batching import RefusedError
from muntin.serving.request_options import parse_options
from muntin.serving.serve_settings import ServeLimits
from muntin.serving.uploads import (
    PredictRequest,
    Upload,
    check_image,
    check_number,
    decode_base64,
    parse_object,
    refuse,
)

INPUT = "image"
LENGTH_HEADER = "Inference-Header-Content-Length"
OPTIONS = ("threshold", "tta", "tile", "timeout", "binary_data_output")
"""What `parameters` of a request may hold."""

_MOST_DIMENSIONS = 4
_MOST_SIDE = 2**31


@dataclass(frozen=True, kw_only=True, slots=True)
class InferRequest:
    """What a client asks for.

    Attributes:
        number: The client's own `id` of the request, which its answer repeats; None without one.
        predict: Images and options.
        outputs: Names of the outputs, and whether each is wanted in binary form.
        seconds: Time for the answer that the client asks for; None for that of the server.
    """

    number: str | None
    predict: PredictRequest
    outputs: Mapping[str, bool]
    seconds: float | None


def bad(text: str) -> RefusedError:
    """Make the error of a request that breaks the protocol."""
    return refuse(400, text, "protocol")


def _wrong(got: object, requirement: str) -> RefusedError:
    return bad(f"{requirement}, got {reprlib.repr(got)}.")


def read_infer(
    body: bytes, header: str | None, known: Sequence[str], limits: ServeLimits
) -> InferRequest:
    """Read a request.

    Args:
        body: JSON, and behind it the values of inputs that are sent in binary form.
        header: Length of the JSON in bytes, if all of the body is not JSON; "0" for the bytes of
            one image without any JSON.
        known: Names of the outputs of the model.
        limits: Limits of the server.

    Raises:
        RefusedError: It breaks the protocol (400), or an image is refused as in `check_image`.
    """
    head, tail = _split(body, header)
    if header is not None and not head:
        predict = PredictRequest(uploads=(_check_one(tail, 1, 1, limits),))
        plain = dict.fromkeys(known, False)
        return InferRequest(number=None, predict=predict, outputs=plain, seconds=None)
    values = parse_object(head)
    options = _read_parameters(values, "the request")
    if unknown := [name for name in options if name not in OPTIONS]:
        raise bad(unknown_name("parameter", unknown[0][:100], OPTIONS))
    number = values.get("id")
    if number is not None and not (isinstance(number, str) and len(number) <= 1000):
        raise _wrong(number, "id must be a text of at most 1000 characters")
    outputs = _read_outputs(values.get("outputs"), known, options)
    uploads = _read_image(_only_input(values.get("inputs")), tail, limits)
    predict = replace(PredictRequest(uploads=uploads), **dict(parse_options(options)))
    return InferRequest(
        number=number, predict=predict, outputs=outputs, seconds=_read_timeout(options)
    )


def _split(body: bytes, header: str | None) -> tuple[bytes, bytes]:
    if header is None:
        return body, b""
    length = int(header) if header.isascii() and header.isdigit() and len(header) < 20 else -1
    if not 0 <= length <= len(body):
        message = (
            f"{LENGTH_HEADER} must be the length of the JSON, 0 to {len(body)} "
            f"bytes of this body, got {header[:100]!r}."
        )
        raise bad(message)
    return body[:length], body[length:]


def _read_parameters(holder: Mapping[str, Any], what: str) -> dict[str, Any]:
    found = holder.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise _wrong(found, f"parameters of {what} must be an object")
    return found


def _read_flag(values: Mapping[str, Any], name: str, default: bool) -> bool:
    flag = values.get(name, default)
    if not isinstance(flag, bool):
        raise _wrong(flag, f"{name} must be true or false")
    return flag


def _read_timeout(options: Mapping[str, Any]) -> float | None:
    """Seconds of ``timeout``, which is in microseconds; 0 stands for none."""
    asked = options.get("timeout", 0)
    if isinstance(asked, bool) or not isinstance(asked, int) or not 0 <= asked < 2**63:
        raise _wrong(asked, "timeout must be whole microseconds")
    return asked / 1e6 if asked else None


def _read_outputs(
    asked: Any,  # noqa: ANN401 (of JSON)
    known: Sequence[str],
    options: Mapping[str, Any],
) -> dict[str, bool]:
    """Names of outputs, in the order asked for, and whether each is wanted in binary form."""
    default = _read_flag(options, "binary_data_output", False)
    if asked is None or asked == []:
        return dict.fromkeys(known, default)
    found: dict[str, bool] = {}
    for each in _as_objects(asked, "outputs"):
        name = each.get("name")
        if not isinstance(name, str) or name not in known:
            shown = name if isinstance(name, str) else reprlib.repr(name)
            raise bad(unknown_name("output", shown[:100], known))
        if name in found:
            raise _wrong([name, name], "outputs must have different names")
        parameters = _read_parameters(each, f"output {name!r}")
        if unknown := sorted(set(parameters) - {"binary_data"}):
            message = (
                f"parameters of output {name!r} must be binary_data alone, got "
                f"{unknown[0][:100]!r}. Leave it out."
            )
            raise bad(message)
        found[name] = _read_flag(parameters, "binary_data", default)
    return found


def _as_objects(values: Any, what: str) -> list[dict[str, Any]]:  # noqa: ANN401 (of JSON)
    if not isinstance(values, list) or not all(isinstance(each, dict) for each in values):
        raise _wrong(values, f"{what} must be a list of objects with a name")
    return values


def _only_input(values: Any) -> dict[str, Any]:  # noqa: ANN401 (of JSON)
    inputs = _as_objects(values, "inputs")
    for each in inputs:
        if (name := each.get("name")) != INPUT:
            shown = name if isinstance(name, str) else reprlib.repr(name)
            raise bad(unknown_name("input", shown[:100], [INPUT]))
    if len(inputs) != 1:
        names = [INPUT] * len(inputs)
        raise _wrong(names, f"inputs must hold {INPUT!r} once")
    return inputs[0]


def _read_image(tensor: Mapping[str, Any], tail: bytes, limits: ServeLimits) -> tuple[Upload, ...]:
    parameters = _read_parameters(tensor, f"input {INPUT!r}")
    if "shared_memory_region" in parameters:
        region = parameters["shared_memory_region"]
        raise _wrong(region, "values must be in the body, not in shared memory")
    shape = _read_shape(tensor)
    size = parameters.get("binary_data_size")
    if (size is None) == (tensor.get("data") is None):
        given = sorted(tensor)
        raise _wrong(given, f"{INPUT!r} must have either data, or parameters.binary_data_size")
    expected = 0 if size is None else size
    if isinstance(expected, bool) or expected != len(tail):
        message = (
            f"binary_data_size must be the number of bytes behind the JSON, {len(tail)}, got "
            f"{reprlib.repr(size)}. Is {LENGTH_HEADER} the length of the JSON?"
        )
        raise bad(message)
    data = tail if size is not None else tensor["data"]
    kind = tensor.get("datatype")
    if kind == "BYTES":
        return _read_files(data, shape, limits)
    if kind == "UINT8":
        return _read_pixels(data, shape, limits)
    raise _wrong(kind, f"datatype of {INPUT!r} must be BYTES (files) or UINT8 (pixels)")


def _read_shape(tensor: Mapping[str, Any]) -> tuple[int, ...]:
    shape = tensor.get("shape")
    fits = isinstance(shape, list) and 1 <= len(shape) <= _MOST_DIMENSIONS
    if not fits or not all(type(side) is int and 0 < side < _MOST_SIDE for side in shape or ()):
        files, pixels = "[n] of files", "[n, height, width, 3] of pixels, all of them positive"
        raise _wrong(shape, f"shape of {INPUT!r} must be {files}, or {pixels}")
    return tuple(shape or ())


def _read_files(
    data: Any,  # noqa: ANN401 (of JSON, or bytes)
    shape: tuple[int, ...],
    limits: ServeLimits,
) -> tuple[Upload, ...]:
    """Read encoded images: base64 texts, or bytes with the length of each before it."""
    count = shape[0]
    if shape not in ((count,), (count, 1)):
        raise _wrong(shape, "shape of BYTES must be [n] or [n, 1]")
    check_number(count, limits)
    if isinstance(data, bytes):
        files = _cut(data, count)
    else:
        texts = _flatten(data, shape)
        files = [decode_base64(text, f"image {place}") for place, text in enumerate(texts, 1)]
    return tuple(_check_one(file, place, count, limits) for place, file in enumerate(files, 1))


def _check_one(data: bytes, place: int, count: int, limits: ServeLimits) -> Upload:
    try:
        return check_image("", data, limits)
    except RefusedError as error:
        if count == 1:
            raise
        raise refuse(error.status, f"image {place} of {count}: {error}", error.reason) from error


def _cut(data: bytes, count: int) -> list[bytes]:
    """Cut bytes into elements, before each of which stand four bytes with its length."""
    found = []
    place = 0
    for _ in range(count):
        start = place + 4
        place = start + int.from_bytes(data[place:start], "little")
        if max(start, place) > len(data):
            break
        found.append(data[start:place])
    if len(found) != count or place != len(data):
        message = (
            f"BYTES must be {count} elements with 4 bytes of length (little-endian) before each, "
            f"got {len(data)} bytes that do not add up to that."
        )
        raise bad(message)
    return found


def _flatten(data: Any, shape: tuple[int, ...]) -> list[str]:  # noqa: ANN401 (of JSON)
    """Texts of a list, or of lists of one."""
    values = data if isinstance(data, list) else [data]
    if len(shape) == 2:
        one = [isinstance(each, list) and len(each) == 1 for each in values]
        values = [each[0] for each in values] if all(one) else values
    if len(values) != shape[0] or not all(isinstance(each, str) for each in values):
        count = plural(shape[0], "text")
        raise _wrong(data, f"data of {INPUT!r} must be {count} of base64")
    return values


def _read_pixels(
    data: Any,  # noqa: ANN401 (of JSON, or bytes)
    shape: tuple[int, ...],
    limits: ServeLimits,
) -> tuple[Upload, ...]:
    """Read decoded images: red, green and blue of each pixel, row by row."""
    if len(shape) < 3 or shape[-1] != 3:
        message = (
            f"shape of UINT8 must be [n, height, width, 3] or [height, width, 3], got "
            f"{list(shape)}. Move the channels last, red first."
        )
        raise bad(message)
    count, (height, width, _) = math.prod(shape[:-3]), shape[-3:]
    check_number(count, limits)
    if height * width > limits.pixels:
        message = (
            f"an image must have at most {limits.megapixels:g} million pixels, got {width} x "
            f"{height}. Make it smaller, or start the server with --set limits.megapixels=N."
        )
        raise refuse(413, message, "pixels")
    values = data if isinstance(data, bytes) else _join(data, shape)
    size = height * width * 3
    if len(values) != count * size:
        raise _wrong(len(values), f"UINT8 of shape {list(shape)} must have {count * size} bytes")
    return tuple(
        Upload(
            name="",
            data=values[place * size : (place + 1) * size],
            pixels=height * width,
            shape=(height, width, 3),
        )
        for place in range(count)
    )


def _join(data: Any, shape: tuple[int, ...]) -> bytes:  # noqa: ANN401 (of JSON)
    """Join the numbers of a list, flat or nested as the shape is."""
    values = data if isinstance(data, list) else []
    if len(shape) > 1 and len(values) == shape[0] and all(isinstance(v, list) for v in values):
        return b"".join(_join(each, shape[1:]) for each in values)
    count = math.prod(shape)
    if len(values) == count:
        try:
            return bytes(values)
        except (TypeError, ValueError, OverflowError):
            pass
    raise _wrong(data, f"data of {INPUT!r} must be {count} whole numbers from 0 to 255")
