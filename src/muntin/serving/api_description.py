# SPDX-License-Identifier: Apache-2.0
"""What `/openapi.json` says beyond the routes themselves: bodies, refusals, and the token."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from muntin.serving.gate import is_open
from muntin.serving.serve_settings import ServeSettings, is_loopback

_OPTIONS = {
    "model": {"type": "string", "description": "Its name; the first model if left out."},
    "threshold": {"type": "number", "minimum": 0, "maximum": 1},
    "tta": {"type": "boolean", "description": "Predict the mirrored image too."},
    "tile": {"type": "string", "description": "A side in pixels, or auto."},
}
_FILES = {
    "type": "array",
    "items": {"type": "string", "format": "binary"},
    "description": "Image files; the name of the field does not matter.",
}
_ENCODED = {
    "type": "array",
    "items": {"type": "string", "format": "byte"},
    "description": 'Base64, or {"name": ..., "data": base64}.',
}
_FILE = {"schema": {"type": "string", "format": "binary"}}

IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "description": "Images, in the body itself. Nothing is fetched from an address.",
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"image": _FILES, **_OPTIONS}}
            },
            "image/jpeg": _FILE,
            "application/octet-stream": _FILE,
            "application/json": {
                "schema": {"type": "object", "properties": {"images": _ENCODED, **_OPTIONS}}
            },
        },
    }
}
"""What a route adds to its description that takes images."""

_REFUSALS = {
    400: "No JSON, or no form, although the head says so.",
    401: "The token is missing or wrong.",
    403: "The host is another machine's, or a page of another site asks.",
    404: "There is no such model.",
    408: "The body did not come in time.",
    409: "The model cannot be loaded again; the version before stays.",
    413: "Too large: the body, pixels, or the number of images.",
    415: "A format of images that is not read, or a body that is compressed.",
    422: "An image that is broken, or options that do not suit the model.",
    429: "There is no place; Retry-After says in how many seconds there may be one.",
    500: "The server failed; its log tells more.",
    503: "Models are loaded, or the server stops.",
    504: "There was no answer in time.",
}
_OF_BODIES = (400, 404, 408, 413, 415, 422, 429, 500, 503, 504)
_READERS = ("predict", "explain", "infer", "setup", "webhook")
"""Last words of the paths of routes that read a body."""

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string", "description": "What must hold, and what came."}},
}
_WAIT = {
    "Retry-After": {
        "schema": {"type": "integer"},
        "description": "Seconds after which the server may be asked again.",
    }
}
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "basic": {"type": "http", "scheme": "basic", "description": "The token as the password."},
}


class DescribedApi(FastAPI):
    """An application whose description holds its refusals, and the token if it asks for one."""

    settings: ServeSettings

    def openapi(self) -> dict[str, Any]:
        """Describe the routes; made once."""
        if self.openapi_schema is None:
            described = super().openapi()
            parts = described["components"] = {"schemas": {"Error": _ERROR}}
            if self.settings.token:
                parts["securitySchemes"] = _SCHEMES
            for path, operations in described["paths"].items():
                for method, operation in operations.items():
                    self._add_refusals(path, method, operation)
        return self.openapi_schema or {}

    def _add_refusals(self, path: str, method: str, operation: dict[str, Any]) -> None:
        answers = operation["responses"]
        # Of FastAPI, with a body that no route gives.
        answers.pop("422", None)
        last = path.rpartition("/")[2]
        statuses = set(_OF_BODIES if method == "post" and last in _READERS else ())
        if operation.get("parameters"):  # a model
            statuses |= {404, 503}
        if last == "reload":
            statuses.add(409)
        if last in ("health", "ready"):
            answers["503"] = {"description": _REFUSALS[503]}
            statuses.discard(503)
        if self.settings.token and not is_open(path):
            operation["security"] = [{name: []} for name in _SCHEMES]
            statuses.add(401)
        if is_loopback(self.settings.host) and not self.settings.token:
            statuses.add(403)
        for status in sorted(statuses):
            answers[str(status)] = {
                "description": _REFUSALS[status],
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
                **({"headers": _WAIT} if status in (429, 503) else {}),
            }
