# SPDX-License-Identifier: Apache-2.0
"""The HTTP application: routes of its own, and those of the protocols that it speaks."""

from __future__ import annotations

import contextlib
import mimetypes
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from muntin._version import __version__
from muntin.serving import inference_protocol, label_backend
from muntin.serving.api_description import PARTS, DescribedApi
from muntin.serving.batching import RefusedError
from muntin.serving.explanations import Explainer
from muntin.serving.gate import Gate
from muntin.serving.serve_settings import ServeSettings
from muntin.serving.service import Service
from muntin.serving.uploads import PredictRequest, read_request, refuse
from muntin.staging import list_json

PAGE = Path(__file__).parent / "page"

# An explanation is a page with a script of its own: it may run, and reach nothing of the server.
_EXPLANATION_POLICY = (
    "sandbox allow-scripts; default-src 'none'; img-src data: blob:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; font-src data:"
)


def create_app(settings: ServeSettings, service: Service | None = None) -> FastAPI:
    """Build the application; its lifespan starts and stops the worker.

    Args:
        settings: What is served, and how.
        service: The service of `settings`, for a caller that watches it; made if left out.

    Examples:
        ``uvicorn.run(create_app(ServeSettings(models=name_models(["runs/cells"]))))``
    """
    chosen = Service(settings) if service is None else service

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await chosen.worker.start()
        try:
            yield
        finally:
            await chosen.worker.stop()

    app = DescribedApi(
        title="muntin",
        version=__version__,
        description="Predictions of trained models, as `muntin predict --json` gives them.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # to an address that the client made up
    )
    app.settings = settings
    _add_errors(app)
    _add_predictions(app, chosen)
    _add_models(app, chosen)
    _add_pages(app, chosen)
    inference_protocol.add_routes(app, chosen)
    label_backend.add_routes(app, chosen)
    app.add_middleware(Gate, service=chosen)
    return app


def error_response(error: RefusedError) -> JSONResponse:
    """Answer by an error: its reason as JSON, and when to try again."""
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
    if error.status == 408:  # the rest of its body need not be waited for
        headers["Connection"] = "close"
    return JSONResponse({"error": str(error)}, error.status, headers=headers)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        request.scope["muntin.refused"] = error.reason
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        text = {
            404: f"there is no {request.url.path[:200]!r}; see /docs",
            405: f"{request.url.path[:200]!r} does not answer {request.method}; see /docs",
        }.get(error.status_code, str(error.detail))
        return JSONResponse({"error": text}, error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return JSONResponse({"error": str(error)[:1000]}, 422)

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it


def _add_predictions(app: FastAPI, service: Service) -> None:
    explainer = Explainer()

    @app.post("/predict", openapi_extra=PARTS["image_body"])
    async def predict(request: Request) -> Response:
        """Predict one or several images.

        The answer is the JSON of `muntin predict --json`. Options may be in the form, in the JSON,
        or in the address: `?model=cells&threshold=0.5`; not with different values in both. Without
        `model` the first one answers; the header `X-Model` names the one that did. A JSON body with
        `tasks` is a request of Label Studio.
        """
        async with service.admitted(request):
            asked = await read_request(request, service.limits, service.find_model)
            if isinstance(asked, dict):
                return await label_backend.predict_tasks(
                    service, request, {**dict(request.query_params), **asked}
                )
            text = "".join(list_json(await service.answer(request, asked)))
            name = service.find_model(asked.model)["name"]
        return Response(text, media_type="application/json", headers={"X-Model": name})

    @app.post("/explain", openapi_extra=PARTS["image_body"], response_class=HTMLResponse)
    async def explain(request: Request) -> Response:
        """Explain the prediction of one image: the page of `muntin explain`, as one HTML file.

        It is Chinese where the header Accept-Language begins with zh, else English.
        """
        async with service.admitted(request):
            asked = await read_request(request, service.limits, service.find_model)
            if not isinstance(asked, PredictRequest) or len(asked.uploads) != 1:
                message = "an explanation is of one image, got another number. Send one."
                raise refuse(422, message)
            source = service.source(service.find_model(asked.model)["name"])
        chinese = request.headers.get("accept-language", "").lower().startswith("zh")
        page = await explainer.explain(source.path, asked.uploads[0], "zh" if chinese else "en")
        return HTMLResponse(page, headers={"Content-Security-Policy": _EXPLANATION_POLICY})


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/models")
    async def models() -> list[dict[str, Any]]:
        """List the models, the default first: task, classes, image size, threshold, version."""
        names = [model.name for model in service.settings.models]
        return [service.worker.models[name] for name in names if name in service.worker.models]

    @app.get("/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        """Describe one model."""
        return service.find_model(name)

    @app.post("/models/{name}/reload")
    async def reload(name: str) -> dict[str, Any]:
        """Load a model again; its present version answers until the new one is ready."""
        service.find_model(name)
        return await service.worker.reload(service.source(name))


def _add_pages(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> Response:
        """Tell whether requests are answered: 200, or 503 while models are loaded."""
        failures = service.worker.failures
        state = "UP" if service.ready else "DRAINING" if service.draining else "STARTING"
        content = {"status": state, **({"failures": failures} if failures else {})}
        return JSONResponse(content, 200 if service.ready else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Give counts and times in the text format of Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return FileResponse(PAGE / "index.html")

    @app.get("/explanation", include_in_schema=False)
    async def explanation() -> Response:
        policy = {"Content-Security-Policy": _EXPLANATION_POLICY}
        return FileResponse(PAGE / "explanation.html", headers=policy)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return FileResponse(PAGE / "docs.html")

    # Systems name other types, with which a browser does not run a module.
    mimetypes.add_type("text/javascript", ".js")
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
