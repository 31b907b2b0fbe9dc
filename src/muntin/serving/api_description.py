# SPDX-License-Identifier: Apache-2.0
"""What `/openapi.json` says beyond the routes themselves: bodies, refusals, and the token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from fastapi import FastAPI

from muntin.serving.gate import is_open
from muntin.serving.serve_settings import ServeSettings, is_loopback
from muntin.untrusted import read_regular

PARTS: dict[str, Any] = yaml.safe_load(read_regular(Path(__file__).with_name("openapi.yaml")))
"""Parts of the description by name: bodies, refusals, and what they share."""

_OF_BODIES = (400, 404, 408, 413, 415, 422, 429, 500, 503, 504)
_READERS = ("predict", "explain", "infer", "setup", "webhook")
"""Last words of the paths of routes that read a body."""


class DescribedApi(FastAPI):
    """An application whose description holds its refusals, and the token if it asks for one."""

    settings: ServeSettings

    def openapi(self) -> dict[str, Any]:
        """Describe the routes; made once."""
        if self.openapi_schema is None:
            described = super().openapi()
            parts = described["components"] = {"schemas": {"Error": PARTS["error"]}}
            if self.settings.token:
                parts["securitySchemes"] = PARTS["schemes"]
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
            answers["503"] = {"description": PARTS["refusals"][503]}
            statuses.discard(503)
        if self.settings.token and not is_open(path):
            operation["security"] = [{name: []} for name in PARTS["schemes"]]
            statuses.add(401)
        if is_loopback(self.settings.host) and not self.settings.token:
            statuses.add(403)
        for status in sorted(statuses):
            answers[str(status)] = {
                "description": PARTS["refusals"][status],
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
                **({"headers": PARTS["wait"]} if status in (429, 503) else {}),
            }
