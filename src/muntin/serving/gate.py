# SPDX-License-Identifier: Apache-2.0
"""What every request passes: who may ask, request ids, headers, the log, and counts."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import logging
import re
import secrets
import time
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from muntin.serving.serve_settings import is_loopback

if TYPE_CHECKING:
    from muntin.serving.service import Service

LOGGER = logging.getLogger("muntin.serve")

BEGUN = "muntin.begun"
"""Key of a scope: the time (`time.monotonic`) at which the head of the request was there."""

OPEN_PATHS = ("/", "/docs", "/explanation", "/openapi.json", "/health")
"""Paths without a token: the page, which asks for it, and what load balancers ask."""

_OPEN_FOLDERS = ("/page/", "/v2/health/")
_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_REQUEST_ID = re.compile(r"[\w.:-]{1,100}", re.ASCII)


def is_open(path: str) -> bool:
    """Whether a path is answered without a token."""
    return path in OPEN_PATHS or path.startswith(_OPEN_FOLDERS)


class Gate:
    """Middleware around the application."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service
        self._settings = service.settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[BEGUN] = begun = time.monotonic()
        if scope["method"] == "HEAD":  # the connection leaves the body out
            scope = {**scope, "method": "GET"}
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        number = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        status = 0
        service = self._service
        counted = not service.draining
        service.accepted += counted

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(message, number)
            await send(message)

        refusal = self._judge(scope["method"], scope["path"], headers)
        try:
            if refusal is None:
                await self._app(scope, receive, sending)
            else:
                await _refuse(*refusal)(scope, receive, sending)
        except asyncio.CancelledError:  # the time to finish is over, or a second signal came
            if not status:
                stopping = _refuse(503, "the server stops before the answer is there")
                await stopping(scope, receive, sending)
        except Exception:
            LOGGER.exception("request %s failed", number)
            if status:  # half an answer, which must not look whole
                raise
            failed = _refuse(500, f"the server failed; its log tells more of {number}")
            await failed(scope, receive, sending)
        finally:
            service.accepted -= counted
            self._note(scope, number, status, time.monotonic() - begun)

    def _judge(self, method: str, path: str, headers: Headers) -> tuple[int, str] | None:
        """Status and reason of a refusal; None for a request that may pass."""
        settings = self._settings
        if is_loopback(settings.host) and not settings.token:
            # A page of another site may not ask through a name that leads to this machine.
            name = re.sub(r":\d*$", "", headers.get("host", "")) or "localhost"
            if not is_loopback(name):
                return 403, f"the host must be this machine, got {name[:100]!r}"
            other = headers.get("sec-fetch-site", "") in ("cross-site", "same-site")
            if other and method not in ("GET", "HEAD"):
                return 403, "a page of another site may not ask"
        if not settings.token or is_open(path):
            return None
        token = _token_of(headers.get("authorization", ""))
        if hmac.compare_digest(token.encode(), settings.token.encode()):
            return None
        return 401, "a token must be sent as Authorization: Bearer TOKEN"

    def _note(self, scope: Scope, number: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        metrics = self._service.metrics
        metrics.requests.labels(route, str(status)).inc()
        metrics.seconds.labels(route).observe(seconds)
        if reason := scope.get("muntin.refused"):
            metrics.refused.labels(reason).inc()
        if self._settings.log == "none":
            return
        values = {
            "request": number,
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": status,
            "ms": round(1000 * seconds, 1),
        }
        shown = {**values, "path": ascii(values["path"])[1:-1]}
        text = "%(request)s %(method)s %(path)s %(status)d %(ms).1f ms"
        LOGGER.info(text, shown, extra={"values": values})


def _token_of(authorization: str) -> str:
    """What a client sends as its token; as a password, from those that have no other way."""
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() == "basic":
        with contextlib.suppress(ValueError):
            decoded = base64.b64decode(token.strip(), validate=True).decode()
            return decoded.partition(":")[2]
    return token.strip() if scheme.lower() == "bearer" else ""


def _add_headers(message: Message, number: str) -> None:
    headers = MutableHeaders(scope=message)
    headers["x-request-id"] = number
    for name, value in HEADERS.items():
        headers.setdefault(name, value)


def _refuse(status: int, text: str) -> JSONResponse:
    sign_in = {"www-authenticate": "Bearer"} if status == 401 else None
    return JSONResponse({"error": text}, status, sign_in)
