# SPDX-License-Identifier: Apache-2.0
"""The machine-learning backend of Label Studio: `/setup`, and `/predict` with tasks.

With several models, the address of the backend names one: ``http://HOST:PORT/label-studio/NAME``.
Images are in the tasks, or below the folder of `--files`; nothing is fetched.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from muntin.serving.batching import RefusedError
from muntin.serving.label_config import (
    KINDS,
    ControlTag,
    describe_mismatch,
    parse_label_config,
)
from muntin.serving.label_regions import make_regions, mean_score
from muntin.serving.messages import Answer
from muntin.serving.request_options import parse_options
from muntin.serving.serve_settings import MIB, ServeLimits
from muntin.serving.uploads import (
    PredictRequest,
    Upload,
    check_image,
    decode_base64,
    parse_object,
    read_body,
    refuse,
)
from muntin.untrusted import open_regular

if TYPE_CHECKING:
    from muntin.serving.service import Service

LOGGER = logging.getLogger("muntin.serve")
PREFIX = "/label-studio/{model}"
MOST_IMAGES = 1000
_MOST_NOTES = 1000
_LOCAL, _UPLOAD = "/data/local-files/", "/data/upload/"
_PLACES = f"{_LOCAL}?d=NAME or {_UPLOAD}NAME"
_LONGEST_PATH = 4096
_OPTIONS = ("threshold", "tta", "tile")


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the routes of the backend."""

    async def setup(request: Request, model: str = "") -> dict[str, str]:
        """Connect a project: compare its labels with the classes of the model."""
        async with service.admitted(request, images=0):
            asked = await _read_object(service, request)
            found = service.find_model(model)
            if config := asked.get("schema") or asked.get("label_config"):
                _compare(service, found, parse_label_config(config))
        return {"model_version": version_of(found)}

    async def versions(model: str = "") -> dict[str, list[str]]:
        """List the versions of the model: the one that is loaded."""
        return {"versions": [version_of(service.find_model(model))]}

    async def webhook(request: Request, model: str = "") -> dict[str, str]:
        """Hear of an event of a project; nothing follows from it, and training is refused."""
        async with service.admitted(request, images=0):
            asked = await _read_object(service, request)
        if asked.get("action") == "START_TRAINING" or "annotations" in asked:
            message = (
                "a server of muntin does not train. Export the annotations as COCO, run muntin "
                "train, and load the new version with POST /models/NAME/reload."
            )
            raise refuse(422, message, "training")
        return {"status": "ignored"}

    async def predict(request: Request, model: str) -> Response:
        """Predict the tasks of a project."""
        async with service.admitted(request):
            asked = await _read_object(service, request)
            return await predict_tasks(service, request, {**asked, "model": model})

    async def health(model: str) -> Response:
        """Tell whether the model answers: 200, or 503."""
        service.find_model(model)
        state = "UP" if service.ready else "DOWN"
        return JSONResponse({"status": state}, 200 if service.ready else 503)

    for prefix in ("", PREFIX):
        app.post(f"{prefix}/setup")(setup)
        app.post(f"{prefix}/webhook")(webhook)
        app.get(f"{prefix}/versions")(versions)
        app.post(f"{prefix}/versions")(versions)
    app.post(f"{PREFIX}/predict")(predict)
    app.get(f"{PREFIX}/health")(health)


async def _read_object(service: Service, request: Request) -> dict[str, Any]:
    body = await read_body(request, service.limits)
    return await asyncio.to_thread(parse_object, body)  # others are answered meanwhile


def version_of(model: dict[str, Any]) -> str:
    """Name what predicted, as Label Studio shows it beside a prediction."""
    return f"{model['name']}-{model['version']}"


def _compare(service: Service, model: dict[str, Any], tags: Sequence[ControlTag]) -> None:
    """Write to the log, once, what a project and a model do not have in common."""
    skeleton = model.get("skeleton") or {}
    names = skeleton.get("names") if model["kind"] == "keypoints" else model["class_names"]
    for line in describe_mismatch(tags, names or (), model["kind"]):
        text = f"Label Studio, model {model['name']}: {line}"
        if text not in service.noted and len(service.noted) < _MOST_NOTES:
            service.noted.add(text)
            LOGGER.warning("%s", ascii(text[:2000])[1:-1])


@dataclass(kw_only=True, slots=True)
class _TaskImage:
    """An image of a task, and what became of it."""

    task: int
    key: str
    upload: Upload | None = None
    error: RefusedError | None = None


async def predict_tasks(service: Service, request: Request, asked: dict[str, Any]) -> Response:
    """Predict the tasks of a request; one whose image cannot be read gets an empty result.

    Raises:
        RefusedError: The request is not understood, or no image of it is here: each is an address,
            or a file without `--files`.
    """
    name = asked.get("model")
    model = service.find_model(name if isinstance(name, str) else "")
    tags = parse_label_config(asked.get("label_config"))
    _compare(service, model, tags)
    tags = _choose_tags(service, tags, model)
    tasks = asked.get("tasks")
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        message = "tasks must be a list of objects, as Label Studio sends them."
        raise refuse(422, message)
    options, threshold = _read_options(asked, tags, model)
    keys = dict.fromkeys(tag.key for tag in tags)
    if (count := len(tasks) * max(1, len(keys))) > MOST_IMAGES:
        message = f"a request must have at most {MOST_IMAGES} images of tasks, got {count}."
        raise refuse(413, message, "images")
    images = [_TaskImage(task=number, key=key) for number in range(len(tasks)) for key in keys]
    regions: list[list[dict[str, Any]]] = [[] for _ in tasks]
    step = min(service.limits.batch, service.limits.images)
    for start in range(0, len(images), step):
        some = images[start : start + step]
        await asyncio.to_thread(_load, some, tasks, service)
        loaded = [each for each in some if each.upload is not None]
        answers = await _answer(service, request, loaded, {**options, "model": model["name"]})
        for each, answer in zip(loaded, answers, strict=True):
            each.upload = None
            if answer.fault:
                each.error = refuse(422, answer.text, answer.fault)
                continue
            chosen = [tag for tag in tags if tag.key == each.key]
            result = json.loads(answer.text)
            made = await asyncio.to_thread(make_regions, result, model, chosen, threshold)
            regions[each.task] += made
    lost = [each.error for each in images if each.error and each.error.reason == "address"]
    if images and len(lost) == len(images):
        raise lost[0]
    errors = {each.task: str(each.error) for each in images if each.error}
    return JSONResponse(_describe(model, regions, errors))


def _choose_tags(
    service: Service, tags: Sequence[ControlTag], model: Mapping[str, Any]
) -> tuple[ControlTag, ...]:
    """Choose the tags that a model can answer."""
    kinds = KINDS.get(model["kind"], ())
    chosen = tuple(tag for tag in tags if tag.kind in kinds)
    if tags and not chosen:
        got = ", ".join(dict.fromkeys(tag.kind for tag in tags))
        others = [each.name for each in service.settings.models if each.name != model["name"]]
        advice = "Serve a model that gives them"
        if others:
            addresses = " or ".join(PREFIX.format(model=name) for name in others[:10])
            advice = f"Connect the address of another model: {addresses}"
        message = (
            f"label_config must ask for something that the {model['task']} model "
            f"{model['name']!r} gives ({', '.join(kinds)}), got {got}. {advice}."
        )
        raise refuse(422, message, "label_config")
    return chosen


def _read_options(
    asked: dict[str, Any], tags: Sequence[ControlTag], model: dict[str, Any]
) -> tuple[dict[str, Any], float]:
    """Options of the prediction, from ``params``, and the score of objects without one of a tag."""
    given = asked.get("params")
    params = given if isinstance(given, dict) else {}
    options = dict(parse_options({name: params[name] for name in _OPTIONS if name in params}))
    given_score: float | None = options.pop("threshold", None)
    threshold: float = model["threshold"] if given_score is None else given_score
    if model["kind"] in ("detection", "keypoints"):
        least = [tag.threshold for tag in tags if tag.threshold is not None]
        # A detector beside the model keeps its own, unless there is one in the request.
        if "detector_threshold" not in model or given_score is not None:
            least.append(threshold)
        if least:
            options["threshold"] = min(least)
    return options, threshold


def _load(images: Sequence[_TaskImage], tasks: Sequence[dict[str, Any]], service: Service) -> None:
    """Read images, and their headers; in a thread."""
    for each in images:
        data = tasks[each.task].get("data")
        value = data.get(each.key) if isinstance(data, dict) else None
        try:
            if not isinstance(value, str) or not value:
                message = f"data of a task must have an image at {each.key[:100]!r}, got none."
                raise refuse(422, message)
            content = _read(value, service)
            each.upload = check_image("", content, service.limits)
        except RefusedError as error:
            each.error = error


def _read(value: str, service: Service) -> bytes:
    folder = service.settings.files
    local = value.startswith("/data/") and len(value) < 10_000
    address = urllib.parse.urlsplit(value) if local else None
    if address is None:
        return _decode(value)
    if address.path.startswith(_UPLOAD):
        name = urllib.parse.unquote(address.path.removeprefix("/data/"))
        names = [name, f"media/{name}"]
    else:
        found = urllib.parse.parse_qs(address.query).get("d", [""])
        names = [found[0]] if found[0] and address.path in (_LOCAL, _LOCAL[:-1]) else []
    if not folder:
        message = (
            f"an image must be in its task, got a file, {value[:100]!r}. Start the server with "
            f"--files FOLDER, the folder that Label Studio takes its files from."
        )
        raise refuse(422, message, "address")
    for name in names:
        if (place := find_file(Path(folder), name)) is not None:
            return read_limited(place, service.limits)
    raise refuse(422, _describe_lost(Path(folder), value, names), "file")


def _decode(value: str) -> bytes:
    # A path is no base64, or of no image: of those, JPEG and JPEG 2000 alone begin with a slash.
    path = value.startswith("/") and not value.startswith(("/9j/", "/0//"))
    try:
        if not path or len(value) > _LONGEST_PATH:
            return decode_base64(value, "the image of a task")
        why = ""
    except RefusedError as error:
        if error.reason == "address":
            raise
        why = f" ({error})"
    message = f"an image must be base64, a data: address, {_PLACES}, got {value[:100]!r}{why}."
    raise refuse(422, message, "address" if path else "request") from None


def _describe_lost(folder: Path, value: str, names: Sequence[str]) -> str:
    """Say why an address of a file leads to none."""
    if not names:
        return f"the address of a file must be {_PLACES}, got {value[:100]!r}."
    if all(_find_place(folder, name) is None for name in names):
        return (
            f"an image must be below the folder of --files, got {value[:100]!r}, which leads out."
        )
    places = " or ".join(repr(name[:100]) for name in names)
    return (
        f"an image must be below the folder of --files, where there is no file {places}, got "
        f"{value[:100]!r}. Start the server with the folder that Label Studio takes its files from."
    )


def find_file(folder: Path, name: str) -> Path | None:
    """Find a file below a folder, by a name that a stranger gave; None if there is none.

    A link may lead to another place below the folder, but not out of it.
    """
    place = _find_place(folder, name)
    with contextlib.suppress(OSError, ValueError):
        return place if place is not None and place.is_file() else None
    return None


def _find_place(folder: Path, name: str) -> Path | None:
    """Where a file of this name would be below a folder; None if that is not below it."""
    parts = name.replace("\\", "/").split("/")
    if not name or name.startswith("/") or "\0" in name or ".." in parts or ":" in parts[0]:
        return None
    try:
        root = Path(os.path.realpath(folder))
        place = Path(os.path.realpath(root / name))
        return place if place.is_relative_to(root) else None
    except (OSError, ValueError):
        return None


def read_limited(place: Path, limits: ServeLimits) -> bytes:
    """Read a file that is no larger than the body of a request may be.

    Raises:
        RefusedError: It is larger, or cannot be read.
    """
    try:
        with open_regular(place) as file:
            data = file.read(limits.body_bytes + 1)
    except (OSError, ValueError) as error:
        message = f"the image {place.name[:100]!r} must be readable, got {type(error).__name__}."
        raise refuse(422, message, "file") from error
    if len(data) > limits.body_bytes:
        message = (
            f"the image {place.name[:100]!r} must have at most {limits.body_bytes / MIB:g} MiB. "
            f"Make it smaller, or start the server with --set limits.body_mib=N."
        )
        raise refuse(413, message, "body")
    return data


async def _answer(
    service: Service, request: Request, images: Sequence[_TaskImage], options: dict[str, Any]
) -> list[Answer]:
    uploads = tuple(each.upload for each in images if each.upload is not None)
    if not uploads:
        return []
    size = sum(len(upload.data) for upload in uploads)
    request.state.take(size)
    try:
        return await service.answer_each(request, PredictRequest(uploads=uploads, **options))
    finally:
        request.state.take(-size)


def _describe(
    model: dict[str, Any], regions: Sequence[list[dict[str, Any]]], errors: dict[int, str]
) -> dict[str, Any]:
    version = version_of(model)
    results = []
    for number, made in enumerate(regions):
        result: dict[str, Any] = {"result": made, "model_version": version}
        if (score := mean_score(made)) is not None:
            result["score"] = score
        if number in errors:
            result["error"] = errors[number]
        results.append(result)
    return {"results": results, "model_version": version}
