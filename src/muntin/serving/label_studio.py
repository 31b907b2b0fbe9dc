# SPDX-License-Identifier: Apache-2.0
"""The machine-learning backend of Label Studio: `/setup`, and `/predict` with tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

if TYPE_CHECKING:
    from muntin.serving.service import Service


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the routes of the backend."""


async def predict_tasks(service: Service, request: Request, asked: dict[str, Any]) -> Response:
    """Predict the tasks of a request."""
    raise NotImplementedError
