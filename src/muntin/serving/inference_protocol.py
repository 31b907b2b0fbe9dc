# SPDX-License-Identifier: Apache-2.0
"""The Open Inference Protocol, version 2, over REST: `/v2/...`.

Clients of Triton, KServe and OpenVINO Model Server ask by it. What they send goes the way of
`/predict`: the same limits, batches and deadlines.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from muntin._version import __version__
from muntin.errors import unknown_name
from muntin.serving.api_description import PARTS
from muntin.serving.batching import RefusedError
from muntin.serving.protocol_request import INPUT, LENGTH_HEADER, InferRequest, read_infer
from muntin.serving.protocol_tensors import (
    LABELS,
    check_maps,
    encode_outputs,
    make_tensors,
    outputs_of,
)
from muntin.serving.uploads import read_body, refuse

if TYPE_CHECKING:
    from muntin.serving.service import Service

EXTENSIONS = ("binary_tensor_data", "model_configuration")
_BINARY: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the routes of the protocol."""
    _add_server(app, service)
    _add_models(app, service)
    _add_infer(app, service)


def _add_server(app: FastAPI, service: Service) -> None:
    @app.get("/v2")
    async def server_metadata() -> dict[str, Any]:
        """Name the server, and the extensions of the protocol that it speaks."""
        return {"name": "muntin", "version": __version__, "extensions": EXTENSIONS}

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        """Tell that the server runs."""
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready() -> Response:
        """Tell whether requests are answered: 200, or 503."""
        status = 200 if service.ready else 503
        return JSONResponse({"live": True, "ready": service.ready}, status)

    @app.post("/v2/repository/index")
    async def repository_index() -> list[dict[str, str]]:
        """List the models and their state."""
        found = []
        for source in service.settings.models:
            model = service.worker.models.get(source.name)
            entry = {"name": source.name, "version": model["version"] if model else ""}
            state = "READY" if model and service.ready else "UNAVAILABLE"
            reason = service.worker.failures.get(source.name, "")
            found.append({**entry, "state": state, "reason": reason})
        return found


def _find(service: Service, name: str, version: str) -> dict[str, Any]:
    model = service.find_model(name)
    if version not in ("", model["version"]):
        text = unknown_name(f"version of model {name!r}", version[:100], [model["version"]])
        raise refuse(404, text, "model")
    return model


def _add_models(app: FastAPI, service: Service) -> None:
    async def metadata(name: str, version: str = "") -> dict[str, Any]:
        """Describe the inputs and outputs of a model; sides that vary are -1."""
        model = _find(service, name, version)
        return {
            "name": name,
            "versions": [model["version"]],
            "platform": f"muntin_{model['task']}",
            "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
            "outputs": [
                {"name": each.name, "datatype": each.datatype, "shape": each.shape}
                for each in outputs_of(model)
            ],
        }

    async def model_ready(name: str, version: str = "") -> Response:
        """Tell whether a model answers: 200, or 503."""
        _find(service, name, version)
        status = 200 if service.ready else 503
        return JSONResponse({"name": name, "ready": service.ready}, status)

    async def config(name: str, version: str = "") -> dict[str, Any]:
        """Describe a model as Triton's configuration of a model does."""
        model = _find(service, name, version)
        # Batches are made of what waits, so the first side is part of the dimensions.
        return {
            "name": name,
            "platform": f"muntin_{model['task']}",
            "backend": "muntin",
            "max_batch_size": 0,
            "input": [{"name": INPUT, "data_type": "TYPE_STRING", "dims": [-1]}],
            "output": [
                {
                    "name": each.name,
                    "data_type": f"TYPE_{each.datatype}".replace("BYTES", "STRING"),
                    "dims": each.shape,
                }
                for each in outputs_of(model)
            ],
        }

    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        app.get(path)(metadata)
        app.get(f"{path}/ready")(model_ready)
        app.get(f"{path}/config")(config)


def _add_infer(app: FastAPI, service: Service) -> None:
    async def infer(request: Request, name: str, version: str = "") -> Response:
        """Predict images: files (BYTES), or red, green and blue of their pixels (UINT8)."""
        model = _find(service, name, version)
        async with service.admitted(request):
            body = await read_body(request, service.limits)
            header = request.headers.get(LENGTH_HEADER)
            known = [each.name for each in outputs_of(model)]
            # Long lists of numbers take a while: in a thread, so that other requests go on.
            asked = await asyncio.to_thread(read_infer, body, header, known, service.limits)
            del body
            if LABELS in asked.outputs:
                pixels = [upload.pixels for upload in asked.predict.uploads]
                check_maps(pixels, binary=asked.outputs[LABELS])
            texts = await _answer(service, request, name, asked)
        head, tail = await asyncio.to_thread(_write, model, texts, asked)
        if not any(asked.outputs.values()):
            return Response(head, media_type="application/json")
        length = {LENGTH_HEADER: str(len(head))}
        return Response(head + tail, headers=length, media_type="application/octet-stream")

    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        app.post(f"{path}/infer", openapi_extra=PARTS["infer_body"], responses=_BINARY)(infer)


async def _answer(service: Service, request: Request, name: str, asked: InferRequest) -> list[str]:
    predict = replace(asked.predict, model=name)
    try:
        async with asyncio.timeout(asked.seconds):
            return await service.answer(request, predict)
    except TimeoutError:
        text = f"no answer within the {asked.seconds:g} s that the request has"
        raise RefusedError(504, text, reason="deadline") from None


def _write(model: dict[str, Any], texts: list[str], asked: InferRequest) -> tuple[bytes, bytes]:
    head = {"model_name": model["name"], "model_version": model["version"]}
    if asked.number is not None:
        head["id"] = asked.number
    tensors = make_tensors(model, texts, asked.outputs)
    return encode_outputs(head, tensors, asked.outputs)
