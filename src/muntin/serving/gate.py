# SPDX-License-Identifier: Apache-2.0
"""What every request passes: who may ask, request ids, headers, the log, and counts."""

from __future__ import annotations

import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from muntin.serving.settings import is_loopback

if TYPE_CHECKING:
    from muntin.serving.service import Service

LOGGER = logging.getLogger("muntin.serve")

OPEN_PATHS = ("/", "/docs", "/openapi.json", "/health")
"""Paths without a token: the page, which asks for it, and what load balancers ask."""

_OPEN_FOLDERS = ("/page/", "/v2/health/")
_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_REQUEST_ID = re.compile(r"[\w.:-]{1,100}", re.ASCII)


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
        begun = time.monotonic()
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        given = headers.get("x-request-id", "")
        number = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(message, number)
            await send(message)

        refusal = self._judge(scope["path"], headers)
        try:
            if refusal is None:
                await self._app(scope, receive, sending)
            else:
                await _refuse(sending, *refusal)
        except Exception:
            status = status or 500
            LOGGER.exception("request %s failed", number)
            raise
        finally:
            self._note(scope, number, status, time.monotonic() - begun)

    def _judge(self, path: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """Status and reason of a refusal; None for a request that may pass."""
        settings = self._settings
        if is_loopback(settings.host) and not settings.token:
            # A page of another site may not ask through a name that leads to this machine.
            name = re.sub(r":\d*$", "", headers.get("host", "localhost"))
            if not is_loopback(name):
                return 403, f"the host must be this machine, got {name[:100]!r}"
        if not settings.token or path in OPEN_PATHS or path.startswith(_OPEN_FOLDERS):
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        known = hmac.compare_digest(token.strip().encode(), settings.token.encode())
        if scheme.lower() == "bearer" and known:
            return None
        return 401, "a token must be sent as Authorization: Bearer TOKEN"

    def _note(self, scope: Scope, number: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self._service.metrics.request(route, status, seconds)
        if reason := scope.get("muntin.refused"):
            self._service.metrics.refused(reason)
        if self._settings.log == "none":
            return
        path = scope["path"][:200]
        if self._settings.log == "json":
            values = {
                "time": time.time(),
                "request": number,
                "method": scope["method"],
                "path": path,
                "status": status,
                "ms": round(1000 * seconds, 1),
            }
            LOGGER.info("%s", json.dumps(values))
        else:
            shown = ascii(path)[1:-1]
            LOGGER.info(
                "%s %s %s %d %.1f ms", number, scope["method"], shown, status, 1000 * seconds
            )


def _add_headers(message: Message, number: str) -> None:
    given = {name.lower() for name, _ in message["headers"]}
    message["headers"] = [
        *message["headers"],
        (b"x-request-id", number.encode()),
        *((n.encode(), v.encode()) for n, v in _HEADERS.items() if n.encode() not in given),
    ]


async def _refuse(send: Any, status: int, text: str) -> None:  # noqa: ANN401 (of ASGI)
    headers = [(b"content-type", b"application/json")]
    headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    body = json.dumps({"error": text}).encode()
    await send({"type": "http.response.body", "body": body})
